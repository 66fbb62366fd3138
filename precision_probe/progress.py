"""How far long work is: a bar in a terminal, lines in a file or pipe."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

from precision_probe.interruption import INTERRUPTIONS

__all__ = ["counted", "shown"]

T = TypeVar("T")

_PARTS, _SECONDS = 10, 30.0  # a line at each tenth, and where there was none for so long
_SOON = 2.0  # seconds within which no tenth has a line of its own: a choice, so that short work has few


def shown(items: Sequence[T], description: str, *, progress: bool) -> Iterator[T]:
    """The items one by one; stderr says how many are done, if ``progress`` is asked for.

    Raises:
        KeyboardInterrupt: At the next item, if the command line was interrupted and its work was not told.
    """
    with counted(len(items), description, progress=progress) as told:
        for n_done, item in enumerate(items, 1):
            INTERRUPTIONS.check()
            yield item
            told(n_done)


@contextmanager
def counted(total: int, description: str, *, progress: bool) -> Iterator[Callable[[int], None]]:
    """Says on stderr how many of so many are done, which is told to the function that this gives.

    A terminal has a bar. A file or pipe gets a line at the start, one at each tenth, though no two within 2 s, and one
    where there was none for 30 s.
    """
    console = Console(stderr=True)
    if not (progress and total):
        yield lambda _: None
    elif console.is_terminal:  # before version 15, rich leaves an empty line where a bar was hidden
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(description, total=total)
            yield lambda n_done: bar.update(task, completed=n_done)
    else:
        lines = _Lines(total, description)
        ended = threading.Event()
        watch = threading.Thread(target=lines.watch, args=(ended,), daemon=True)
        watch.start()
        try:
            yield lines.told
        finally:
            ended.set()
            watch.join()


class _Lines:
    """Lines on stderr, from two threads: the one that works, and the one that sees that it takes long."""

    def __init__(self, total: int, description: str) -> None:
        self._total, self._description, self._n_done = total, description, 0
        self._n_said = 0  # tenths
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._say()

    def told(self, n_done: int) -> None:
        """So many are done."""
        with self._lock:
            self._n_done = n_done
            n_parts = _PARTS * n_done // self._total
            if n_parts > self._n_said and time.monotonic() >= self._said + _SOON:
                self._say()

    def watch(self, ended: threading.Event) -> None:
        """Say it again, until the end, wherever nothing was said for long."""
        while not ended.wait(max(self._said + _SECONDS - time.monotonic(), 0.0)):
            with self._lock:
                if time.monotonic() >= self._said + _SECONDS:
                    self._say()

    def _say(self) -> None:
        self._said, self._n_said = time.monotonic(), _PARTS * self._n_done // self._total
        seconds = f", {self._said - self._start:.0f} s" if self._n_done or self._said > self._start + 1 else ""
        with contextlib.suppress(OSError, ValueError):  # nobody reads it: that is no reason to end the work
            # the line with its end in one piece: another thread may write there, too
            sys.stderr.write(f"{self._description}: {self._n_done} of {self._total}{seconds}\n")
            sys.stderr.flush()
