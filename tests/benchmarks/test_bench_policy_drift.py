"""The energy drift under policies: a smoke run, the committed results in the docs, and what is refused."""

import json

import bench_policy_drift
import pytest
from runs import ROOT


def test_drift_of_policies(tmp_path):
    for system in ("water", "water again"):
        bench_policy_drift.main([system, "demo", "demo@0", "--smoke", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "bench_policy_drift.json").read_text(encoding="utf-8"))
    assert list(record) == ["water", "water again"]
    assert record["water"] == record["water again"]
    names = ["float64", "float32", "float32 after the embeddings", "float16 after the embeddings"]
    assert [row["precision"] for row in record["water"]["drift"]] == names
    assert (tmp_path / "bench_policy_drift.md").read_text(encoding="utf-8") == bench_policy_drift.markdown(record)


def test_drifts_of_policies_in_the_docs_are_the_committed_ones():
    record = json.loads((ROOT / "benchmarks" / "results" / "bench_policy_drift.json").read_text(encoding="utf-8"))
    assert bench_policy_drift.markdown(record) in (ROOT / "docs" / "policies.md").read_text("utf-8")
    assert {(result["steps"], result["n_runs"]) for result in record.values()} == {(1000, 4)}


@pytest.mark.parametrize("structure", ["demo", "demo@99", "absent.xyz@0"])
def test_drift_refuses(tmp_path, structure):
    with pytest.raises(SystemExit) as stopped:
        bench_policy_drift.main(["x", "demo", structure, "--smoke", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder_for_results(tmp_path, capsys):
    path = tmp_path / "file"
    path.write_text("kept")
    with pytest.raises(SystemExit) as stopped:
        bench_policy_drift.main(["x", "demo", "demo@0", "--smoke", "--out", str(path)])
    assert stopped.value.code == 2
    assert "--out" in capsys.readouterr().err
    assert path.read_text() == "kept"
