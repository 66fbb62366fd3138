"""The errors of one array, which may be larger than memory: block after block, or at once if it is one.

Of blocks there are statistics, from which the metrics of the whole follow; of an array in one piece the metrics come as
:func:`precision_probe.analysis.metrics.compare` defines them. The two agree to rounding.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from precision_probe.analysis.metrics import EPS, compare
from precision_probe.analysis.rounding_floor import representation_floor, represented
from precision_probe.analysis.scaled import ulps
from precision_probe.analysis.statistics import STATISTICS, combined, floor_of, metrics_of
from precision_probe.precisions import Precision

__all__ = ["ArrayErrors", "statistics_of"]

_IN_CACHE = 2**15  # numbers: what is made of them stays in a core's cache (a half and twice as many take as long)
# Between these magnitudes sums of squares neither overflow nor lose what matters, and need no scale.
_LEAST, _MOST = 2.0**-300, 2.0**300
_SMALLEST = 2.0**-1021  # which float64 has as a normal number, as its inverse
_EXPONENT = np.int64(0x7FF << 52)  # the bits of a float64 that say which power of two it begins with
_MOST_BITS = 50  # that adding a large number and taking it away again leaves, rounded to nearest


class ArrayErrors:
    """The errors of an array, of which one block comes after another.

    Args:
        precision: The variant's precision.
        eps: ε of ``mean_rel``.
        is_whole: One block is all there is.
    """

    def __init__(self, precision: Precision, eps: float = EPS, *, is_whole: bool) -> None:
        self._precision, self._eps, self._is_whole = precision, eps, is_whole
        self._n = 0
        self._metrics: dict[str, float] = {}
        self._statistics: list[NDArray[np.float64]] = []

    def add(self, y: NDArray[Any], y_hat: NDArray[Any]) -> None:
        """One more block, of the reference and of the variant."""
        self._n += y.size
        if self._is_whole:
            floor = representation_floor(y, self._precision)
            self._metrics = compare(y, y_hat, self._precision, eps=self._eps) | {"floor": floor}
        elif y.size:
            self._statistics.append(statistics_of(y, y_hat, self._precision, self._eps))

    def numbers(self) -> dict[str, float]:
        """How many numbers there are, every metric, and the floor of rel_l2, of all blocks together."""
        if self._is_whole:
            return {"n": self._n} | self._metrics
        whole = combined(np.asarray(self._statistics).reshape(-1, len(STATISTICS)))
        return {"n": self._n} | metrics_of(whole, self._precision) | {"floor": floor_of(whole)}


def statistics_of(y: NDArray[Any], y_hat: NDArray[Any], precision: Precision, eps: float = EPS) -> NDArray[np.float64]:
    """The statistics of errors of an array.

    Args:
        y: The reference, of any real dtype, one number at least.
        y_hat: The variant's, of the same shape.
        precision: The variant's precision.
        eps: ε of ``relative_errors``.

    Returns:
        (n_statistics,), in the order of :data:`precision_probe.analysis.statistics.STATISTICS`.
    """
    y, y_hat = y.reshape(-1), y_hat.reshape(-1)
    with np.errstate(all="ignore"):
        found = [
            _of_block(y[at : at + _IN_CACHE], y_hat[at : at + _IN_CACHE], precision, eps)
            for at in range(0, y.size, _IN_CACHE)
        ]
    return combined(np.asarray(found))


def _of_block(y: NDArray[Any], y_hat: NDArray[Any], precision: Precision, eps: float) -> list[float]:
    """What :func:`statistics_of` says of so few numbers that they stay in the cache."""
    y, y_hat = y.astype(np.float64, copy=False), y_hat.astype(np.float64, copy=False)
    delta = y_hat - y
    size, error = np.abs(y), np.abs(delta)
    y_max, y_hat_max, error_max = size.max(), abs(max(y_hat.max(), -y_hat.min())), error.max()
    y_scale, y_hat_scale, error_scale = map(_scale, (y_max, y_hat_max, error_max))
    unit = _divided(y, y_scale)
    y_hat_unit = _divided(y_hat, y_hat_scale)
    error_unit = _divided(delta, error_scale)
    in_ulps = error / _spacing(y, precision) if np.isfinite(y_max) else ulps(error, y, precision)
    floor = _divided(_rounding(y, y_max, precision.storage), y_scale)
    return [
        y.size,
        y_scale,
        y_hat_scale,
        error_scale,
        y_hat_max,
        error_max,
        in_ulps.max(),
        float(unit @ unit),
        float(y_hat_unit @ y_hat_unit),
        float(error_unit @ error_unit),
        float(unit @ y_hat_unit),
        _divided(error, error_scale).sum(),
        error_unit.sum(),
        (error / (size + eps)).sum(),
        in_ulps.sum(),
        float(floor @ floor),
        0 if np.isfinite(y_hat_max) else np.count_nonzero(~np.isfinite(y_hat)),
        np.count_nonzero((y_hat == 0) & (y != 0)),
    ]


def _scale(largest: float) -> float:
    """A power of two by which numbers are divided before they are squared: 1 where they need not be."""
    if _LEAST <= largest <= _MOST or not np.isfinite(largest):
        return 1.0
    return float(np.ldexp(1.0, max(-1021, min(1023, np.frexp(largest)[1])))) if largest else _SMALLEST


def _divided(x: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    return x if scale == 1 else x / scale


def _spacing(y: NDArray[np.float64], precision: Precision) -> NDArray[np.float64]:
    """The unit in the last place of a format at each number, which is finite."""
    binade = (y.view(np.int64) & _EXPONENT).view(np.float64)
    np.clip(binade, precision.smallest_normal, 2.0**precision.max_exponent, out=binade)
    binade *= 2.0 ** (1 - precision.significand_bits)
    return binade


def _rounding(y: NDArray[np.float64], largest: float, stored: Precision) -> NDArray[np.float64]:
    """What storing numbers in a format changes them by."""
    if not stored.has_range or stored.significand_bits > _MOST_BITS or not largest <= min(stored.largest, _MOST):
        return represented(y, stored) - y
    # Beside 1.5 · 2⁵² spacings, float64 itself rounds to the nearest whole number of them, ties to even.
    beside = _spacing(y, stored)
    beside *= 1.5 * 2.0**52
    rounded = y + beside
    rounded -= beside
    rounded -= y
    return rounded
