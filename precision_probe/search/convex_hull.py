"""Which precision for which block: the cheapest assignments for growing errors. Numbers in, assignments out.

Two assumptions: blocks' costs add, and so do the squares of their errors, which know nothing of one another. Of a
block's errors, one for each structure and quantity, the largest counts: the sum of its squares over blocks is never
less than the square of the largest error together. Cost plus λ times that sum is then least where each block's own
share of it is least, so that for one λ every block is chosen by itself. All λ together give the lower convex hull of
cost against that sum (Everett 1963, Operations Research 11, 399); assignments above the hull are not found. What is
proposed here is measured before anything is made of it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Assignment", "Option", "assignments", "rules_of"]

# λ in units of the largest cost, so that the unit of costs does not matter: ten for each power of ten, so that what is
# best only for a λ within less than a factor of 1.26 may be missed. The largest cost weighs as much as an error of 3e4
# tolerances under the first and of 3e-5 under the last.
_PENALTIES = np.logspace(-9, 9, 181)


@dataclass(frozen=True)
class Option:
    """One block in one precision.

    Attributes:
        cost: What it costs relative to the block in float64, in any unit; negative where it saves.
        errors: What it does to each thing that has a tolerance (each structure's forces, …), in tolerances.
    """

    cost: float
    errors: NDArray[np.float64]


@dataclass(frozen=True)
class Assignment:
    """A precision for each block, with what is to be expected of it.

    Attributes:
        precisions: By block.
        cost: The sum of the options' costs.
        error: The largest expected error, in tolerances.
    """

    precisions: dict[str, str]
    cost: float
    error: float


def assignments(options: Mapping[str, Mapping[str, Option]]) -> list[Assignment]:
    """The assignments on the lower hull of cost against the sum of squared errors, the cheapest first.

    Args:
        options: For each block, its precisions. All errors have the same length; a precision with an error that is
            infinite or NaN is never chosen where there is another.

    Example:
        >>> def option(cost, error):
        ...     return Option(cost, np.asarray([error]))
        >>> cheapest_first = assignments(
        ...     {
        ...         "cheap": {"float64": option(0, 0), "float16": option(-0.1, 3.0)},
        ...         "dear": {"float64": option(0, 0), "float16": option(-5, 0.1)},
        ...     }
        ... )
        >>> [(round(each.cost, 1), round(each.error, 1), each.precisions["dear"]) for each in cheapest_first]
        [(-5.1, 3.0, 'float16'), (-5, 0.1, 'float16'), (0, 0.0, 'float64')]
    """
    scale = max((abs(option.cost) for choices in options.values() for option in choices.values()), default=1.0) or 1.0
    on_hull: dict[tuple[str, ...], Assignment] = {}
    for penalty in scale * _PENALTIES:
        chosen = {block: _cheapest(choices, penalty) for block, choices in options.items()}
        on_hull.setdefault(tuple(chosen.values()), _assignment(chosen, options))
    return sorted(on_hull.values(), key=lambda each: (each.cost, each.error))


def rules_of(precisions: Mapping[str, str]) -> list[tuple[str, str]]:
    """An assignment as (glob, precision) pairs, float64 left out; a family of blocks that agrees has one.

    Example:
        >>> rules_of({"node_embedding": "float64", "interactions.0": "float16", "interactions.1": "float16"})
        [('interactions.*', 'float16')]
    """
    families: dict[str, list[str]] = {}
    for block in precisions:
        families.setdefault(block.split(".")[0], []).append(block)
    rules = []
    for family, members in families.items():
        kinds = {precisions[member] for member in members}
        if len(members) > 1 and len(kinds) == 1:
            rules.append((f"{family}.*", kinds.pop()))
        else:
            rules += [(member, precisions[member]) for member in members]
    return [(glob, precision) for glob, precision in rules if precision != "float64"]


def _cheapest(choices: Mapping[str, Option], penalty: float) -> str:
    """The precision with the least cost plus penalty times squared error; of equals, the most accurate."""

    def value(name: str) -> tuple[float, float]:
        option = choices[name]
        worst = float(np.max(option.errors, initial=0.0))
        return (option.cost + penalty * worst**2 if np.isfinite(worst) else np.inf, worst)

    return min(choices, key=value)


def _assignment(chosen: Mapping[str, str], options: Mapping[str, Mapping[str, Option]]) -> Assignment:
    """What was chosen for each block, with its cost and its error."""
    picked: Iterable[Option] = [options[block][precision] for block, precision in chosen.items()]
    together = np.sqrt(sum((option.errors**2 for option in picked), np.zeros(1)))
    return Assignment(dict(chosen), sum(option.cost for option in picked), float(np.max(together)))
