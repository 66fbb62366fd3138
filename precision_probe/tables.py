"""Tables of errors as a terminal shows them."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from precision_probe.analysis import (
    MODEL,
    TOLERANCE_UNITS,
    Tolerance,
    bits_needed,
    block_errors,
    exceeded,
    worst_blocks,
)
from precision_probe.comparison import ROUNDOFFS
from precision_probe.metrics import EPS, METRICS
from precision_probe.precisions import parse_precision
from precision_probe.trace import LOSS, MODES

if TYPE_CHECKING:
    from precision_probe.explanations import View
    from precision_probe.recommendation import Recommendation

__all__ = [
    "FULL_WIDTH",
    "GUIDE",
    "WIDTH",
    "block_table",
    "comparison_table",
    "errors_table",
    "model_table",
    "plain_table",
    "provenance_table",
    "recommendation_table",
    "sweep_table",
    "view_table",
]

# What "ok" means where no tolerance is given: well under the errors of a good MACE model itself.
GUIDE: Tolerance = {"energy": 1e-3, "forces": 1e-2, "stress": 1e-3}

# Columns that the tables, and the table of all metrics, need: a narrower terminal wraps lines and loses no digit.
WIDTH, FULL_WIDTH = 120, 256

_COLUMNS = {
    "energy": ("energy\nmeV/atom", 1000),
    "interaction_energy": ("interact.\nmeV/atom", 1000),
    "forces": ("forces max\nmeV/Å", 1000),
    "forces_mae": ("forces MAE\nmeV/Å", 1000),
    "stress": ("stress\nmeV/Å³", 1000),
}
_METRICS = {"max_abs": "max_abs", "mean_rel": "mean_rel", "rel_l2": "rel_l2", "amplification": "ampl."}
_DIRECTIONS = {"forward": "fwd", "backward": "bwd"}


def model_table(summary: pd.DataFrame, errors: pd.DataFrame, tolerance: Tolerance | None) -> RenderableType:
    """The model as a whole: one row for each precision, and which are within the tolerance.

    Args:
        summary: From :func:`precision_probe.analysis.summary`.
        errors: From :func:`precision_probe.analysis.errors`; it names the block that loses most digits by itself.
        tolerance: What the user allows; without one, :data:`GUIDE`.
    """
    limits = {name: limit for name, limit in (tolerance or GUIDE).items() if name in summary}
    over = exceeded(summary, limits)
    worst = worst_blocks(errors)
    columns = {name: heading for name, (heading, _) in _COLUMNS.items() if name in summary}
    units = errors[errors["block"] == MODEL].drop_duplicates("tensor").set_index("tensor")["units"]
    columns |= {str(name): f"{name}\n{unit}" for name, unit in units.items() if name not in _COLUMNS}
    table = plain_table("The model as a whole: error against float64")
    table.add_column("\nprecision", no_wrap=True)
    for heading in (*columns.values(), "time\n× float64"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("\nverdict")
    table.add_column("loses most\ndigits by itself", overflow="fold")
    for precision, row in summary.iterrows():
        cells = [_number(row[name] * (_COLUMNS[name][1] if name in _COLUMNS else 1)) for name in columns]
        verdict = _verdict(str(precision), row, over, judged=bool(limits))
        table.add_row(str(precision), *cells, _ratio(row), verdict, worst.get(str(precision), ""))
    return Group(table, Text(_notes(summary, limits, is_guide=tolerance is None), style="dim"))


def _notes(summary: pd.DataFrame, limits: Tolerance, *, is_guide: bool) -> str:
    """What the table of the model means."""
    shown = ", ".join(f"{name} {limit:g} {TOLERANCE_UNITS[name]}" for name, limit in limits.items())
    source = "a guide: set your own with --tolerance" if is_guide else "--tolerance"
    notes = [
        f"ok: within {shown} ({source}); the largest error over structures, atoms and components."
        if limits
        else f"Largest errors; to have them judged, give --tolerance with one of {', '.join(TOLERANCE_UNITS)}.",
        "interact.: energy less the isolated atoms'." if "interaction_energy" in summary else "",
        "time: median ± half the interquartile range.",
    ]
    return " ".join(filter(None, notes))


def block_table(errors: pd.DataFrame) -> RenderableType:
    """Block by block: for each precision, block and direction the tensor with the largest relative error."""
    captured = set(errors.loc[errors["block"] != MODEL, "mode"])
    modes = [mode for mode in (*MODES, LOSS) if mode in captured]
    table = plain_table("Block by block: error against float64")
    table.add_column("\nblock", no_wrap=True)
    table.add_column("", no_wrap=True)
    for mode in modes:
        for position, heading in enumerate(_METRICS.values()):
            table.add_column(f"{'' if position else mode}\n{heading}", justify="right", no_wrap=True)
    rows = block_errors(errors)
    worst = worst_blocks(errors)
    for precision in rows.index.unique("precision"):
        table.add_section()
        table.add_row(Text(f"{precision}, u = {parse_precision(precision).unit_roundoff:.1e}", style="bold"))
        for (block, direction), row in rows.loc[precision].iterrows():
            style = "bold yellow" if direction == "forward" and worst.get(precision) == block else ""
            cells = [_cell(row, mode, metric) for mode in modes for metric in _METRICS]
            table.add_row(block if direction == "forward" else "", _DIRECTIONS[direction], *cells, style=style)
    notes = (
        "propagated: in the whole model; isolated: the block alone, on float64's inputs rounded. fwd: outputs; bwd: "
        "gradients with respect to inputs; of several tensors the one with the largest rel_l2. mean_rel with "
        f"ε = {EPS:g}. ampl.: rel_l2 in unit roundoffs u. ~0: the exact gradient is zero. In colour: the block that "
        "loses most digits by itself. Every tensor and metric: precision-probe errors TRACE"
    )
    return Group(table, Text(notes, style="dim"))


def comparison_table(comparison: pd.DataFrame) -> RenderableType:
    """Of each block and direction the tensor that is furthest from trace A's, for each precision; modes side by side.

    Args:
        comparison: From :func:`precision_probe.comparison.compare_traces`.
    """
    modes = list(comparison["mode"].unique())
    table = plain_table("Trace B against trace A: relative difference (rel_l2), beside A's and B's own rounding error")
    table.add_column("\nblock", no_wrap=True)
    table.add_column("", no_wrap=True)
    for mode in modes:
        for position, heading in enumerate(("B − A", "error A", "error B")):
            table.add_column(f"{'' if position else mode}\n{heading}", justify="right", no_wrap=True)
    table.add_column("\nverdict")
    for precision, rows in comparison.groupby("precision", sort=False):
        table.add_section()
        table.add_row(Text(str(precision), style="bold"))
        for (block, direction), found in rows.groupby(["block", "direction"], sort=False):
            cells: list[str] = []
            for mode in modes:
                judged = found[(found["mode"] == mode) & found["allowed"].notna()]
                if judged.empty:
                    cells += ["~0" if (found["mode"] == mode).any() else "", "", ""]
                    continue
                worst = judged.loc[(judged["difference"] / judged["allowed"]).fillna(np.inf).idxmax()]
                errors_shown = (
                    ["", ""] if precision == "float64" else [_number(worst["error_a"]), _number(worst["error_b"])]
                )
                cells += [_number(worst["difference"]), *errors_shown]
            same = bool(found["equivalent"].all())
            verdict = Text("same", style="green") if same else Text("DIFFERENT", style="bold red")
            table.add_row(str(block), _DIRECTIONS[str(direction)], *cells, verdict)
    notes = (
        f"same: in float64 within {ROUNDOFFS:g} unit roundoffs; in a reduced precision within ten times A's own "
        "rounding error. error A, error B: against A's float64. ~0: the exact value is zero, nothing is judged."
    )
    return Group(table, Text(notes, style="dim"))


def sweep_table(sweep: pd.DataFrame, quantity: str, tolerance: float) -> RenderableType:
    """The largest error for each block and number of bits, and how many bits keep it within a tolerance.

    Args:
        sweep: From :func:`precision_probe.bit_sweep.sweep`.
        quantity: ``energy`` or ``forces``.
        tolerance: In eV/atom or eV/Å.
    """
    wide = sweep.pivot_table(index="block", columns="bits", values=quantity, sort=False)
    wide = wide[sorted(wide.columns)]
    needed = bits_needed(sweep, tolerance, quantity)
    table = plain_table(f"Largest error of {quantity} ({TOLERANCE_UNITS[quantity]}) with so many bits of significand")
    table.add_column("\nrounded", no_wrap=True)
    table.add_column("bits\nneeded", justify="right")
    for number in wide.columns:
        table.add_column(f"\n{number}", justify="right", no_wrap=True)
    for block, row in wide.iterrows():
        enough = needed[str(block)]
        cells = [Text(_number(value), style="" if value <= tolerance else "red") for value in row]
        table.add_row(str(block), "more" if pd.isna(enough) else str(enough), *cells)
    notes = (
        f"needed: to stay within {tolerance:g} {TOLERANCE_UNITS[quantity]} with that number and every larger one "
        "tried. One block is rounded at a time (its inputs, weights and every operation, forward and backward), the "
        "rest is float64; exponents are float64's. Stored bits: float32 has 23, float16 10, bfloat16 7."
    )
    return Group(table, Text(notes, style="dim"))


def view_table(view: "View") -> RenderableType:
    """A table that explains errors."""
    table = plain_table(view.title, str(view.frame.index.name or ""))
    for column in view.frame.columns:
        table.add_column(str(column), justify="right", no_wrap=True)
    for label, row in view.frame.iterrows():
        table.add_row(str(label), *(_entry(value) for value in row))
    return Group(table, Text(view.note, style="dim"))


def _entry(value: Any) -> str:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return ""
    return f"{value:.3g}" if 0.1 <= abs(value) < 1e4 else _number(float(value))


def recommendation_table(found: "Recommendation") -> RenderableType:
    """What was measured in a search, what was chosen, and what a reader should know."""
    chosen = found.policy.evidence["chosen"]
    is_time = found.policy.evidence["objective"] == "time"
    order, better = ("the fastest", "faster") if is_time else ("the smallest", "smaller")
    table = plain_table(f"Candidates, {order} first", "candidate", "rules")
    columns = {
        "energy": "energy\nmeV/atom",
        "forces": "forces max\nmeV/Å",
        "forces_rel_l2": "forces\nrel_l2",
        "stress": "stress\nmeV/Å³",
        "share": "error ÷\ntolerance",
        "seconds": "time\nms",
        "vs_float64": "× float64\nspeed",
        "vs_float32": "× float32\nspeed",
        "peak_gib": "memory\nGiB",
        "memory_vs_float32": "÷ float32\nmemory",
        "held_out": "held out\nwithin",
    }
    shown = {name: title for name, title in columns.items() if not found.candidates[name].isna().all()}
    for title in shown.values():
        table.add_column(title, justify="right", no_wrap=True)
    for name, row in found.candidates.iterrows():
        cells = [
            _entry(1000 * row[column] if column in ("energy", "forces", "stress", "seconds") else row[column])
            for column in shown
        ]
        style = "bold green" if name == chosen else "" if row["pareto"] else "dim"
        table.add_row(str(name), row["rules"], *cells, style=style)
    notes = "\n".join((f"Bright: nothing measured is both {better} and more accurate (Pareto front).", *found.notes))
    rules = ", ".join(f"{rule.blocks} {rule.compute}" for rule in found.policy.rules)
    choice = f"{chosen} ({rules}); the rest is float64." if rules else "the model as it is, in float64."
    return Group(table, Text(f"Recommended: {choice}", style="bold"), Text(notes))


def provenance_table(differences: pd.DataFrame) -> RenderableType:
    """What two traces say differently of how they were made."""
    table = plain_table("What differs between the traces", "attribute")
    for name in ("A", "B"):
        table.add_column(name, overflow="fold")
    for attribute, row in differences.iterrows():
        table.add_row(str(attribute), row["a"], row["b"])
    return table


def _verdict(precision: str, row: "pd.Series[Any]", over: pd.DataFrame, *, judged: bool) -> Text:
    if precision == "float64":
        return Text("reference")
    bad = over.loc[over["precision"] == precision, "quantity"].tolist()
    verdict = Text("too large: " + ", ".join(bad), style="bold red") if bad else Text("ok", style="bold green")
    if not judged:
        verdict = Text("")
    if row["nonfinite"]:
        verdict.append(f" ({row['nonfinite']:.0f} NaN/inf)")
    return verdict


def plain_table(title: str | None, *headings: str, show_header: bool = True) -> Table:
    """An empty table in the style of all: no borders but a line under the headings."""
    return Table(
        *headings,
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_header=show_header,
    )


def errors_table(errors: pd.DataFrame) -> RenderableType:
    """Every row of :func:`precision_probe.analysis.errors`, with all metrics; dim where the reference is noise."""
    shown = {*METRICS, "floor", *(["noise"] if errors["noise"].notna().any() else [])}
    metrics = [name for name in errors.columns if name in shown]
    resolved = [name for name in ("irrep", "element") if name in errors]
    table = plain_table(None, "precision", "mode", "tensor", "direction", *resolved, "units", "n")
    for metric in metrics:
        table.add_column(_METRICS.get(metric, metric), justify="right")
    for column in table.columns:
        column.no_wrap = True
    for row in errors.to_dict("records"):
        identity = (row["precision"], row["mode"], f"{row['block']}.{row['tensor']}", _DIRECTIONS[row["direction"]])
        numbers = (_number(row[name]) for name in metrics)
        labels = [row[name] for name in resolved]
        table.add_row(*identity, *labels, row["units"], str(row["n"]), *numbers, style="" if row["resolved"] else "dim")
    return table


def _cell(row: "pd.Series[Any]", mode: str, metric: str) -> str:
    value = row[metric, mode]
    if metric != "max_abs" and not row["resolved", mode]:
        return "~0"
    return f"{value:.3g}" if metric == "amplification" and 0.1 < value < 1e4 else _number(value)


def _number(value: float) -> str:
    """Two digits are what an error is worth."""
    if isinstance(value, int | np.integer):
        return str(value)
    return "0" if value == 0 else f"{value:.1e}"


def _ratio(row: "pd.Series[Any]") -> str:
    return f"{row['time']:.2f} ± {row['time_iqr'] / 2:.2f}"
