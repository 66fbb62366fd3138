"""How tables look in a terminal: their frame, which columns fit, and how many digits a number gets."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.style import StyleType
from rich.table import Column, Table
from rich.text import Text

from precision_probe.cli.console import PlainConsole
from precision_probe.exceptions import printable
from precision_probe.report.numbers import entry, number

__all__ = ["DIRECTIONS", "FULL_WIDTH", "WIDTH", "PlainTable", "entry", "number", "plain_table"]

# Columns that the tables, and the table of all metrics, need: what is no terminal gets them, and loses no digit.
WIDTH, FULL_WIDTH = 126, 256

DIRECTIONS = {"forward": "fwd", "backward": "bwd"}

_FRAME = 1  # columns beside those of a table: two edges, less the line that the last of them has none of
_BETWEEN = 2  # a space, and a line of the frame


class PlainTable(Table):
    """A table whose cells are one line of text each, and which leaves out columns where a terminal is narrow.

    Columns have ranks. On a console that fits tables to its width, those of rank 0 are always there; of the others one
    rank after another, as long as it fits. Where rank 0 alone is too wide, texts are cut short, and numbers are not.
    """

    def __init__(self, **options: Any) -> None:
        self._ranks: dict[int, int] = {}  # rich adds columns of its own to rows that are longer than the headings
        super().__init__(**options)

    def add_column(  # type: ignore[override]  # rich lists each of its options
        self, header: RenderableType = "", *, rank: int = 0, **options: Any
    ) -> None:
        """Add a column, which the lower its rank the longer is shown."""
        self._ranks[len(self.columns)] = rank
        super().add_column(header, **options)

    def add_row(self, *cells: RenderableType | None, style: StyleType | None = None, end_section: bool = False) -> None:
        """Add a row."""
        shown = (printable(cell) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*shown, style=style, end_section=end_section)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it: whole, or what fits and a line that says what does not."""
        if not (isinstance(console, PlainConsole) and console.fits_tables):
            yield from super().__rich_console__(console, options)
            return
        widths = [max(_widths(column, console, options)) + _BETWEEN for column in self.columns]
        ranks = [self._ranks.get(place, 0) for place in range(len(self.columns))]
        room = options.max_width - _FRAME
        kept: list[int] = []
        for rank in sorted(set(ranks)):
            of_rank = [place for place, other in enumerate(ranks) if other == rank]
            needed = sum(widths[place] for place in of_rank)
            if rank == 0 or needed <= room:
                kept += of_rank
                room -= needed
        table = copy.copy(self)
        columns = [self.columns[place] for place in sorted(kept)]
        if room < 0:
            columns = [_one_line(column) if column.justify == "left" else column for column in columns]
        table.columns = [replace(column, _index=place) for place, column in enumerate(columns)]
        yield from Table.__rich_console__(table, console, options)
        left_out = [column for place, column in enumerate(self.columns) if place not in kept]
        if left_out or room < 0:
            yield Text(_note(left_out, is_cut=room < 0), style="dim")


def plain_table(title: str | None, *headings: str, show_header: bool = True) -> PlainTable:
    """An empty table in the style of all: no borders but a line under the headings.

    Args:
        title: What stands above it.
        headings: Of columns of text that are always there.
        show_header: Whether headings are.
    """
    table = PlainTable(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_header=show_header,
    )
    for heading in headings:
        table.add_column(heading)
    return table


def _widths(column: Column, console: Console, options: ConsoleOptions) -> Iterator[int]:
    """How wide a column's heading and cells are, each in one line."""
    unlimited = options.update(max_width=2**16)
    for cell in (column.header, *column.cells):
        yield Measurement.get(console, unlimited, cell).maximum


def _one_line(column: Column) -> Column:
    """A column that may be narrower than its cells, which end in "…" then."""
    cells: list[RenderableType] = []
    for cell in column.cells:
        text = cell.copy() if isinstance(cell, Text) else Text(str(cell))
        text.no_wrap, text.overflow = True, "ellipsis"
        cells.append(text)
    return replace(column, no_wrap=False, _cells=cells)


def _note(left_out: list[Column], *, is_cut: bool) -> str:
    names = dict.fromkeys(" ".join(str(column.header).split()) for column in left_out)
    said = [f"has no room for: {', '.join(names)}"] if names else []
    said += ["cuts texts short"] if is_cut else []
    return f"The terminal is narrow, and {', and '.join(said)}. --wide shows all."
