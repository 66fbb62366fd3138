"""How an audit's memory is measured: a smoke run, the search for the largest, and the committed tables."""

import json

import bench_memory
import memory_run
import pytest
import torch
from runs import ROOT, out_of_memory
from systems import architecture

from precision_probe.models.building import build
from precision_probe.models.graphs import build_graph


@pytest.mark.slow
def test_smoke_run(tmp_path, capsys):
    assert bench_memory.main(["--smoke", "--few", "1", "--many", "2", "-o", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "bench_memory-cpu-smoke.json").read_text(encoding="utf-8"))
    assert record["schema"] == memory_run.SCHEMA
    assert [row["has_file"] for row in record["host"]] == [True]
    for row in record["host"]:
        assert 2**27 < row["few_bytes"] < 2**33
        assert row["ratio"] == pytest.approx(row["many_bytes"] / row["few_bytes"], rel=1e-5)
    assert record["sizes"] == []
    text = (tmp_path / "bench_memory-cpu-smoke.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert text == memory_run.markdown(record)


def test_sizes_are_those_that_fit(monkeypatch):
    """On a CPU, where more edges than a cell of 16 atoms has are said to be too many."""
    model = build(architecture(0, smoke=True), seed=0)
    most = build_graph(memory_run.supercell(16), model)
    out_of_memory(monkeypatch, model, {"float64": most.n_edges})
    args = bench_memory.arguments(["--atoms", "24"])
    bare, *audits = memory_run.sizes(model, torch.device("cpu"), args, lambda text: None)
    assert [(row["kind"], row["offload"]) for row in audits] == [
        (kind, offload) for kind in memory_run.KINDS for offload in (False, True)
    ]
    for row in (bare, *audits):
        assert (row["n_atoms"], row["n_edges"]) == (16, most.n_edges)


@pytest.mark.parametrize("guess", [10, 900, 1000, 1001, 5000])
def test_the_largest_is_found_to_a_tenth_wherever_it_begins(guess):
    found, n_bytes = memory_run.largest(guess, lambda n: 7 * n if n <= 1000 else None)
    assert 1000 / 1.1 - 1 < found <= 1000
    assert n_bytes == 7 * found


def test_nothing_fits():
    assert memory_run.largest(1000, lambda n: None) == (0, 0)


@pytest.mark.parametrize("n_atoms", [8, 64, 1000, 20_000])
def test_supercells_are_about_as_large_as_asked_for(n_atoms):
    atoms = memory_run.supercell(n_atoms)
    assert len(atoms) == pytest.approx(n_atoms, rel=0.1)
    lengths = atoms.cell.lengths()
    assert lengths.max() <= 2 * lengths.min()


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("bench_memory*.json")), ids=str)
def test_committed_tables_are_those_of_the_committed_results(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    assert memory_run.markdown(record) == path.with_suffix(".md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--atoms", "7"], "--atoms must be 8 or more, a cell of SiC; got 7"),
        (["--few", "10", "--many", "10"], "--many more than that"),
        (["--few", "0"], "--few must be 1 or more"),
    ],
)
def test_what_is_wrong_is_refused_at_once(options, says, capsys):
    assert bench_memory.main(options) == 2
    assert says in capsys.readouterr().err
