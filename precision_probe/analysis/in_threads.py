"""Work on pieces of arrays in several threads, while the next pieces are read.

NumPy lets other threads run while it computes, and HDF5 reads in one thread alone.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_threads"]

_THREADS = min(4, os.cpu_count() or 1)  # which compute faster than one reads: more would wait
_AHEAD = _THREADS + 1  # pieces that are in memory at once: one for each thread, and one that waits for the first free

Piece = TypeVar("Piece")
Made = TypeVar("Made")


def in_threads(make: Callable[[Piece], Made], pieces: Iterable[Piece]) -> Iterator[Made]:
    """What is made of each piece, in order, whichever is ready first.

    Args:
        make: A function that may run in several threads at once.
        pieces: Of which few are taken before what is made of them is, so that memory stays bounded.

    Example:
        >>> list(in_threads(abs, [-1, 2, -3]))
        [1, 2, 3]
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for piece in pieces:
            if len(waiting) == _AHEAD:
                yield waiting.popleft().result()
            waiting.append(pool.submit(make, piece))
            del piece  # which a thread lets go when it is done
        yield from (each.result() for each in waiting)
