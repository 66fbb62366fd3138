"""The errors of one array, which may be larger than memory: block after block, or at once if it is one.

Of blocks there are statistics, from which the metrics of the whole follow; of an array in one piece the metrics come as
:func:`precision_probe.analysis.metrics.compare` defines them. The two agree to rounding.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precision_probe.analysis.metrics import EPS, METRICS, compare
from precision_probe.analysis.rounding_floor import representation_floor, rounding
from precision_probe.analysis.scaled import binade_of, ulps
from precision_probe.analysis.statistics import STATISTICS, combined, floor_of, metrics_of
from precision_probe.precisions import Precision

__all__ = ["ArrayErrors", "statistics_of"]

_IN_CACHE = 2**16  # numbers: what is made of them stays near a core (a half and a quarter as many take longer)
_BUFFERS = 5  # of so many numbers each
_ONE_THREAD = 2**13  # numbers of which OpenBLAS makes a product without threads of its own: below 10,000
# Between these magnitudes sums of squares neither overflow nor lose what matters, and need no scale.
_LEAST, _MOST = 2.0**-300, 2.0**300
_SMALLEST = 2.0**-1021  # which float64 has as a normal number, as its inverse


@dataclass(frozen=True)
class ArrayErrors:
    """How the errors of an array are taken, of which one block comes after another.

    Attributes:
        precision: The variant's precision.
        eps: ε of ``mean_rel``.
        is_whole: One block is all there is.
    """

    precision: Precision
    eps: float = EPS
    _: KW_ONLY
    is_whole: bool

    def of_block(self, y: NDArray[Any], y_hat: NDArray[Any]) -> NDArray[np.float64]:
        """What is kept of a block of reference and variant: its statistics, or every number if it is all there is."""
        if not self.is_whole:
            return statistics_of(y, y_hat, self.precision, self.eps)
        metrics = compare(y, y_hat, self.precision, eps=self.eps)
        return np.asarray([y.size, *metrics.values(), representation_floor(y, self.precision)])

    def of_all(self, blocks: Sequence[NDArray[np.float64]]) -> dict[str, float]:
        """How many numbers there are, every metric, and the floor of rel_l2, from what was kept of blocks in order."""
        if self.is_whole:
            numbers = dict(zip(("n", *METRICS, "floor"), blocks[0].tolist(), strict=True))
            return numbers | {name: int(numbers[name]) for name in ("n", "nonfinite", "flushed")}
        whole = combined(np.asarray(blocks))
        return {"n": int(whole[0])} | metrics_of(whole, self.precision) | {"floor": floor_of(whole)}


def statistics_of(y: NDArray[Any], y_hat: NDArray[Any], precision: Precision, eps: float = EPS) -> NDArray[np.float64]:
    """The statistics of errors of an array.

    Args:
        y: The reference, of any real dtype.
        y_hat: The variant's, of the same shape.
        precision: The variant's precision.
        eps: ε of ``relative_errors``.

    Returns:
        (n_statistics,), in the order of :data:`precision_probe.analysis.statistics.STATISTICS`; of no numbers zeros.
    """
    if not y.size:
        return np.zeros(len(STATISTICS))
    y, y_hat = y.reshape(-1), y_hat.reshape(-1)
    buffers = np.empty((_BUFFERS, min(y.size, _IN_CACHE)))
    with np.errstate(all="ignore"):
        found = [
            _of_few(y[at : at + _IN_CACHE], y_hat[at : at + _IN_CACHE], precision, eps, buffers)
            for at in range(0, y.size, _IN_CACHE)
        ]
    return combined(np.asarray(found))


def _of_few(
    y: NDArray[Any], y_hat: NDArray[Any], precision: Precision, eps: float, buffers: NDArray[np.float64]
) -> list[float]:
    """What :func:`statistics_of` says of so few numbers that they stay in the cache.

    Buffers are used again, as memory that the system gives anew takes it longer than what is done here.
    """
    delta, size, error, binade, free = buffers[:, : y.size]
    y_hat_max = abs(float(max(y_hat.max(), -y_hat.min())))
    n_nonfinite = 0 if np.isfinite(y_hat_max) else np.count_nonzero(~np.isfinite(y_hat))
    is_zero = y_hat == 0
    n_flushed = np.count_nonzero(is_zero & (y != 0)) if is_zero.any() else 0
    y = y.astype(np.float64, copy=False)
    if y_hat.dtype != np.float64:
        np.copyto(free, y_hat)
        y_hat = free
    np.subtract(y_hat, y, out=delta)
    np.abs(y, out=size)
    np.abs(delta, out=error)
    y_max, error_max = size.max(), error.max()
    y_scale, y_hat_scale, error_scale = map(_scale, (y_max, y_hat_max, error_max))
    unit, y_hat_unit, error_unit = _divided(y, y_scale), _divided(y_hat, y_hat_scale), _divided(delta, error_scale)
    variant_squares, products = _dot(y_hat_unit, y_hat_unit), _dot(unit, y_hat_unit)
    relative_errors = np.divide(error, np.add(size, eps, out=size), out=size).sum()
    binade_of(y, precision, out=binade)
    floor = _divided(rounding(y, y_max, precision.storage, binade, free, size), y_scale)
    ulp = 2.0 ** (1 - precision.significand_bits)
    in_ulps = np.divide(error, binade, out=binade) if np.isfinite(y_max) else ulp * ulps(error, y, precision)
    return [
        y.size,
        y_scale,
        y_hat_scale,
        error_scale,
        y_hat_max,
        error_max,
        in_ulps.max() / ulp,
        _dot(unit, unit),
        variant_squares,
        _dot(error_unit, error_unit),
        products,
        _divided(error, error_scale).sum(),
        error_unit.sum(),
        relative_errors,
        in_ulps.sum() / ulp,
        _dot(floor, floor),
        n_nonfinite,
        n_flushed,
    ]


def _dot(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Σ x y; of many numbers BLAS would begin threads, which beside other work take a thousand times as long."""
    n = x.size - x.size % _ONE_THREAD
    pieces = np.matmul(x[:n].reshape(-1, 1, _ONE_THREAD), y[:n].reshape(-1, _ONE_THREAD, 1))
    return float(pieces.sum() + x[n:] @ y[n:])


def _scale(largest: float) -> float:
    """A power of two by which numbers are divided before they are squared: 1 where they need not be."""
    if _LEAST <= largest <= _MOST or not np.isfinite(largest):
        return 1.0
    return float(np.ldexp(1.0, max(-1021, min(1023, np.frexp(largest)[1])))) if largest else _SMALLEST


def _divided(x: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    return x if scale == 1 else x / scale
