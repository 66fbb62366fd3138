"""progress.py: the items as they are, and a bar where somebody can see it."""

import functools

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


def test_a_file_or_pipe_has_none(capfd, monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):  # by which rich takes anything for a terminal
        monkeypatch.delenv(name, raising=False)
    list(progress.shown(range(3), "counting structures", progress=True))
    assert capfd.readouterr() == ("", "")
