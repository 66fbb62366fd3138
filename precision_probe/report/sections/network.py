"""The network as a graph of its blocks, one precision at a time."""

import pandas as pd

from precision_probe.report.content import Figure, Section, table_of
from precision_probe.report.drawing.network import Node, network
from precision_probe.report.findings import Findings, shown_mode
from precision_probe.report.numbers import entry

__all__ = ["blocks"]

_REST = "the rest"


def blocks(findings: Findings) -> Section | None:
    """The blocks as they hand their results on, with their errors and what they contribute."""
    if not findings.trace.modes:
        return None
    figures = []
    for precision in findings.precisions:
        frame = _numbers(findings, precision)
        nodes = [_node(str(name), row) for name, row in frame.iterrows()]
        figures.append(
            Figure(
                f"{precision}: the network",
                network(nodes, precision),
                table_of(frame, f"{precision}: the numbers of each block"),
                precision=precision,
                is_wide=True,
            )
        )
    text = (
        "→ relative error of a block's output, ← of its gradients, each coloured from the smallest of the precision "
        "to the largest (the lighter the larger). "
    )
    if findings.causes is not None:
        text += "Below: its share of the squared error of the forces, which may be negative. "
    text += "Point at a block, or go from one to the next with the arrow keys, for all its numbers."
    return Section("network", "The network, block by block", figures, [text])


def _numbers(findings: Findings, precision: str) -> pd.DataFrame:
    """What the trace says of each block, in the order in which the model runs them."""
    columns: dict[str, pd.Series] = {}
    for mode in dict.fromkeys((shown_mode(findings.trace), *findings.trace.modes)):
        for direction, arrow in (("forward", "→"), ("backward", "←")):
            rows = findings.worst(mode, precision, direction)
            if len(rows):
                columns[f"{arrow} {mode}"] = rows["rel_l2"].where(rows["resolved"])
    frame = pd.DataFrame(columns)
    order = list(findings.trace.blocks)
    if findings.causes is not None:
        table = findings.trace.table("contributions").frame
        shares = table[(table["precision"] == precision) & (table["part"] != _REST)].set_index("part")
        if len(shares):  # which emulated precisions have none of
            order = ["geometry", *order, "sums"]
            for quantity in ("forces", "energy"):
                frame = frame.reindex(frame.index.union(shares.index))
                frame[f"share of {quantity}"] = shares[f"{quantity}_share"]
    return frame.reindex([name for name in order if name in frame.index]).rename_axis("block")


def _node(name: str, row: "pd.Series[float]") -> Node:
    def value(arrow: str) -> float | None:
        found = [row[key] for key in row.index if str(key).startswith(arrow)]
        return float(found[0]) if found and not pd.isna(found[0]) else None

    share = row.get("share of forces")
    said = [
        f"{key} {f'{number:.1%}' if str(key).startswith('share') else entry(number)}"
        for key, number in row.items()
        if not pd.isna(number)
    ]
    return Node(name, value("→"), value("←"), None if share is None else float(share), "; ".join(said))
