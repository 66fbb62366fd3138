"""What a page is made of: sections of tables, and of figures each of which has its table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup

from precision_probe.exceptions import printable
from precision_probe.report.drawing.scales import LogScale
from precision_probe.report.numbers import entry

__all__ = ["Cell", "Figure", "Part", "Section", "Table", "table_of"]

_HALF = 62  # characters, with two between columns, that half the page holds


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: As it is read.
        value: The whole number behind the text, where there is one.
        shade: Its colour, from 0 to :data:`precision_probe.report.drawing.scales.N_SHADES`; ``None`` for no colour.
        is_bad: Whether it stands out, as NaN does among errors, or what exceeds a tolerance.
    """

    text: str
    value: float | None = None
    shade: int | None = None
    is_bad: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: What it says.
        columns: Headings; the first is of the rows' labels.
        rows: Of each its label and its cells, as many as there are other columns.
        note: How to read it.
        precision: Which precision it is of, where the reader chooses one; empty for all.
        is_folded: Whether the reader opens it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    note: str = ""
    precision: str = ""
    is_folded: bool = False

    @property
    def are_texts(self) -> tuple[bool, ...]:
        """Of each column whether it has no number."""
        columns = zip(*(cells for _, cells in self.rows), strict=True)
        return (True, *(all(cell.value is None for cell in column) for column in columns))

    @property
    def is_wide(self) -> bool:
        """Whether it has no place beside another."""
        cells = ([label, *(cell.text for cell in cells)] for label, cells in self.rows)
        widths = (max(map(len, column)) for column in zip(*cells, strict=True))
        return sum(width + 2 for width in widths) > _HALF


@dataclass(frozen=True)
class Figure:
    """A drawing and the numbers that it was made of.

    Attributes:
        title: What it shows.
        drawing: SVG, which has a title and a description.
        table: The same in numbers.
        note: How to read it.
        precision: Which precision it is of, where the reader chooses one; empty for all.
        is_wide: Whether it takes the width of two.
    """

    title: str
    drawing: Markup
    table: Table
    note: str = ""
    precision: str = ""
    is_wide: bool = False


Part = Table | Figure


@dataclass(frozen=True)
class Section:
    """A chapter of the page.

    Attributes:
        name: By which links find it.
        title: Its heading.
        parts: In the order in which they are read.
        text: Paragraphs before them.
        points: Before these, what is to be seen first: of each what stands out, and the rest of the sentence.
        commands: For a shell, after the paragraphs.
    """

    name: str
    title: str
    parts: Sequence[Part]
    text: Sequence[str] = ()
    points: Sequence[tuple[str, str]] = ()
    commands: Sequence[str] = ()


def table_of(
    frame: pd.DataFrame,
    title: str,
    *,
    shaded: LogScale | Mapping[str, LogScale] | None = None,
    note: str = "",
    precision: str = "",
    is_folded: bool = False,
) -> Table:
    """A data frame as a table: its index labels the rows.

    Args:
        frame: Numbers or text.
        title: What it says.
        shaded: The scale by which numbers are coloured, or one for each column; none are without it.
        note: How to read it.
        precision: Which precision it is of; empty for all.
        is_folded: Whether the reader opens it.
    """
    scales = [shaded.get(str(name)) if isinstance(shaded, Mapping) else shaded for name in frame]
    rows = tuple(
        (printable(label), tuple(map(_cell, values, scales)))
        for label, *values in frame.astype(object).itertuples(name=None)
    )
    columns = (str(frame.index.name or ""), *map(str, frame.columns))
    return Table(title, tuple(map(printable, columns)), rows, note, precision, is_folded)


def _cell(value: object, shaded: LogScale | None) -> Cell:
    if isinstance(value, str):
        return Cell(printable(value))
    if value is None or value is pd.NA:
        return Cell("")
    if isinstance(value, bool | np.bool_):
        return Cell("yes" if value else "no")
    assert isinstance(value, int | float | np.number)  # noqa: S101  (a data frame of tables holds nothing else)
    number = float(value)
    if shaded is None:
        return Cell(entry(number), number)
    return Cell(entry(number) or "NaN", number, shaded.shade(number), is_bad=not np.isfinite(number))
