"""How tables look in a terminal: their frame, their width, and how many digits a number gets."""

from rich import box
from rich.console import RenderableType
from rich.style import StyleType
from rich.table import Table

from precision_probe.exceptions import printable
from precision_probe.report.numbers import entry, number

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
