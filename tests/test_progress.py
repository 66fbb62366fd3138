"""progress.py: the items as they are, and how far they are where somebody can see it."""

import contextlib
import functools
import os
import sys
import time

import pytest
from rich.console import Console

from precision_probe import progress


@pytest.fixture
def terminal(monkeypatch):
    """As if stderr were a terminal."""
    monkeypatch.setattr(progress, "Console", functools.partial(Console, force_terminal=True, width=80))


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("items", [[], [3, 1, 2], ("a",), range(5)])
def test_the_items_come_one_by_one_in_order(terminal, items, wanted):
    assert list(progress.shown(items, "counting", progress=wanted)) == list(items)


def test_they_come_as_they_are_asked_for(terminal):
    shown = iter(progress.shown([1, 2], "counting", progress=True))
    assert next(shown) == 1
    assert list(shown) == [2]


def test_a_terminal_has_a_bar_on_stderr_if_it_is_wanted(terminal, capfd):
    list(progress.shown(range(3), "counting structures", progress=True))
    out, err = capfd.readouterr()
    assert "counting structures" in err
    assert out == ""


def test_nothing_is_written_if_it_is_not_wanted(terminal, capfd):
    list(progress.shown(range(3), "counting structures", progress=False))
    assert capfd.readouterr() == ("", "")


# Where stderr is no terminal


@pytest.fixture
def pipe(monkeypatch):
    """Nothing that rich takes for a terminal."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(progress, "_SOON", 0.0)


def test_a_file_or_pipe_has_a_line_at_the_start_and_at_each_tenth(capfd, pipe):
    assert list(progress.shown(range(30), "counting", progress=True)) == list(range(30))
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == ["counting: 0 of 30"] + [f"counting: {n} of 30, 0 s" for n in range(3, 31, 3)]


def test_few_items_have_a_line_each_and_leaps_one(capfd, pipe):
    list(progress.shown("abc", "counting", progress=True))
    assert [line.split(",")[0] for line in capfd.readouterr().err.splitlines()] == [
        f"counting: {n} of 3" for n in range(4)
    ]
    with progress.counted(1000, "leaping", progress=True) as told:
        for n_done in (1, 99, 500, 550, 1000):
            told(n_done)
    assert [line.split()[1] for line in capfd.readouterr().err.splitlines()] == ["0", "500", "1000"]


def test_short_work_has_a_line_at_the_start_alone(capfd, pipe, monkeypatch):
    monkeypatch.setattr(progress, "_SOON", 60.0)
    assert list(progress.shown(range(30), "counting", progress=True)) == list(range(30))
    assert capfd.readouterr().err.splitlines() == ["counting: 0 of 30"]


def test_one_item_that_takes_long_has_lines_too(capfd, pipe, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS", 0.05)
    with progress.counted(1, "waiting", progress=True):
        time.sleep(0.3)
    first, *later = capfd.readouterr().err.splitlines()
    assert first == "waiting: 0 of 1"
    assert 2 <= len(later) <= 6
    assert all(line.startswith("waiting: 0 of 1") for line in later)
    time.sleep(0.1)
    assert capfd.readouterr().err == ""  # its thread has ended


def test_a_file_or_pipe_gets_nothing_if_it_is_not_wanted_or_there_is_nothing_to_do(capfd, pipe):
    list(progress.shown(range(3), "counting", progress=False))
    list(progress.shown([], "counting", progress=True))
    assert capfd.readouterr() == ("", "")


def test_work_goes_on_where_nobody_reads_how_far_it_is(monkeypatch, pipe):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as broken:
        monkeypatch.setattr(sys, "stderr", broken)
        assert list(progress.shown(range(5), "counting", progress=True)) == list(range(5))
        monkeypatch.undo()
        with contextlib.suppress(BrokenPipeError):
            broken.close()
