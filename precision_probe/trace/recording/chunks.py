"""Whole chunks of an array, as HDF5's filters would make them, made by several threads.

HDF5 runs its filters in one thread, and deflates what was widened from a half precision more slowly than disks write.
It stores a chunk that was made elsewhere as it is given, and reads it like any other: it compares the checksum and
undoes the filters.
"""

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

__all__ = ["check_chunks", "fletcher32", "write_whole_chunks"]

_FEW = 2**20  # bytes of rows, and of a chunk, for which threads are not worth their while: choices; HDF5 takes 1 ms
_SMALL = 2**14
_THREADS = min(4, os.cpu_count() or 1)  # which together make chunks about as fast as disks take them
_AHEAD = 4 * _THREADS  # chunks that are made and not yet written: they keep every thread busy
_WORDS = 2**17  # of 16 bits that are summed at once: 65535 times the sum of their places is below 2⁵³
_PLACES = np.arange(_WORDS, 0, -1, dtype=np.float64)
_MODULUS = 65535

Piece = TypeVar("Piece")
Made = TypeVar("Made")


def write_whole_chunks(dataset: h5py.Dataset, values: NDArray[Any], first: int) -> slice:
    """Write those rows of an array that fill chunks.

    Args:
        dataset: An array of the file, long enough.
        values: Rows of it.
        first: The row of the file that the first of them is.

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
    make = _deflated_chunk if dataset.shuffle else _plain_chunk
    pieces = (values[row : row + step] for row in rows)
    for row, chunk in zip(rows, _in_threads(make, pieces), strict=True):
        dataset.id.write_direct_chunk((first + row, *(0 for _ in others)), chunk)
    return slice(begin, rows[-1] + step if rows else begin)


def check_chunks(dataset: h5py.Dataset, fd: int) -> None:
    """Read all chunks of an array as they lie in its file, and compare their checksums.

    Args:
        dataset: An array with Fletcher-32.
        fd: The file that it is read from, open.

    Raises:
        OSError: If a checksum is not that of what it is of.
    """
    places: list[tuple[int, int]] = []
    dataset.id.chunk_iter(lambda stored: places.append((stored.byte_offset, stored.size)))

    def is_whole(place: tuple[int, int]) -> bool:
        first, size = place
        chunk = os.pread(fd, size, first)
        return fletcher32(chunk[:-4]) == int.from_bytes(chunk[-4:], "little")

    if not all(_in_threads(is_whole, places)):
        raise OSError(f"a chunk of {dataset.name} has not the Fletcher32 checksum that it was written with")


def _in_threads(make: Callable[[Piece], Made], pieces: Iterable[Piece]) -> Iterator[Made]:
    """What is made of each piece, in order; few are made before they are asked for, so that memory stays bounded."""
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for piece in pieces:
            waiting.append(_begun(pool, make, piece))
            if len(waiting) == _AHEAD:
                yield waiting.popleft().result()
        yield from (each.result() for each in waiting)


def _begun(pool: ThreadPoolExecutor, make: Callable[[Piece], Made], piece: Piece) -> Future[Made]:
    """A piece that is being made; or that was, as Python starts no threads when it ends."""
    try:
        return pool.submit(make, piece)
    except RuntimeError:
        made: Future[Made] = Future()
        made.set_result(make(piece))
        return made


def _plain_chunk(values: NDArray[Any]) -> bytes:
    """A chunk that has nothing but its checksum."""
    return _with_checksum(np.ascontiguousarray(values).tobytes())


def _deflated_chunk(values: NDArray[Any]) -> bytes:
    """A chunk whose bytes were shuffled, those of one significance together, and deflated.

    Of numbers widened from a half precision, the lowest bytes are mostly zero and the highest, sign and exponent, much
    alike: deflate finds that without looking for words that come again, which takes it most of its time. The third byte
    holds the mantissa's leading bits, which are as good as random, and is stored.
    """
    planes = np.ascontiguousarray(np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.itemsize).T)
    parts = [b"\x78\x01"]  # how zlib's format begins
    for number, plane in enumerate(planes):
        is_last = number == len(planes) - 1
        level, strategy = (0, zlib.Z_DEFAULT_STRATEGY) if number == len(planes) - 2 else (1, zlib.Z_RLE)
        deflate = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, strategy=strategy)
        parts += [deflate.compress(plane), deflate.flush(zlib.Z_FINISH if is_last else zlib.Z_FULL_FLUSH)]
    return _with_checksum(b"".join([*parts, zlib.adler32(planes.data).to_bytes(4, "big")]))


def _with_checksum(content: bytes) -> bytes:
    """A chunk as HDF5's filter of that name stores it."""
    return content + fletcher32(content).to_bytes(4, "little")


def fletcher32(content: bytes) -> int:
    """The checksum that HDF5 has of a chunk: sums of 16-bit words, and of these sums, modulo 65535.

    Example:
        >>> hex(fletcher32(b"abcdef"))
        '0x50562a2d'
    """
    words = np.frombuffer(content + bytes(len(content) % 2), dtype="<u2")
    total = of_totals = 0
    for first in range(0, len(words), _WORDS):
        piece = words[first : first + _WORDS].astype(np.float64)  # sums of whole numbers below 2⁵³ are exact
        of_totals += len(piece) * total + int(piece @ _PLACES[-len(piece) :])
        total += int(piece.sum())
    # HDF5 takes the words in the other order of bytes: modulo 65535 that is 256 times as much
    return _folded(256 * of_totals) << 16 | _folded(256 * total)


def _folded(total: int) -> int:
    """A number modulo 65535, which stands for 0 itself, except of 0."""
    return (total - 1) % _MODULUS + 1 if total else 0
