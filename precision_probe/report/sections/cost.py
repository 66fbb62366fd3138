"""Errors against time: the precisions as a whole, and the policy that a search chose with what it chose from."""

from collections.abc import Mapping

import pandas as pd

from precision_probe.policy import Policy
from precision_probe.report.content import Figure, Part, Section, table_of
from precision_probe.report.costs import ERROR, TIME, candidates, is_number, is_recommended, placed, times
from precision_probe.report.drawing.scatter import Point, scatter
from precision_probe.report.findings import Findings, slots

__all__ = ["cost"]


def cost(findings: Findings) -> Section | None:
    """What the digits cost in time."""
    parts: list[Part] = []
    text = []
    if findings.policy is not None:
        text += [_choice(findings.policy), *_tested(findings.policy), *_of_other_weights(findings)]
        parts += _of_policy(findings.policy)
    timed = times(findings)
    if len(timed):
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
    if not all(map(is_number, numbers)):
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
    known = candidates(policy)
    if known.empty:
        return []
    marked = {name: f"{name} ✓" for name in known.index if is_recommended(policy, name)}
    title = "What the search measured; ✓ what it recommends"
    table = table_of(known.rename(index=marked), title)
    points = [
        Point(str(name), row[TIME], row[ERROR], int(name not in marked), name in marked)
        for name, row in placed(known).iterrows()
    ]
    if len(points) < 2:
        return [table]
    said = f"{len(points)} candidates; the ring marks the recommended one."
    return [Figure(title, scatter(points, TIME, "largest force error, meV/Å", title, said), table)]


def _of_precisions(findings: Findings, timed: pd.DataFrame) -> Figure:
    """The model as a whole in each precision."""
    slot_of = slots(findings.trace)
    points = [
        Point(str(name), float(row.iloc[0]), float(row.iloc[2]), slot_of.get(str(name)))
        for name, row in timed.iterrows()
    ]
    title = "The model as a whole in each precision"
    said = f"{len(points)} precisions; float64 is the reference, at time 1 and without error."
    unit, _ = findings.units["forces"]
    drawing = scatter(points, "time ÷ float64's", f"largest force error, {unit}", title, said)
    return Figure(title, drawing, table_of(timed, title))
