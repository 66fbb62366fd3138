"""A trace → tables of errors, as pandas DataFrames. Nothing here imports torch or mace."""

from collections.abc import Iterator, Mapping
from itertools import chain

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from precision_probe.analysis.array_errors import ArrayErrors
from precision_probe.analysis.kept_errors import kept_errors
from precision_probe.analysis.metrics import EPS, METRICS
from precision_probe.analysis.pairs import (
    MODEL,
    MOST_BLOCKS,
    By,
    arrays,
    blocks_of_rows,
    labels_in_order,
    paired,
    read_pairs,
)
from precision_probe.exceptions import InputError
from precision_probe.precisions import PRECISIONS, Precision
from precision_probe.trace.recording.threads import in_threads
from precision_probe.trace.schema import REFERENCE
from precision_probe.trace.tables import HELD_OUT
from precision_probe.trace.trace import Trace

__all__ = [
    "GUIDE",
    "MODEL",
    "TOLERANCE_UNITS",
    "Tolerance",
    "bits_needed",
    "block_errors",
    "errors",
    "exceeded",
    "parse_tolerances",
    "summary",
    "worst_blocks",
]

# The relative error of float64 itself above which a reference is taken for zero up to rounding. Of a gradient that is
# exactly zero it is 0.87 to 1.02 (demo and 3BPA models, float32 to float16), of all other arrays below 1e-14.
_ERROR_OF_ZERO = 0.01
TOLERANCE_UNITS = {
    "energy": "eV/atom",
    "forces": "eV/Å",
    "stress": "eV/Å³",
    "dipole": "in the model's unit",
    "polarizability": "in the model's unit",
}
Tolerance = Mapping[str, float]
# What "ok" means where no tolerance is given: well under the errors of a good MACE model itself.
GUIDE: Tolerance = {"energy": 1e-3, "forces": 1e-2, "stress": 1e-3}


def errors(trace: Trace, *, eps: float = EPS, by: By | None = None) -> pd.DataFrame:
    """Every error of every precision against float64, from the trace alone.

    Args:
        trace: As :func:`precision_probe.open_trace` or ``probe.trace()`` returns it.
        eps: The ε of ``mean_rel``, which keeps it finite near zero.
        by: Resolve each array by ``"irrep"`` (order l and parity) or by chemical ``"element"`` (an edge belongs to the
            element it ends at): one row and a column of that name for each. Arrays that have neither are left out.

    Returns:
        One row for each array compared, with the columns ``precision``, ``mode`` (propagated, isolated or loss),
        ``block`` (``model`` for the model's own results), ``tensor``, ``direction`` (forward: outputs; backward:
        gradients with respect to inputs, forces, stress), ``units`` and ``n`` (how many numbers), then one column for
        each metric of :data:`precision_probe.analysis.metrics.METRICS`, ``floor``, ``noise`` and ``resolved``. Energies
        of the model are compared per atom.

    ``floor`` is the rel_l2 of the reference stored in the precision: no arithmetic can do better. ``noise`` is how far
    runs of the same are apart (rel_l2), where the trace has that table; NaN elsewhere, and for resolved arrays.

    ``resolved`` is false where the error is below that noise, and where the reference is itself rounding noise, so that
    its relative errors say nothing. An error is much the same number of unit roundoffs in every precision, float64
    included; where that number times float64's own roundoff exceeds 1 %, the reference is zero up to rounding. The
    gradient of the summed squares of normalised spherical harmonics, a constant, is the known case.
    """
    label = [] if by is None else [by]
    columns = ["precision", "mode", "block", "tensor", "direction", *label, "units", "n", *METRICS, "floor"]
    table = pd.DataFrame(_rows(trace, eps, by), columns=columns)
    table["noise"] = _noise(trace, table) if by is None else np.nan
    # In tf32 no more than products are rounded, and a zero may be made without any: so by what it stores.
    roundoff = table["precision"].map({p.name: p.storage.unit_roundoff for p in trace.precisions})
    own_error = table["rel_l2"].astype(float) / roundoff * PRECISIONS["float64"].unit_roundoff
    is_zero = np.isfinite(own_error) & (own_error > _ERROR_OF_ZERO)
    return table.assign(resolved=~is_zero & ~(table["rel_l2"] < table["noise"]))


def _rows(trace: Trace, eps: float, by: By | None) -> Iterator[dict[str, object]]:
    """What :func:`errors` says of each array, or of each part of it: its identity, every metric and its floor."""
    # The model's own results are compared as propagated, whether blocks were run so or not.
    for mode in trace.modes if "propagated" in trace.modes else ("propagated", *trace.modes):
        rows: dict[str, list[dict[str, object]]] = {precision.name: [] for precision in trace.precisions}
        for precision, label, row in chain(_compared(trace, mode, eps, by), _kept(trace, mode, eps, by)):
            labelled = {} if by is None else {str(by): label}
            rows[precision.name].append({"precision": precision.name, "mode": mode, **labelled, **row})
        yield from chain.from_iterable(rows.values())


_Row = tuple[Precision, str, dict[str, object]]  # the label is that of the part, empty of a whole array


