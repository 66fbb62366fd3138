"""A progress bar for long work."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

__all__ = ["shown"]

T = TypeVar("T")


def shown(items: Sequence[T], description: str, *, progress: bool) -> Iterable[T]:
    """The items one by one, with a bar on stderr, where that is a terminal and ``progress`` is asked for."""
    console = Console(stderr=True)
    if not (progress and console.is_terminal):  # before version 15, rich leaves an empty line where a bar was hidden
        return items
    return track(items, description=description, console=console, transient=True)
