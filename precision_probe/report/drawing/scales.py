"""From a number to a place and to a colour: logarithmic scales on which zeros and NaN have a place of their own."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["CIVIDIS", "N_SHADES", "OKABE_ITO", "LogScale", "ink"]

# matplotlib's cividis (Nuñez, Anderton and Renslow 2018), which is read alike with and without colour vision
# fmt: off
CIVIDIS = (
    "#00224e", "#00285b", "#002e6a", "#053371", "#1c396f", "#293f6e", "#33446d", "#3c4a6c",
    "#45506c", "#4d556c", "#555b6d", "#5c616e", "#646770", "#6b6d72", "#727274", "#787877",
    "#807f78", "#888578", "#908b78", "#979177", "#a09875", "#a89e73", "#b0a571", "#b9ab6d",
    "#c2b369", "#cbb965", "#d3c05f", "#dcc859", "#e6d051", "#efd748", "#f8df3c", "#fee838",
)
# fmt: on
N_SHADES = len(CIVIDIS)
_FIRST_LIGHT = 15  # on this shade and lighter ones black is read better than white: 4.5:1 at least, as WCAG asks
# Okabe and Ito's cycle, but for the yellow, which is not seen on white; the others are told apart by shape, too
OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")

_MOST_TICKS = 5  # and one more at the end


@dataclass(frozen=True)
class LogScale:
    """A logarithmic scale.

    Attributes:
        low: Its lower end, as an exponent of ten.
        high: Its upper end.

    Example:
        >>> scale = LogScale.decades([0.0, 2e-7, 3e-5, float("nan")])
        >>> scale.low, scale.high, scale.fraction(1e-6), scale.fraction(0.0)
        (-7.0, -4.0, 0.3333333333333333, None)
    """

    low: float
    high: float

    @classmethod
    def decades(cls, values: Iterable[float]) -> "LogScale":
        """From one power of ten to another, with all numbers between; zeros and what is not finite have no part."""
        tight = cls.tight(values)
        low, high = math.floor(tight.low), math.ceil(tight.high)
        return cls(float(low), float(max(high, low + 1)))

    @classmethod
    def tight(cls, values: Iterable[float]) -> "LogScale":
        """From the smallest number above zero to the largest that is finite."""
        exponents = [math.log10(value) for value in values if 0 < value < math.inf]
        return cls(min(exponents, default=0.0), max(exponents, default=0.0))

    def fraction(self, value: float) -> float | None:
        """Where a number stands between the ends, from 0 to 1; ``None`` for zero, negative numbers, NaN and ∞."""
        if not 0 < value < math.inf:
            return None
        if self.high == self.low:
            return 0.5
        return min(1.0, max(0.0, (math.log10(value) - self.low) / (self.high - self.low)))

    def shade(self, value: float) -> int | None:
        """Which of :data:`CIVIDIS` a number has: the lighter the larger. Zero has the darkest, what has no place none.

        Example:
            >>> [LogScale(-2.0, 0.0).shade(value) for value in (0.0, 0.01, 1.0, float("inf"))]
            [0, 0, 31, None]
        """
        fraction = 0.0 if value == 0 else self.fraction(value)
        return None if fraction is None else round(fraction * (N_SHADES - 1))

    @property
    def ticks(self) -> list[int]:
        """Exponents to be marked, so many that they can be read."""
        first, last = math.ceil(self.low), math.floor(self.high)
        return list(range(first, last + 1, max(1, math.ceil((last - first) / _MOST_TICKS))))


def ink(shade: int) -> str:
    """The colour of text on a shade."""
    return "#000" if shade >= _FIRST_LIGHT else "#fff"
