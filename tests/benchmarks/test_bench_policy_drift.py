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
    shown = (tmp_path / "bench_policy_drift.md").read_text(encoding="utf-8").splitlines()[2:]
    assert [line.split(" | ")[:2] for line in shown] == [[f"| {system}", name] for system in record for name in names]
    for line, row in zip(shown, record["water"]["drift"], strict=False):
        assert float(line.split(" | ")[2]) == pytest.approx(row["drift"], rel=0.05)


def test_differences_stand_beside_drifts_where_they_were_measured():
    exact = {"precision": "float64", "drift": 1.0, "confidence": 2.0, "fluctuation": 3.0, "difference": None}
    near = exact | {"precision": "float32", "difference": 0.01, "difference_confidence": 0.02, "detectable": 0.035}
    far = near | {"precision": "float16", "difference": -0.25}
    lines = bench_policy_drift.markdown({"ice": {"drift": [exact, near, far]}}).splitlines()
    assert [line.count("|") for line in lines] == [9] * 5
    assert lines[2].endswith("| – | – | – |")
    assert lines[3].endswith("| 0.01 | ± 0.02 | no; 0.035 would have been |")
    assert lines[4].endswith("| -0.25 | ± 0.02 | yes |")


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
