"""What capturing takes beside other tools: a smoke run, the committed tables, and what is refused at once."""

import json

import bench_capture
import capture_run
import pytest
import torch
from runs import ROOT

from precision_probe.models.blocks import select_blocks
from precision_probe.models.loading import load_model


def test_smoke_run(tmp_path, capsys):
    hooks_before = dict(torch.nn.modules.module._global_forward_hooks)
    assert bench_capture.main(["--smoke", "-o", str(tmp_path)]) == 0
    assert torch.nn.modules.module._global_forward_hooks == hooks_before
    record = json.loads((tmp_path / "bench_capture-cpu-smoke.json").read_text(encoding="utf-8"))
    assert record["schema"] == capture_run.SCHEMA
    (case,) = record["cases"]
    found = case["tools"]
    n_blocks = len(select_blocks(load_model("demo")[0], None))
    own = [each["captured"] for tool, each in found.items() if tool.startswith("precision-probe")]
    assert own[0]["memory"] > own[1]["memory"] > 0
    assert {key: own[0][key] for key in ("modules", "outputs", "gradients")} == {
        key: own[1][key] for key in ("modules", "outputs", "gradients")
    }
    forward, gradients = found["forward hooks"]["captured"], found["forward hooks and gradients"]["captured"]
    assert own[0]["modules"] == forward["modules"] == n_blocks
    assert forward["gradients"] == 0 < gradients["gradients"] <= gradients["outputs"] == forward["outputs"]
    assert all(found[tool]["fails"] == "not asked for" for tool in ("msprobe", "torchlens", "nnsight"))
    text = (tmp_path / "bench_capture-cpu-smoke.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert text == capture_run.markdown(record)


def test_a_tool_that_fails_is_reported(monkeypatch):
    def refuse(*_):
        raise TypeError("not this model\nfor reasons")

    monkeypatch.setitem(capture_run.TOOLS, "nnsight", refuse)
    found = capture_run.measured("nnsight", "demo", "demo", 1)
    assert found == {"fails": "TypeError: not this model"}


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("bench_capture*.json")), ids=str)
def test_committed_tables_are_those_of_the_committed_results(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    assert capture_run.markdown(record) == path.with_suffix(".md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rounds", "0"], "--rounds must be 1 or more; got 0"),
        (["--model", "my.model"], "go together"),
    ],
)
def test_what_is_wrong_is_refused_at_once(options, says, capsys):
    assert bench_capture.main(options) == 2
    assert says in capsys.readouterr().err
