"""The error of one array against another: one definition for torch on any device, NumPy and dask.

Every metric is a pure function whose first arguments are ``y``, the reference, and ``y_hat`` (ŷ), the variant:
arrays of one library and one shape, of any real dtype. Both are taken to float64 first; Δ = ŷ − y. What comes back is
a 0-d array of that library, on that device: nothing waits for a GPU and dask stays lazy. :func:`compare` gives every
metric as a Python number.

What sums and norms need of an array is first divided by its largest magnitude, so neither 1e-300 nor 1e200
underflows or overflows when squared. Where there is nothing usual to divide by, the answers are:

- No elements at all: no error (0, +∞ dB, cosine 1, headroom ∞, counts 0).
- ŷ = y, all zeros included: rel_l2 0, sqnr_db +∞, cosine 1.
- y all zeros and ŷ not: rel_l2 ∞, sqnr_db −∞, cosine 0.
- NaN in y, ŷ or Δ (∞ − ∞): NaN, never dropped; only the counts stay numbers.
- ∞ in ŷ, y finite: every error is ∞ (bias keeps its sign, NaN if both signs occur), sqnr_db −∞, cosine NaN,
  headroom 0.
- ∞ in y, which is then no reference: by the formulas, so whatever is relative to y is NaN.
"""

# array_api_compat has no types, so whatever a library's namespace gives is Any; and an array's == is not a bool.
# mypy: disable-error-code="no-any-return, comparison-overlap"

from functools import cached_property
from typing import Generic

import numpy as np  # noqa: F401 the examples use it
from array_api_compat import array_namespace, is_dask_array

from precision_probe.analysis.scaled import (
    Array,
    Scaled,
    add,
    comparable,
    count,
    decibels,
    divide,
    float64,
    is_zero,
    multiply,
    subtract,
    ulps,
)
from precision_probe.exceptions import InputError
from precision_probe.precisions import PRECISIONS, Precision

__all__ = [
    "EPS",
    "METRICS",
    "amplification",
    "bias",
    "compare",
    "cosine",
    "flushed",
    "headroom",
    "max_abs",
    "mean_abs",
    "mean_rel",
    "nonfinite",
    "rel_l2",
    "rms",
    "sqnr_db",
    "ulp_max",
    "ulp_mean",
]

EPS = 1e-12  # in the unit of y: far below the elements that matter, so that only those next to zero feel it


def max_abs(y: Array, y_hat: Array) -> Array:
    """Largest error: max |Δ|.

    Returns:
        The error in the unit of y, a 0-d array.

    Example:
        >>> float(max_abs(np.asarray([1.0, 2.0]), np.asarray([1.5, 1.0])))
        1.0
    """
    return _Compared(y, y_hat).max_abs


def mean_rel(y: Array, y_hat: Array, eps: float = EPS) -> Array:
    """Mean relative error of the elements: mean |Δ| / (|y| + ε), ε = 1e-12 unless given.

    Args:
        eps: ε, in the unit of y. Elements of y near zero make the result depend on it: state it beside the number.

    Returns:
        The error, without unit, a 0-d array.

    Example:
        >>> float(mean_rel(np.asarray([1.0, 4.0]), np.asarray([2.0, 2.0]), eps=1.0))
        0.45
    """
    return _Compared(y, y_hat, eps=eps).mean_rel


def mean_abs(y: Array, y_hat: Array) -> Array:
    """Mean absolute error: mean |Δ|.

    Returns:
        The error in the unit of y, a 0-d array.
    """
    return _Compared(y, y_hat).mean_abs


def rms(y: Array, y_hat: Array) -> Array:
    """Root mean square error: √(mean Δ²).

    Returns:
        The error in the unit of y, a 0-d array.
    """
    return _Compared(y, y_hat).rms


def bias(y: Array, y_hat: Array) -> Array:
    """Mean signed error: mean Δ. Rounding to nearest has next to none; losing small addends or a bug has.

    Returns:
        The error in the unit of y, a 0-d array.
    """
    return _Compared(y, y_hat).bias


def rel_l2(y: Array, y_hat: Array) -> Array:
    """Relative error of the whole array: ‖Δ‖₂ / ‖y‖₂. The headline: small elements do not blow it up.

    Returns:
        The error, without unit, a 0-d array.

    Example:
        >>> y, y_hat, tiny = np.asarray([3.0, 4.0]), np.asarray([3.0, 5.0]), 2.0**-1000
        >>> float(rel_l2(y, y_hat)), float(rel_l2(tiny * y, tiny * y_hat))
        (0.2, 0.2)
    """
    return _Compared(y, y_hat).rel_l2


