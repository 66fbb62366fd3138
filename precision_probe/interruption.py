"""Interruptions: what Ctrl-C and SIGTERM, which batch systems send before they kill a job, do to the command line.

Where nothing is being made (start-up, imports, printing) the process ends at once. Where something is, it is told by
``KeyboardInterrupt``, so that it leaves nothing half made. That exception can be lost on its way: Python drops what
finalizers raise, and libraries turn what their callbacks raise into errors of their own. So it is remembered, and
raised again where the next piece of work begins. A second Ctrl-C ends the process at once, whatever it does.

Nothing of this happens to programs that use the package: the handlers are the command line's.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from precision_probe.exceptions import ProbeError

__all__ = ["EXIT_CODE", "INTERRUPTIONS", "Interruptions"]

EXIT_CODE = 3  # of a run that failed or was interrupted
_NOTHING = "Nothing was written."
_SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it


class Interruptions:
    """Which signals have come, and what is to be done of them."""

    def __init__(self) -> None:
        self._is_working = self._has_come = self._is_lost = False
        self._kept: Callable[[], str] = lambda: _NOTHING

    def take_over(self) -> None:
        """Handle both signals for the rest of the process, which is the command line's; called before any import."""
        for number in _handled():
            signal.signal(number, self._receive)

    def give_up(self) -> None:
        """Ignore both signals: the work is done, and only Python's own end is left, in which a handler would fail."""
        for number in _handled():
            signal.signal(number, signal.SIG_IGN)

    @contextlib.contextmanager
    def working(self, kept: Callable[[], str]) -> Iterator[None]:
        """Raise ``KeyboardInterrupt`` at a signal while something is made.

        Args:
            kept: Says in a sentence or two what there is of it by now, where, and what to do with it.

        Raises:
            ProbeError: If it was interrupted; the message says so, and what is kept.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers, and is told of signals
            return
        before = {number: signal.getsignal(number) for number in _handled()}
        tell = sys.unraisablehook
        self._kept, self._has_come, self._is_lost, self._is_working = kept, False, False, True
        try:
            self.take_over()
            sys.unraisablehook = lambda lost: None if lost.exc_type is KeyboardInterrupt else tell(lost)  # remembered
            yield
        except (KeyboardInterrupt, Exception) as error:
            if isinstance(error, Exception) and not self._is_lost:
                raise
            raise ProbeError(self.message) from error
        finally:
            self._is_working = self._is_lost = False
            sys.unraisablehook = tell
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raise ``KeyboardInterrupt`` if a signal has come and nobody has been told: its exception was lost."""
        if self._is_lost:
            raise KeyboardInterrupt

    def interrupt(self) -> None:
        """Have the work stop before its next piece, as a signal would whose exception was lost."""
        self._is_lost = True

    def told(self) -> None:
        """Note that the work has been told of the signal, and is being finished."""
        self._is_lost = False

    def keep(self, kept: str) -> None:
        """Say from now on that this is kept, as the work is done."""
        self._kept = lambda: kept

    @property
    def message(self) -> str:
        """That there was an interruption, and what is kept."""
        return f"Interrupted. {self._kept()}"

    def _receive(self, number: int, _: FrameType | None) -> None:
        """Tell the work, or end the process."""
        if not self._is_working:
            self._end()
        if self._has_come:
            if number == signal.SIGINT:
                self._end()
            return  # batch systems may send several SIGTERM, and the work is being finished
        self._has_come = self._is_lost = True
        raise KeyboardInterrupt

    def _end(self) -> NoReturn:
        """End the process here and now, past everything that might swallow an exception or wait."""
        try:
            cursor = _SHOW_CURSOR if os.isatty(sys.__stderr__.fileno()) else ""  # type: ignore[union-attr]
            os.write(2, f"{cursor}Error: {self.message}\n".encode())
        finally:
            os._exit(EXIT_CODE)


INTERRUPTIONS = Interruptions()


def _handled() -> list[signal.Signals]:
    """Both signals, but for those that whoever started the process wants ignored, as shells do for ``&``."""
    both = (signal.SIGINT, signal.SIGTERM)
    return [number for number in both if signal.getsignal(number) is not signal.SIG_IGN]
