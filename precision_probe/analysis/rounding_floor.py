"""What a format can hold at best: numbers rounded to it, with NumPy alone, for traces that are read without torch."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from precision_probe.analysis.scaled import binade_of
from precision_probe.precisions import Precision

__all__ = ["representation_floor", "represented", "rounding"]

_MOST = 2.0**300  # far below where what is added below overflows
_MOST_BITS = 50  # that adding a large number and taking it away again leaves, rounded to nearest


def represented(y: NDArray[Any], precision: Precision) -> NDArray[np.float64]:
    """Round numbers to the nearest that a format stores, ties to even (IEEE 754-2019, section 4.3.1).

    Args:
        y: Numbers of any real dtype.
        precision: The format; ``tf32`` stores float32.

    Returns:
        float64, of the same shape. What is too large is infinite, NaN and infinities stay.

    Example:
        >>> from precision_probe.precisions import PRECISIONS
        >>> represented(np.asarray([1.0009765625, 70000.0]), PRECISIONS["bfloat16"]).tolist()
        [1.0, 70144.0]
    """
    stored = precision.storage
    y = np.asarray(y, dtype=np.float64)
    _, exponent = np.frexp(y)  # of a mantissa from ½ to 1, so one above IEEE 754's
    spacing = exponent - stored.significand_bits
    if stored.has_range:
        spacing = np.maximum(spacing, stored.min_exponent - stored.significand_bits + 1)
    with np.errstate(invalid="ignore", over="ignore"):
        rounded = np.ldexp(np.rint(np.ldexp(y, -spacing)), spacing)  # powers of two: rint alone rounds
    if stored.has_range:
        rounded = np.where(np.abs(rounded) > stored.largest, np.copysign(np.inf, y), rounded)
    return np.where(np.isfinite(y), rounded, y)


def rounding(
    y: NDArray[np.float64],
    largest: float,
    stored: Precision,
    binade: NDArray[np.float64] | None = None,
    rounded: NDArray[np.float64] | None = None,
    beside: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """What storing numbers in a format changes them by.

    Args:
        y: Numbers.
        largest: The largest magnitude among them.
        stored: The format.
        binade: What :func:`precision_probe.analysis.scaled.binade_of` has of them, where it is known.
        rounded: A buffer, which is returned if it is used.
        beside: Another.
    """
    if not stored.has_range or stored.significand_bits > _MOST_BITS or not largest <= min(stored.largest, _MOST):
        return represented(y, stored) - y
    # Beside 1.5 · 2⁵² spacings, float64 itself rounds to the nearest whole number of them, ties to even.
    binade = binade_of(y, stored) if binade is None else binade
    beside = np.multiply(binade, 1.5 * 2.0 ** (53 - stored.significand_bits), out=beside)
    rounded = np.add(y, beside, out=rounded)
    rounded -= beside
    rounded -= y
    return rounded


def representation_floor(y: NDArray[Any], precision: Precision) -> float:
    """The smallest rel_l2 possible: that of the reference itself, stored in the format. No arithmetic can beat it."""
    y = np.asarray(y, dtype=np.float64)
    largest = float(np.abs(y).max(initial=0.0))
    if largest == 0:
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        delta = rounding(y, largest, precision.storage) / largest  # in range where squares would not be
        return float(np.linalg.norm(delta) / np.linalg.norm(y / largest))
