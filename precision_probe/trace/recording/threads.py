"""Several threads that make pieces of a file, or look at them: NumPy, hashes, zlib and the system let them all work."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["Threads", "in_threads"]

# A choice: of 1 to 16 on a machine with 32 processors six took no longer than any other number, whatever else ran, as
# what one thread does in HDF5 takes longer than what they share
_MOST = 6
_AHEAD = 4  # pieces for each thread that are begun and not yet done: they keep every thread busy

Piece = TypeVar("Piece")
Made = TypeVar("Made")


class Threads:
    """As many threads as there are processors, up to a bound; they start as they are needed.

    Args:
        most: The bound.

    Attributes:
        n_ahead: How many pieces are to be begun before the first is waited for, so that memory stays bounded.
    """

    def __init__(self, most: int = _MOST) -> None:
        n_threads = min(most, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(n_threads + 1)  # one may wait for the disk
        self.n_ahead = _AHEAD * n_threads

    def __enter__(self) -> "Threads":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, work: Callable[..., Made], *arguments: Any) -> "Future[Made]":
        """Work that is being done; or that was, as Python starts no threads when it ends."""
        try:
            return self._pool.submit(work, *arguments)
        except RuntimeError:
            done: Future[Made] = Future()
            try:
                done.set_result(work(*arguments))
            except Exception as error:
                done.set_exception(error)
            return done

    def each(self, make: Callable[[Piece], Made], pieces: Iterable[Piece]) -> Iterator[Made]:
        """What is made of each piece, in order; few are made before they are asked for."""
        waiting: deque[Future[Made]] = deque()
        for piece in pieces:
            waiting.append(self.begin(make, piece))
            if len(waiting) == self.n_ahead:
                yield waiting.popleft().result()
        yield from (each.result() for each in waiting)

    def close(self) -> None:
        """Wait for all that was begun, and end the threads."""
        self._pool.shutdown()


def in_threads(make: Callable[[Piece], Made], pieces: Iterable[Piece], most: int = _MOST) -> Iterator[Made]:
    """What is made of each piece, in order, by threads that are there as long as it is asked for.

    Example:
        >>> list(in_threads(abs, [-1, 2, -3]))
        [1, 2, 3]
    """
    with Threads(most) as threads:
        yield from threads.each(make, pieces)
