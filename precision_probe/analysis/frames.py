"""A trace as one data set, and as tables of atoms and of blocks: for work that joins nothing by hand."""

from collections.abc import Sequence

import ase.data
import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from precision_probe.analysis.errors import errors
from precision_probe.analysis.pairs import MODEL, By, labels_in_order
from precision_probe.exceptions import InputError
from precision_probe.trace.schema import REFERENCE
from precision_probe.trace.trace import Trace

__all__ = ["per_atom", "per_block", "per_part", "to_dataset", "worst_tensors"]


def to_dataset(trace: Trace, mode: str = "propagated") -> xr.Dataset:
    """What every precision gave, side by side.

    Args:
        trace: A trace that keeps tensors; of one that keeps errors, what the model as a whole gave.
        mode: ``propagated`` or ``isolated``.

    Returns:
        The arrays of the trace's groups with the dimension ``precision`` before their own, float64 first, in float64
        whatever they were computed in. Coordinates: ``element`` (atom) symbols, ``structure_of_atom`` (atom), ``name``
        (structure). What only some precisions have is NaN in the others. Arrays of a trace on disk are read.

    Raises:
        InputError: If nothing was recorded in the mode.

    Example:
        >>> import precision_probe as pp
        >>> probe = pp.attach("demo", precisions="float32", blocks="readouts.*", modes="propagated")
        >>> probe.run("demo", progress=False)
        >>> data = pp.to_dataset(probe.trace())
        >>> dict(data["forces"].sizes)
        {'precision': 2, 'atom': 56, 'xyz': 3}
        >>> largest = abs(data["forces"].diff("precision")).max(["precision", "xyz"]).groupby("element").max()
        >>> largest["element"].values.tolist()
        ['C', 'H', 'O']
    """
    names = [each for each in (REFERENCE, *map(str, trace.precisions)) if trace.has_group(mode, each)]
    if not names:
        raise InputError(f"The trace has nothing of the mode {mode!r}. It has: {', '.join(trace.modes)}.")
    groups = [trace.group(mode, name).load() for name in names]
    joined = xr.concat(groups, pd.Index(names, name="precision"), join="exact", combine_attrs="drop_conflicts")
    structures = trace.structures
    return joined.assign_coords(
        element=("atom", _symbols(structures)),
        structure_of_atom=("atom", structures["structure_of_atom"].values),
        name=("structure", structures["name"].values),
    )


def per_atom(trace: Trace) -> pd.DataFrame:
    """Force errors of every atom.

    Args:
        trace: Of a model that predicts forces.

    Returns:
        Indexed by ``precision``, ``structure`` (number) and ``atom`` (number within it): ``name`` of the structure,
        ``element``, ``force`` (eV/Å, its length in float64), ``error_x``, ``error_y``, ``error_z`` (eV/Å) and ``error``
        (eV/Å, their length); NaN where a precision had no memory for a structure.

    Raises:
        InputError: If the trace has no forces, or nothing beside float64.
    """
    reference = trace.group("propagated", REFERENCE) if trace.has_group("propagated", REFERENCE) else xr.Dataset()
    if "forces" not in reference or not trace.precisions:
        raise InputError("The trace has no forces in a precision beside float64, so none have errors.")
    structures = trace.structures
    owner = structures["structure_of_atom"].values
    sizes = structures["n_atoms"].values
    exact = reference["forces"].values
    common = {
        "structure": owner,
        "atom": np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes),
        "name": structures["name"].values[owner],
        "element": _symbols(structures),
        "force": np.linalg.norm(exact, axis=1),
    }
    tables = []
    for precision in trace.precisions:
        error = trace.group("propagated", precision)["forces"].values.astype(np.float64) - exact
        parts = {f"error_{axis}": error[:, number] for number, axis in enumerate("xyz")}
        tables.append(pd.DataFrame({"precision": str(precision), **common, **parts}))
        tables[-1]["error"] = np.linalg.norm(error, axis=1)
    return pd.concat(tables).set_index(["precision", "structure", "atom"])


