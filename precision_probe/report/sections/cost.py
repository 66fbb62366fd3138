"""Errors against time: the precisions as a whole, and the policy that a search chose with what it chose from."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from precision_probe.policy import Policy
from precision_probe.report.content import Figure, Part, Section, table_of
from precision_probe.report.drawing.charts import Point, scatter
from precision_probe.report.findings import MILLI, Findings

__all__ = ["cost"]

_COLUMNS = {
    "rules": ("rules", 1),
    "energy": ("energy, meV/atom", MILLI),
    "forces": ("forces, largest, meV/Å", MILLI),
    "stress": ("stress, meV/Å³", MILLI),
    "share": ("error ÷ tolerance", 1),
    "seconds": ("time, ms", 1e3),
    "vs_float64": ("times faster than float64", 1),
    "vs_float32": ("times faster than float32", 1),
    "peak_gib": ("memory, GiB", 1),
    "held_out": ("share of structures held out that is within", 1),
    "held_out_at_least": ("at least (95 %)", 1),
}


def cost(findings: Findings) -> Section | None:
    """What the digits cost in time."""
    parts: list[Part] = []
    text = []
    if findings.policy is not None:
        text += [_choice(findings.policy), *_tested(findings.policy), *_of_other_weights(findings)]
        parts += _of_policy(findings.policy)
    timed = findings.summary[findings.summary["time"].notna()]
    if "forces" in timed and len(timed) > 1 and "forces" in findings.units:
        parts.append(_of_precisions(findings, timed))
    return Section("cost", "Error against time", parts, text) if parts or text else None


def _choice(policy: Policy) -> str:
    """What is recommended, as its rules say it."""
    rules = ", ".join(f"{rule.blocks} in {rule.compute}" for rule in policy.rules)
    chosen = policy.evidence.get("chosen")
    name = f" ({chosen})" if isinstance(chosen, str) else ""
    return f"Recommended{name}: {rules}; the rest is float64." if rules else f"Recommended{name}: all in float64."


def _tested(policy: Policy) -> list[str]:
    """On how many structures that it was not searched on it kept its tolerance, if the file says."""
    tested = policy.evidence.get("tested")
    numbers = [tested.get(name) for name in ("within", "structures")] if isinstance(tested, Mapping) else [None]
    if not all(map(_is_number, numbers)):
        return []
    return [f"It keeps its tolerance on {numbers[0]} of {numbers[1]} structures that it was tested on."]


def _of_other_weights(findings: Findings) -> list[str]:
    """A warning where the policy was made for another model."""
    made_for = findings.policy.model.get("sha256") if findings.policy is not None else None
    if made_for is None or made_for == findings.trace.attributes.get("model_sha256"):
        return []
    return ["The policy was made for a model with other weights than the trace is of."]


def _of_policy(policy: Policy) -> list[Part]:
    """What the search measured, if the file says."""
    candidates = policy.evidence.get("candidates")
    if not isinstance(candidates, Mapping):
        return []
    known = {str(name): row for name, row in candidates.items() if isinstance(row, Mapping)}
    chosen = policy.evidence.get("chosen")
    columns = {
        title: [_scaled(row.get(name), factor) for row in known.values()]
        for name, (title, factor) in _COLUMNS.items()
        if any(name in row for row in known.values())
    }
    labels = [f"{name} ✓" if name == chosen else name for name in known]
    frame = pd.DataFrame(columns, index=pd.Index(labels, name="candidate"), dtype=object)
    title = "What the search measured; ✓ what it recommends"
    points = [
        Point(name, 1e3 * float(row["seconds"]), MILLI * float(row["forces"]), int(name != chosen), name == chosen)
        for name, row in known.items()
        if _is_number(row.get("seconds")) and _is_number(row.get("forces"))
    ]
    if len(points) < 2:
        return [table_of(frame, title)]
    said = f"{len(points)} candidates; the ring marks the recommended one."
    drawing = scatter(points, "time, ms", "largest force error, meV/Å", title, said)
    return [Figure(title, drawing, table_of(frame, title))]


def _scaled(value: Any, factor: float) -> float | str | None:
    return float(value) * factor if _is_number(value) else value if isinstance(value, str) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _of_precisions(findings: Findings, timed: pd.DataFrame) -> Figure:
    """The model as a whole in each precision, as it was timed when it was recorded."""
    unit, scale = findings.units["forces"]
    frame = pd.DataFrame(
        {
            "time ÷ float64's": timed["time"],
            "±": timed["time_iqr"] / 2,
            f"forces, largest, {unit}": scale * timed["forces"],
        }
    )
    slots = {name: slot for slot, name in enumerate(findings.precisions)}  # the same colours as elsewhere
    points = [
        Point(str(name), float(row.iloc[0]), float(row.iloc[2]), slots.get(str(name), len(slots)))
        for name, row in frame.iterrows()
    ]
    title = "The model as a whole in each precision"
    said = f"{len(points)} precisions; float64 is the reference, at time 1 and without error."
    drawing = scatter(points, "time ÷ float64's", f"largest force error, {unit}", title, said)
    return Figure(title, drawing, table_of(frame.rename_axis("precision"), title))
