"""What a probe costs calls that it does not observe: a smoke run, the verdict, and what is refused at once."""

import json

import bench_in_situ
import in_situ_run
import pytest
from runs import ROOT

KINDS = ["bare", "bare again", "limit=0", "every huge"]


def test_smoke_run(tmp_path, capsys):
    assert bench_in_situ.main(["--smoke", "--rounds", "2", "--calls", "1", "-o", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "bench_in_situ-cpu-smoke.json").read_text(encoding="utf-8"))
    assert record["schema"] == in_situ_run.SCHEMA
    assert "--smoke" in record["command"]
    times, ratios = record["calculator"]["ms_per_call"], record["calculator"]["ratio_to_bare"]
    assert list(times) == KINDS
    assert list(ratios) == KINDS[1:]
    assert list(record["hooks_us"]) == KINDS[2:]
    for kind, ratio in ratios.items():
        own, bare = times[kind]["samples"], times["bare"]["samples"]
        assert len(own) == 2
        assert ratio["samples"] == pytest.approx([o / b for o, b in zip(own, bare, strict=True)], rel=1e-4)
    slowest = max(ratios[kind]["median"] for kind in ("limit=0", "every huge"))
    assert record["meets_target"] == (slowest <= 1.01)
    demo, wider = record["weights"].values()
    assert demo["n_parameters"] == 43408
    assert 180_000 < wider["n_parameters"] < 220_000
    assert all(own["us"]["q25"] <= own["us"]["median"] <= own["us"]["q75"] for own in (demo, wider))
    text = (tmp_path / "bench_in_situ-cpu-smoke.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    for kind in KINDS:
        (row,) = (line for line in text.splitlines() if line.startswith(f"| {kind} |"))
        assert f"{times[kind]['median']:.2f}" in row
    assert f"takes {demo['us']['median']:.0f} µs for 43,408 parameters" in text


def test_committed_table_is_that_of_the_committed_results():
    stem = ROOT / "benchmarks" / "results" / "bench_in_situ-cuda"
    record = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    assert in_situ_run.markdown(record) == stem.with_suffix(".md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("noise", "meets", "says"),
    [
        ((0.995, 1.0, 1.005), True, ": met."),
        ((0.995, 1.0, 1.005), False, ": not met."),
        ((0.98, 1.0, 1.005), True, "cannot tell"),
        ((0.995, 1.0, 1.02), False, "cannot tell"),
    ],
)
def test_verdict_needs_ratios_of_bare_calls_within_the_target(noise, meets, says):
    quartiles = dict(zip(("q25", "median", "q75"), noise, strict=True))
    record = {"calculator": {"ratio_to_bare": {"bare again": quartiles}}, "meets_target": meets}
    assert says in in_situ_run.verdict(record)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", "0"], "--rounds"),
        (["--calls", "-1"], "--calls"),
        (["--device", "gpu"], "gpu"),
        (["--output", __file__], "--output"),
    ],
)
def test_bad_options(options, message, tmp_path, capsys):
    assert bench_in_situ.main(["--smoke", "--quiet", "-o", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
