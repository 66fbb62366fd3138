"""Arithmetic of arrays of any library in float64, that never warns, and whose squares neither overflow nor underflow.

What sums and norms need of an array is first divided by its largest magnitude. dask stays lazy, and torch stays on its
device.
"""

# array_api_compat has no types, so whatever a library's namespace gives is Any; and an array's == is not a bool.
# mypy: disable-error-code="no-any-return, comparison-overlap"

import math
import operator
from collections.abc import Callable
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from array_api_compat import array_namespace, device, is_dask_array, is_torch_array
from numpy.typing import NDArray

from precision_probe.precisions import Precision

__all__ = [
    "Array",
    "Scaled",
    "add",
    "binade_of",
    "comparable",
    "count",
    "decibels",
    "divide",
    "float64",
    "is_zero",
    "multiply",
    "subtract",
    "ulp",
    "ulps",
]


_EXPONENT = np.int64(0x7FF << 52)  # the bits of a float64 that say which power of two it begins with


class _RealArray(Protocol):
    """What the arrays of NumPy, torch and dask share, as far as it is used without their namespace."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __ne__(self, other: Any, /) -> Any: ...
    def __gt__(self, other: float, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __truediv__(self, other: Any, /) -> Any: ...


Array = TypeVar("Array", bound=_RealArray)


def quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a float64 function of elements without NumPy's warnings: what they warn of has a defined answer here.

    dask calls it later, from other threads, where no setting made here would hold: so each block makes its own.
    """

    def silent(*blocks: object) -> Any:
        with np.errstate(all="ignore"):
            return function(*blocks)

    def mapped(first: Any, *others: object) -> Any:
        if is_dask_array(first):
            return first.map_blocks(silent, *others, dtype=np.float64)
        return array_namespace(first).asarray(silent(first, *others))  # NumPy's operators make scalars of 0-d arrays

    return mapped


add, subtract, multiply, divide = map(quiet, (operator.add, operator.sub, operator.mul, operator.truediv))


@quiet
def float64(x: Array) -> Array:
    """Return the numbers in float64."""
    xp = array_namespace(x)
    return xp.astype(x, xp.float64, copy=False)


@quiet
def decibels(ratio: Array) -> Array:
    """Return −20 log₁₀ of a ratio of amplitudes."""
    return 0.0 - 20.0 * array_namespace(ratio).log10(ratio)


@quiet
def ulp(y: Array, precision: Precision) -> Array:
    """Return the unit in the last place at y, below the format's normal numbers that of the smallest."""
    xp = array_namespace(y)
    if isinstance(y, np.ndarray) and np.isfinite(y).all():
        binade: Any = binade_of(y, precision)
    else:
        magnitude = xp.abs(y)
        # frexp is exact where a logarithm rounds: |y| = mantissa · 2^(e + 1) with mantissa in [½, 1), or 0 of 0.
        mantissa, _ = xp.frexp(magnitude)
        binade = magnitude / (2.0 * mantissa + is_zero(mantissa))
        binade = xp.clip(binade, precision.smallest_normal, 2.0**precision.max_exponent)
    return binade * 2.0 ** (1 - precision.significand_bits)


def binade_of(
    y: NDArray[np.float64], precision: Precision, out: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return the power of two that each number, which is finite, begins with, within a format's normal numbers.

    NumPy's arrays have it in their bits, which takes a fifth of the time.
    """
    out = np.empty(y.shape) if out is None else out
    np.bitwise_and(y.view(np.int64), _EXPONENT, out=out.view(np.int64))
    return np.clip(out, precision.smallest_normal, 2.0**precision.max_exponent, out=out)


def ulps(error: Array, y: Array, precision: Precision) -> Array:
    """Return |Δ| in units in the last place at y."""
    return divide(error, ulp(y, precision))


def is_zero(x: Array) -> Array:
    """Return 1 where x is 0, else 0: added to a divisor, it makes 0 / 0 a 0."""
    xp = array_namespace(x)
    return xp.astype(x == 0, xp.float64)


def count(x: Array) -> Array:
    """Return how many are true."""
    xp = array_namespace(x)
    return xp.asarray(xp.sum(xp.astype(x, xp.int64)))


def _positive_or_one(x: Array) -> Array:
    xp = array_namespace(x)
    return xp.where(x > 0, x, xp.ones_like(x))


def comparable(y: Any, y_hat: Any) -> tuple[Any, Any]:
    """Return arrays of which every metric can be taken, in ways that each library has alone."""
    if 0 in y.shape:  # no elements have the errors of one exact zero
        xp = array_namespace(y, y_hat)
        y = y_hat = xp.zeros(1, dtype=xp.float64, device=device(y))
    if is_torch_array(y):  # an error is measured, not differentiated: no graph is kept alive for it
        y, y_hat = y.detach(), y_hat.detach()
    if is_dask_array(y):  # element by element, so block by block
        y_hat = y_hat.rechunk(y.chunks)
    return y, y_hat


class Scaled(Generic[Array]):
    """An array as its largest magnitude m times numbers of at most 1, over which it is safe to sum.

    Where m is 0, ∞ or NaN those numbers are of no use (0 or NaN). Norms and means of magnitudes are then m itself,
    so the factor that would come from the numbers is taken as 1.
    """

    def __init__(self, x: Array) -> None:
        self.x = x
        self.xp = array_namespace(x)
        self.count = math.prod(x.shape)
        self.magnitude = self.xp.abs(x)
        self.largest = self.xp.asarray(self.xp.max(self.magnitude))

    @cached_property
    def unit(self) -> Array:
        """The numbers of at most 1."""
        return divide(self.x, add(self.largest, is_zero(self.largest)))

    @cached_property
    def squares(self) -> Array:
        """Their sum of squares."""
        return self.xp.sum(multiply(self.unit, self.unit))

    @property
    def root(self) -> Array:
        """‖x‖₂ / m."""
        return self.xp.sqrt(_positive_or_one(self.squares))

    @property
    def rms(self) -> Array:
        """Root mean square of the array."""
        return multiply(self.largest, self.xp.sqrt(_positive_or_one(self.squares / self.count)))

    @property
    def mean_magnitude(self) -> Array:
        """Mean of the magnitudes of the array."""
        return multiply(self.largest, _positive_or_one(self.xp.sum(self.xp.abs(self.unit)) / self.count))

    @property
    def mean(self) -> Array:
        """Mean of the array; infinite, or NaN if both signs are, where it holds infinities."""
        finite = multiply(self.largest, self.xp.sum(self.unit) / self.count)
        infinite = add(self.xp.max(self.x), self.xp.min(self.x))  # NaN if both signs occur
        return self.xp.where(self.xp.isfinite(self.largest), finite, infinite)