def per_block(trace: Trace, metric: str = "rel_l2") -> pd.DataFrame:
    """The largest error of each block's arrays: a row for each block, a column for each mode, direction and precision.

    Args:
        trace: A trace, whatever it keeps.
        metric: A column of :func:`precision_probe.errors`.

    Returns:
        In the order in which the blocks run; columns ``mode``, ``direction`` and ``precision``. NaN where nothing was
        recorded, or float64's own numbers are zero up to rounding; infinite where a result is NaN or infinite.

    Raises:
        InputError: If there is no such metric, or the trace has no blocks.
    """
    table = errors(trace)
    table = table[table["block"].isin(trace.blocks)]
    if table.empty:
        raise InputError("The trace has no blocks beside float64.")
    if metric not in table.columns or not pd.api.types.is_numeric_dtype(table[metric]):
        known = [str(name) for name in table.columns if pd.api.types.is_float_dtype(table[name])]
        raise InputError(f"There is no metric {metric!r}. There are: {', '.join(known)}.")
    columns = ["mode", "direction", "precision"]
    return _largest(trace, table, metric, columns).sort_index(axis=1, level=columns[:2], sort_remaining=False)


def per_part(trace: Trace, by: By, mode: str) -> pd.DataFrame:
    """The largest relative error (rel_l2) of each irrep or element of the blocks' outputs.

    Args:
        trace: A trace, whatever it keeps.
        by: ``irrep`` or ``element``.
        mode: ``propagated`` or ``isolated``.

    Returns:
        Blocks by ``precision`` and ``by``, as :func:`per_block`; no rows where no output has such parts.
    """
    table = errors(trace, by=by)
    table = table[(table["mode"] == mode) & (table["direction"] == "forward") & table["block"].isin(trace.blocks)]
    wide = _largest(trace, table, "rel_l2", ["precision", by])
    parts = labels_in_order(dict.fromkeys(table[by]), by)
    return wide[[(str(name), part) for name in trace.precisions for part in parts if (str(name), part) in wide]]


def _largest(trace: Trace, table: pd.DataFrame, metric: str, columns: list[str]) -> pd.DataFrame:
    """Of the rows of ``errors`` the largest number of each block, in the order of the run, by some columns."""
    order = [block for block in trace.blocks if block in set(table["block"])]
    table = table[table["resolved"]]
    worst = table[metric].mask(table[metric].isna() & (table["nonfinite"] > 0), np.inf)  # a maximum passes NaN over
    largest = worst.groupby([table[name] for name in ("block", *columns)], sort=False).max()
    return largest.unstack(columns).reindex(order)


def worst_tensors(
    table: pd.DataFrame, blocks: Sequence[str], mode: str, precision: str, direction: str
) -> pd.DataFrame:
    """Of each block the row of ``errors`` with the largest rel_l2; none of a block that has none.

    A tensor that is not finite counts as the largest, one whose reference is noise as the smallest.

    Args:
        table: From :func:`precision_probe.errors`.
        blocks: In the order of the run.
        mode: ``propagated`` or ``isolated``.
        precision: Its name.
        direction: ``forward`` or ``backward``.
    """
    rows = table[
        (table["mode"] == mode)
        & (table["precision"] == precision)
        & (table["direction"] == direction)
        & (table["block"] != MODEL)
    ]
    rank = rows["rel_l2"].fillna(np.inf).where(rows["resolved"], -1.0)
    worst = rows.loc[rank.groupby(rows["block"], sort=False).idxmax()].set_index("block")
    return worst.reindex([block for block in blocks if block in worst.index])


def _symbols(structures: xr.Dataset) -> NDArray[np.str_]:
    """The chemical symbol of each atom."""
    symbols: NDArray[np.str_] = np.asarray(ase.data.chemical_symbols)[structures["atomic_numbers"].values]
    return symbols
