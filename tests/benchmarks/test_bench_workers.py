"""How much faster workers are: a smoke run, and what is refused at once."""

import json

import bench_workers
import pytest


@pytest.mark.slow
def test_smoke_run(tmp_path, capsys):
    assert bench_workers.main(["--smoke", "-o", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "bench_workers-cpu.json").read_text(encoding="utf-8"))
    assert [row["workers"] for row in record["rows"]] == [0, 2]
    for row in record["rows"]:
        assert row["seconds"] > 0
        assert row["of_first"] == {"same_names": True, "complete": True, "rel_l2": 0}
    text = (tmp_path / "bench_workers-cpu.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert text == bench_workers.table(record)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--workers", "two"], "--workers 'two' is not a list of numbers"),
        (["--structures", "0"], "--structures must be 1 or more"),
        (["-o", "there"], "there"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, monkeypatch, capsys, options, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_text("a file")
    assert bench_workers.main(options) == 2
    assert says in capsys.readouterr().err
