"""A chart of numbers of many things on one logarithmic scale, a row for each thing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from precision_probe.report.drawing.axes import LogAxis
from precision_probe.report.drawing.svg import N_SLOTS, drawing, element, marker, path, shortened, text
from precision_probe.report.numbers import entry

__all__ = ["Series", "rows_chart"]

# In the drawing's own units, which are pixels where it is as wide as it is drawn.
_WIDTH, _LABELS, _RIGHT, _ROW = 400.0, 150.0, 18.0, 23.0
_LEGEND_ROW, _LEGEND_ENTRIES = 18.0, 4


@dataclass(frozen=True)
class Series:
    """Numbers of one kind, one for each row.

    Attributes:
        name: What they are.
        values: In the order of the rows; ``None`` where there is none.
        slot: Which colour and shape they have.
        kind: ``points``, or a line to compare them with: ``floor``, ``yardstick``.
    """

    name: str
    values: Sequence[float | None]
    slot: int
    kind: str = "points"


def rows_chart(
    labels: Sequence[str], series: Sequence[Series], measured: str, title: str, description: str = ""
) -> Markup:
    """Draw rows from top to bottom, each with the numbers that several series have of it, on a logarithmic scale.

    Args:
        labels: Of the rows.
        series: Each with a number for each row.
        measured: What the numbers are, with their unit.
        title: What is shown.
        description: What is seen; by default what is drawn.
    """
    named = [each for each in series if each.kind == "points"]
    top = _LEGEND_ROW * math.ceil(len(named) / _LEGEND_ENTRIES) + 8
    bottom = top + _ROW * len(labels)
    values = [value for each in series for value in each.values if value is not None]
    axis = LogAxis.of(values, _LABELS, _WIDTH - _RIGHT)
    rows = [
        element("g", element("title", label), text((_LABELS - 8, top + _ROW * (at + 0.68)), shortened(label, 20)))
        for at, label in enumerate(labels)
    ]
    lines = [_line(each, labels, axis, top) for each in sorted(series, key=lambda each: each.kind == "points")]
    said = description or f"{measured}, of {len(labels)} rows, for {', '.join(each.name for each in named)}."
    parts = (_legend(named), _scale(axis, top, bottom, measured), element("g", *rows, class_="labels"), *lines)
    return drawing((_WIDTH, bottom + 46), title, said, *parts, class_="chart")


def _scale(axis: LogAxis, top: float, bottom: float, said: str) -> Markup:
    """Lines across the rows, what they stand for, and what is measured."""
    marks = [
        path([(x, top), (x, bottom)], class_="grid") + text((x, bottom + 17), label, class_="tick")
        for x, label in axis.ticks
    ]
    return Markup("").join([*marks, text(((axis.left + axis.right) / 2, bottom + 38), said, class_="axis")])


def _line(series: Series, labels: Sequence[str], axis: LogAxis, top: float) -> Markup:
    """One series: a line through what has a logarithm and follows on one another, and points."""
    places = [
        None if value is None else (axis.at(value), top + _ROW * (at + 0.5)) for at, value in enumerate(series.values)
    ]
    runs: list[list[tuple[float, float]]] = [[]]
    for place, value in zip(places, series.values, strict=True):
        if place is None or value is None or axis.scale.fraction(value) is None:
            runs.append([])
        else:
            runs[-1].append(place)
    style = f"line {series.kind} s{series.slot % N_SLOTS}"
    drawn = [path(run, class_=style) for run in runs if len(run) > 1]
    if series.kind == "points":
        drawn += [
            marker(place, series.slot, f"{label}, {series.name}: {entry(value) or 'NaN'}")
            for place, value, label in zip(places, series.values, labels, strict=True)
            if place is not None
        ]
    return Markup("").join(drawn)


def _legend(series: Sequence[Series]) -> Markup:
    """Which shape and colour is what, in rows of a few."""
    width = _WIDTH / min(len(series), _LEGEND_ENTRIES) if series else _WIDTH
    entries = []
    for at, each in enumerate(series):
        x, y = 8 + width * (at % _LEGEND_ENTRIES), 10 + _LEGEND_ROW * (at // _LEGEND_ENTRIES)
        entries += [marker((x, y), each.slot), text((x + 10, y + 4), shortened(each.name, int(width / 8) - 2))]
    return element("g", *entries, class_="legend")
