"""Tables of two traces side by side, as a terminal shows them."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from precision_probe.cli.tables.style import DIRECTIONS, number, plain_table

__all__ = ["comparison_table", "listed_by_reason", "provenance_table"]


def comparison_table(comparison: pd.DataFrame) -> RenderableType:
    """Of each block and direction the tensor that is furthest from trace A's, for each precision; modes side by side.

    Args:
        comparison: From :func:`precision_probe.compare_traces`.
    """
    modes = list(comparison["mode"].unique())
    table = plain_table("Trace B against trace A: relative difference (rel_l2), beside A's and B's own rounding error")
    table.add_column("\nblock", no_wrap=True)
    table.add_column("", no_wrap=True)
    for mode in modes:
        for position, heading in enumerate(("B − A", "error A", "error B")):
            table.add_column(f"{'' if position else mode}\n{heading}", justify="right", no_wrap=True, rank=position)
    table.add_column("\nverdict")
    for precision, rows in comparison.groupby("precision", sort=False):
        table.add_section()
        table.add_row(Text(str(precision), style="bold"))
        for (block, direction), tensors in rows.groupby(["block", "direction"], sort=False):
            cells: list[str] = []
            for mode in modes:
                judged = tensors[(tensors["mode"] == mode) & tensors["allowed"].notna()]
                if judged.empty:
                    cells += ["~0" if (tensors["mode"] == mode).any() else "", "", ""]
                    continue
                # what is NaN is further away than any number
                worst = judged.loc[(judged["difference"] / judged["allowed"]).fillna(np.inf).idxmax()]
                errors_shown = (
                    ["", ""] if precision == "float64" else [number(worst["error_a"]), number(worst["error_b"])]
                )
                cells += [number(worst["difference"]), *errors_shown]
            same = bool(tensors["equivalent"].all())
            verdict = Text("same", style="green") if same else Text("DIFFERENT", style="bold red")
            table.add_row(str(block), DIRECTIONS[str(direction)], *cells, verdict)
    notes = (
        f"same: {comparison.attrs['allowance']}. error A, error B: against A's float64. ~0: the exact value is zero, "
        "nothing is judged."
    )
    return Group(table, Text(notes, style="dim"))


def provenance_table(differences: pd.DataFrame) -> RenderableType:
    """What two traces say differently of how they were made."""
    table = plain_table("What differs between the traces", "attribute")
    for name in ("A", "B"):
        table.add_column(name, overflow="fold")
    for attribute, row in differences.iterrows():
        table.add_row(str(attribute), row["a"], row["b"])
    return table


def listed_by_reason(left_out: Mapping[str, str]) -> str:
    """Names with a reason each, as a sentence has them: those of one reason together."""
    reasons = dict.fromkeys(left_out.values())
    of_each = {reason: ", ".join(name for name, why in left_out.items() if why == reason) for reason in reasons}
    return "; ".join(f"{names} ({reason})" for reason, names in of_each.items())
