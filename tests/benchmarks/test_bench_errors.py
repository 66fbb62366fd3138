"""What errors of large traces take: what is made and measured, the table, and what is refused at once."""

import json
import subprocess
import sys

import bench_errors
import errors_run
import numpy as np
import pytest
from runs import ROOT
from traces_by_hand import trace_by_hand

import precision_probe as pp
from precision_probe.trace.parts.part import Part


def test_smoke_run(tmp_path, capsys, monkeypatch):
    """But for the model that is audited: a trace written by hand is tiled in its place."""

    def make(args, folder):
        errors_run.make_trace(trace_by_hand(), folder / "one.h5", 1e9 * args.size)
        return {"one file": folder / "one.h5"}

    monkeypatch.setattr(bench_errors, "make", make)
    assert bench_errors.main(["--smoke", "--size", "0.001", "-o", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "bench_errors-cpu-smoke.json").read_text(encoding="utf-8"))
    (row,) = record["rows"]
    assert row["bytes"] >= 1e6
    assert row["ratio"] == pytest.approx(row["errors_s"] / row["read_s"], rel=1e-4)
    assert row["peak_bytes"] > row["imports_bytes"] > 0
    text = (tmp_path / "bench_errors-cpu-smoke.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert text == bench_errors.table(record)


def test_traces_are_those_of_the_same_structures_over_and_over(tmp_path):
    trace = trace_by_hand(created="2026-01-01T00:00:00+00:00")
    counts: list[int] = []
    for number in range(2):
        part = Part(number, 2, sum(counts))
        counts.append(errors_run.make_trace(trace, tmp_path / part.file_name, 3e5, part))
    with pp.open_trace(tmp_path) as made:
        assert made.structures.sizes["structure"] == sum(counts) > 100
        owners = made.structures["structure_of_atom"].values
        np.testing.assert_array_equal(owners, np.repeat(np.arange(sum(counts)), made.structures["n_atoms"].values))
        tables = pp.errors(trace), pp.errors(made)
        np.testing.assert_allclose(*(table["rel_l2"] for table in tables), rtol=1e-12)


def test_neither_reading_nor_errors_need_torch():
    code = "import errors_run, sys; import precision_probe.analysis.errors; sys.exit('torch' in sys.modules)"
    folder = ROOT / "benchmarks"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60, cwd=folder).returncode == 0


@pytest.mark.parametrize("options", [["--size", "0"], ["--rounds", "0"], ["--parts", "-1"]])
def test_what_cannot_be_is_refused_at_once(options, capsys):
    assert bench_errors.main(options) == 2
    assert "must be above 0" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("bench_errors*.json")), ids=str)
def test_committed_tables_are_those_of_the_committed_results(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    assert bench_errors.table(record) == path.with_suffix(".md").read_text(encoding="utf-8")
