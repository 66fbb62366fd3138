"""What changed from one trace to another, beyond what rounding explains."""

import numpy as np
import pandas as pd

from precision_probe.analysis.comparison import compare_traces, first_difference, provenance_differences
from precision_probe.exceptions import printable
from precision_probe.report.content import Figure, Part, Section, Table, table_of
from precision_probe.report.drawing.charts import Series, rows_chart
from precision_probe.report.findings import Findings

__all__ = ["comparison"]

_COLUMNS = {"difference": "B − A", "allowed": "allowed", "error_a": "error of A", "error_b": "error of B"}
_KINDS = {"allowed": "yardstick"}
_MOST = 20  # arrays in a table


def comparison(findings: Findings) -> Section | None:
    """Differences of trace B from trace A, beside both traces' own errors."""
    if findings.other is None:
        return None
    table = compare_traces(findings.trace, findings.other)
    parts: list[Part] = [_along(table, precision) for precision in table["precision"].unique()]
    different = table[~table["equivalent"]]
    if len(different):
        parts.append(_different(different))
    provenance = provenance_differences(findings.trace, findings.other)
    if len(provenance):
        frame = provenance.rename(columns={"a": "A", "b": "B"}).rename_axis("attribute")
        parts.append(table_of(frame, "What differs between the traces"))
    text = [f"Relative differences (rel_l2) of B from A. Allowed: {table.attrs['allowance']}."]
    if table.attrs["left_out"]:
        left_out = (f"{printable(name)} ({reason})" for name, reason in table.attrs["left_out"].items())
        text.append(f"Not comparable, and left out: {', '.join(left_out)}.")
    return Section("comparison", "What changed from A to B", parts, text, [_answer(table)])


def _answer(table: pd.DataFrame) -> tuple[str, str]:
    first = first_difference(table)
    if first is None:
        return "✓ Equivalent:", f"every difference of {len(table)} arrays is within rounding."
    what = f"{printable(first['block'])} {printable(first['tensor'])}"
    return (
        f"✗ Not equivalent: rounding does not explain {(~table['equivalent']).sum()} of {len(table)} arrays.",
        f"As the model runs, the first is {what} ({first['direction']}, {first['mode']}, {first['precision']}): "
        f"{first['difference']:.1e}, where {first['allowed']:.1e} is allowed.",
    )


def _along(table: pd.DataFrame, precision: str) -> Figure:
    """Of each block the output or gradient that is furthest from what is allowed, in the order of the run."""
    rows = table[(table["precision"] == precision) & table["allowed"].notna()]
    share = (rows["difference"] / rows["allowed"]).fillna(np.inf)  # what is NaN is further away than any number
    worst = rows.loc[share.groupby(rows["block"], sort=False).idxmax()].set_index("block")
    shown = [name for name in _COLUMNS if precision != "float64" or not name.startswith("error")]
    frame = worst[shown].rename(columns=_COLUMNS)
    series = [
        Series(_COLUMNS[name], worst[name].tolist(), slot, _KINDS.get(name, "points"))
        for slot, name in enumerate(shown)
    ]
    title = f"{precision}: B − A, block by block"
    note = "Dotted: what is allowed. Of each block the tensor that is furthest from it."
    drawing = rows_chart(list(map(str, worst.index)), series, "relative difference (rel_l2)", title)
    return Figure(title, drawing, table_of(frame, title), note)


def _different(rows: pd.DataFrame) -> Table:
    """Every array that rounding does not explain, or the first of them."""
    identity = ["precision", "mode", "tensor", "direction"]
    frame = rows.set_index("block")[[*identity, *_COLUMNS]].rename(columns=_COLUMNS)
    title = "What rounding does not explain"
    return table_of(frame.head(_MOST), title if len(frame) <= _MOST else f"{title}: the first {_MOST} of {len(frame)}")
