"""The model as a whole: the error of each result in each precision, whether it is allowed, and what most of it is."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from precision_probe.analysis.pairs import MODEL
from precision_probe.trace.trace import Trace

__all__ = ["CAUSED", "ModelRow", "main_causes", "model_rows", "shown_units"]

CAUSED = ("energy", "forces")  # the quantities whose causes are looked for
# One sum in two steps: energies of isolated atoms, and what is added to them. Their roundings undo one another in part.
_OF_SUMS = {"atomic_energies_fn": "sums"}
_MILLI = 1e3  # eV to meV
_IN_MILLI = {"energy": "meV/atom", "interaction_energy": "meV/atom", "forces": "meV/Å", "stress": "meV/Å³"}


@dataclass(frozen=True)
class ModelRow:
    """One precision of the model as a whole.

    Attributes:
        precision: Its name.
        errors: By quantity, in the unit in which it is shown.
        n_broken: How many results are NaN or infinite.
        time: Median and interquartile range of the time divided by float64's; ``None`` where nothing was timed.
        exceeded: The quantities in which it exceeds the tolerance.
        is_judged: Whether it has to keep one: float64 has not, as it is what errors are against.
        causes: For each of :data:`CAUSED` the part that makes most of its error, and its share of the square (NaN where
            the error is not finite); nothing where that is not known.
    """

    precision: str
    errors: Mapping[str, float]
    n_broken: int
    time: tuple[float, float] | None
    exceeded: tuple[str, ...]
    is_judged: bool
    causes: Mapping[str, tuple[str, float]]


def model_rows(
    summary: pd.DataFrame,
    units: Mapping[str, tuple[str, float]],
    over: pd.DataFrame,
    causes: pd.DataFrame | None = None,
    *,
    is_judged: bool,
) -> list[ModelRow]:
    """The table of the model as a whole, float64 first, to be drawn wherever it is read.

    Args:
        summary: From :func:`precision_probe.summary`.
        units: From :func:`shown_units`.
        over: From :func:`precision_probe.analysis.errors.exceeded`.
        causes: From :func:`main_causes`, where the trace has contributions.
        is_judged: Whether there is a tolerance of what the summary has.
    """
    is_timed = summary["time"].notna().any()
    return [
        ModelRow(
            precision=str(name),
            errors={column: float(row[column]) * scale for column, (_, scale) in units.items() if column in row},
            n_broken=int(row["nonfinite"]),
            time=(float(row["time"]), float(row["time_iqr"])) if is_timed else None,
            exceeded=tuple(over["quantity"][over["precision"] == name]),
            is_judged=is_judged and name != "float64",
            causes=_causes(causes, str(name)),
        )
        for name, row in summary.iterrows()
    ]


def shown_units(table: pd.DataFrame) -> dict[str, tuple[str, float]]:
    """The unit in which each result of the model is shown, and how many of these one of the trace's is.

    Args:
        table: From :func:`precision_probe.errors`.

    Returns:
        In the order of a summary; energies, forces and stress of what is in eV in meV.
    """
    own = table[table["block"] == MODEL].drop_duplicates("tensor").set_index("tensor")["units"]
    units = {str(name): (str(unit), 1.0) for name, unit in own.items()}
    in_milli = {name: (unit, _MILLI) for name, unit in _IN_MILLI.items() if units.get(name, ("",))[0].startswith("eV")}
    means = {"forces_mae": in_milli["forces"]} if "forces" in in_milli else {}
    known = units | in_milli | means
    first = [name for name in ("energy", "interaction_energy", "forces", "forces_mae", "stress") if name in known]
    return {name: known[name] for name in dict.fromkeys([*first, *known])}


def main_causes(trace: Trace) -> pd.DataFrame:
    """The part that makes most of the error of forces, and of energies, in each precision.

    Args:
        trace: One that keeps the table ``contributions``.

    Returns:
        Indexed by precision: ``forces_part`` and ``energy_part``, and ``forces_share`` and ``energy_share``, of the
        squared error. The parts in which energies of isolated atoms and of atoms are added up count as one, ``sums``.
        Where a result is not finite, the part with which that begins, and no share.

    Raises:
        InputError: If the trace has no such table.
    """
    table = trace.table("contributions").frame
    rows = {}
    for precision, parts in table.groupby("precision", sort=False):
        rows[str(precision)] = {
            f"{quantity}_{key}": value
            for quantity in ("forces", "energy")
            for key, value in _main_cause(parts, quantity).items()
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("precision")


def _main_cause(parts: pd.DataFrame, quantity: str) -> dict[str, object]:
    """The part with the largest share of one quantity's error; no part where there is no error."""
    broken = parts[~np.isfinite(parts[quantity])]
    if not broken.empty:
        return {"part": broken["part"].iloc[0], "share": np.nan}
    shares = parts.groupby(parts["part"].replace(_OF_SUMS), sort=False)[f"{quantity}_share"].sum(min_count=1)
    if shares.isna().all():
        return {"part": "", "share": np.nan}
    return {"part": shares.idxmax(), "share": float(shares.max())}


def _causes(table: pd.DataFrame | None, precision: str) -> dict[str, tuple[str, float]]:
    """Of one precision, where the table has it."""
    if table is None or precision not in table.index:
        return {}
    return {name: (str(table[f"{name}_part"][precision]), float(table[f"{name}_share"][precision])) for name in CAUSED}
