"""Options from TOML files: they are what the command line would have said, which wins, and what was written says so."""

import json
import subprocess
import sys

import pytest

import precision_probe as pp

FINE, EXCEEDED = 0, 1


@pytest.fixture
def trace_file(folder, model_file, water_file, audit):
    assert audit(model_file, water_file, "-o", "trace.h5", "-q").exit_code == FINE
    return folder / "trace.h5"


def test_a_project_sets_options_and_the_command_line_wins(folder, trace_file, run):
    def rows(*arguments):
        result = run("errors", trace_file, *arguments)
        assert (result.exit_code, result.stderr) == (FINE, "")
        return json.loads(result.stdout)

    everything = rows("--format", "json")
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "x"\n[tool.precision-probe.errors]\nformat = "json"\nblock = ["model"]\neps = 0.5\n'
    )
    set_there = rows()
    assert set_there == rows("--block", "model", "--eps", "0.5", "--format", "json")
    assert {row["block"] for row in set_there} == {"model"} < {row["block"] for row in everything}
    assert {row["block"] for row in rows("--block", "readouts.*")} == {"readouts.0"}
    assert rows("--eps", "1e-12") == [row for row in everything if row["block"] == "model"]


def test_a_file_that_is_named_replaces_the_project(folder, model_file, water_file, run):
    (folder / "pyproject.toml").write_text("[tool.precision-probe.audit]\nprecisions = 'bfloat16'\n")
    text = "[audit]\nprecisions = 'float16'\nblocks = 'readouts.*'\nmodes = 'propagated'\ntime = false\nquiet = false\n"
    (folder / "my.toml").write_text(text + "tolerance = 'forces=1e-30'\n")
    result = run("--config", "my.toml", "audit", model_file, water_file, "-o", "a.h5", "--tolerance", "forces=1e9")
    assert result.exit_code == FINE, result.output
    said = "Options from my.toml: precisions, blocks, modes, time, quiet, tolerance"
    assert said in " ".join(result.stderr.split())
    with pp.open_trace("a.h5") as trace:
        assert trace.attributes["precisions"] == ["float64", "float16"]
        assert trace.attributes["blocks"] == ["readouts.0"]
        assert trace.attributes["configuration"] == {
            "file": "my.toml",
            "options": {
                "precisions": "float16",
                "blocks": "readouts.*",
                "modes": "propagated",
                "time": False,
                "quiet": False,
                "tolerance": "forces=1e-30",
            },
        }
    assert run("--config", "my.toml", "audit", model_file, water_file, "-q").exit_code == EXCEEDED


def test_without_a_file_nothing_is_repeated(trace_file):
    with pp.open_trace(trace_file) as trace:
        assert "configuration" not in trace.attributes


def test_a_policy_says_what_a_file_asked_for(folder, model_file, water_file, run):
    (folder / "my.toml").write_text("[recommend]\ntolerance = 'forces=1e-2'\nallow = 'float16'\ndevice = 'cpu'\n")
    result = run("--config", "my.toml", "recommend", model_file, water_file, "-o", "p.json", "-q")
    assert result.exit_code == FINE, result.output
    policy = pp.Policy.load("p.json")
    assert policy.evidence["configuration"]["options"] == {
        "tolerance": "forces=1e-2",
        "allow": "float16",
        "device": "cpu",
    }
    assert dict(policy.tolerance) == {"forces": 1e-2}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[audit", ["is not TOML"]),
        ("audit = 3", ["3", "a table of options"]),
        ("[audits]\n", ["'audits'", "no verb", "audit"]),
        ("[audit]\nmodel = 'x.model'", ["'model'", "no option", "tolerance"]),
        ("[audit]\nbatch_edges = 5", ["'batch_edges'", "batch-edges"]),
        ("[audit]\nforce = true", ["'force'", "each time"]),
        ("[audit]\nscheduler = 'tcp://x:1'", ["'scheduler'", "each time"]),
        ("[audit]\nprecisions = ['float32', 'float16']", ["'precisions'", "as on the command line"]),
        ("[audit]\ntolerance = {forces = 1e-3}", ["'tolerance'", "as on the command line"]),
    ],
)
def test_what_a_file_cannot_set_is_refused_by_name(folder, run, refused, text, words):
    (folder / "my.toml").write_text(text)
    refused(run("--config", "my.toml", "audit", "absent.model"), "my.toml", *words)


def test_a_file_that_is_absent_or_no_text_is_refused(folder, run, refused):
    refused(run("--config", "absent.toml", "audit", "absent.model"), "absent.toml", "cannot be read")
    (folder / "my.toml").write_bytes(b"\xff\xfe")
    refused(run("--config", "my.toml", "audit", "absent.model"), "my.toml is not TOML")


def test_a_file_is_read_without_torch(folder):
    (folder / "pyproject.toml").write_text("[tool.precision-probe.audit]\nmodes = 'sideways'\n")
    code = (
        "import sys, typer.testing\n"
        "from precision_probe.cli.main import app\n"
        "result = typer.testing.CliRunner().invoke(app, ['audit'])\n"
        "print(result.exit_code, 'torch' in sys.modules, 'sideways' in result.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["2", "False", "True"]
