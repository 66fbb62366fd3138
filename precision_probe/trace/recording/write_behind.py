"""Bytes that threads make and write to a file, each piece at its place, while more places are found for others."""

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import NamedTuple

from precision_probe.trace.journal import write_at
from precision_probe.trace.recording.threads import Threads

__all__ = ["WriteBehind"]

_MANY = 2**26  # new bytes that the disk is given while more are made: a choice, which it takes in a tenth of a second


class _Piece(NamedTuple):
    """Bytes that are being written."""

    first: int
    size: int
    done: "Future[None]"


class WriteBehind:
    """What is being written to a file behind the back of whoever made room for it.

    The disk is let take what was written meanwhile, in one more thread: all at the end, it would be waited for.

    Args:
        fd: The file, open for writing as long as anything is being written.

    Attributes:
        threads: That write; idle, they may do other work on the file.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.threads = Threads()
        self._pieces: deque[_Piece] = deque()
        self._syncing: Future[None] | None = None
        self._n_bytes = 0

    def begin(self, first: int, size: int, make: Callable[[], Iterable[memoryview]]) -> None:
        """Begin to make bytes, so many in all, and to write them at a place, one after another.

        Raises:
            Exception: If some that were begun earlier could not be made or written.
        """
        self.wait_for(first, size)
        if len(self._pieces) == self.threads.n_ahead:
            self._finish(self._pieces.popleft())
        self._pieces.append(_Piece(first, size, self.threads.begin(self._write, first, make)))

    def _write(self, first: int, make: Callable[[], Iterable[memoryview]]) -> None:
        for data in make():
            write_at(self._fd, data, first)
            first += len(data)

    def _finish(self, piece: _Piece) -> None:
        piece.done.result()
        self.wrote(piece.size)

    def wrote(self, n_bytes: int) -> None:
        """Begin to sync the file if it is worth it, and the disk has done what was begun.

        Raises:
            OSError: If it could not do that; the system tells it once only.
        """
        self._n_bytes += n_bytes
        if self._n_bytes < _MANY or not (self._syncing is None or self._syncing.done()):
            return
        if self._syncing is not None:
            self._syncing.result()
        self._syncing = self.threads.begin(os.fsync, self._fd)
        self._n_bytes = 0

    def wait_for(self, first: int, size: int) -> None:
        """Wait until none of so many bytes from a place on is being written.

        Raises:
            Exception: If some could not be made or written.
        """
        if any(piece.first < first + size and first < piece.first + piece.size for piece in self._pieces):
            self.wait()

    def wait(self) -> None:
        """Wait for all that was begun.

        Raises:
            Exception: If some could not be made or written; then still nothing is being written any more.
        """
        pieces, self._pieces = list(self._pieces), deque()
        syncing, self._syncing = self._syncing, None
        failures = [begun.exception() for begun in (*(piece.done for piece in pieces), syncing) if begun is not None]
        for failure in failures:
            if failure is not None:
                raise failure

    def close(self) -> None:
        """Wait until nothing is being written, whatever became of it, and end the threads."""
        self.threads.close()
