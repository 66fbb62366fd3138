"""bench_fast.py: every way to take a step is timed, and errors are those of its own forces."""

import json

import bench_fast
import fast_run
import pytest
from runs import ROOT

from precision_probe.policy import Policy, Rule


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fast")
    assert bench_fast.main(["--smoke", "--quiet", "--steps", "1", "-o", str(folder)]) == 0
    return json.loads((folder / "bench_fast-cpu-smoke.json").read_text())


def test_every_way_is_there(record):
    (case,) = record["cases"]
    assert case["failed"] == {}
    assert list(case["ways"]) == [
        fast_run.EXACT,
        "MACECalculator, float32",
        fast_run.NAMES["float64"],
        fast_run.CAST,
        fast_run.NAMES["float32"],
        fast_run.NAMES["digits"],
        fast_run.NAMES["float16"],
    ]
    assert [way["is_ours"] for way in case["ways"].values()] == [False] * 2 + [True] * 5


def test_errors_are_of_their_precision(record):
    errors = {name: way["forces_rel_l2"] for name, way in record["cases"][0]["ways"].items()}
    assert errors[fast_run.NAMES["float64"]] < 1e-13
    assert 1e-8 < errors[fast_run.NAMES["float32"]] < 1e-5 < errors[fast_run.NAMES["float16"]] < 0.1
    assert 1e-8 < errors[fast_run.NAMES["digits"]] < errors[fast_run.NAMES["float32"]]
    assert errors[fast_run.CAST] == pytest.approx(errors["MACECalculator, float32"], rel=0.5)


def test_ratios_are_to_the_fastest_of_the_others(record):
    ways = record["cases"][0]["ways"]
    fastest = min((way for way in ways.values() if not way["is_ours"]), key=lambda way: way["step"]["median"])
    assert fastest["of_fastest"]["median"] == 1
    for way in ways.values():  # of one round
        assert way["of_fastest"]["median"] == pytest.approx(way["step"]["median"] / fastest["step"]["median"], rel=1e-4)


def test_a_way_that_cannot_be_run_is_told_and_the_others_are_timed(monkeypatch, tmp_path, capsys):
    all_makers, wrong = fast_run.makers, Policy((Rule("nowhere", "float32"),))
    kept = fast_run.EXACT, fast_run.NAMES["digits"]
    monkeypatch.setattr(fast_run, "makers", lambda *given: {name: all_makers(*given)[name] for name in kept})
    monkeypatch.setattr(fast_run, "POLICIES", fast_run.POLICIES | {"digits": wrong})
    assert bench_fast.main(["--smoke", "--steps", "1", "-o", str(tmp_path)]) == 0
    (case,) = json.loads((tmp_path / "bench_fast-cpu-smoke.json").read_text())["cases"]
    assert list(case["ways"]) == [fast_run.EXACT]
    assert list(case["failed"]) == [fast_run.NAMES["digits"]]
    assert case["failed"][fast_run.NAMES["digits"]].startswith("InputError: ")
    assert f"| {fast_run.NAMES['digits']} | fails: " in (tmp_path / "bench_fast-cpu-smoke.md").read_text()
    assert "nowhere" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"), [(["--atoms", "many"], "--atoms 'many'"), (["--steps", "0"], "--steps must")]
)
def test_wrong_options_are_refused(options, words, capsys):
    assert bench_fast.main(options) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("bench_fast*.json")), ids=str)
def test_committed_tables_are_those_of_the_committed_results(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    assert fast_run.markdown(record) == path.with_suffix(".md").read_text(encoding="utf-8")
