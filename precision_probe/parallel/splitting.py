"""Structures → parts of about the same work, one for each worker."""

import itertools
from collections.abc import Sequence

import numpy as np

from precision_probe.trace.parts.part import Part

__all__ = ["split"]


def split(work: Sequence[float], n_parts: int, batches: Sequence[int] | None = None) -> list[tuple[Part, slice]]:
    """Parts that follow one another, and which structures each has.

    Args:
        work: Of each structure, in any unit, such as its number of atoms.
        n_parts: How many parts are wanted; there are fewer where there is less to share.
        batches: How many structures run together, one number for each batch, so that no part ends within one.

    Example:
        >>> [(part.file_name, which) for part, which in split([1, 1, 2, 4], 2)]
        [('part-0000.h5', slice(0, 3, None)), ('part-0001.h5', slice(3, 4, None))]
    """
    ends = np.cumsum([1] * len(work) if batches is None else batches)
    done = np.cumsum(work)[ends - 1]
    n_parts = min(n_parts, len(ends))
    wanted = done[-1] * np.arange(1, n_parts) / n_parts
    last = np.abs(done[:, None] - wanted).argmin(axis=0) if len(wanted) else np.zeros(0, int)
    bounds = [0, *sorted({int(ends[index]) for index in last} - {len(work)}), len(work)]
    return [
        (Part(number, len(bounds) - 1, first), slice(first, end))
        for number, (first, end) in enumerate(itertools.pairwise(bounds))
    ]
