"""A chart of one quantity against another, each point with its name."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from precision_probe.report.drawing.axes import LinearAxis, LogAxis, axis_of_times
from precision_probe.report.drawing.svg import drawing, element, marker, path, shortened, text
from precision_probe.report.numbers import entry

__all__ = ["Point", "scatter"]

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 400.0, 60.0, 20.0, 14.0, 300.0
_FEW = 4  # points, whose names have room beside them: a choice
_WIDE, _NAMES, _ROW = 520.0, 235.0, 17.0  # a chart with the names of more beside it, their width, and the height of one
_LONGEST = 26  # characters of a name, which the width holds


@dataclass(frozen=True)
class Point:
    """One thing of a scatter plot: its name, its numbers, its colour, if any, and whether it is the one to look at."""

    name: str
    x: float
    y: float
    slot: int | None
    is_chosen: bool = False


def scatter(points: Sequence[Point], x_said: str, y_said: str, title: str, description: str) -> Markup:
    """Draw one quantity (a time, on a linear scale if that can be read) against another (logarithmic), with names.

    Args:
        points: Those without a finite x are left out.
        x_said: What x is, with its unit.
        y_said: What y is, likewise.
        title: What is shown.
        description: What is seen.
    """
    points = [point for point in points if math.isfinite(point.x)]
    are_few = len(points) <= _FEW
    bottom = max(_BOTTOM, _TOP + _ROW * len(points))
    width, right = (_WIDTH, _WIDTH - _RIGHT) if are_few else (_WIDE, _WIDE - _NAMES)
    across = axis_of_times([point.x for point in points], _LEFT, right)
    up = LogAxis.of([point.y for point in points], 0, bottom - _TOP)  # drawn upwards
    places = [(across.at(point.x), bottom - up.at(point.y)) for point in points]
    marks = [
        *(_ring(place) for point, place in zip(points, places, strict=True) if point.is_chosen),
        *(
            marker(place, point.slot, f"{point.name}: {entry(point.x)}, {entry(point.y) or 'NaN'}")
            for point, place in zip(points, places, strict=True)
        ),
    ]
    names = _beside(points, places, (_LEFT + right) / 2) if are_few else _in_a_column(points, places, right, bottom)
    said = [
        text(((_LEFT + right) / 2, bottom + 38), x_said, class_="axis"),
        text((0, 0), y_said, class_="axis", transform=f"translate(14 {(_TOP + bottom) / 2:g}) rotate(-90)"),
    ]
    parts = (*_scales(across, up, right, bottom), *names, *marks, *said)
    return drawing((width, bottom + 46), title, description, *parts, class_="chart")


def _scales(across: LinearAxis | LogAxis, up: LogAxis, right: float, bottom: float) -> list[Markup]:
    """Lines from side to side, and what both scales say."""
    parts = [path([(_LEFT, bottom), (right, bottom)], class_="grid")]
    for at, label in up.ticks:
        y = bottom - at
        parts += [path([(_LEFT, y), (right, y)], class_="grid"), text((_LEFT - 8, y + 4), label, class_="end")]
    return [*parts, *(text((x, bottom + 17), label, class_="tick") for x, label in across.ticks)]


def _beside(points: Sequence[Point], places: Sequence[tuple[float, float]], middle: float) -> list[Markup]:
    """Names beside their points, on the side where there is room."""
    return [
        text((x - 9, y + 4), shortened(point.name, 26), class_="end")
        if x > middle
        else text((x + 9, y + 4), shortened(point.name, 26))
        for point, (x, y) in zip(points, places, strict=True)
    ]


def _in_a_column(
    points: Sequence[Point], places: Sequence[tuple[float, float]], right: float, bottom: float
) -> list[Markup]:
    """Names one below the other, as high as their points as far as there is room, and lines to these."""
    order = sorted(range(len(points)), key=lambda number: places[number][::-1])
    heights = _spread([places[number][1] for number in order], bottom)
    drawn = []
    for number, height in zip(order, heights, strict=True):
        drawn += [
            path([places[number], (right + 12, height)], class_="leader"),
            text((right + 16, height + 4), shortened(points[number].name, _LONGEST)),
        ]
    return drawn


def _spread(heights: Sequence[float], bottom: float) -> list[float]:
    """The nearest heights at which rows do not cover one another, in the same order, from the top to the bottom."""
    spread: list[float] = []
    for height in heights:
        spread.append(max(height, spread[-1] + _ROW) if spread else height)
    lowest = bottom
    for number in reversed(range(len(spread))):
        spread[number] = min(spread[number], lowest)
        lowest = spread[number] - _ROW
    return spread


def _ring(place: tuple[float, float]) -> Markup:
    """What the point to be looked at has around it."""
    return element("circle", cx=place[0], cy=place[1], r=8.0, class_="ring")
