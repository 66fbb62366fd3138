"""Which part of a run a process has, and which files of a folder are parts of a trace."""

import re
from dataclasses import dataclass
from pathlib import Path

from precision_probe.exceptions import InputError, printable

__all__ = ["Part", "part_files"]

_NAME = re.compile(r"part-(\d{4,})\.h5(\.partial)?")


@dataclass(frozen=True)
class Part:
    """A part of the structures of a run, which follow one another.

    Attributes:
        number: Which part, from 0 on.
        n_parts: How many parts there are.
        first: How many structures of the run come before it.

    Example:
        >>> Part(2, n_parts=4, first=50).file_name
        'part-0002.h5'
    """

    number: int
    n_parts: int
    first: int

    @property
    def file_name(self) -> str:
        """Of the file that it is written to, so that files in alphabetical order are parts in theirs."""
        return f"part-{self.number:04d}.h5"

    @property
    def about(self) -> dict[str, int]:
        """The attributes that its file has beside those of any trace."""
        return {"part": self.number, "n_parts": self.n_parts, "first_structure": self.first}


def part_files(folder: Path) -> dict[int, Path]:
    """The file of each part that is in a folder, or what there is of it; nothing where there is none.

    Raises:
        InputError: If the folder cannot be read.
    """
    found: dict[int, Path] = {}
    try:
        paths = list(folder.iterdir())
    except OSError as error:
        raise InputError(f"The folder {printable(folder)} cannot be read ({error.strerror}).") from error
    for path in paths:
        match = _NAME.fullmatch(path.name)
        if match and (match[2] is None or int(match[1]) not in found):
            found[int(match[1])] = path
    return dict(sorted(found.items()))
