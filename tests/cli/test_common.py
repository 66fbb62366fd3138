"""What the verbs share: exit codes, and how tables and messages are written."""

import json
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import typer

from precision_probe.analysis.pairs import By
from precision_probe.cli.common import (
    Format,
    Resolved,
    complain,
    exit_codes,
    say,
    table_console,
    write,
)
from precision_probe.exceptions import InputError, ProbeError
from precision_probe.interruption import INTERRUPTIONS

# exit codes


ERRORS = [
    (InputError("no such file"), 2, "Error: no such file"),
    (ProbeError("interrupted after 3"), 3, "Error: interrupted after 3"),
    (KeyboardInterrupt(), 3, "Error: Interrupted. Nothing was written."),
    (ValueError("deep down"), 3, "Error: The run failed: ValueError: deep down. See --traceback for where."),
]


@pytest.mark.parametrize("traceback", [False, True])
@pytest.mark.parametrize(("error", "code", "message"), ERRORS)
def test_an_error_is_a_line_on_stderr_and_an_exit_code(capsys, monkeypatch, error, code, message, traceback):
    monkeypatch.setattr(INTERRUPTIONS, "_kept", lambda: "Nothing was written.")  # whatever ran in this process before
    with pytest.raises(typer.Exit) as caught, exit_codes(traceback):
        raise error
    assert caught.value.exit_code == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip().splitlines()[-1] == message
    assert ("Traceback" in err) == traceback


def test_what_is_no_error_passes(capsys):
    with exit_codes(False):
        pass
    with pytest.raises(typer.Exit) as caught, exit_codes(False):
        raise typer.Exit(1)  # a tolerance was exceeded
    assert caught.value.exit_code == 1
    assert capsys.readouterr() == ("", "")


# printing


TABLE = pd.DataFrame(
    {"name": ["forces, Å", "b"], "error": [1 / 3, np.inf], "n": np.asarray([2**40, 0]), "is": [True, False]}
)


def test_json_has_every_digit_and_null_for_what_is_no_number(capsys):
    write(TABLE.assign(missing=[np.nan, -np.inf]), Format.json)
    rows = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert rows == [
        {"name": "forces, Å", "error": 1 / 3, "n": 2**40, "is": True, "missing": None},
        {"name": "b", "error": None, "n": 0, "is": False, "missing": None},
    ]


def test_csv_has_every_digit(capsys):
    write(TABLE, Format.csv)
    assert capsys.readouterr().out.splitlines() == [
        "name,error,n,is",
        f'"forces, Å",{1 / 3!r},{2**40},True',
        "b,inf,0,False",
    ]


def test_a_console_is_never_narrower_than_its_table(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert table_console(120, wide=False).width == 120
    monkeypatch.setenv("COLUMNS", "300")
    assert table_console(120, wide=False).width == 300


def test_messages_go_to_stderr_as_they_are(capsys):
    say(False, "[bold] is [no markup]")
    say(True, "quiet")
    complain("x" * 300)  # no line breaks
    assert capsys.readouterr() == ("", "[bold] is [no markup]\n" + "x" * 300 + "\n")


def test_errors_are_resolved_by_what_the_analysis_knows():
    assert [each.value for each in Resolved] == list(get_args(By))
