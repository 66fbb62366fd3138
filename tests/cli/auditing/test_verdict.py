"""What an audit is judged to be, from errors that no run made, and the reports of it for programs."""

import json
import math
import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pandas as pd
import pytest
import typer
from runs import ROOT

from precision_probe.cli.auditing.finish import Shown, finish
from precision_probe.cli.auditing.verdict import judge
from precision_probe.cli.common import EXCEEDED, FAILED, Shape
from precision_probe.exceptions import InputError, ProbeError

LIMITS = {"energy": 1e-3, "forces": 1e-2, "stress": 1e-4}


@pytest.fixture
def trace(monkeypatch):
    """Of a model named like a tag, that is right in float32, and wrong or not finite in float16."""
    summary = pd.DataFrame(
        {
            "energy": [0.0, 1e-5, 0.5],
            "forces": [0.0, 2e-5, math.nan],
            "nonfinite": [0, 0, 3],
            "time": [1.0, 0.5, math.nan],
            "time_iqr": [0.0, 0.1, math.nan],
        },
        index=pd.Index(["float64", "float32", "float16"], name="precision"),
    )
    monkeypatch.setattr("precision_probe.summary", lambda trace: summary)
    return SimpleNamespace(attributes={"model_name": "<m & \x1b>", "failures": []}, tables=(), modes=())


@pytest.mark.parametrize(
    ("limits", "failure", "code", "reason"),
    [
        (None, None, 0, "No tolerance was given, so none was exceeded."),
        ({"energy": 1.0}, None, 0, "Every error is within the tolerance."),
        ({"stress": 1.0}, None, 0, "Nothing was judged."),
        ({"forces": 1.0}, None, EXCEEDED, "Exceeded: float16 forces."),  # NaN is within no tolerance
        (LIMITS, None, EXCEEDED, "Exceeded: float16 energy, float16 forces."),
        (LIMITS, ProbeError("It stopped."), FAILED, "It stopped."),
    ],
)
def test_exit_codes_have_a_reason(trace, limits, failure, code, reason):
    verdict = judge(trace, limits, failure)
    assert (verdict.exit_code, verdict.reason) == (code, reason)


def test_a_document_says_all_and_nothing_that_is_no_json(trace, capsys):
    with pytest.raises(typer.Exit) as ended:
        finish(trace, judge(trace, LIMITS), ["So."], None, Shown(Shape.json, quiet=True))
    assert ended.value.exit_code == EXCEEDED
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert json.loads(out, parse_constant=pytest.fail) == {
        "trace": None,
        "model": "<m & \x1b>",
        "tolerance": {"energy": {"limit": 1e-3, "unit": "eV/atom"}, "forces": {"limit": 1e-2, "unit": "eV/Å"}},
        "tolerance_is_guide": False,
        "not_judged": {"stress": "no structure is periodic in all directions"},
        "precisions": [
            {
                "precision": "float32",
                "is_within": True,
                "exceeded": [],
                "errors": {"energy": 1e-5, "forces": 2e-5},
                "nonfinite": 0,
                "time_vs_float64": 0.5,
                "worst_parts": {},
                "worst_block": None,
            },
            {
                "precision": "float16",
                "is_within": False,
                "exceeded": ["energy", "forces"],
                "errors": {"energy": 0.5, "forces": None},
                "nonfinite": 3,
                "time_vs_float64": None,
                "worst_parts": {},
                "worst_block": None,
            },
        ],
        "failures": [],
        "notes": ["So."],
        "exit": {"code": 1, "reason": "Exceeded: float16 energy, float16 forces."},
    }


def keys(value):
    """The keys of a document, of a list those of its first item."""
    if isinstance(value, list):
        return keys(value[0]) if value else None
    return {key: keys(item) for key, item in value.items()} if isinstance(value, dict) else None


def test_the_document_has_the_keys_that_the_page_says(trace, capsys):
    finish(trace, judge(trace, {"energy": 1.0}), [], None, Shown(Shape.json))
    found = keys(json.loads(capsys.readouterr().out))
    page = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    (example,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    said = keys(json.loads(example))
    assert list(found) == list(said)
    assert list(found["precisions"]) == list(said["precisions"])
    assert found["exit"] == said["exit"]
    assert all(f"`{key}`" in page for key in found if key not in ("model", "precisions", "notes"))


@pytest.mark.parametrize("failure", [None, ProbeError("It \x1b stopped & <fell>.")])
def test_a_junit_report_has_a_test_for_each_precision_and_limit(trace, failure, tmp_path):
    path = tmp_path / "report.xml"
    with pytest.raises((typer.Exit, ProbeError)):
        finish(trace, judge(trace, LIMITS, failure), [], None, Shown(junit=path, quiet=True))
    suite = ET.parse(path).getroot()
    counts = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    is_whole = failure is None
    assert counts == {"tests": 5 if is_whole else 6, "failures": 2, "errors": 0 if is_whole else 1, "skipped": 1}
    found = {(test.get("classname"), test.get("name")): [part.tag for part in test] for test in suite}
    assert found == {
        ("float32", "energy"): ["system-out"],
        ("float32", "forces"): ["system-out"],
        ("float16", "energy"): ["failure"],
        ("float16", "forces"): ["failure"],
        ("all precisions", "stress"): ["skipped"],
    } | ({} if is_whole else {("audit", "complete"): ["error"]})
    messages = {part.get("message") for part in suite.iter("failure")}
    assert messages == {
        "error 5.00e-01, tolerance 1.00e-03 eV/atom",
        "error nan, tolerance 1.00e-02 eV/Å",
    }
    assert suite.get("name") == "precision-probe audit <m & \\x1b>"
    if not is_whole:
        assert suite.find("testcase/error").get("message") == "It \\x1b stopped & <fell>."


def test_a_junit_report_that_cannot_be_written_is_said(trace, tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        finish(trace, judge(trace, {"energy": 1.0}), [], None, Shown(junit=tmp_path / "absent" / "r.xml", quiet=True))
