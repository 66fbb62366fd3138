"""The last line of a finished trace: a digest of all that stands before it, which any changed bit contradicts.

Of a small file that is its SHA-256, of a large one the root of a Merkle tree of one level, the SHA-256 of those of its
pieces: of these several threads can take one each, and SHA-256 itself takes longer than writing does.

HDF5 keeps the address of its own end and reads nothing behind it, so h5py, netCDF and xarray open such files as usual;
a program that changes a file through HDF5 writes over the line, or cuts it off.
"""

import hashlib
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

from precision_probe.trace.journal import read_at
from precision_probe.trace.recording.threads import Threads

__all__ = ["TRAILER_LENGTH", "check_trailer", "has_trailer", "hdf5_end", "is_trailer", "trailer", "write_trailer"]

_PIECE = 2**20  # bytes, a leaf of the tree: part of the format
_PIECES_AT_ONCE = 16  # by one thread, in one buffer, as the system is slow to give memory: a choice
_LARGE = 2**26  # bytes, from which a file has a tree: a choice, of which the SHA-256 takes less than 0.1 s
_WHOLE, _TREE = b"sha256", b"merkle"  # equally long
_BEFORE, _AFTER = b"\nprecision-probe %b ", b"\n"
_TRAILER = re.compile(_BEFORE % b"(sha256|merkle)" + rb"[0-9a-f]{64}" + _AFTER)
TRAILER_LENGTH = len(_BEFORE % _WHOLE) + 64 + len(_AFTER)
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_END_FIELD = {0: 40, 1: 44, 2: 28, 3: 28}  # where superblocks of each version have the address of the end of the file


Read = Callable[[memoryview, int], object]  # fills memory with the bytes from a place on


def trailer(read: Read, size: int, threads: Threads) -> bytes:
    """The line for a file.

    Args:
        read: Fills memory with what the file has from a place on; from several threads.
        size: How many bytes the file has.
        threads: Take the digests.
    """
    return _line(_TREE if size >= _LARGE else _WHOLE, read, size, threads)


def _line(kind: bytes, read: Read, size: int, threads: Threads) -> bytes:
    """The line with a digest of either kind."""
    digest = hashlib.sha256()
    step = _PIECE * _PIECES_AT_ONCE
    if kind == _TREE:
        for leaves in threads.each(partial(_leaves, read, size), range(0, size, step)):
            digest.update(leaves)
    else:
        piece = memoryview(bytearray(min(_PIECE, size)))
        for first in range(0, size, _PIECE):
            read(piece[: size - first], first)
            digest.update(piece[: size - first])
    return _BEFORE % kind + digest.hexdigest().encode() + _AFTER


def _leaves(read: Read, size: int, begin: int) -> bytes:
    """The SHA-256 of each of some pieces, one after another."""
    buffer = memoryview(bytearray(_PIECE))
    leaves = b""
    for first in range(begin, min(begin + _PIECE * _PIECES_AT_ONCE, size), _PIECE):
        piece = buffer[: size - first]
        read(piece, first)
        leaves += hashlib.sha256(piece).digest()
    return leaves


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
        with Threads() as threads:
            line = trailer(partial(_read, file.fileno()), size, threads)
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
        found = _TRAILER.fullmatch(line)
        if found is None:
            return None
        with Threads() as threads:
            return line == _line(found[1], partial(_read, file.fileno()), size, threads)


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


def _read(fd: int, into: memoryview, first: int) -> None:
    """Fill memory with the bytes of a file from a place on."""
    read_at(fd, into, first)


def hdf5_end(fd: int) -> int:
    """Where an HDF5 file ends, as it says itself: a writer that was killed may have left bytes behind that."""
    head = os.pread(fd, 64, 0).ljust(64, b"\0")
    field = _END_FIELD.get(head[8])
    if not head.startswith(_SIGNATURE) or field is None:
        return os.fstat(fd).st_size  # HDF5 itself says better what is wrong
    return min(int.from_bytes(head[field : field + 8], "little"), os.fstat(fd).st_size)
