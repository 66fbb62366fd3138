"""Structures → parts of about the same work, one for each worker."""

import itertools
from collections.abc import Sequence

import numpy as np

from precision_probe.trace.parts.part import Part

__all__ = ["split"]


def split(
    work: Sequence[float], n_parts: int, batches: Sequence[int], *, first_has: float = 0
) -> list[tuple[Part, slice]]:
    """Parts that follow one another, and which structures each has.

    Args:
        work: Of each structure, in any unit, such as its number of atoms.
        n_parts: How many parts are wanted; there are fewer only where there are fewer batches.
        batches: How many structures run together, one number for each batch, so that no part ends within one.
        first_has: Work that the first part has beside its structures.

    Example:
        >>> [(part.file_name, which) for part, which in split([1, 1, 2, 4], 2, [1, 1, 1, 1])]
        [('part-0000.h5', slice(0, 3, None)), ('part-0001.h5', slice(3, 4, None))]
    """
    ends = np.cumsum(batches)
    done = np.cumsum(work)[ends - 1] + first_has
    n_parts = min(n_parts, len(ends))
    bounds = [0]
    last = -1  # batch of the parts so far
    for number, wanted in enumerate(np.linspace(max(done[0], done[-1] / n_parts), done[-1], n_parts)):
        nearest = int(np.abs(done - wanted).argmin())
        last = min(max(nearest, last + 1), len(ends) - (n_parts - number))  # each part has a batch
        bounds.append(int(ends[last]))
    return [
        (Part(number, n_parts, first), slice(first, end))
        for number, (first, end) in enumerate(itertools.pairwise(bounds))
    ]
