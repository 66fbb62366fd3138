"""The last line of a finished trace: a digest of all that stands before it, which any changed bit contradicts.

HDF5 keeps the address of its own end and reads nothing behind it, so h5py, netCDF and xarray open such files as usual;
a program that changes a file through HDF5 writes over the line, or cuts it off.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["TRAILER_LENGTH", "check_trailer", "has_trailer", "hdf5_end", "is_trailer", "trailer", "write_trailer"]

_BLOCK = 2**20  # bytes read at once: a choice, beyond which nothing gets faster
_BEFORE, _AFTER = b"\nprecision-probe sha256 ", b"\n"
_TRAILER = re.compile(re.escape(_BEFORE) + rb"[0-9a-f]{64}" + _AFTER)
TRAILER_LENGTH = len(_BEFORE) + 64 + len(_AFTER)
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_END_FIELD = {0: 40, 1: 44, 2: 28, 3: 28}  # where superblocks of each version have the address of the end of the file


def trailer(content: Iterable["Buffer"]) -> bytes:
    """The line for a file of which this is all, in pieces."""
    digest = hashlib.sha256()
    for piece in content:
        digest.update(piece)
    return _BEFORE + digest.hexdigest().encode() + _AFTER


def is_trailer(line: bytes) -> bool:
    """Whether bytes are such a line, of whatever file."""
    return _TRAILER.fullmatch(line) is not None


def write_trailer(path: str | Path) -> None:
    """Append the line to a file, or put it in place of one that is there.

    Raises:
        OSError: If the file cannot be read or written; then it is left without the line.
    """
    with Path(path).open("r+b") as file:
        size = _size_without(file)
        line = trailer(_pieces(file, size))
        try:
            file.seek(size)
            file.write(line)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())  # some file systems say only now that there is no space
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def check_trailer(path: str | Path) -> bool | None:
    """Whether a file is what it was when its last line was written; ``None`` where it has no such line.

    A line that is itself damaged is none, so ask also whether a file that says that it is complete has one.

    Raises:
        OSError: If the file cannot be read.
    """
    with Path(path).open("rb") as file:
        size = _size_without(file)
        file.seek(size)
        line = file.read()
        return line == trailer(_pieces(file, size)) if is_trailer(line) else None


def has_trailer(path: str | Path) -> bool:
    """Whether a file has such a line, right or wrong.

    Raises:
        OSError: If the file cannot be read.
    """
    with Path(path).open("rb") as file:
        size = _size_without(file)
        return file.seek(0, os.SEEK_END) > size


def _size_without(file: BinaryIO) -> int:
    """The size of a file, in bytes, without the line, where it has one.

    One that does not begin where an HDF5 file ends was left behind by a writer that was killed: it is no part of it.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TRAILER_LENGTH))
    is_there = is_trailer(file.read()) and hdf5_end(file.fileno()) in (size - TRAILER_LENGTH, size)
    return size - TRAILER_LENGTH if is_there else size


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The first bytes of a file."""
    file.seek(0)
    while size and (piece := file.read(min(size, _BLOCK))):
        size -= len(piece)
        yield piece


def hdf5_end(fd: int) -> int:
    """Where an HDF5 file ends, as it says itself: a writer that was killed may have left bytes behind that."""
    head = os.pread(fd, 64, 0).ljust(64, b"\0")
    field = _END_FIELD.get(head[8])
    if not head.startswith(_SIGNATURE) or field is None:
        return os.fstat(fd).st_size  # HDF5 itself says better what is wrong
    return min(int.from_bytes(head[field : field + 8], "little"), os.fstat(fd).st_size)