def amplification(y: Array, y_hat: Array, precision: Precision) -> Array:
    """Relative error in unit roundoffs: rel_l2 / u. Much the same in every precision unless range runs out.

    Args:
        precision: The variant's precision, which has the unit roundoff u.

    Returns:
        How many roundings' worth of error, a 0-d array.

    Example:
        >>> y = np.asarray([1.0, 0.1], dtype="float64")
        >>> float(amplification(y, y.astype("float16"), PRECISIONS["float16"])) < 1
        True
    """
    return _Compared(y, y_hat, precision).amplification


def sqnr_db(y: Array, y_hat: Array) -> Array:
    """Signal to quantisation noise ratio in decibels: −20 log₁₀ rel_l2.

    Returns:
        The ratio, larger is better, 20 dB to a decimal digit, a 0-d array.

    Example:
        >>> float(sqnr_db(np.asarray([10.0]), np.asarray([11.0])))
        20.0
    """
    return _Compared(y, y_hat).sqnr_db


def cosine(y: Array, y_hat: Array) -> Array:
    """Cosine of the angle between the arrays: ⟨y, ŷ⟩ / (‖y‖₂ ‖ŷ‖₂).

    Returns:
        From −1 to 1, 1 for the same direction whatever the lengths, a 0-d array.

    Example:
        >>> float(cosine(np.asarray([1e200, 0.0]), np.asarray([3e-200, 4e-200])))
        0.6
    """
    return _Compared(y, y_hat).cosine


def ulp_max(y: Array, y_hat: Array, precision: Precision) -> Array:
    """Largest error in units in the last place of the variant's format at y: max |Δ| / ulp(y).

    ulp(y) = 2^(e − p + 1) for p significand bits and 2^e ≤ |y| < 2^(e+1), with e kept within the exponents of the
    normal numbers: below them the unit is the smallest subnormal number.

    Args:
        precision: The variant's precision. Correct rounding to it is at most ½ off.

    Returns:
        The error in units in the last place, a 0-d array.

    Example:
        >>> float(ulp_max(np.asarray([1.0, 2.0]), np.asarray([1.5, 2.0]), PRECISIONS["bfloat16"]))
        64.0
    """
    return _Compared(y, y_hat, precision).ulp_max


def ulp_mean(y: Array, y_hat: Array, precision: Precision) -> Array:
    """Mean error in units in the last place of the variant's format at y: mean |Δ| / ulp(y).

    Args:
        precision: The variant's precision. Correct rounding to it is ¼ off on average.

    Returns:
        The error in units in the last place, see :func:`ulp_max`, a 0-d array.
    """
    return _Compared(y, y_hat, precision).ulp_mean


def nonfinite(y: Array, y_hat: Array) -> Array:
    """Count of elements of ŷ that are infinite or NaN.

    Returns:
        The count, a 0-d integer array.
    """
    return _Compared(y, y_hat).nonfinite


def flushed(y: Array, y_hat: Array) -> Array:
    """Count of elements that are zero in ŷ but not in y.

    Returns:
        The count, a 0-d integer array.

    Example:
        >>> y = np.asarray([1e-9, 0.0, 1.0])
        >>> int(flushed(y, y.astype("float16")))
        1
    """
    return _Compared(y, y_hat).flushed


def headroom(y: Array, y_hat: Array, precision: Precision) -> Array:
    """Room left below overflow: largest finite number of the variant's format / max |ŷ|.

    Args:
        precision: The variant's precision, which has the largest finite number.

    Returns:
        The factor by which ŷ could still grow, a 0-d array.

    Example:
        >>> float(headroom(np.asarray([1.0]), np.asarray([2.0]), PRECISIONS["float16"]))
        32752.0
    """
    return _Compared(y, y_hat, precision).headroom


#: Every metric by name, with its definition, in the order of the tables.
METRICS: dict[str, str] = {
    metric.__name__: (metric.__doc__ or "").partition("\n")[0]
    for metric in (
        max_abs,
        mean_rel,
        mean_abs,
        rms,
        bias,
        rel_l2,
        amplification,
        sqnr_db,
        cosine,
        ulp_max,
        ulp_mean,
        nonfinite,
        flushed,
        headroom,
    )
}