def _compared(trace: Trace, mode: str, eps: float, by: By | None) -> Iterator[_Row]:
    """Each array of the reference beside those of all precisions, so that what is in a file is read once."""
    precisions = [precision for precision in trace.precisions if trace.has_group(mode, precision)]
    if not precisions:
        return
    groups = [trace.group(mode, precision) for precision in precisions]
    references = list(arrays(trace, trace.group(mode, REFERENCE), mode))
    blocks = ((at, rows) for at, reference in enumerate(references) for rows in blocks_of_rows(reference.values))

    def found_in(block: tuple[int, slice]) -> tuple[int, list[dict[str, NDArray[np.float64]]]]:
        at, rows = block
        reference = references[at]
        variants = [reference.in_group(group) for group in groups]
        pairs = read_pairs(reference, variants, rows, with_elements=by == "element")
        return at, [
            {
                label: ArrayErrors(precision, eps, is_whole=reference.is_small).of_block(part.y, part.y_hat)
                for label, part in pair.resolved_by(by)
            }
            for precision, pair in zip(precisions, pairs, strict=True)
        ]

    found: dict[tuple[int, Precision], dict[str, list[NDArray[np.float64]]]] = {}
    for at, of_variants in in_threads(found_in, blocks, MOST_BLOCKS):
        for precision, of_parts in zip(precisions, of_variants, strict=True):
            for label, of_block in of_parts.items():
                found.setdefault((at, precision), {}).setdefault(label, []).append(of_block)
    for (at, precision), of_labels in found.items():
        reference = references[at]
        how = ArrayErrors(precision, eps, is_whole=reference.is_small)
        for label in labels_in_order(of_labels, by):
            yield precision, label, {**reference.identity, **how.of_all(of_labels[label])}


def _kept(trace: Trace, mode: str, eps: float, by: By | None) -> Iterator[_Row]:
    """Errors of arrays that were not kept."""
    for precision in trace.precisions:
        for kept in kept_errors(trace, mode, precision):
            for label, numbers in kept.numbers(precision, eps, by).items():
                yield precision, label, {**kept.identity, **numbers}


def _noise(trace: Trace, table: pd.DataFrame) -> "pd.Series[float]":
    """The spread of runs of the same, of the arrays that it was measured for."""
    if "noise" not in trace.tables:
        return pd.Series(np.nan, table.index)
    keys = ["precision", "block", "tensor", "direction"]
    spread = trace.table("noise").frame.set_index(keys)["spread"]
    return table[keys].join(spread, on=keys)["spread"].where(table["mode"] == "propagated")


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
        and ``time_iqr``: median and interquartile range over the structures that were timed of the time divided by
        float64's; NaN without any.
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
    tolerance = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in TOLERANCE_UNITS:
            raise InputError(f"Unknown tolerance {part.strip()!r}. Write name=value with one of: {known}.")
        try:
            tolerance[name] = float(value)
        except ValueError:
            tolerance[name] = np.nan
        if not tolerance[name] > 0:  # NaN is not
            raise InputError(f"The tolerance {part.strip()!r} needs a number above zero, such as {name}=1e-3.")
    return tolerance


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
        if not error <= limit  # NaN is not
    ]
    return pd.DataFrame(rows, columns=["precision", "quantity", "error", "tolerance", "unit"])


def bits_needed(
    table: pd.DataFrame, tolerance: float, quantity: str = "forces", *, searched_only: bool = False
) -> pd.Series:
    """The fewest bits with which an error stays within a tolerance, and with every larger number tried too.

    Args:
        table: From :func:`precision_probe.sweep`.
        tolerance: In the unit of the quantity: eV/Å for forces, eV/atom for energies.
        quantity: A column of the table.
        searched_only: Judge by the structures searched on alone. Otherwise by those held out too, where there are any:
            every one of both is within the tolerance.

    Returns:
        Indexed by block; missing where no number of bits tried is enough.
    """
    beside = f"{HELD_OUT}{quantity}"
    judged = [quantity] if searched_only or beside not in table else [quantity, beside]
    needed = {}
    for block, rows in table.groupby("block", sort=False):
        descending = rows.sort_values("bits", ascending=False)
        within = descending[judged].le(tolerance).all(axis=1).cummin()
        needed[str(block)] = descending.loc[within, "bits"].min()
    return pd.Series(needed, name="bits", dtype="Int64").rename_axis("block")


def _model_errors(trace: Trace, reference: xr.Dataset, variant: xr.Dataset) -> dict[str, float]:
    """The columns of a summary that are errors: the largest |Δ| of each result of the model, and what is not finite."""
    largest: dict[str, float] = {}
    nonfinite = 0
    for array in arrays(trace, reference, "propagated"):
        if array.block != MODEL:
            continue
        most, total, n_numbers = 0.0, 0.0, 0
        for (pair,) in paired(array, [array.in_group(variant)]):
            delta = np.abs(pair.y_hat - pair.y)
            most = np.maximum(most, delta.max(initial=0.0))  # NaN stays
            total += delta.sum()
            n_numbers += delta.size
            nonfinite += int((~np.isfinite(pair.y_hat)).sum())
        largest[array.tensor] = float(most)
        if array.tensor == "forces":
            largest["forces_mae"] = float(total / n_numbers) if n_numbers else 0.0
    return largest | {"nonfinite": nonfinite}


def _times(reference: xr.Dataset, variant: xr.Dataset) -> dict[str, float]:
    """The columns of a summary that are times; a median, as single runs are disturbed by whatever else runs."""
    ratio = variant["seconds"].values / reference["seconds"].values
    ratio = ratio[~np.isnan(ratio)]  # not timed
    low, middle, high = np.percentile(ratio, [25, 50, 75]) if ratio.size else (np.nan,) * 3
    return {"time": float(middle), "time_iqr": float(high - low)}
