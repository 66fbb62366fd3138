"""Rows of an array out of its chunks as they lie in the file, which several threads may read at once.

HDF5 reads, checks and undoes filters in one thread at a time. Here it says once where the chunks are.
"""

import os
import zlib
from typing import Any

import h5py
import numpy as np
from h5py import h5z
from numpy.typing import NDArray

from precision_probe.trace.recording.fletcher32 import fletcher32

__all__ = ["RawArray", "RawError"]

_CHECKSUM = 4  # bytes behind each chunk
_PLAIN = (h5z.FILTER_FLETCHER32,)
_DEFLATED = (h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE, h5z.FILTER_FLETCHER32)


class RawError(Exception):
    """Rows cannot be had so: HDF5 can read them, or says what is wrong with them."""


class RawArray:
    """Where the chunks of an array are, each of whole rows and with a checksum.

    Args:
        dataset: The array in an open file that does not change.

    Raises:
        RawError: If it is stored in another way.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        properties = dataset.id.get_create_plist()
        filters = tuple(properties.get_filter(index)[0] for index in range(properties.get_nfilters()))
        if not dataset.chunks or dataset.chunks[1:] != dataset.shape[1:] or filters not in (_PLAIN, _DEFLATED):
            raise RawError("it has other chunks or filters")
        self._chunk_shape, self._dtype, self._is_deflated = dataset.chunks, dataset.dtype, filters == _DEFLATED
        self._places: dict[int, tuple[int, int]] = {}  # where in the file, and how many bytes, by the first row

        def add(stored: Any) -> None:
            if not stored.filter_mask:  # else a filter was left out
                self._places[stored.chunk_offset[0]] = stored.byte_offset, stored.size

        dataset.id.chunk_iter(add)

    def read(self, fd: int, first: int, end: int) -> NDArray[Any]:
        """Some rows.

        Args:
            fd: The file, open.
            first: The first row.
            end: The row behind the last.

        Raises:
            RawError: If a chunk is not there, or is damaged.
        """
        n_rows, *others = self._chunk_shape
        values = np.empty((end - first, *others), self._dtype)
        chunk = np.empty(self._chunk_shape, self._dtype)  # of which some rows are wanted
        for row in range(first - first % n_rows, end, n_rows):
            if first <= row and row + n_rows <= end:
                self._fill(values[row - first : row - first + n_rows], fd, row)
            else:
                self._fill(chunk, fd, row)
                begin, stop = max(row, first), min(row + n_rows, end)
                values[begin - first : stop - first] = chunk[begin - row : stop - row]
        return values

    def _fill(self, chunk: NDArray[Any], fd: int, row: int) -> None:
        """Read and check the chunk that begins with a row, and undo its filters."""
        place, size = self._places.get(row, (0, 0))
        flat = chunk.reshape(-1).view(np.uint8)
        content = np.empty(size - _CHECKSUM, np.uint8) if self._is_deflated and size > _CHECKSUM else flat
        checksum = bytearray(_CHECKSUM)
        if size != content.size + _CHECKSUM or os.preadv(fd, [content.data, checksum], place) != size:
            raise RawError("it has no such chunk")
        if fletcher32(content.data) != int.from_bytes(checksum, "little"):
            raise RawError("a checksum is another")
        if self._is_deflated:
            planes = np.frombuffer(_inflated(content, flat.size), np.uint8).reshape(chunk.itemsize, -1)
            for number, plane in enumerate(planes):  # which has the bytes of one significance
                flat[number :: chunk.itemsize] = plane


def _inflated(content: NDArray[np.uint8], size: int) -> bytes:
    """What was deflated, if it has that size."""
    try:
        inflated = zlib.decompressobj().decompress(content.data, size)
    except zlib.error as error:
        raise RawError("it was not deflated") from error
    if len(inflated) != size:
        raise RawError("a chunk has another size")
    return inflated
