"""What is kept of arrays too large to keep: counts, maxima and sums of their errors, from which every metric follows.

Statistics are rows of float64 numbers, in the order of :data:`STATISTICS`. Those of parts of an array, of structures,
elements or irreps, combine into those of the whole: counts and sums add up, of maxima the largest counts. Sums of what
might overflow or underflow when squared are of numbers divided by a power of two, the scale, that stands beside them.
"""

import numpy as np
from numpy.typing import NDArray

from precision_probe.analysis.metrics import METRICS
from precision_probe.precisions import Precision

__all__ = ["STATISTICS", "combined", "floor_of", "metrics_of"]

# Each name with what it is of y, the reference, ŷ, the variant, and Δ = ŷ − y, in float64.
STATISTICS: dict[str, str] = {
    "count": "how many numbers",
    "reference_scale": "a power of two above the largest |y|; the smallest for 0, 1 if it is infinite or NaN",
    "variant_scale": "the same of ŷ",
    "error_scale": "the same of Δ",
    "variant_max": "largest |ŷ|",
    "error_max": "largest |Δ|",
    "ulp_max": "largest |Δ| / ulp(y)",
    "reference_squares": "Σ (y / reference_scale)²",
    "variant_squares": "Σ (ŷ / variant_scale)²",
    "error_squares": "Σ (Δ / error_scale)²",
    "products": "Σ (y / reference_scale) (ŷ / variant_scale)",
    "error_magnitudes": "Σ |Δ| / error_scale",
    "errors": "Σ Δ / error_scale",
    "relative_errors": "Σ |Δ| / (|y| + ε)",
    "ulps": "Σ |Δ| / ulp(y)",
    "floor_squares": "Σ ((y stored in the format − y) / reference_scale)²",
    "nonfinite": "how many ŷ are infinite or NaN",
    "flushed": "how many ŷ are zero where y is not",
}
_AT = {name: index for index, name in enumerate(STATISTICS)}
_SCALES = ("reference_scale", "variant_scale", "error_scale")
_MAXIMA = ("variant_max", "error_max", "ulp_max")
# By which scales each sum is divided, once for each time that one stands here.
_SCALED_BY = {
    "reference_squares": ("reference_scale",) * 2,
    "variant_squares": ("variant_scale",) * 2,
    "error_squares": ("error_scale",) * 2,
    "products": ("reference_scale", "variant_scale"),
    "error_magnitudes": ("error_scale",),
    "errors": ("error_scale",),
    "floor_squares": ("reference_scale",) * 2,
}


def combined(parts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The statistics of a whole, of those of its parts.

    Args:
        parts: (n_parts, n_statistics).

    Returns:
        (n_statistics,)

    Example:
        >>> one = np.asarray([[1, 1, 1, 4.0, 1, 3, 3, 1, 1, 0.5625, 1, 0.75, 0.75, 3, 3, 0, 0, 0]])
        >>> whole = dict(zip(STATISTICS, combined(np.concatenate([one, one])).tolist()))
        >>> whole["count"], whole["error_max"], whole["error_squares"]
        (2.0, 3.0, 1.125)
    """
    if len(parts) == 1:
        return parts.reshape(-1)
    counted = parts[parts[:, _AT["count"]] > 0]
    if not len(counted):
        return parts[:1].reshape(-1) if len(parts) else _of_nothing()
    with np.errstate(all="ignore"):
        largest = {name: counted[:, _AT[name]].max() for name in (*_SCALES, *_MAXIMA)}
        factors = np.ones_like(counted)
        for name, scales in _SCALED_BY.items():
            for scale in scales:
                factors[:, _AT[name]] *= counted[:, _AT[scale]] / largest[scale]
        factors = np.maximum(factors, np.finfo(float).tiny)  # an infinity is one, whatever scale it is brought to
        whole: NDArray[np.float64] = (counted * factors).sum(axis=0)
    for name, value in largest.items():
        whole[_AT[name]] = value
    return whole


def metrics_of(statistics: NDArray[np.float64], precision: Precision) -> dict[str, float]:
    """Every metric of :data:`precision_probe.analysis.metrics.METRICS`, as ``compare`` would have it of the arrays.

    Args:
        statistics: (n_statistics,)
        precision: The variant's precision.
    """
    of = _named(statistics)
    n = of["count"]
    with np.errstate(all="ignore"):
        rel_l2 = _relative(of["error_squares"], of["error_scale"], of)
        squares = of["reference_squares"] * of["variant_squares"]
        cosine = np.clip(of["products"] / np.sqrt(squares), -1.0, 1.0)
        if squares == 0:
            cosine = np.float64(of["reference_squares"] == of["variant_squares"])
        values = {
            "max_abs": of["error_max"],
            "mean_rel": of["relative_errors"] / n,
            "mean_abs": of["error_scale"] * (of["error_magnitudes"] / n),
            "rms": of["error_scale"] * np.sqrt(of["error_squares"] / n),
            "bias": of["error_scale"] * (of["errors"] / n),
            "rel_l2": rel_l2,
            "amplification": rel_l2 / precision.unit_roundoff,
            "sqnr_db": 0.0 - 20.0 * np.log10(rel_l2),
            "cosine": cosine,
            "ulp_max": of["ulp_max"],
            "ulp_mean": of["ulps"] / n,
            "headroom": precision.largest / of["variant_max"],
        }
    counts = {name: int(of[name]) for name in ("nonfinite", "flushed")}
    numbers = {name: float(value) for name, value in values.items()} | counts
    return {name: numbers[name] for name in METRICS}


def floor_of(statistics: NDArray[np.float64]) -> float:
    """The smallest rel_l2 possible: see :func:`precision_probe.analysis.rounding_floor.representation_floor`."""
    of = _named(statistics)
    return float(_relative(of["floor_squares"], of["reference_scale"], of))


def _relative(squares: np.float64, scale: np.float64, of: dict[str, np.float64]) -> np.float64:
    """‖·‖₂ / ‖y‖₂ of what has this sum of squares; 0 / 0 is no error."""
    if squares == 0:
        return np.float64(0.0) if not np.isnan(of["reference_squares"]) else np.float64(np.nan)
    with np.errstate(all="ignore"):
        relative: np.float64 = np.sqrt(squares / of["reference_squares"]) * (scale / of["reference_scale"])
    return relative


def _named(statistics: NDArray[np.float64]) -> dict[str, np.float64]:
    """Statistics by name; those of no numbers at all are those of one exact zero."""
    return dict(zip(STATISTICS, statistics if statistics[_AT["count"]] else _of_nothing(), strict=True))


def _of_nothing() -> NDArray[np.float64]:
    """What has no elements has the errors of one exact zero."""
    nothing = np.zeros(len(STATISTICS))
    nothing[[_AT[name] for name in ("count", *_SCALES)]] = 1.0
    return nothing
