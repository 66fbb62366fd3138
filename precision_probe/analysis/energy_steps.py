"""The size of the steps that rounding makes along a line. Nothing here imports torch, so that a trace will do."""

import numpy as np
import pandas as pd
from numpy.polynomial import Chebyshev
from numpy.typing import NDArray

__all__ = ["step_sizes"]

# Value, slope, curvature and what an anharmonic bond adds: a choice. With fewer, smooth errors would count as steps;
# with many more, the fit would follow the stairs themselves.
_CUBIC = 3
_Array = NDArray[np.float64]


def step_sizes(table: pd.DataFrame) -> pd.DataFrame:
    """The size of the steps that rounding makes in energy and force along a line.

    What a precision's curve is off the reference's is partly smooth, an error of slope or curvature that no one sees
    as a step, and partly not. The smooth part is taken to be the cubic that fits best; the root mean square of what
    remains is the step. Differences of neighbouring points, another measure of noise, would miss steps that are many
    points wide, as those of half precisions are.

    Args:
        table: From :func:`precision_probe.diagnostics.finite_differences.along_displacement`, the reference first.

    Returns:
        Indexed by precision: ``energy_step`` (meV/atom) and ``force_step`` (meV/Å), for stairs of height s about s/√12;
        ``n_distinct``, how many different energies there are among the points. The reference has no steps by
        definition, and an energy that does not change at all has none either: one distinct energy tells.

    Example:
        >>> x = np.linspace(0, 0.01, 101)
        >>> curves = {"float64": 1000 * x**2, "coarse": np.round(1000 * x**2, 2)}
        >>> common = {"position": x, "force": -2000 * x}
        >>> table = pd.concat(pd.DataFrame({"precision": k, "energy": y, **common}) for k, y in curves.items())
        >>> coarse = step_sizes(table).loc["coarse"]
        >>> int(coarse["n_distinct"]), round(float(coarse["energy_step"]) * 12**0.5, 2)
        (11, 0.01)
    """
    curves = dict(iter(table.groupby("precision", sort=False)))
    reference = next(iter(curves.values()))
    position = reference["position"].to_numpy()
    rows = {}
    for precision, curve in curves.items():
        off = {name: curve[name].to_numpy() - reference[name].to_numpy() for name in ("energy", "force")}
        rows[precision] = {f"{name}_step": _roughness(position, values) for name, values in off.items()}
        rows[precision]["n_distinct"] = curve["energy"].nunique()
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("precision")


def _roughness(x: _Array, y: _Array) -> float:
    """Root mean square of what remains once the cubic that fits best is taken away; NaN of what overflows."""
    if not np.isfinite(y).all():
        return np.nan
    rest = y - Chebyshev.fit(x, y, _CUBIC)(x)  # which scales x to −1 … 1: powers of 0.01 Å would be ill-conditioned
    return float(np.sqrt(np.square(rest).sum() / (len(rest) - _CUBIC - 1)))  # the fit takes a cubic's coefficients
