"""The command line as a whole: usage, help, and that it starts at once."""

import os
import subprocess
import sys
import textwrap

import pytest

from precision_probe.version import __version__

BAD_INPUT = 2


MISUSES = [["errors"], ["errors", "x.h5", "--format", "xml"], ["errors", "x.h5", "--eps", "-1"], ["audit", "--nope"]]
MISUSES += [["guess"], ["inspect", "a", "b", "c"], ["audit", "-p"], []]


@pytest.mark.parametrize("arguments", MISUSES)
def test_usage_errors(folder, arguments, run, names):
    result = run(*arguments)
    assert result.exit_code == BAD_INPUT
    assert result.output
    assert names(folder) == []


# In a process of its own


HEAVY = ("torch", "mace", "e3nn", "xarray", "pandas", "numpy", "scipy", "ase", "matplotlib")


def of_help(*arguments):
    """What is printed, which heavy packages were imported for it, and the CPU time of the process, s."""
    code = f"""
        import atexit, sys, time

        @atexit.register
        def report():
            print("loaded:", *sorted(set({HEAVY}) & set(sys.modules)))
            print(time.process_time())

        from precision_probe.cli.main import main

        sys.argv = ["precision-probe", *{arguments!r}]
        main()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    *text, loaded, seconds = done.stdout.splitlines()
    return "\n".join(text), loaded.split()[1:], float(seconds)


def test_help_comes_at_once():
    texts, loaded, seconds = zip(*(of_help("--help") for _ in range(3)), strict=True)
    assert all("Exit codes" in text for text in texts)
    assert set(map(tuple, loaded)) == {()}
    assert min(seconds) < 1.0


@pytest.mark.parametrize(
    "verb", ["audit", "inspect", "errors", "explain", "compare", "sweep", "recommend", "apply", "convert"]
)
def test_help_of_a_verb_imports_nothing_heavy(verb):
    text, loaded, _ = of_help(verb, "--help")
    assert f"Usage: precision-probe {verb}" in text
    assert ("--tolerance" in text) == (verb in ("audit", "sweep", "recommend"))
    assert loaded == []


def test_the_command_that_is_installed_is_this_one():
    done = subprocess.run(["precision-probe", "--help"], capture_output=True, text=True, check=True, timeout=60)
    assert "Exit codes" in done.stdout


def test_runs_as_a_module():
    environment = {**os.environ, "COLUMNS": "100"}
    command = [sys.executable, "-m", "precision_probe", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment)
    assert all(verb in done.stdout for verb in ("audit", "inspect", "errors", "Exit codes"))


WRONG = {
    "the model does not exist": ["absent.model", "demo"],
    "the model is a folder": [".", "demo"],
    "the structures do not exist": ["demo", "absent.xyz"],
    "the device is none": ["demo", "demo", "--device", "abacus"],
    "a precision is none": ["demo", "demo", "-p", "float33"],
    "a tolerance is none": ["demo", "demo", "--tolerance", "speed=1"],
    "a mode is none": ["demo", "demo", "--modes", "sideways"],
    "the output cannot be": ["demo", "demo", "-o", "absent/trace.h5"],
}


def test_what_is_wrong_is_said_before_torch_is_imported(tmp_path):
    """All in one process, which has no torch by its end; and what is being loaded is said first."""
    code = f"""
        import sys
        from typer.testing import CliRunner
        from precision_probe.cli.main import app

        for arguments in {list(WRONG.values())!r}:
            result = CliRunner().invoke(app, ["audit", *arguments])
            print(result.exit_code, "torch" in sys.modules, *result.stderr.split("\\n")[:2], sep="|")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path)
    for line, (what, arguments) in zip(done.stdout.splitlines(), WRONG.items(), strict=True):
        exit_code, has_torch, *messages = line.split("|")
        assert (int(exit_code), has_torch) == (BAD_INPUT, "False"), what
        if "absent.xyz" in arguments:
            assert messages.pop(0) == "Loading demo…"
        assert messages[0].startswith("Error: "), what


# Before a verb


def test_the_version_is_printed_at_once():
    text, loaded, _ = of_help("--version")
    assert (text, loaded) == (f"precision-probe {__version__}", [])


def test_shells_complete_verbs_and_options():
    for words, expected in (("precision-probe swe", ["sweep"]), ("precision-probe errors --unt", ["--untrusted"])):
        completed = {
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
            "_PRECISION_PROBE_COMPLETE": "complete_bash",
        }
        done = subprocess.run(
            ["precision-probe"], capture_output=True, text=True, timeout=60, env={**os.environ, **completed}
        )
        assert done.stdout.split() == expected
