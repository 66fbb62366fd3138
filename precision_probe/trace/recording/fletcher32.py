"""The checksum that HDF5 has of a chunk, by NumPy at the speed of memory: HDF5's own takes one word after another."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["fletcher32"]

_WIDTH = 2**12  # words of 16 bits in a row: a choice, such that sums of columns and of rows are both of many numbers
_ROW = 2 * _WIDTH  # bytes
_ROWS = 2**7  # that are summed at once, which stay in the cache: a choice
_PLACES = np.arange(_WIDTH, dtype=np.uint64)
_MODULUS = 65535


def fletcher32(content: bytes | memoryview) -> int:
    """Sums of 16-bit words, and of these sums, modulo 65535.

    Example:
        >>> hex(fletcher32(b"abcdef"))
        '0x50562a2d'
    """
    data = np.frombuffer(content, np.uint8)
    n_rows, n_left = divmod(len(data), _ROW)
    last = np.zeros(_ROW, np.uint8)
    last[:n_left] = data[len(data) - n_left :]
    rows = data[: n_rows * _ROW].reshape(n_rows, _ROW)
    sums = [_sums(rows[first : first + _ROWS], first) for first in range(0, n_rows, _ROWS)]
    total, by_place = map(sum, zip(*sums, _sums(last[np.newaxis], n_rows), strict=True))
    # the sum of all sums has the first word as often as there are words, the last once
    of_totals = (len(data) + 1) // 2 * total - by_place
    # HDF5 takes the words in the other order of bytes: modulo 65535 that is 256 times as much
    return _folded(256 * of_totals) << 16 | _folded(256 * total)


def _sums(rows: NDArray[np.uint8], first: int) -> tuple[int, int]:
    """The sum of all words, and, but for multiples of 65535, that of each times its place.

    Args:
        rows: Of words, contiguous.
        first: How many rows come before them.
    """
    columns = np.add.reduce(rows.view("<u2"), axis=0, dtype=np.uint32)
    # two words at once: 2¹⁶ is 1 modulo 65535, so that the sum of both is as good as the two in one number
    each = np.add.reduce(rows.view("<u4"), axis=1, dtype=np.uint64) % _MODULUS
    places = np.arange(first, first + len(rows), dtype=np.uint64)
    return int(columns.sum(dtype=np.uint64)), int(columns @ _PLACES) + _WIDTH * int(each @ places)


def _folded(total: int) -> int:
    """A number modulo 65535, which stands for 0 itself, except of 0."""
    return (total - 1) % _MODULUS + 1 if total else 0
