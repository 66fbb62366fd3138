"""Axes: from a number to its place in a drawing, and the ticks that say so."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from precision_probe.report.drawing.scales import LogScale
from precision_probe.report.drawing.svg import power_of_ten

__all__ = ["LinearAxis", "LogAxis", "are_far_apart", "axis_of_times"]

_LANE = 48.0  # beside a logarithmic scale, for what has no logarithm: wide enough for two labels side by side
# where the largest is more of the smallest, short times are not told apart on a linear scale: a choice
_MANY_TIMES = 8.0


@dataclass(frozen=True)
class LogAxis:
    """A logarithmic scale drawn from left to right, with places for zeros and for NaN beside it where there are any."""

    scale: LogScale
    left: float
    right: float
    has_zeros: bool
    has_broken: bool

    @classmethod
    def of(cls, values: Sequence[float], left: float, right: float) -> "LogAxis":
        """One that has a place for all these numbers, from one place to another."""
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

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Places that are marked, and what is said there."""
        marked = [(self.at_power(exponent), power_of_ten(exponent)) for exponent in self.scale.ticks]
        return [*marked, *[(self.at(0.0), "0")] * self.has_zeros, *[(self.at(math.nan), "NaN")] * self.has_broken]


@dataclass(frozen=True)
class LinearAxis:
    """A linear scale from zero.

    Attributes:
        left: Where zero stands.
        right: Where the last tick stands.
        most: What that is.
        step: From one tick to the next.
    """

    left: float
    right: float
    most: float
    step: float

    @classmethod
    def of(cls, values: Sequence[float], left: float, right: float) -> "LinearAxis":
        """One that has a place for all these numbers, which are finite, from one place to another."""
        return cls(left, right, *_round_step(max(values, default=1.0)))

    def at(self, value: float) -> float:
        """Where a number stands."""
        return self.left + value / self.most * (self.right - self.left)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """As of the other."""
        numbers = [number * self.step for number in range(round(self.most / self.step) + 1)]
        return [(self.at(number), f"{number:.3g}") for number in numbers]


def axis_of_times(values: Sequence[float], left: float, right: float) -> LinearAxis | LogAxis:
    """Linear from zero, as far as all numbers can be told apart on it; else logarithmic."""
    return LogAxis.of(values, left, right) if are_far_apart(values) else LinearAxis.of(values, left, right)


def are_far_apart(values: Sequence[float]) -> bool:
    """Whether all have a logarithm, and the smallest cannot be told apart beside the largest."""
    return len(values) > 0 and min(values) > 0 and max(values) > _MANY_TIMES * min(values)


def _round_step(largest: float) -> tuple[float, float]:
    """The end of a linear scale from zero that holds a number, and the distance of its ticks: 1, 2 or 5 of a decade."""
    decade = 10.0 ** math.floor(math.log10(largest)) if largest > 0 else 1.0
    step = next(step for step in (decade / 5, decade / 2, decade, 2 * decade, 5 * decade) if largest / step < 5)
    return step * (math.floor(largest / step) + 1), step
