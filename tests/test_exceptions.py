"""exceptions.py: what a caller can catch, and what is quoted of other libraries' errors."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import precision_probe as pp
from precision_probe.exceptions import InputError, ProbeError, first_line, printable


def test_what_cannot_be_used_is_an_error_of_the_package_and_a_value_error():
    assert (pp.InputError, pp.ProbeError) == (InputError, ProbeError)
    for caught in (ProbeError, ValueError):
        with pytest.raises(caught, match="message"):
            raise InputError("message")
    assert not issubclass(ProbeError, ValueError)  # what is nobody's input is none


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("short", "short"),
        ("", ""),
        ("  \n ", ""),
        ("\n\n  the first that says something  \nand more", "the first that says something  "),
        ("x" * 500, "x" * 120),
        ("first\r\nsecond", "first"),
    ],
)
def test_first_line(message, expected):
    assert first_line(RuntimeError(message)) == expected


@given(message=st.text())
def test_a_first_line_is_one_line_of_the_message_and_short(message):
    line = first_line(ValueError(message))
    assert line in message
    assert len(line) <= 120
    assert len(line.splitlines()) <= 1


def test_an_error_without_a_message_has_an_empty_first_line():
    assert first_line(RuntimeError()) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("forces, eV/Å³ ≤ 1", "forces, eV/Å³ ≤ 1"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x9b\u202e\ud800\U000e0001", "\\x9b\\u202e\\ud800\\U000e0001"),
        (Path("a\rb"), "a\\rb"),
    ],
)
def test_printable(text, expected):
    assert printable(text) == expected


@given(st.text(alphabet=st.characters()))
def test_what_is_printable_is_one_line_that_a_terminal_only_shows(text):
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)
