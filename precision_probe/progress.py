"""A progress bar for long work."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, track

from precision_probe.interruption import INTERRUPTIONS

__all__ = ["counted", "shown"]

T = TypeVar("T")


def shown(items: Sequence[T], description: str, *, progress: bool) -> Iterable[T]:
    """The items one by one, with a bar on stderr, where that is a terminal and ``progress`` is asked for.

    Raises:
        KeyboardInterrupt: At the next item, if the command line was interrupted and its work was not told.
    """
    console = Console(stderr=True)
    if not (progress and console.is_terminal):  # before version 15, rich leaves an empty line where a bar was hidden
        return _unless_interrupted(items)
    return track(_unless_interrupted(items), description, total=len(items), console=console, transient=True)


@contextmanager
def counted(total: int, description: str, *, progress: bool) -> Iterator[Callable[[int], None]]:
    """Shows how many of so many are done, which is told to the function that this gives, where :func:`shown` would."""
    console = Console(stderr=True)
    if not (progress and console.is_terminal):
        yield lambda _: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda n_done: bar.update(task, completed=n_done)


def _unless_interrupted(items: Iterable[T]) -> Iterator[T]:
    for item in items:
        INTERRUPTIONS.check()
        yield item
