"""What is shown and written of files is data."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from rich.text import Text
from traces_by_hand import trace_by_hand

from precision_probe.cli.common import Format, complain, say, table_console, write
from precision_probe.cli.console import PlainConsole, csv_cell, json_text, lines
from precision_probe.cli.tables.style import plain_table

HOSTILE = ["\x1b]0;owned\x07", "\x1b[2J\x1b[1;1H", "\x9b31m", "\r\x08", "\u202egnp.exe", "\ud800", "\x7f"]
SHOWN = ["\\x1b]0;owned\\x07", "\\x1b[2J\\x1b[1;1H", "\\x9b31m", "\\r\\x08", "\\u202egnp.exe", "\\ud800", "\\x7f"]


@pytest.mark.parametrize(("text", "shown"), [*zip(HOSTILE, SHOWN, strict=True)])
def test_nothing_that_a_terminal_obeys_is_printed(text, shown, capsys):
    table = plain_table(f"title {text}", f"heading {text}")
    table.add_row(f"cell {text}")
    table.add_row(Text(f"styled {text}"))
    table_console(200, wide=False).print(table)
    say(False, f"said {text}")
    complain(f"Error: {text}")
    captured = capsys.readouterr()
    printed = captured.out + captured.err
    assert all(line.isprintable() for line in printed.split("\n"))
    assert "styled " in printed  # of which rich leaves some characters out
    for where in ("title", "heading", "cell", "said", "Error:"):
        assert f"{where} {shown}" in printed


@pytest.mark.parametrize("text", ["[bold red]x[/]", "[/]", "[link=http://a]b", ":skull:", "\\[x]"])
def test_markup_is_text(text, capsys):
    table = plain_table(text, text)
    table.add_row(text)
    table_console(200, wide=False).print(table)
    table_console(200, wide=False).print(text)
    complain(text)
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count(text) == 5


def test_a_cell_is_one_line(capsys):
    table = plain_table(None, "name")
    table.add_row("a\nexit code 0: all is well")
    table_console(200, wide=False).print(table)
    assert "a\\nexit code 0" in capsys.readouterr().out


def test_line_ends_of_messages_stay():
    assert lines("a\nb\x1b") == "a\nb\\x1b"


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_formulas_are_neutralised_in_csv(text, capsys):
    table = pd.DataFrame({"name": [text], text: [1.5]})
    write(table, Format.csv)
    read = pd.read_csv(io.StringIO(capsys.readouterr().out))
    for cell in (read["name"][0], read.columns[1]):
        assert cell.startswith("'")
        assert cell[1:].replace("\\t", "\t").replace("\\r", "\r") == text


@pytest.mark.parametrize("value", ["-3.5", "+1e-3", "-inf", "a=b", "message", "", "1o", -3.5, -7, None])
def test_what_is_no_formula_stays(value):
    assert csv_cell(value) == value


@pytest.mark.parametrize("text", [*HOSTILE, "Å ok", "😀\x85", '"quoted"\n'])
def test_json_says_the_same_and_is_printable(text):
    said = json_text(json.dumps({"name": text}, ensure_ascii=False))
    assert said.isprintable()
    assert json.loads(said) == {"name": text}


def test_errors_of_a_hostile_trace(run, tmp_path):
    """Names of blocks, units and titles from a file, through the verbs."""
    from traces_by_hand import ATTRIBUTES, trace_by_hand

    evil = "\x1b[31m[bold]=1"
    hostile = trace_by_hand(blocks=json.dumps(["products.0", evil]), model_name=evil)
    for mode in ("propagated", "isolated"):
        for name in ("float64", "float16"):
            for array in hostile.tree[f"{mode}/{name}"].data_vars.values():
                array.attrs["units"] = evil
    path = hostile.save(tmp_path / "evil.h5")
    other = trace_by_hand(model_name=ATTRIBUTES["model_name"]).save(tmp_path / "other.h5")
    for arguments in (
        ("errors", path),
        ("errors", path, "--format", "csv"),
        ("errors", path, "--format", "json"),
        ("explain", path),
        ("compare", path, other),
    ):
        result = run(*arguments)
        assert result.exit_code in (0, 1, 2)
        printed = result.stdout + result.stderr
        assert "[31m[bold]=1" in printed or arguments[0] == "explain"  # which has units of its own
        assert all(line.isprintable() for line in printed.split("\n"))


# Where what is printed goes, in processes of their own


def errors_into(path, stdout, kind="table"):
    """The verb errors, its output going somewhere."""
    command = [sys.executable, "-m", "precision_probe", "errors", str(path), "--format", kind]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def trace_file(tmp_path_factory):
    return trace_by_hand().save(tmp_path_factory.mktemp("trace") / "by_hand.h5")


@pytest.mark.parametrize("kind", ["table", "csv"])
def test_a_pipe_that_nobody_reads_ends_it_quietly(trace_file, kind):
    reader, writer = os.pipe()
    os.close(reader)
    done = errors_into(trace_file, writer, kind)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_device_is_said_once(trace_file):
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = errors_into(trace_file, full)
    assert done.returncode == 3
    assert done.stderr.startswith("Error: What was to be printed cannot be written (No space left on device).")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_file_that_is_full_is_not_taken_for_stdout(capfd):
    with (
        contextlib.suppress(OSError),  # as it is closed
        Path("/dev/full").open("w", buffering=1, encoding="utf-8") as full,
        pytest.raises(OSError, match="No space"),
    ):
        PlainConsole(width=20, file=full).print("words")
    print("still there")
    assert capfd.readouterr().out == "still there\n"
