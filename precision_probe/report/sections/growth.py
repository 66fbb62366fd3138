"""How errors grow from block to block, forward and backward; per block and precision, per irrep and per element."""

import math
from collections.abc import Sequence

import pandas as pd

from precision_probe.analysis.errors import MODEL
from precision_probe.analysis.frames import per_part
from precision_probe.analysis.pairs import By
from precision_probe.precisions import parse_precision
from precision_probe.report.content import Figure, Part, Section, Table, table_of
from precision_probe.report.drawing.charts import Series, rows_chart
from precision_probe.report.drawing.scales import LogScale
from precision_probe.report.findings import Findings, shown_mode, slots

__all__ = ["growth"]

_ARROWS = {"forward": "→", "backward": "←"}
_WAYS = {
    "forward": "outputs, in the order in which blocks run",
    "backward": "gradients, in the order of the backward pass",
}
_PARTS = {"irrep": "order l and parity", "element": "chemical element"}


def growth(findings: Findings) -> Section | None:
    """Errors along the network."""
    if not findings.trace.modes:
        return None
    mode = shown_mode(findings.trace)
    parts: list[Part] = [_along(findings, mode, direction) for direction in _directions(findings, mode)]
    parts += [_heat_map(findings, each) for each in findings.trace.modes]
    for by in ("irrep", "element"):
        parts += _resolved(findings, mode, by)
    text = (
        "Of each block the tensor with the largest relative error (rel_l2: the norm of the error divided by the norm "
        "of float64's numbers). Two lines to compare with: no arithmetic is better than the floor (dashed), which is "
        "float64's own result stored in the precision; √n·u (dotted) is what n blocks, each of which adds one "
        "independent rounding u, would make. A point at NaN: a result is not finite."
    )
    return Section("growth", "Where the error grows", parts, [text])


def _directions(findings: Findings, mode: str) -> list[str]:
    table = findings.errors
    found = set(table["direction"][(table["mode"] == mode) & (table["block"] != MODEL)])
    return [direction for direction in _ARROWS if direction in found]


def _along(findings: Findings, mode: str, direction: str) -> Figure:
    """Each precision's error from block to block, with its floor and √n·u."""
    results = _results(findings, direction) if mode == "propagated" else findings.errors.iloc[:0]
    before = len(findings.trace.blocks) if direction == "backward" else 0
    series: list[Series] = []
    columns: dict[str, Sequence[float | str | None]] = {}
    labels: list[str] = []
    for precision, slot in slots(findings.trace).items():
        rows = findings.worst(mode, precision, direction)
        own = results[results["precision"] == precision].set_index("tensor")
        rows = pd.concat([rows if direction == "forward" else rows.iloc[::-1], own])
        labels = list(rows.index)
        shown = _shown(rows)
        values = [value if isinstance(value, float) else None for value in shown]
        floor = [None if value is None else bound for value, bound in zip(values, rows["floor"], strict=True)]
        roundoff = parse_precision(precision).unit_roundoff
        steps = [roundoff * math.sqrt(before + at + 1) for at in range(len(rows))]
        series += [
            Series(precision, values, slot),
            Series(f"floor of {precision}", floor, slot, "floor"),
            Series(f"√n·u of {precision}", steps, slot, "yardstick"),
        ]
        columns |= {precision: shown, f"{precision}: floor": floor, f"{precision}: √n·u": steps}
    frame = pd.DataFrame(columns, index=pd.Index(labels, name="block"))
    title = f"{direction.capitalize()}: {_WAYS[direction]}"
    drawing = rows_chart(labels, series, "relative error (rel_l2)", title)
    return Figure(title, drawing, table_of(frame, title, note="~0: float64's own numbers are zero up to rounding."))


def _shown(rows: pd.DataFrame) -> list[float | str | None]:
    """Relative errors; ``~0`` where the reference is zero up to rounding, and nothing where a block has no such."""
    return [
        None if pd.isna(is_resolved) else float(value) if is_resolved else "~0"
        for value, is_resolved in zip(rows["rel_l2"], rows["resolved"], strict=True)
    ]


def _results(findings: Findings, direction: str) -> pd.DataFrame:
    """The model's own results, which come after all blocks."""
    rows = findings.errors[(findings.errors["block"] == MODEL) & (findings.errors["direction"] == direction)]
    return rows[rows["mode"] == "propagated"]


def _heat_map(findings: Findings, mode: str) -> Table:
    """Blocks by precisions, coloured so that blocks of a precision are told apart: precisions are, by their size."""
    columns: dict[str, list[float | str | None]] = {}
    scales = {}
    for precision in findings.precisions:
        ways = {arrow: findings.worst(mode, precision, way) for way, arrow in _ARROWS.items()}
        both = pd.concat(ways.values())
        scale = LogScale.tight(both["rel_l2"][both["resolved"]])
        for arrow, rows in ways.items():
            if len(rows):
                columns[f"{precision} {arrow}"] = _shown(rows.reindex(findings.trace.blocks))
                scales[f"{precision} {arrow}"] = scale
    frame = pd.DataFrame(columns, index=pd.Index(findings.trace.blocks, name="block"), dtype=object)
    titles = {"propagated": "in the whole model", "isolated": "each block alone, on float64's inputs rounded"}
    note = (
        "→ outputs, ← gradients. The lighter, the larger, of each precision from its smallest error to its largest. "
        "~0: float64's own numbers are zero up to rounding."
    )
    return table_of(frame, f"Block × precision, {titles.get(mode, mode)}: rel_l2", shaded=scales, note=note)


def _resolved(findings: Findings, mode: str, by: By) -> list[Part]:
    """For each precision what every irrep or element of the blocks' outputs loses; nothing where there is one alone."""
    table = per_part(findings.trace, by, mode)
    if len(table.columns.unique(by)) < 2:
        return []
    parts: list[Part] = []
    for precision in findings.precisions:
        if precision not in table:  # all of it is zero up to rounding
            continue
        worst = pd.DataFrame(table[precision])
        series = [
            Series(str(name), [None if pd.isna(value) else float(value) for value in worst[name]], slot)
            for slot, name in enumerate(worst)
        ]
        title = f"{precision}: outputs by {_PARTS[by]}"
        frame = worst.astype(object).where(worst.notna(), None)
        numbers = table_of(frame, title, shaded=LogScale.tight(worst.to_numpy().ravel()), precision=precision)
        drawing = rows_chart(list(worst.index), series, "relative error (rel_l2)", title)
        parts.append(Figure(title, drawing, numbers, precision=precision))
    return parts
