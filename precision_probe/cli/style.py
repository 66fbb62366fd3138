"""How tables look in a terminal: their frame, their width, and how many digits a number gets."""

import numpy as np
import pandas as pd
from rich import box
from rich.console import RenderableType
from rich.style import StyleType
from rich.table import Table

from precision_probe.exceptions import printable

__all__ = ["DIRECTIONS", "FULL_WIDTH", "WIDTH", "entry", "number", "plain_table"]

# Columns that the tables, and the table of all metrics, need: a narrower terminal wraps lines and loses no digit.
WIDTH, FULL_WIDTH = 126, 256

DIRECTIONS = {"forward": "fwd", "backward": "bwd"}


class PlainTable(Table):
    """A table whose cells are one line of text each, whatever is in them."""

    def add_row(self, *cells: RenderableType | None, style: StyleType | None = None, end_section: bool = False) -> None:
        """Add a row."""
        shown = (printable(cell) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*shown, style=style, end_section=end_section)


def plain_table(title: str | None, *headings: str, show_header: bool = True) -> Table:
    """An empty table in the style of all: no borders but a line under the headings."""
    return PlainTable(
        *headings,
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_header=show_header,
    )


def entry(value: str | float | None) -> str:
    """A cell: text as it is, a number with three digits, nothing for what is missing."""
    if isinstance(value, str):
        return value
    if value is None or pd.isna(value):
        return ""
    return f"{value:.3g}" if 0.1 <= abs(value) < 1e4 else number(float(value))


def number(value: float) -> str:
    """Two digits are what an error is worth."""
    if isinstance(value, int | np.integer):
        return str(value)
    return "0" if value == 0 else f"{value:.1e}"