def compare(y: Array, y_hat: Array, precision: Precision, eps: float = EPS) -> dict[str, float]:
    """Return every metric as a Python number, in the order of :data:`METRICS`.

    What the metrics share is computed once, and the device, or dask, is waited for once.

    Args:
        precision: The variant's precision.
        eps: ε of :func:`mean_rel`.

    Returns:
        Metric name to value: an int for the counts, a float for the rest.

    Raises:
        InputError: If the shapes differ.

    Example:
        >>> errors = compare(np.asarray([3.0, 4.0]), np.asarray([3.0, 5.0]), PRECISIONS["float16"])
        >>> errors["rel_l2"], errors["max_abs"], errors["flushed"]
        (0.2, 1.0, 0)
    """
    compared = _Compared(y, y_hat, precision, eps)
    numbers = compared.xp.stack([float64(getattr(compared, name)) for name in METRICS])
    if is_dask_array(numbers):
        numbers = numbers.compute()
    values = dict(zip(METRICS, numbers.tolist(), strict=True))
    return values | {name: int(values[name]) for name in ("nonfinite", "flushed")}


class _Compared(Generic[Array]):
    """A reference and a variant in float64, and every metric of them; what several need is computed once.

    Only the metrics that are documented to depend on ``precision`` or ``eps`` read it.
    """

    def __init__(self, y: Array, y_hat: Array, precision: Precision = PRECISIONS["float64"], eps: float = EPS) -> None:
        if tuple(y.shape) != tuple(y_hat.shape):
            raise InputError(
                f"Arrays of different shapes cannot be compared: the reference has shape {tuple(y.shape)}, "
                f"the variant {tuple(y_hat.shape)}. Give two arrays of the same shape."
            )
        self.xp = array_namespace(y, y_hat)
        self.y, self.y_hat = (Scaled[Array](float64(values)) for values in comparable(y, y_hat))
        self.precision = precision
        self.eps = eps

    @cached_property
    def delta(self) -> Scaled[Array]:
        return Scaled(subtract(self.y_hat.x, self.y.x))

    @cached_property
    def ulps(self) -> Scaled[Array]:
        return Scaled(ulps(self.delta.magnitude, self.y.x, self.precision))

    @property
    def max_abs(self) -> Array:
        return self.delta.largest

    @property
    def mean_rel(self) -> Array:
        return Scaled(divide(self.delta.magnitude, add(self.y.magnitude, self.eps))).mean_magnitude

    @property
    def mean_abs(self) -> Array:
        return self.delta.mean_magnitude

    @property
    def rms(self) -> Array:
        return self.delta.rms

    @property
    def bias(self) -> Array:
        return self.delta.mean

    @cached_property
    def rel_l2(self) -> Array:
        # The largest magnitudes are divided first: their quotient is in range where the norms may not be.
        largest = divide(self.delta.largest, add(self.y.largest, is_zero(self.delta.largest)))
        return multiply(largest, self.delta.root / self.y.root)

    @property
    def amplification(self) -> Array:
        return divide(self.rel_l2, self.precision.unit_roundoff)

    @property
    def sqnr_db(self) -> Array:
        return decibels(self.rel_l2)

    @property
    def cosine(self) -> Array:
        product = self.xp.sum(multiply(self.y.unit, self.y_hat.unit))
        squares = self.y.squares * self.y_hat.squares  # one square root of both: exactly 1 for equal arrays
        both_zero = self.xp.astype(self.y.squares == self.y_hat.squares, self.xp.float64)
        cosine = self.xp.clip(divide(product, self.xp.sqrt(squares)), -1.0, 1.0)
        return self.xp.where(squares == 0, both_zero, cosine)

    @property
    def ulp_max(self) -> Array:
        return self.ulps.largest

    @property
    def ulp_mean(self) -> Array:
        return self.ulps.mean_magnitude

    @property
    def nonfinite(self) -> Array:
        return count(~self.xp.isfinite(self.y_hat.x))

    @property
    def flushed(self) -> Array:
        return count((self.y.x != 0) & (self.y_hat.x == 0))

    @property
    def headroom(self) -> Array:
        return divide(self.xp.full_like(self.y_hat.largest, self.precision.largest), self.y_hat.largest)
