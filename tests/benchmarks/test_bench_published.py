"""bench_published.py: its figures follow from what they are said to follow from, and the table has them."""

import json

import bench_published
import numpy as np
import published_run
import published_times
import pytest
import torch
from runs import ROOT
from systems import architecture

from precision_probe.models.building import build


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    assert bench_published.main(["--smoke", "--quiet", "-o", str(folder)]) == 0
    found = json.loads((folder / "bench_published-cpu-smoke.json").read_text(encoding="utf-8"))
    assert published_run.markdown(found) == (folder / "bench_published-cpu-smoke.md").read_text(encoding="utf-8")
    return found


def test_forces_vanish_by_symmetry_and_float32_has_some(record):
    rows = {row["displacement"]: row for row in record["diamond"] if row["model"] == "demo"}
    perfect, rounded = rows["0"], rows["0, rounded to float32"]
    assert perfect["largest_force"] < 1e-12 < 1e-6 < perfect["largest_error"] < 1e-3
    assert 0.1 < rounded["ratio"] < 10
    assert rows["0.05"]["ratio"] < 1e-4
    for row in record["diamond"]:
        assert row["ratio"] == pytest.approx(row["largest_error"] / row["largest_force"], rel=1e-4)


def test_sums_overflow_where_they_are_larger_than_float16_holds(record):
    for row in record["loss"]:
        assert (row["sum_half"] == "inf") == (row["sum"] > 65520)
        assert float(row["mean_half"]) == pytest.approx(row["mean"], rel=0.01, abs=1e-7)
        assert row["sum"] == pytest.approx(row["n"] * row["rms"] ** 2, rel=1e-4)
    assert 2**15 <= record["overflow"]["finite_up_to"] <= 2**16  # of which the mean square is 1
    assert record["overflow"]["gradients"] == {"sum": "finite", "mean": "finite", "root of the sum": "zero"}


def test_the_largest_relative_error_is_where_a_component_is_small(record):
    for row in record["near_zero"]:
        assert abs(row["there"]) < row["rms"]
        assert row["largest_relative"] > row["largest_of_rms"] > row["rel_l2"]


def test_nothing_that_is_timed_fails_on_a_cpu(record):
    for part in ("backends", "linears", "conv_tp"):
        assert [row["failed"] for row in record[part]] == [None] * len(record[part])
    assert [row["run"] for row in record["backends"]] == ["eager", "graph"]
    (row,) = record["linears"]
    assert row["ratio"]["median"] == pytest.approx(row["float32"]["median"] / row["mixed"]["median"], rel=1e-4)
    assert 0 < row["share"] < 1
    assert row["alone"] > 0
    assert row["bound"] == pytest.approx(1 / (1 - row["share"]), rel=1e-4)
    assert [row["precision"] for row in record["conv_tp"]] == ["float32", "bfloat16", "float16"]


def test_that_something_cannot_be_timed_is_a_result(monkeypatch):
    def fails(*_):
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(published_times, "reference_calls", fails)
    model = build(architecture(0, True), seed=0)
    (row,) = published_times.conv_rows({"e3nn": model}, torch.device("cpu"), [8], 1)
    assert row["failed"] == "RuntimeError: no kernel"
    assert row["forward"] is None


def test_diamond_is_diamond():
    atoms = published_run.diamond(2, 0.0)
    assert len(atoms) == 64
    nearest = [np.sort(row)[1:5] for row in atoms.get_all_distances(mic=True)]
    np.testing.assert_allclose(nearest, 3.567 * 3**0.5 / 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--half", "float32"], "--half must be bfloat16"),
        (["--rounds", "0"], "--rounds"),
        (["--atoms", "x"], "--atoms"),
    ],
)
def test_wrong_options_are_refused(options, words, capsys):
    assert bench_published.main(options) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("bench_published*.json")), ids=str)
def test_committed_tables_are_those_of_the_committed_results(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    assert published_run.markdown(record) == path.with_suffix(".md").read_text(encoding="utf-8")
