"""Pieces of work that no signal interrupts half way."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["uninterrupted"]


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off what Ctrl-C and other signals do until the end of the ``with`` block, which should come soon.

    Python lets a handler raise between any two steps: after structures are in a file, and before they are forgotten.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread has its work interrupted
        return
    came: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        came.append(number)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in handlers:
            signal.signal(number, remember)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for each in came:
            signal.raise_signal(each)
