"""What the package logs, on stderr for one run of the command line: ``--log-level``."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

import typer

from precision_probe.exceptions import printable

__all__ = ["LogLevel", "LogLevelOption", "logged"]


class LogLevel(StrEnum):
    """From how serious a message on it is written."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


LogLevelOption = Annotated[
    LogLevel | None,
    typer.Option(
        help="Write on stderr what is being done, from messages of this level on: info has what was loaded, hooked and "
        "kept, debug each structure too. Default: nothing. --quiet does not end it."
    ),
]


@contextlib.contextmanager
def logged(level: LogLevel) -> Iterator[None]:
    """Write what the package logs to stderr while a ``with`` block runs; its logger is what it was afterwards."""
    logger, handler = logging.getLogger("precision_probe"), _Stderr()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


class _Stderr(logging.Handler):
    """One line a message, on what is stderr at that moment: while a bar is shown, rich puts there what stands above it.

    Names in messages come from files: what a terminal would obey is escaped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it: that is no reason to end the work
            sys.stderr.write(f"{printable(self.format(record))}\n")
            sys.stderr.flush()
