"""What is shown or written is data: nothing in it is obeyed by a terminal, by rich or by a spreadsheet."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from precision_probe.exceptions import ProbeError, printable

__all__ = ["CLOSED", "ClosedError", "PlainConsole", "csv_cell", "json_text", "lines", "printed"]

CLOSED = 141  # exit code if nobody reads on, as after "| head": what shells say of a program that SIGPIPE ended

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class PlainConsole(Console):
    """A console that escapes control characters, and takes square brackets and colons for what they are.

    Rich reads ``[red]`` as a style and ``:skull:`` as a picture, and hands on the escape sequences by which a terminal
    moves its cursor or renames its window. Names in a trace may hold all of these.
    """

    def __init__(
        self,
        *,
        width: int | None = None,
        stderr: bool = False,
        file: IO[str] | None = None,
        fits_tables: bool = False,
    ) -> None:
        is_terminal = None if file is None else False  # whatever the environment says, a file has no colours
        super().__init__(width=width, stderr=stderr, file=file, markup=False, emoji=False, force_terminal=is_terminal)
        self._is_stdout = file is None and not stderr
        self.fits_tables = fits_tables  # whether tables leave out columns for which it is too narrow

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, and see that it arrives where that is stdout."""
        with printed() if self._is_stdout else contextlib.nullcontext():
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Raise it, where rich would end the process with 1, which here says that a tolerance was exceeded."""
        raise

    def render_str(self, text: str, **options: Any) -> Text:
        """Text as rich lays it out: escaped before its width is measured."""
        return super().render_str(lines(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The pieces that are written: escaped where they come from what rich does not measure as a string."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(lines(segment.text), segment.style)


class ClosedError(Exception):
    """Nobody reads what is printed any more."""


@contextlib.contextmanager
def printed() -> Iterator[None]:
    """See that what a ``with`` block prints on stdout, and does nothing else, arrives; if not, the rest is dropped.

    Raises:
        ClosedError: If nobody reads on.
        ProbeError: If it cannot be written.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        # Python flushes once more as it ends, and would say in lines of its own that it cannot
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            raise ClosedError from error
        raise ProbeError(
            f"What was to be printed cannot be written ({error.strerror}). See where standard output goes, and whether "
            "there is space."
        ) from error


def lines(text: str) -> str:
    """Text with its line ends and nothing else that a terminal would obey."""
    return text if text.isprintable() else "\n".join(map(printable, text.split("\n")))


def csv_cell(value: object) -> object:
    """A cell of a CSV file: text that a spreadsheet would take for a formula gets an apostrophe before it.

    Example:
        >>> csv_cell("=1+1"), csv_cell("-3.5"), csv_cell("message")
        ("'=1+1", '-3.5', 'message')
    """
    if not isinstance(value, str):
        return value
    return printable(f"'{value}" if value.startswith(_FORMULA) and not _is_number(value) else value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def json_text(text: str) -> str:
    """JSON whose strings hold nothing that a terminal obeys, and say the same."""
    return "".join(c if c.isprintable() or c == "\n" else "".join(f"\\u{unit:04x}" for unit in _units(c)) for c in text)


def _units(character: str) -> tuple[int, ...]:
    """A character in UTF-16, as JSON escapes it."""
    encoded = character.encode("utf-16-be", "surrogatepass")
    return tuple(int.from_bytes(encoded[at : at + 2]) for at in range(0, len(encoded), 2))
