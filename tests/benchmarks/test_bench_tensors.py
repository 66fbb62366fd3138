"""What keeping tensors in a file takes: a smoke run, the committed tables, and what is refused at once."""

import json

import bench_tensors
import pytest
import tensors_run
from runs import ROOT


def test_smoke_run(tmp_path, capsys):
    given = ["--smoke", "--precisions", "float16", "--repeat", "3", "--folder", str(tmp_path), "-o", str(tmp_path)]
    assert bench_tensors.main(given) == 0
    record = json.loads((tmp_path / "bench_tensors-cpu-smoke.json").read_text(encoding="utf-8"))
    assert record["schema"] == tensors_run.SCHEMA
    case = record["case"]
    assert (case["n_atoms"], case["repeat"]) == (8, 3)
    assert 0 < case["file_bytes"] < case["bytes"] + 2**20
    for one, other in tensors_run.RATIOS:
        ratio = case["seconds"][one]["median"] / case["seconds"][other]["median"]
        assert case["ratios"][f"{one} ÷ {other}"]["median"] == pytest.approx(ratio, rel=1e-4)
    text = (tmp_path / "bench_tensors-cpu-smoke.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert text == tensors_run.markdown(record)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bench_tensors-cpu-smoke.json",
        "bench_tensors-cpu-smoke.md",
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("bench_tensors*.json")), ids=str)
def test_committed_tables_are_those_of_the_committed_results(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    assert tensors_run.markdown(record) == path.with_suffix(".md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rounds", "0"], "--rounds must be 1 or more; got 0"),
        (["--repeat", "-1"], "--repeat must be 1 or more; got -1"),
        (["--folder", __file__], "--folder"),
        (["--output", __file__], "--output"),
    ],
)
def test_what_is_wrong_is_refused_at_once(options, says, capsys):
    assert bench_tensors.main(options) == 2
    assert says in capsys.readouterr().err
