"""The part of a model that makes most of its error, as a trace's table of contributions has it."""

import numpy as np
import pandas as pd

from precision_probe.trace.trace import Trace

__all__ = ["main_causes"]

# One sum in two steps: energies of isolated atoms, and what is added to them. Their roundings undo one another in part.
_OF_SUMS = {"atomic_energies_fn": "sums"}


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
