"""--log-level: what is logged is on stderr, a line each, beside progress; afterwards logging is as it was."""

import functools
import logging
import re

import pytest
from rich.console import Console

from precision_probe import progress
from precision_probe.cli.logs import LogLevel, logged

LINE = re.compile(r"\d\d:\d\d:\d\d (DEBUG|INFO|WARNING|ERROR) precision_probe\.[a-z_.]+: .+")
AUDIT = ("--blocks", "readouts.*", "--modes", "propagated", "-p", "float32")


def state():
    """All that a run might leave changed."""
    loggers = [logging.getLogger(name) for name in (None, "precision_probe", "precision_probe.models.loading")]
    return [(each.level, list(each.handlers), each.propagate, each.disabled) for each in loggers]


@pytest.fixture(autouse=True)
def unchanged():
    before = state()
    yield
    assert state() == before


def logged_by(result):
    """Level and text of each line of the log among what stands on stderr."""
    return [match.group(1) for match in map(LINE.fullmatch, result.stderr.splitlines()) if match]


def test_the_library_sets_up_nothing_but_a_null_handler():
    handlers = logging.getLogger("precision_probe").handlers
    assert [type(each) for each in handlers] == [logging.NullHandler]


@pytest.mark.parametrize(("level", "found"), [("debug", {"DEBUG", "INFO"}), ("info", {"INFO"}), ("error", set())])
def test_messages_from_a_level_on(model_file, water_file, run, level, found):
    result = run("--log-level", level, "audit", model_file, water_file, "-q", *AUDIT)
    assert result.exit_code == 0, result.output
    assert set(logged_by(result)) == found
    assert all(LINE.fullmatch(line) for line in result.stderr.splitlines())  # for the rest it is quiet
    assert ("MACE of " in result.stderr) == bool(found)
    assert ("1 of its blocks run in float64, float32" in result.stderr) == bool(found)
    assert ("structure 0 begun" in result.stderr) == ("DEBUG" in found)


def test_lines_of_progress_stay_whole(model_file, water_file, run):
    result = run("--log-level", "debug", "audit", model_file, water_file, *AUDIT)
    others = [line for line in result.stderr.splitlines() if not LINE.fullmatch(line)]
    assert "2 precisions: 0 of 1" in others
    assert not any("precision_probe." in line for line in others)


def test_each_message_has_its_line_above_a_bar(monkeypatch, capfd):
    monkeypatch.setattr(progress, "Console", functools.partial(Console, force_terminal=True, width=80))
    with logged(LogLevel.info):
        for n in progress.shown(range(3), "counting", progress=True):
            logging.getLogger("precision_probe.x").info("message %d", n)
    _, err = capfd.readouterr()
    erased = re.sub(r"[^\n]*\r\x1b\[2K", "", err)  # by which rich takes its bar away
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", erased).splitlines()
    assert [line[9:] for line in lines if "message" in line] == [
        f"INFO precision_probe.x: message {n}" for n in range(3)
    ]
    assert "counting" in err


def test_a_configuration_sets_it_and_the_command_line_wins(folder, model_file, water_file, run):
    (folder / "pyproject.toml").write_text('[tool.precision-probe]\nlog-level = "debug"\n')
    arguments = ("audit", model_file, water_file, "-q", *AUDIT)
    assert "DEBUG" in logged_by(run(*arguments))
    assert set(logged_by(run("--log-level", "info", *arguments))) == {"INFO"}


@pytest.mark.parametrize("value", ["loud", 3])
def test_what_is_no_level_is_refused(folder, run, refused, value):
    (folder / "my.toml").write_text(f"log-level = {value!r}\n")
    refused(run("--config", "my.toml", "errors", "x.h5"), "my.toml", "log-level", repr(value), "debug, info")
    assert run("--log-level", value, "errors", "x.h5").exit_code == 2


def test_a_run_that_fails_leaves_no_handler(run, refused):
    refused(run("--log-level", "info", "inspect", "absent.model"), "absent.model")


def test_nothing_in_a_message_is_obeyed_by_a_terminal(capsys):
    with logged(LogLevel.info):
        logging.getLogger("precision_probe.x").info("%s", "\x1b]0;owned\x07\nsecond")
    assert capsys.readouterr().err.endswith("INFO precision_probe.x: \\x1b]0;owned\\x07\\nsecond\n")
