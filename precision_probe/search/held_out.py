"""Structures held out of a search: how they are chosen, and what it says of others that some of them hold."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import ase
import numpy as np
import scipy.stats
from numpy.typing import NDArray

__all__ = ["CONFIDENCE", "Outcome", "count_kinds", "split"]

CONFIDENCE = 0.95  # of the bound, one-sided


@dataclass(frozen=True)
class Outcome:
    """On how many structures a policy kept the tolerance.

    Args:
        within: How many did.
        n_structures: Of how many.
        attempt: Which policy this was of those tried on these structures, from 1.
        largest: Its largest error there, in tolerances.
    """

    within: int
    n_structures: int
    attempt: int = 1
    largest: float = np.nan

    @property
    def share(self) -> float:
        """The share that was observed."""
        return self.within / self.n_structures

    @property
    def level(self) -> float:
        """The confidence of the bound of this one: whoever tries k policies would find a good one by luck sooner.

        Bonferroni: what may be wrong with the k-th is a k-th of what may be wrong with one.
        """
        return 1 - (1 - CONFIDENCE) / self.attempt

    @property
    def at_least(self) -> float:
        """Of structures drawn like these, the share within the tolerance is at least this: Clopper and Pearson's bound.

        Example:
            >>> [round(Outcome(n, n).at_least, 3) for n in (1, 8, 64)]
            [0.05, 0.688, 0.954]
        """
        if self.within == 0:
            return 0.0
        missed = self.n_structures - self.within
        return float(scipy.stats.beta.ppf(1 - self.level, self.within, missed + 1))


def split(
    structures: Sequence[ase.Atoms], seed: int, n_searched: int, n_held_out: int
) -> tuple[list[ase.Atoms], list[ase.Atoms]]:
    """Choose structures to search on and to hold out, both spread over all kinds, and over the frames of each.

    Frames that follow each other in a trajectory are nearly the same. So structures are sorted by kind, each kind in
    the order of its frames, and one is drawn at random from each of as many equal stretches as are wanted.

    Args:
        structures: All there are.
        seed: Of the choice.
        n_searched: How many to search on at most; half of them if there are few.
        n_held_out: How many to hold out at most.

    Returns:
        Those to search on, and those to hold out: none of a single one.
    """
    generator = np.random.default_rng(seed)
    n_searched = min(n_searched, (len(structures) + 1) // 2)
    kinds = _kinds([atoms.numbers for atoms in structures])
    ordered = np.argsort(kinds, kind="stable")
    chosen = ordered[_spread(len(structures), min(len(structures), n_searched + n_held_out), generator)]
    searched = _spread(len(chosen), n_searched, generator)
    held_out = np.setdiff1d(np.arange(len(chosen)), searched)
    return [structures[index] for index in chosen[searched]], [structures[index] for index in chosen[held_out]]


def count_kinds(numbers: Iterable[NDArray[np.int64]]) -> int:
    """How many kinds of structures there are.

    Args:
        numbers: The atomic numbers of each, in order: structures with the same ones are frames of one trajectory, or
            as alike as those.
    """
    return len(set(_kinds(numbers)))


def _kinds(numbers: Iterable[NDArray[np.int64]]) -> list[int]:
    """A number for each structure, the same for those of one kind, in the order in which kinds first appear."""
    seen: dict[tuple[int, ...], int] = {}
    return [seen.setdefault(tuple(each.tolist()), len(seen)) for each in numbers]


def _spread(n: int, wanted: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """So many of n places, one at random from each of as many stretches, which are as equal as can be."""
    bounds = np.arange(wanted + 1) * n // wanted
    return generator.integers(bounds[:-1], bounds[1:])
