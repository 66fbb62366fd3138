"""How far below the tolerance errors must stay on some structures, so that they keep it on others.

The largest of a few errors is mostly less than what one in twenty of all structures exceeds. By how much depends on how
errors differ between structures, which those searched on show: the more they scatter, the more is kept in reserve.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import NDArray

__all__ = ["FALLBACK", "Margin", "learnt_margin"]

# What 8 of 60 structures of a 3BPA trajectory needed: 95 % of the others kept the tolerance in 85 to 98 % of choices.
FALLBACK = 0.8
_FEWEST = 6  # structures whose errors say something of their spread: with fewer, a half of them is one or two
# A choice: errors that hardly differ may do so by chance, and below a half nothing would be left to find. What is
# accepted wrongly is given up when it fails on structures held out.
_LEAST, _MOST = 0.5, 0.95
_WITHIN = 0.95  # of unseen structures: as many as a policy must keep the tolerance on
_SURE = 0.95  # that this many are, were the spread known; with a spread from 8 structures it is 80 to 90 %


@dataclass(frozen=True)
class Margin:
    """Which part of the tolerance the largest error may use, and why.

    Attributes:
        value: That part.
        scatter: By which factor errors typically differ between structures; NaN if there were too few to say.
        n_structures: Of how many structures that is.
    """

    value: float
    scatter: float
    n_structures: int

    def __str__(self) -> str:
        if np.isnan(self.scatter):
            return (
                f"On the structures searched on, errors could use {self.value:.0%} of the tolerance, a margin that has "
                "served elsewhere: "
                f"{self.n_structures} {'structures are' if self.n_structures > 1 else 'structure is'} too few to learn "
                "how errors differ."
            )
        return (
            f"On the structures searched on, errors could use {self.value:.0%} of the tolerance: they differ by a "
            f"factor of {self.scatter:.2f} between these {self.n_structures} structures, and others can be worse."
        )


def learnt_margin(shares: Iterable[NDArray[np.float64]]) -> Margin:
    """The margin that policies with such errors need.

    Logarithms of errors are taken to be normal above their median. Their largest of n is then compared with what 5 %
    of all exceed: exp(−s · (z(0.95) − z(0.05^(1/n)))), where z are quantiles of the normal distribution and s is the
    spread of the logarithms. The lower half says nothing of large errors and is not used: an energy that happens to be
    right has a logarithm that goes to −∞.

    Args:
        shares: For each policy measured, the error of each structure in tolerances, (n_structures,).
    """
    logarithms = [np.sort(np.log(each)) for each in map(np.asarray, shares) if np.all(np.isfinite(each) & (each > 0))]
    n = len(logarithms[0]) if logarithms else 0
    if n < _FEWEST:
        return Margin(FALLBACK, np.nan, n)
    half = n // 2
    above = [float(np.mean(each[-half:]) - np.median(each)) for each in logarithms]
    spread = float(np.mean(above)) / float(np.mean(_normal_scores(n)[-half:]))
    worse = scipy.stats.norm.ppf(_WITHIN) - scipy.stats.norm.ppf((1 - _SURE) ** (1 / n))
    return Margin(float(np.clip(np.exp(-spread * worse), _LEAST, _MOST)), float(np.exp(spread)), n)


def _normal_scores(n: int) -> NDArray[np.float64]:
    """What n sorted draws from a normal distribution are on average, by Blom's approximation."""
    scores: NDArray[np.float64] = scipy.stats.norm.ppf((np.arange(1, n + 1) - 0.375) / (n + 0.25))
    return scores
