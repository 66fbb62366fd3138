"""The journal of a file: the new bytes of places that are about to be changed, beside it until they are.

It counts from the moment when its last byte is written, as the digest at its end says. From then on the file is what it
and the journal say together, however much of the journal has been copied into it.
"""

import contextlib
import hashlib
import io
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["Journal", "Patch", "pending_changes", "read_at", "read_journal", "write_at"]

_MAGIC = b"precision-probe journal 1\n"
_NUMBERS = struct.Struct("<QQ")  # the size of the file and the number of parts; the place and the length of each part
_DIGEST = 32
_TAIL = 2**16  # bytes at the end of a file by which a journal knows it: a choice, read in no time


class Patch(NamedTuple):
    """New bytes, and where they belong."""

    first: int
    data: bytes


@dataclass(frozen=True)
class Journal:
    """What a file is to become.

    Attributes:
        size: How many bytes it is to have.
        parts: Bytes to be put in it.
    """

    size: int
    parts: Sequence[Patch]

    @classmethod
    def of_pages(cls, pages: Mapping[int, bytearray], page_size: int, old: int, size: int) -> "Journal":
        """Changed pages of a file, by number, as far as they lie before its old and its new end; joined if adjacent."""
        runs: list[tuple[int, bytearray]] = []
        for number in sorted(pages):
            first = number * page_size
            data = pages[number][: max(0, min(old, size) - first)]
            if runs and runs[-1][0] + len(runs[-1][1]) == first:
                runs[-1][1].extend(data)
            elif data:
                runs.append((first, bytearray(data)))
        return cls(size, [Patch(first, bytes(data)) for first, data in runs])

    def write(self, path: Path, fd: int) -> None:
        """Put the journal beside a file.

        Args:
            path: The file.
            fd: The same, open, with all that lies beyond its old end.

        Raises:
            OSError: If it cannot be written; none that counts is there then.
        """
        head = [_MAGIC, _NUMBERS.pack(self.size, len(self.parts))]
        head += [_NUMBERS.pack(part.first, len(part.data)) for part in self.parts]
        body = b"".join((*head, *(part.data for part in self.parts), self._tail(fd)))
        try:
            with _beside(path).open("wb", buffering=0) as file:
                write_at(file.fileno(), memoryview(body + bytes(_DIGEST)), 0)
                os.fsync(file.fileno())  # all that needs space is on the disk before the journal counts
                write_at(file.fileno(), memoryview(hashlib.sha256(body).digest()), len(body))
                with contextlib.suppress(OSError):
                    os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                Journal.remove(path)
            raise

    def _tail(self, fd: int) -> bytes:
        """A digest of the last bytes of the file that is to be: of another file it would be another."""
        first = max(0, self.size - _TAIL)
        tail = bytearray(self.size - first)
        read_at(fd, memoryview(tail), first)
        self.lay_over(memoryview(tail), first)
        return hashlib.sha256(tail).digest()

    def lay_over(self, into: memoryview, first: int) -> None:
        """Put new bytes over those that were read from a place of the file."""
        for part in self.parts:
            begin, end = max(first, part.first), min(first + len(into), part.first + len(part.data))
            if begin < end:
                into[begin - first : end - first] = part.data[begin - part.first : end - part.first]

    def apply(self, fd: int) -> None:
        """Make the file what it is to become.

        Raises:
            OSError: If it cannot be written; the journal still counts.
        """
        for part in self.parts:
            write_at(fd, memoryview(part.data), part.first)
        os.ftruncate(fd, self.size)
        os.fsync(fd)

    @staticmethod
    def remove(path: Path) -> None:
        """Remove the journal of a file, if there is one."""
        _beside(path).unlink(missing_ok=True)


def read_journal(path: Path) -> Journal | None:
    """The journal of a file, if there is one that was finished, and it is of this file.

    Raises:
        OSError: If either cannot be read.
    """
    try:
        content = _beside(path).read_bytes()
    except FileNotFoundError:
        return None
    body, digest = content[:-_DIGEST], content[-_DIGEST:]
    if not content.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
        return None
    size, n_parts = _NUMBERS.unpack_from(body, len(_MAGIC))
    places = [_NUMBERS.unpack_from(body, len(_MAGIC) + _NUMBERS.size * (1 + index)) for index in range(n_parts)]
    parts, at = [], len(_MAGIC) + _NUMBERS.size * (1 + n_parts)
    for first, length in places:
        parts.append(Patch(first, body[at : at + length]))
        at += length
    journal = Journal(size, parts)
    with path.open("rb") as file:
        return journal if journal._tail(file.fileno()) == body[at:] else None


def pending_changes(path: Path) -> io.RawIOBase | None:
    """A file as it is with the journal beside it, to be read; ``None`` if no whole one is there, which is usual.

    Raises:
        OSError: If the file cannot be read.
    """
    journal = read_journal(path)
    return None if journal is None else _WithJournal(path, journal)


class _WithJournal(io.RawIOBase):
    """A file to be read, as its journal says that it is."""

    def __init__(self, path: Path, journal: Journal) -> None:
        self._file, self._journal, self._position = path.open("rb"), journal, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a place."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._journal.size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """The place."""
        return self._position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Read what there is up to the end of the file."""
        into = memoryview(buffer).cast("B")
        into = into[: max(0, min(len(into), self._journal.size - self._position))]
        read_at(self._file.fileno(), into, self._position)
        self._journal.lay_over(into, self._position)
        self._position += len(into)
        return len(into)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.journal")


def read_at(fd: int, into: memoryview, first: int) -> None:
    """Read bytes from a place of a file; zeros where it has none."""
    n_read = 0
    while n_read < len(into):
        more = os.preadv(fd, [into[n_read:]], first + n_read)
        if not more:
            break
        n_read += more
    into[n_read:] = bytes(len(into) - n_read)


def write_at(fd: int, data: memoryview, first: int) -> None:
    """Write bytes to a place of a file, all of them: an ordinary write may be of fewer."""
    n_written = 0
    while n_written < len(data):
        n_written += os.pwrite(fd, data[n_written:], first + n_written)
