"""Turns: of all threads one at a time calls an attached model, or replays a call.

A replay sets torch's default dtype and matmul flags, which are those of the whole process, so nobody else may compute
meanwhile: not the same model, not another attached one.
"""

import contextlib
import sys
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["TURNS", "Turns", "is_running"]

# Seconds after which a thread that waits looks whether the one that it waits for is still at it. A choice: nobody
# notices, and a thread that was interrupted tells no one.
_PATIENCE = 0.5


class Turns:
    """Whose turn it is. A thread may take further turns within its own, and gives them back in reverse.

    A turn belongs to a stack frame, that of the function which takes it, and is over with that at the latest: torch
    runs no hook when ``KeyboardInterrupt`` ends a call, and a lock would be held for ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._thread: int | None = None
        self._frames: list[FrameType] = []

    def take(self, frame: FrameType) -> None:
        """Wait until no other thread has the turn, and take it for a frame of this one."""
        me = threading.get_ident()
        with self._changed:
            while self._thread not in (None, me):
                self._drop_ended()
                if self._frames:
                    self._changed.wait(_PATIENCE)
            self._thread = me
            self._frames.append(frame)

    def give_back(self, frame: FrameType) -> None:
        """End the turn of a frame, and of what it called."""
        with self._changed:
            if frame in self._frames:  # the last one: a frame may have taken several
                del self._frames[len(self._frames) - 1 - self._frames[::-1].index(frame) :]
            self._drop_ended()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Have the turn for a while."""
        frame = sys._getframe(2)  # whose ``with`` this is: not of this generator, which does not run meanwhile
        self.take(frame)
        try:
            yield
        finally:
            self.give_back(frame)

    def _drop_ended(self) -> None:
        """Give back what belongs to frames that have ended."""
        self._frames = [frame for frame in self._frames if is_running(frame, self._thread)]
        if not self._frames:
            self._thread = None
            self._changed.notify_all()


TURNS = Turns()


def is_running(frame: FrameType, thread: int | None) -> bool:
    """Whether a frame is on the stack of a thread."""
    each = sys._current_frames().get(thread) if thread is not None else None
    while each is not None and each is not frame:
        each = each.f_back
    return each is not None
