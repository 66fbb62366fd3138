"""Time beside errors: what a policy's file says of its candidates, and how a trace's precisions were timed."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from precision_probe.policy import Policy
from precision_probe.report.findings import MILLI, Findings

__all__ = ["ERROR", "TIME", "candidates", "is_number", "is_recommended", "placed", "times"]

ERROR = "forces, largest, meV/Å"
TIME = "time, ms"
_COLUMNS = {
    "rules": ("rules", 1),
    "energy": ("energy, meV/atom", MILLI),
    "forces": (ERROR, MILLI),
    "stress": ("stress, meV/Å³", MILLI),
    "share": ("error ÷ tolerance", 1),
    "seconds": (TIME, 1e3),
    "vs_float64": ("times faster than float64", 1),
    "vs_float32": ("times faster than float32", 1),
    "peak_gib": ("memory, GiB", 1),
    "held_out": ("share of structures held out that is within", 1),
    "held_out_at_least": ("at least (95 %)", 1),
}


def candidates(policy: Policy) -> pd.DataFrame:
    """What the search measured, with what people run otherwise: a row for each candidate, in its units.

    Args:
        policy: From a file that people may have written: what is no number and no text is left out.

    Returns:
        Numbers, texts and ``None``; no rows if the file does not say.
    """
    said = policy.evidence.get("candidates")
    known = (
        {str(name): row for name, row in said.items() if isinstance(row, Mapping)} if isinstance(said, Mapping) else {}
    )
    columns = {
        title: [_scaled(row.get(name), factor) for row in known.values()]
        for name, (title, factor) in _COLUMNS.items()
        if any(name in row for row in known.values())
    }
    return pd.DataFrame(columns, index=pd.Index(list(known), name="candidate"), dtype=object)


def is_recommended(policy: Policy, name: str) -> bool:
    """Whether a candidate is the one that the search chose."""
    return policy.evidence.get("chosen") == name


def placed(table: pd.DataFrame) -> pd.DataFrame:
    """Of candidates those whose time and error are known, as numbers: what can be drawn."""
    if not {TIME, ERROR} <= set(table):
        return pd.DataFrame(columns=[TIME, ERROR], dtype=float)
    return table.loc[table[[TIME, ERROR]].map(is_number).all(axis=1), [TIME, ERROR]].astype(float)


def times(findings: Findings) -> pd.DataFrame:
    """The model as a whole in each precision, as it was timed when it was recorded; no rows where it was not.

    Returns:
        By precision: the time divided by float64's, half its interquartile range, and the largest error of a force.
    """
    timed = findings.summary[findings.summary["time"].notna()]
    if "forces" not in timed or len(timed) < 2 or "forces" not in findings.units:
        return pd.DataFrame()
    unit, scale = findings.units["forces"]
    columns = {
        "time ÷ float64's": timed["time"],
        "±": timed["time_iqr"] / 2,
        f"forces, largest, {unit}": scale * timed["forces"],
    }
    return pd.DataFrame(columns).rename_axis("precision")


def is_number(value: object) -> bool:
    """Whether something from a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _scaled(value: Any, factor: float) -> float | str | None:
    return float(value) * factor if is_number(value) else value if isinstance(value, str) else None
