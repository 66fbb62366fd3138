"""Charts: numbers of many things on one logarithmic scale, a row for each thing; and one quantity against another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from precision_probe.report.drawing.scales import LogScale
from precision_probe.report.drawing.svg import N_SLOTS, drawing, element, marker, path, power_of_ten, shortened, text
from precision_probe.report.numbers import entry

__all__ = ["Point", "Series", "rows_chart", "scatter"]

# In the drawing's own units, which are pixels where it is as wide as it is drawn.
_WIDTH, _LABELS, _RIGHT, _ROW = 400.0, 150.0, 18.0, 23.0
_LANE = 38.0  # beside the scale, for what has no logarithm
_LEGEND_ROW, _LEGEND_ENTRIES = 18.0, 4
_HEIGHT = 300.0


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


@dataclass(frozen=True)
class Point:
    """One thing of a scatter plot: its name, its numbers, its colour, and whether it is the one to look at."""

    name: str
    x: float
    y: float
    slot: int
    is_chosen: bool = False


@dataclass(frozen=True)
class _Axis:
    """A logarithmic scale drawn from left to right, with places for zeros and for NaN beside it where there are any."""

    scale: LogScale
    left: float
    right: float
    has_zeros: bool
    has_broken: bool

    @classmethod
    def of(cls, values: Sequence[float], left: float, right: float) -> "_Axis":
        has_zeros = any(value == 0 for value in values)
        has_broken = not all(0 <= value < math.inf for value in values)
        ends = (left + _LANE * has_zeros, right - _LANE * has_broken)
        return cls(LogScale.decades(values), *ends, has_zeros, has_broken)

    def at(self, value: float) -> float:
        """Where a number stands: zero to the left of the scale, what is not finite to the right."""
        fraction = self.scale.fraction(value)
        if fraction is not None:
            return self.left + fraction * (self.right - self.left)
        return self.left - _LANE * 0.75 if value == 0 else self.right + _LANE * 0.75

    def at_power(self, exponent: int) -> float:
        """Where a power of ten stands, which itself may be out of range."""
        return self.left + (exponent - self.scale.low) / (self.scale.high - self.scale.low) * (self.right - self.left)

    def drawn(self, top: float, bottom: float, said: str) -> Markup:
        """Lines across the rows, the powers of ten that they stand for, and what is measured."""
        places = [(self.at_power(exponent), power_of_ten(exponent)) for exponent in self.scale.ticks]
        places += [(self.at(0.0), "0")] * self.has_zeros + [(self.at(math.nan), "NaN")] * self.has_broken
        marks = [
            path([(x, top), (x, bottom)], class_="grid") + text((x, bottom + 17), label, class_="tick")
            for x, label in places
        ]
        middle = (self.left + self.right) / 2
        return Markup("").join([*marks, text((middle, bottom + 38), said, class_="axis")])


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
    axis = _Axis.of(values, _LABELS, _WIDTH - _RIGHT)
    rows = [
        element("g", element("title", label), text((_LABELS - 8, top + _ROW * (at + 0.68)), shortened(label, 20)))
        for at, label in enumerate(labels)
    ]
    lines = [_line(each, labels, axis, top) for each in sorted(series, key=lambda each: each.kind == "points")]
    said = description or f"{measured}, of {len(labels)} rows, for {', '.join(each.name for each in named)}."
    parts = (_legend(named), axis.drawn(top, bottom, measured), element("g", *rows, class_="labels"), *lines)
    return drawing((_WIDTH, bottom + 46), title, said, *parts, class_="chart")


def _line(series: Series, labels: Sequence[str], axis: _Axis, top: float) -> Markup:
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


def scatter(points: Sequence[Point], x_said: str, y_said: str, title: str, description: str) -> Markup:
    """Draw one quantity (linear, from zero) against another (logarithmic), with the name of each point beside it.

    Args:
        points: Those without a finite x are left out.
        x_said: What x is, with its unit.
        y_said: What y is, likewise.
        title: What is shown.
        description: What is seen.
    """
    points = [point for point in points if math.isfinite(point.x)]
    left, right, top, bottom = 60.0, _WIDTH - 20, 14.0, _HEIGHT
    axis = _Axis.of([point.y for point in points], 0, bottom - top)  # drawn upwards
    most, step = _round_step(max((point.x for point in points), default=1.0))
    parts = [path([(left, bottom), (right, bottom)], class_="grid")]
    for exponent in axis.scale.ticks:
        y = bottom - axis.at_power(exponent)
        parts += [
            path([(left, y), (right, y)], class_="grid"),
            text((left - 8, y + 4), power_of_ten(exponent), class_="end"),
        ]
    if axis.has_zeros:
        parts.append(text((left - 8, bottom - axis.at(0.0) + 4), "0", class_="end"))
    for at in range(round(most / step) + 1):
        x = left + at * step / most * (right - left)
        parts.append(text((x, bottom + 17), f"{at * step:.3g}", class_="tick"))
    for point in points:
        x, y = left + point.x / most * (right - left), bottom - axis.at(point.y)
        is_left = x > (left + right) / 2
        place = (x - 9 if is_left else x + 9, y + 4)
        said = f"{point.name}: {entry(point.x)}, {entry(point.y) or 'NaN'}"
        ring = [element("circle", cx=x, cy=y, r=8.0, class_="ring")] if point.is_chosen else []
        label = text(place, shortened(point.name, 26), class_="end" if is_left else None)
        parts += [*ring, marker((x, y), point.slot, said), label]
    parts += [
        text(((left + right) / 2, bottom + 38), x_said, class_="axis"),
        text((0, 0), y_said, class_="axis", transform=f"translate(14 {(top + bottom) / 2:g}) rotate(-90)"),
    ]
    return drawing((_WIDTH, bottom + 46), title, description, *parts, class_="chart")


def _round_step(largest: float) -> tuple[float, float]:
    """The end of a linear scale from zero that holds a number, and the distance of its ticks: 1, 2 or 5 of a decade."""
    decade = 10.0 ** math.floor(math.log10(largest)) if largest > 0 else 1.0
    step = next(step for step in (decade / 5, decade / 2, decade, 2 * decade, 5 * decade) if largest / step < 5)
    return step * (math.floor(largest / step) + 1), step
