"""Whole chunks of an array, as HDF5's filters would make them, made and written by several threads.

HDF5 runs its filters in one thread, and deflates what was widened from a half precision more slowly than disks write.
It stores a chunk that was made elsewhere as it is given, and reads it like any other: it compares the checksum and
undoes the filters.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from precision_probe.trace.journal import read_at
from precision_probe.trace.recording.fletcher32 import fletcher32
from precision_probe.trace.recording.threads import Threads

__all__ = ["Writer", "begin_to_check_chunks", "write_whole_chunks"]

_FEW = 2**20  # bytes of rows, and of a chunk, for which threads are not worth their while: choices; HDF5 takes 1 ms
_SMALL = 2**14
_MANY = 2**24  # bytes of chunks that one thread checks in one buffer, as the system is slow to give memory: a choice
_CHECKSUM = 4  # bytes behind a chunk


class Writer(Protocol):
    """Writes to a file that HDF5 has open, where that makes room, as a transaction does."""

    @property
    def threads(self) -> Threads:
        """That write; they may help to make what they write."""

    def write_later(
        self, size: int, write: Callable[[NDArray[np.uint8]], object], make: Callable[[], Iterable[memoryview]]
    ) -> None:
        """Have ``write`` find a place for so many bytes, and threads make them and write them there."""


def write_whole_chunks(dataset: h5py.Dataset, values: NDArray[Any], first: int, writer: Writer) -> slice:
    """Begin to write those rows of an array that fill chunks; they must not be changed before the file is closed.

    Args:
        dataset: An array of the file, long enough.
        values: Rows of it.
        first: The row of the file that the first of them is.
        writer: Writes to its file.

    Returns:
        Which of the rows were written: none where they are few, chunks are small, or they have other filters than
        Fletcher-32 behind shuffled and deflated bytes or none.
    """
    if values.nbytes < _FEW or values.dtype != dataset.dtype or not dataset.fletcher32:
        return slice(0, 0)
    step, *others = dataset.chunks
    if values.nbytes // len(values) * step < _SMALL or dataset.shuffle != (dataset.compression == "gzip"):
        return slice(0, 0)
    begin = min(-first % step, len(values))
    rows = range(begin, begin + (len(values) - begin) // step * step, step)
    pieces = (values[row : row + step] for row in rows)
    for row, (size, make) in zip(rows, _chunks(pieces, writer.threads, deflated=dataset.shuffle), strict=True):
        write = partial(dataset.id.write_direct_chunk, (first + row, *(0 for _ in others)))
        writer.write_later(size, write, make)
    return slice(begin, rows[-1] + step if rows else begin)


def _chunks(
    pieces: Iterable[NDArray[Any]], threads: Threads, *, deflated: bool
) -> Iterator[tuple[int, Callable[[], Iterable[memoryview]]]]:
    """The size of each chunk, and what makes it: those that are deflated have no size before they are made."""
    if deflated:
        for chunk in threads.each(_deflated_chunk, pieces):
            yield len(chunk), partial(iter, (memoryview(chunk),))
    else:
        for piece in pieces:
            yield piece.nbytes + _CHECKSUM, partial(_plain_chunk, piece)


class _Stored(NamedTuple):
    """Where a chunk lies in its file."""

    first: int
    size: int


def begin_to_check_chunks(dataset: h5py.Dataset, fd: int, threads: Threads) -> "list[Future[None]]":
    """Have all chunks of an array read as they lie in its file, and their checksums compared.

    Args:
        dataset: An array with Fletcher-32.
        fd: The file that it is read from, open.
        threads: Do so.

    Returns:
        What is begun; it raises an ``OSError`` if a checksum is not that of what it is of.
    """
    chunks: list[_Stored] = []
    dataset.id.chunk_iter(lambda stored: chunks.append(_Stored(stored.byte_offset, stored.size)))
    largest = max((chunk.size for chunk in chunks), default=0)
    step = max(1, _MANY // max(1, largest))
    name = dataset.name
    return [
        threads.begin(_check, chunks[number : number + step], largest, fd, name)
        for number in range(0, len(chunks), step)
    ]


def _check(chunks: Iterable[_Stored], largest: int, fd: int, name: str) -> None:
    buffer = memoryview(bytearray(largest))
    for chunk in chunks:
        stored = buffer[: chunk.size]
        read_at(fd, stored, chunk.first)
        if fletcher32(stored[:-_CHECKSUM]) != int.from_bytes(stored[-_CHECKSUM:], "little"):
            raise OSError(f"a chunk of {name} has not the Fletcher32 checksum that it was written with")


def _plain_chunk(values: NDArray[Any]) -> Iterator[memoryview]:
    """A chunk that has nothing but its checksum, in pieces, so that it is not copied."""
    content = np.ascontiguousarray(values).data.cast("B")
    yield content
    yield memoryview(fletcher32(content).to_bytes(_CHECKSUM, "little"))


def _deflated_chunk(values: NDArray[Any]) -> bytes:
    """A chunk whose bytes were shuffled, those of one significance together, and deflated.

    Of numbers widened from a half precision, the lowest bytes are mostly zero, which deflate finds as runs; the
    highest, sign and exponent, are few and without order, so that it need only count them. Neither needs the search for
    words that come again, which takes it most of its time. The third byte holds the mantissa's leading bits, which are
    as good as random, and is stored.
    """
    numbers = np.ascontiguousarray(values).reshape(-1).view(f"<u{values.itemsize}")
    planes = np.empty((values.itemsize, len(numbers)), np.uint8)
    shifted = np.empty_like(numbers)
    parts = [b"\x78\x01"]  # how zlib's format begins
    for number, plane in enumerate(planes):
        np.copyto(plane, np.right_shift(numbers, 8 * number, out=shifted), casting="unsafe")
        is_last = number == len(planes) - 1
        level, strategy = (0, zlib.Z_DEFAULT_STRATEGY) if number == len(planes) - 2 else (1, _strategy(plane))
        deflate = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, strategy=strategy)
        parts += [deflate.compress(plane.data), deflate.flush(zlib.Z_FINISH if is_last else zlib.Z_FULL_FLUSH)]
    content = b"".join([*parts, zlib.adler32(planes.data).to_bytes(4, "big")])
    return content + fletcher32(content).to_bytes(_CHECKSUM, "little")


def _strategy(plane: NDArray[np.uint8]) -> int:
    """To look for runs, where most bytes are as the one before them, or not even for these."""
    is_run = np.count_nonzero(plane[1:] == plane[:-1]) > len(plane) / 2
    return zlib.Z_RLE if is_run else zlib.Z_HUFFMAN_ONLY
