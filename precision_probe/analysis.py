"""A trace → tables of errors, as pandas DataFrames. Nothing here imports torch or mace."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from precision_probe.exceptions import InputError
from precision_probe.metrics import EPS, METRICS, compare
from precision_probe.precisions import PRECISIONS, Precision
from precision_probe.trace import LOSS, Trace

__all__ = [
    "MODEL",
    "TOLERANCE_UNITS",
    "Tolerance",
    "block_errors",
    "compared_arrays",
    "errors",
    "exceeded",
    "parse_tolerances",
    "summary",
    "worst_blocks",
]

MODEL = "model"
_NOISE = 0.01
TOLERANCE_UNITS = {
    "energy": "eV/atom",
    "forces": "eV/Å",
    "stress": "eV/Å³",
    "dipole": "in the model's unit",
    "polarizability": "in the model's unit",
}
_PER_ATOM = ("energy", "interaction_energy")
_BACKWARD = ("forces", "stress")  # made by differentiation
Tolerance = Mapping[str, float]


def errors(trace: Trace, *, eps: float = EPS) -> pd.DataFrame:
    """Every error of every precision against float64, from the trace alone.

    Args:
        trace: As :func:`precision_probe.open_trace` or ``probe.trace()`` returns it.
        eps: The ε of ``mean_rel``, which keeps it finite near zero.

    Returns:
        One row for each array compared, with the columns ``precision``, ``mode`` (propagated, isolated or loss),
        ``block`` (``model`` for the model's own results), ``tensor``, ``direction`` (forward: outputs; backward:
        gradients with respect to inputs, forces, stress), ``units`` and ``n`` (how many numbers), then one column for
        each metric of :data:`precision_probe.metrics.METRICS`, and ``resolved``. Energies of the model are compared
        per atom.

    ``resolved`` is false where the reference is itself rounding noise, so that its relative errors say nothing. An
    error is much the same number of unit roundoffs in every precision, float64 included; where that number times
    float64's own roundoff exceeds 1 %, the reference is zero up to rounding. The gradient of the summed squares of
    normalised spherical harmonics, a constant, is the known case.
    """
    rows = []
    for mode in trace.modes if "propagated" in trace.modes else ("propagated", *trace.modes):
        reference = trace.group(mode, "float64")
        for precision in trace.precisions:
            variant = trace.group(mode, precision)
            for row, _, y, y_hat in compared_arrays(trace, reference, variant, mode):
                rows.append({"precision": precision.name, "mode": mode, **row, **compare(y, y_hat, precision, eps=eps)})
    columns = ["precision", "mode", "block", "tensor", "direction", "units", "n", *METRICS]
    table = pd.DataFrame(rows, columns=columns)
    roundoff = table["precision"].map({p.name: _storage_roundoff(p) for p in trace.precisions})
    own_error = table["rel_l2"] / roundoff * PRECISIONS["float64"].unit_roundoff
    return table.assign(resolved=~(np.isfinite(own_error) & (own_error > _NOISE)))


def _storage_roundoff(precision: Precision) -> float:
    """Of what stores the numbers: blocks without matrix products compute in float32 under tf32."""
    return precision.unit_roundoff if precision.emulated else PRECISIONS[precision.dtype].unit_roundoff


def block_errors(table: pd.DataFrame) -> pd.DataFrame:
    """Of each block's tensors the one with the largest rel_l2, modes side by side.

    Args:
        table: From :func:`errors`.

    Returns:
        Indexed by precision, block and direction, in the order of the table; columns ``(metric, mode)``. A tensor
        whose relative error is NaN (an overflow) counts as the largest, one whose reference is noise as the smallest.
    """
    blocks = table[table["block"] != MODEL]
    rank = blocks["rel_l2"].fillna(np.inf).where(blocks["resolved"], -1.0)
    keys = ["precision", "block", "direction", "mode"]
    chosen = blocks.loc[rank.groupby([blocks[key] for key in keys], sort=False).idxmax()]
    wide = chosen.set_index(keys)[["tensor", "resolved", *METRICS]].unstack("mode")
    assert isinstance(wide, pd.DataFrame)  # noqa: S101  (of several columns, so never a Series)
    order = pd.MultiIndex.from_frame(blocks[keys[:3]]).unique()
    return wide.reindex(order)


def worst_blocks(table: pd.DataFrame) -> dict[str, str]:
    """For each precision the block whose own forward error is the largest: isolated where it was run, else propagated.

    A block whose output is not finite comes first.
    """
    blocks = table[(table["block"] != MODEL) & (table["direction"] == "forward") & table["resolved"]]
    mode = "isolated" if "isolated" in set(blocks["mode"]) else "propagated"
    blocks = blocks[blocks["mode"] == mode]
    rank = blocks["rel_l2"].fillna(np.inf)
    worst = blocks.loc[rank.groupby(blocks["precision"], sort=False).idxmax()]
    return dict(zip(worst["precision"], worst["block"], strict=True))


def summary(trace: Trace) -> pd.DataFrame:
    """The model as a whole, one row for each precision, float64 first.

    Returns:
        Indexed by precision: ``energy`` and ``interaction_energy`` (eV/atom: largest |Δ|/n_atoms over structures),
        ``forces`` (eV/Å: largest |Δ| over atoms and components) and ``forces_mae``, ``stress`` (eV/Å³: largest |Δ|;
        absent without a periodic structure), of any other quantity that the model predicts (``dipole``, …) the largest
        |Δ| in the trace's unit, ``nonfinite`` (how many of these numbers are inf or NaN), and ``time``
        and ``time_iqr``: median and interquartile range over structures of the time divided by float64's.
    """
    reference = trace.group("propagated", "float64")
    rows = {}
    for name in ("float64", *(precision.name for precision in trace.precisions)):
        variant = trace.group("propagated", name)
        rows[name] = _model_errors(trace, reference, variant) | _times(reference, variant)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("precision")


def parse_tolerances(text: str) -> dict[str, float]:
    """Read ``"forces=1e-3,energy=1e-4"``.

    Raises:
        InputError: If a name is unknown, or a value is not a number above zero.

    Example:
        >>> parse_tolerances("forces=1e-3, energy=1e-4")
        {'forces': 0.001, 'energy': 0.0001}
    """
    known = ", ".join(f"{name} ({unit})" for name, unit in TOLERANCE_UNITS.items())
    found = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in TOLERANCE_UNITS:
            raise InputError(f"Unknown tolerance {part.strip()!r}. Write name=value with one of: {known}.")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = np.nan
        if not found[name] > 0:
            raise InputError(f"The tolerance {part.strip()!r} needs a number above zero, such as {name}=1e-3.")
    return found


def exceeded(table: pd.DataFrame, tolerance: Tolerance) -> pd.DataFrame:
    """Which precisions of a :func:`summary` exceed a tolerance, and by how much.

    Returns:
        One row for each: ``precision``, ``quantity``, ``error``, ``tolerance``, ``unit``. A NaN error exceeds any
        tolerance. A quantity that the trace lacks (stress, without a periodic structure) is not judged.
    """
    rows = [
        {
            "precision": precision,
            "quantity": quantity,
            "error": error,
            "tolerance": limit,
            "unit": TOLERANCE_UNITS[quantity],
        }
        for quantity, limit in tolerance.items()
        if quantity in table
        for precision, error in table[quantity].items()
        if not error <= limit
    ]
    return pd.DataFrame(rows, columns=["precision", "quantity", "error", "tolerance", "unit"])


def compared_arrays(
    trace: Trace, reference: xr.Dataset, variant: xr.Dataset, mode: str
) -> Iterator[tuple[dict[str, Any], str, Any, Any]]:
    """Each pair of arrays to compare: the model's results, then the blocks' in order.

    Yields:
        What identifies the pair, what the first dimension counts, the reference's array and the variant's.
    """
    if mode == "propagated":
        for name, units, rows, y, y_hat in _model_pairs(trace, reference, variant):
            direction = "backward" if name in _BACKWARD else "forward"
            identity = {"block": MODEL, "tensor": name, "direction": direction, "units": units, "n": y.size}
            yield identity, rows, y, y_hat
    if mode in trace.modes:
        order = {block: index for index, block in enumerate(trace.blocks)}
        arrays = [array for array in reference.data_vars.values() if "block" in array.attrs]
        for array in sorted(arrays, key=lambda a: (order[a.attrs["block"]], a.attrs["direction"] == "backward")):
            identity = {key: array.attrs[key] for key in ("block", "tensor", "direction", "units")}
            y, y_hat = array.values, variant[array.name].values
            if mode == LOSS:  # calls that no loss was made of have no gradients of one
                seen = ~np.isnan(y.reshape(len(y), -1)).all(axis=1)
                y, y_hat = y[seen], y_hat[seen]
            yield identity | {"n": y.size}, str(array.dims[0]), y, y_hat


def _model_pairs(
    trace: Trace, reference: xr.Dataset, variant: xr.Dataset
) -> Iterator[tuple[str, str, str, np.ndarray, np.ndarray]]:
    """The model's own results: name, unit, what the rows count, and both arrays; energies per atom."""
    structures = trace.structures
    for key, array in reference.data_vars.items():
        name, units = str(key), array.attrs["units"]
        if "block" in array.attrs or name == "seconds":
            continue
        y, y_hat = array.values, variant[name].values.astype(np.float64)
        if name in _PER_ATOM:
            n_atoms, units = structures["n_atoms"].values, f"{units}/atom"
            y, y_hat = y / n_atoms, y_hat / n_atoms
        elif name == "stress":
            periodic = structures["pbc"].values.astype(bool).all(axis=1)
            y, y_hat = y[periodic], y_hat[periodic]
        yield name, units, str(array.dims[0]), y, y_hat


def _model_errors(trace: Trace, reference: xr.Dataset, variant: xr.Dataset) -> dict[str, float]:
    found: dict[str, float] = {}
    nonfinite = 0
    for name, _, _, y, y_hat in _model_pairs(trace, reference, variant):
        delta = np.abs(y_hat - y)
        found[name] = float(delta.max(initial=0.0))
        if name == "forces":
            found["forces_mae"] = float(delta.mean()) if delta.size else 0.0
        nonfinite += int((~np.isfinite(y_hat)).sum())
    return found | {"nonfinite": nonfinite}


def _times(reference: xr.Dataset, variant: xr.Dataset) -> dict[str, float]:
    ratio = variant["seconds"].values / reference["seconds"].values
    low, middle, high = np.percentile(ratio, [25, 50, 75]) if ratio.size else (np.nan,) * 3
    return {"time": float(middle), "time_iqr": float(high - low)}
