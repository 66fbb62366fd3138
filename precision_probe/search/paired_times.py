"""Which of several calls is faster, from times that were taken side by side in rounds.

What disturbs a machine disturbs all calls of a round alike, so times are compared within rounds: the ratio of two calls
keeps the difference between them and loses what they share. Its median over rounds has an exact confidence interval
between two of the ratios themselves (that of the sign test), whatever their distribution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

__all__ = ["LEVEL", "MIN_ROUNDS", "Ratio", "as_fast_as_the_fastest", "ratio_of"]

LEVEL = 0.95  # at least; what the interval of so many rounds has exactly is said beside it
MIN_ROUNDS = 6  # with 5, even all ratios on one side of 1 happen in 6 % of cases without a difference: 2 · ½⁵


@dataclass(frozen=True)
class Ratio:
    """How many times as long one call takes as another.

    Attributes:
        median: Over rounds; NaN if there is none.
        low: Where its confidence interval begins; 0 if there are too few rounds to say.
        high: Where that ends; infinity likewise.
        level: The probability that such an interval holds the median, exactly.
    """

    median: float
    low: float
    high: float
    level: float

    @property
    def resolved(self) -> bool:
        """Whether the two calls are told apart."""
        return self.low > 1 or self.high < 1


def ratio_of(seconds: Sequence[float], others: Sequence[float]) -> Ratio:
    """Compare two calls within rounds.

    Args:
        seconds: Of one call in each round.
        others: Of the other, in the same rounds.

    Example:
        >>> ratio_of([1.2, 2.5, 1.8, 1.2, 3.6, 2.4], [1.0, 2.0, 1.5, 1.0, 3.0, 2.0])
        Ratio(median=1.2, low=1.2, high=1.25, level=0.96875)
    """
    if not seconds or not others:  # the memory did not suffice for one of them
        return Ratio(np.nan, 0.0, np.inf, 1.0)
    ratios = np.sort(np.asarray(seconds) / np.asarray(others))
    n = len(ratios)
    outside = _outside(n)
    if outside == 0:
        return Ratio(float(np.median(ratios)), 0.0, np.inf, 1.0)
    level = 1 - 2 * float(scipy.stats.binom.cdf(outside - 1, n, 0.5))
    return Ratio(float(np.median(ratios)), float(ratios[outside - 1]), float(ratios[n - outside]), level)


def as_fast_as_the_fastest(seconds: Mapping[str, Sequence[float]], equal: float) -> dict[str, Ratio]:
    """Those that are not known to be slower than the fastest, each with its ratio to that.

    Args:
        seconds: Of each call in each round, by name; empty if the memory did not suffice.
        equal: Ratio up to which a difference does not count, even if it is resolved.

    Returns:
        The fastest first; all, if nothing ran.
    """
    ran = {name: np.asarray(each) for name, each in seconds.items() if len(each)}
    if not ran:
        return {name: ratio_of((), ()) for name in seconds}
    shared = np.mean([np.log(each) for each in ran.values()], axis=0)  # by round: what all calls were slowed by
    fastest = min(ran, key=lambda name: float(np.median(np.log(ran[name]) - shared)))
    ratios = {name: ratio_of(seconds[name], seconds[fastest]) for name in (fastest, *(set(ran) - {fastest}))}
    return {name: ratios[name] for name in (fastest, *ran) if ratios[name].low <= 1 or ratios[name].median <= equal}


def _outside(n: int) -> int:
    """How many of n ratios may be left out at either end so that the rest still has the level."""
    tails = 2 * scipy.stats.binom.cdf(np.arange(n), n, 0.5)
    return int(np.sum(tails <= 1 - LEVEL))
