"""A trace → tables of errors, as pandas DataFrames. Nothing here imports torch or mace."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from precision_probe.exceptions import InputError
from precision_probe.metrics import EPS, METRICS, compare
from precision_probe.precisions import PRECISIONS
from precision_probe.trace import Trace

__all__ = [
    "MODEL",
    "TOLERANCE_UNITS",
    "Tolerance",
    "block_errors",
    "errors",
    "exceeded",
    "parse_tolerances",
    "summary",
    "worst_blocks",
]

MODEL = "model"
_NOISE = 0.01
TOLERANCE_UNITS = {"energy": "eV/atom", "forces": "eV/Å", "stress": "eV/Å³"}
Tolerance = Mapping[str, float]


def errors(trace: Trace, *, eps: float = EPS) -> pd.DataFrame:
    """Every error of every precision against float64, from the trace alone.

    Args:
        trace: As :func:`precision_probe.open_trace` or ``probe.trace()`` returns it.
        eps: The ε of ``mean_rel``, which keeps it finite near zero.

    Returns:
        One row for each array compared, with the columns ``precision``, ``mode`` (propagated or isolated), ``block``
        (``model`` for the model's own results), ``tensor``, ``direction`` (forward: outputs; backward: gradients with
        respect to inputs, forces, stress), ``units`` and ``n`` (how many numbers), then one column for each metric of
        :data:`precision_probe.metrics.METRICS`, and ``resolved``. Energies of the model are compared per atom.

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
            for row, y, y_hat in _pairs(trace, reference, variant, mode):
                rows.append({"precision": precision.name, "mode": mode, **row, **compare(y, y_hat, precision, eps=eps)})
    columns = ["precision", "mode", "block", "tensor", "direction", "units", "n", *METRICS]
    table = pd.DataFrame(rows, columns=columns)
    # of what stores the numbers: blocks without matrix products compute in float32 under tf32
    roundoff = table["precision"].map({p.name: PRECISIONS[p.dtype].unit_roundoff for p in trace.precisions})
    own_error = table["rel_l2"] / roundoff * PRECISIONS["float64"].unit_roundoff
    return table.assign(resolved=~(np.isfinite(own_error) & (own_error > _NOISE)))


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
        absent without a periodic structure), ``nonfinite`` (how many of these numbers are inf or NaN), and ``time``
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


def _pairs(
    trace: Trace, reference: xr.Dataset, variant: xr.Dataset, mode: str
) -> Iterator[tuple[dict[str, Any], Any, Any]]:
    """Each pair of arrays to compare, with what identifies it: the model's results, then the blocks' in order."""
    if mode == "propagated":
        for name, units, y, y_hat in _model_pairs(trace, reference, variant):
            direction = "forward" if "energy" in name else "backward"
            identity = {"block": MODEL, "tensor": name, "direction": direction, "units": units, "n": y.size}
            yield identity, y, y_hat
    if mode in trace.modes:
        order = {block: index for index, block in enumerate(trace.blocks)}
        arrays = [array for array in reference.data_vars.values() if "block" in array.attrs]
        for array in sorted(arrays, key=lambda a: (order[a.attrs["block"]], a.attrs["direction"] == "backward")):
            identity = {key: array.attrs[key] for key in ("block", "tensor", "direction", "units")}
            yield identity | {"n": array.size}, array.values, variant[array.name].values


def _model_pairs(
    trace: Trace, reference: xr.Dataset, variant: xr.Dataset
) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    structures = trace.structures
    n_atoms = structures["n_atoms"].values
    for name in ("energy", "interaction_energy"):
        yield name, "eV/atom", reference[name].values / n_atoms, variant[name].values.astype(np.float64) / n_atoms
    yield "forces", "eV/Å", reference["forces"].values, variant["forces"].values
    if "stress" in reference:
        periodic = structures["pbc"].values.astype(bool).all(axis=1)
        yield "stress", "eV/Å³", reference["stress"].values[periodic], variant["stress"].values[periodic]


def _model_errors(trace: Trace, reference: xr.Dataset, variant: xr.Dataset) -> dict[str, float]:
    found: dict[str, float] = {}
    nonfinite = 0
    for name, _, y, y_hat in _model_pairs(trace, reference, variant):
        delta = np.abs(y_hat.astype(np.float64) - y)
        found[name] = float(delta.max(initial=0.0))
        if name == "forces":
            found["forces_mae"] = float(delta.mean()) if delta.size else 0.0
        nonfinite += int((~np.isfinite(y_hat)).sum())
    return found | {"nonfinite": nonfinite}


def _times(reference: xr.Dataset, variant: xr.Dataset) -> dict[str, float]:
    ratio = variant["seconds"].values / reference["seconds"].values
    low, middle, high = np.percentile(ratio, [25, 50, 75]) if ratio.size else (np.nan,) * 3
    return {"time": float(middle), "time_iqr": float(high - low)}
