"""Tables in a terminal of 80, 120 and 200 columns: no row is broken, and no digit is lost."""

import contextlib
import fcntl
import os
import pty
import struct
import sys
import termios
import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from rich.cells import cell_len

import precision_probe as pp
from precision_probe.cli.auditing.finish import Shown, finish
from precision_probe.cli.auditing.verdict import judge
from precision_probe.cli.common import table_console
from precision_probe.cli.inspect import print_inspection
from precision_probe.cli.main import app
from precision_probe.cli.tables.comparison import comparison_table, provenance_table
from precision_probe.cli.tables.search import recommendation_table, sweep_table
from precision_probe.cli.tables.style import FULL_WIDTH, WIDTH, plain_table
from precision_probe.policy import Policy, Rule

WIDTHS = (80, 120, 200)
WHOLE = 400  # more than any table needs
HINT = "--wide shows all"


@pytest.fixture
def shown(monkeypatch):
    """What a function prints in a terminal of so many columns: lines, without trailing spaces."""
    for name in ("COLUMNS", "LINES", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")

    def call(columns, function):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        pieces = []
        reader = threading.Thread(target=lambda: pieces.extend(_until_closed(ours)))
        reader.start()
        with contextlib.ExitStack() as stack:
            for number in (0, 1):  # rich asks them how wide the terminal is
                stack.callback(os.close, saved := os.dup(number))
                stack.callback(os.dup2, saved, number)
                os.dup2(theirs, number)
            with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patched:
                patched.setattr(sys, "stdout", terminal)
                function()
        reader.join()
        os.close(ours)
        text = b"".join(pieces).decode()
        for code in ("\x1b[1m", "\x1b[2m", "\x1b[0m"):
            text = text.replace(code, "")
        assert "\x1b" not in text
        return [line.rstrip() for line in text.splitlines()]

    return call


def _until_closed(handle):
    with contextlib.suppress(OSError):  # Linux says so that nobody has the other end
        while piece := os.read(handle, 2**16):
            yield piece


def rows(lines):
    """The words of each row under a line of headings; titles and notes stand at the margin."""
    found, is_inside = [], False
    for line in lines:
        is_inside = line.startswith(" ") and (is_inside or "──" in line) if line else is_inside
        if is_inside and line and "──" not in line:
            found.append(line.split())
    return found


def is_part(words, whole):
    """Whether words come in this order in the whole; of one that is cut, the beginning."""
    rest = iter(whole)
    return all(
        any(other == word or (word[-1] == "…" and other.startswith(word[:-1])) for other in rest) for word in words
    )


def n_characters(found):
    return sum(len(word) for words in found for word in words)


def check(shown, function):
    """Each table has the same rows at every width, of which less is shown where there is less room."""
    whole = rows(shown(WHOLE, function))
    assert whole
    counts = []
    for width in WIDTHS:
        lines = shown(width, function)
        assert max(map(cell_len, lines)) <= width
        found = rows(lines)
        assert len(found) == len(whole)
        assert all(map(is_part, found, whole))
        counts.append(n_characters(found))
        assert (HINT in " ".join(" ".join(lines).split())) == (counts[-1] < n_characters(whole))
    assert counts == sorted(counts)
    return counts[0] < counts[-1]


# What the verbs print


def test_errors_and_what_explains_them(shown, explained):
    _, path = explained
    assert check(shown, lambda: app(["errors", str(path), "--block", "interactions.*"], standalone_mode=False))
    check(shown, lambda: app(["explain", str(path)], standalone_mode=False))


def test_all_columns_are_shown_if_that_is_asked_for(shown, explained):
    _, path = explained
    arguments = ["errors", str(path), "--block", "model"]
    wide = shown(80, lambda: app([*arguments, "--wide"], standalone_mode=False))
    assert rows(wide) == rows(shown(WHOLE, lambda: app(arguments, standalone_mode=False)))
    assert max(map(cell_len, wide)) > 120


def test_an_inspection(shown, model, water, crystal):
    def show():
        print_inspection(model, [water, crystal], table_console(WIDTH, wide=False))

    assert check(shown, show)
    assert ["class", "ScaleShiftMACE"] in [line.split() for line in shown(80, show)]  # of the table without headings


def test_a_comparison(shown, explained):
    _, path = explained
    with pp.open_trace(path) as ours, pp.open_trace(path) as theirs:
        table = comparison_table(pp.compare_traces(ours, theirs))
    differences = pd.DataFrame({"a": ["1.0", "x" * 90], "b": ["2.0", "y" * 90]}, index=["versions.torch", "settings"])

    def show():
        console = table_console(WIDTH, wide=False)
        console.print(provenance_table(differences))
        console.print(table)

    assert check(shown, show)


def test_an_audit(shown, explained):
    _, path = explained
    with pp.open_trace(path) as trace:
        verdict = replace(judge(trace, {"forces": 1e-9, "energy": 1e-9}), is_guide=True)  # which ends nothing
        assert check(shown, lambda: finish(trace, verdict, (), None, Shown()))


def test_a_sweep(shown):
    bits = (4, 6, 7, 8, 10, 12, 14, 16, 18, 20, 23)
    blocks = ("whole model", "interactions.0.conv_tp", "products.1")
    table = pd.DataFrame([(block, n, 2.0**-n, 2.0**-n) for block in blocks for n in bits])
    table.columns = ["block", "bits", "energy", "forces"]
    renderable = sweep_table(table, "forces", 1e-3)

    def show():
        table_console(FULL_WIDTH, wide=False).print(renderable)

    assert check(shown, show)
    (headings,) = [line.split() for line in shown(80, show) if line.split()[:1] == ["rounded"]]
    assert {"7", "10", "23"} < set(headings)  # the formats' own
    assert "4" not in headings


def test_a_recommendation(shown):
    names = ["energy", "forces", "forces_rel_l2", "stress", "share", "seconds", "vs_float64", "vs_float32"]
    names += ["peak_gib", "memory_vs_float32", "held_out", "held_out_at_least"]
    names += [f"vs_float{bits}_{end}" for bits in (32, 64) for end in ("low", "high")]
    rules = "interactions.* float16, products.0 float16, products.1 tf32, readouts.* float32"
    candidates = pd.DataFrame(np.full((2, len(names)), 1.2345e-5), columns=names, index=["mixed 1", "float64"])
    candidates = candidates.assign(rules=[rules, ""], pareto=True)
    policy = Policy((Rule("interactions.*", "float16"),), evidence={"chosen": "mixed 1", "objective": "time"})
    renderable = recommendation_table(policy, candidates, ["A note."])
    assert check(shown, lambda: table_console(FULL_WIDTH, wide=False).print(renderable))


# What fits


def fitted(shown, width, *cells, ranks):
    """The lines of a table of one row, whose headings are letters, the first of text."""
    table = plain_table(None, "a")
    for heading, rank in zip("bcd", ranks, strict=False):
        table.add_column(heading, justify="right", no_wrap=True, rank=rank)
    table.add_row(*cells)
    return shown(width, lambda: table_console(FULL_WIDTH, wide=False).print(table))


def test_columns_of_a_rank_come_together_and_the_lowest_first(shown):
    cells = ("x" * 10, "1" * 10, "2" * 10, "3" * 10)
    assert rows(fitted(shown, 49, *cells, ranks=(2, 1, 3))) == [list(cells)]  # 4 × (10 + 2) + 1
    lines = fitted(shown, 48, *cells, ranks=(2, 1, 3))
    assert rows(lines) == [list(cells[:3])]
    assert "has no room for: d. --wide" in " ".join(lines)
    assert rows(fitted(shown, 36, *cells, ranks=(2, 1, 3))) == [[cells[0], cells[2]]]
    assert rows(fitted(shown, 48, *cells, ranks=(1, 2, 2))) == [list(cells[:2])]
    assert rows(fitted(shown, 36, *cells[:3], "3", ranks=(1, 2, 3))) == [[*cells[:2], "3"]]  # what is narrow still fits


def test_text_is_cut_where_numbers_would_be(shown):
    lines = fitted(shown, 30, "x" * 20, "1" * 10, ranks=(0,))
    assert rows(lines) == [["x" * 14 + "…", "1" * 10]]
    assert "cuts texts short" in " ".join(" ".join(lines).split())
