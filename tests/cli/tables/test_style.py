"""How many digits numbers get, and how tables look."""

import io
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from precision_probe.cli.tables.style import entry, number, plain_table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (-0.0, "0"),
        (17, "17"),
        (np.int64(10**7), "10000000"),
        (0.1, "1.0e-01"),
        (-1.26e-38, "-1.3e-38"),
    ],
)
def test_numbers_have_two_digits_and_counts_all(value, text):
    assert number(value) == text


@pytest.mark.parametrize(("value", "text"), [(math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan")])
def test_what_is_no_number_is_said(value, text):
    assert number(value) == text


@given(st.floats(-1e308, 1e308))
def test_numbers_read_back_within_half_of_the_second_digit(value):
    text = number(value)
    assert float(text) == pytest.approx(value, rel=0.0501, abs=5e-324)
    assert len(text) <= len("-1.0e-308")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("O1", "O1"),
        ("", ""),
        (None, ""),
        (math.nan, ""),
        (pd.NA, ""),
        (0, "0"),
        (0.1, "0.1"),
        (0.0999, "1.0e-01"),
        (-12.345, "-12.3"),
        (9999, "1e+04"),
        (10000.0, "1.0e+04"),
        (True, "1"),
    ],
)
def test_entries_have_three_digits_where_they_are_short(value, text):
    assert entry(value) == text


@given(st.floats(-1e308, 1e308))
def test_entries_read_back(value):
    assert float(entry(value)) == pytest.approx(value, rel=0.0501, abs=5e-324)


def test_tables_have_a_title_headings_and_a_line_under_them():
    table = plain_table("A title", "first", "second")
    table.add_row("1", "2")
    console = Console(record=True, width=60, file=io.StringIO())
    console.print(table)
    title, blank, headings, line, row, *_ = [line.strip() for line in console.export_text().splitlines()]
    assert (title, blank, headings.split(), row.split()) == ("A title", "", ["first", "second"], ["1", "2"])
    assert set(line) == {"─"}
