"""Which of the policies that were measured is taken: the cheapest, and of those as cheap the most accurate."""

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from precision_probe.search.measuring import runs_as
from precision_probe.search.paired_times import as_fast_as_the_fastest
from precision_probe.search.proposals import DO_NOTHING
from precision_probe.search.search import COSTS

__all__ = ["as_cheap", "from_the_best", "within"]

# Costs that differ by less than such a factor are the same, even where that is resolved. Of the objective 1 %, of the
# other 5 %: choices, as less is not worth digits.
_EQUAL = (1.01, 1.05)


def within(table: pd.DataFrame, policies: Collection[str], margin: float) -> list[str]:
    """Names of policies whose errors are small enough on the structures searched on; to do nothing always is one."""
    names = [name for name in table.index if name in policies and table.loc[name, "share"] <= margin]
    return list(dict.fromkeys([*names, DO_NOTHING]))


def as_cheap(table: pd.DataFrame, names: Sequence[str], tried: Iterable[str], objective: str) -> list[str]:
    """Those that what was chosen was chosen among, as they cost as little.

    Args:
        table: As :class:`precision_probe.search.recommendation.Recommendation` has it.
        names: Of policies that are accurate enough.
        tried: Those that were given up, and last what was chosen.
        objective: What is to cost little.
    """
    *failed, _ = tried
    return _least(table, [name for name in names if name not in failed], COSTS[objective], _EQUAL[0])


def from_the_best(table: pd.DataFrame, names: Sequence[str], objective: str) -> Iterator[str]:
    """The best, then the best of the others, up to doing nothing: the others decide what is as cheap as the least."""
    left, best = list(names), ""
    while best != DO_NOTHING:
        best = _best(table, left, objective)
        yield best
        left.remove(best)


def _best(table: pd.DataFrame, names: Sequence[str], objective: str) -> str:
    """The cheapest; of those as cheap the one that costs least of the other, time or memory; then the most accurate.

    The names are of policies, to do nothing among them.
    """
    first = COSTS[objective]
    for column, equal in zip(sorted(COSTS.values(), key=lambda cost: cost != first), _EQUAL, strict=True):
        names = _least(table, names, column, equal)
    return min(names, key=lambda name: (table.loc[name, "share"], table.loc[runs_as(name), first]))


def _least(table: pd.DataFrame, names: Sequence[str], column: str, equal: float) -> list[str]:
    """Which cost as little as the least: within a factor, or, of time, not told apart from it."""
    if column == "seconds":
        rounds = table["rounds"].to_dict()
        return list(as_fast_as_the_fastest({name: rounds[runs_as(name)] for name in names}, equal))
    costs = table[column].fillna(np.inf).to_dict()
    least = min(costs[runs_as(name)] for name in names)
    return [name for name in names if costs[runs_as(name)] <= equal * least]
