"""Work on pieces of arrays in several threads: reading, inflating and computing all let other threads run."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_threads"]

_THREADS = min(8, os.cpu_count() or 1)  # a choice: each has a block of every array that is compared in memory
_AHEAD = 2 * _THREADS  # pieces that are begun: no thread waits while the first of them takes long

Piece = TypeVar("Piece")
Made = TypeVar("Made")


def in_threads(make: Callable[[Piece], Made], pieces: Iterable[Piece]) -> Iterator[Made]:
    """What is made of each piece, in order, whichever is ready first.

    Args:
        make: A function that may run in several threads at once.
        pieces: Of which few are taken before what is made of them is, so that what is made stays little.

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
        yield from (each.result() for each in waiting)
