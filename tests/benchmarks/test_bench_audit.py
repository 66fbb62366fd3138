"""What an audit takes beside the bare model: a smoke run, the committed tables, and what is refused at once."""

import json

import audit_run
import bench_audit
import pytest
from runs import ROOT


def test_smoke_run(tmp_path, capsys):
    assert bench_audit.main(["--smoke", "--precisions", "float32", "-o", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "bench_audit-cpu-smoke.json").read_text(encoding="utf-8"))
    assert record["schema"] == audit_run.SCHEMA
    assert record["precisions"] == ["float64", "float32"]
    single, batch = record["cases"]
    assert (single["n_atoms"], batch["n_atoms"]) == (8, 16)
    assert batch["n_edges"] == 2 * single["n_edges"]
    for case in record["cases"]:
        kept = {kind: each["bytes_kept"] for kind, each in case["kinds"].items()}
        nothing, shared, per_block, both, tensors = (kept[kind.words] for kind in audit_run.KINDS)
        assert nothing == 0 < shared <= per_block < both < tensors
        for each in case["kinds"].values():
            assert each["ratio"]["median"] == pytest.approx(each["ms"]["median"] / case["floor_ms"]["median"], rel=1e-4)
    assert record["files"][0]["errors_bytes"] < record["files"][0]["tensors_bytes"]
    text = (tmp_path / "bench_audit-cpu-smoke.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert text == audit_run.markdown(record)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("bench_audit*.json")), ids=str)
def test_committed_tables_are_those_of_the_committed_results(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    assert audit_run.markdown(record) == path.with_suffix(".md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rounds", "0"], "--rounds must be 1 or more; got 0"),
        (["--batch", "64"], "not written as ATOMSxNUMBER"),
        (["--sizes", "many"], "not a list of numbers"),
        (["--model", "my.model"], "go together"),
    ],
)
def test_what_is_wrong_is_refused_at_once(options, says, capsys):
    assert bench_audit.main(options) == 2
    assert says in capsys.readouterr().err
