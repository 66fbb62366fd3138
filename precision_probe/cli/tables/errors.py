"""Tables of errors as a terminal shows them."""

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from precision_probe.analysis.errors import TOLERANCE_UNITS, Tolerance, block_errors, worst_blocks
from precision_probe.analysis.metrics import EPS, METRICS
from precision_probe.analysis.pairs import MODEL
from precision_probe.analysis.views import view, views
from precision_probe.analysis.whole_model import ModelRow
from precision_probe.cli.tables.style import DIRECTIONS, entry, number, plain_table
from precision_probe.precisions import parse_precision
from precision_probe.trace.schema import REFERENCE
from precision_probe.trace.trace import LOSS, MODES, Trace

__all__ = ["block_table", "errors_table", "model_table", "view_tables"]

# What does not head its column by its own name.
_HEADINGS = {"interaction_energy": "interact.", "forces": "forces max", "forces_mae": "forces MAE"}
# In a narrow terminal the last goes first: energy and forces stay longest, means and parts of energies do not.
_RANKS = {
    name: rank
    for rank, name in enumerate(
        ("energy", "forces", "other", "stress", "causes", "time", "interaction_energy", "forces_mae"), 1
    )
}
_METRICS = {"rel_l2": "rel_l2", "amplification": "ampl.", "max_abs": "max_abs", "mean_rel": "mean_rel"}


def model_table(
    rows: Sequence[ModelRow], units: Mapping[str, tuple[str, float]], limits: Tolerance, *, is_guide: bool
) -> RenderableType:
    """The model as a whole: one row for each precision, and which are within the tolerance.

    Args:
        rows: From :func:`precision_probe.analysis.whole_model.model_rows`.
        units: From :func:`precision_probe.analysis.whole_model.shown_units`.
        limits: What it was judged by, as far as the trace has it.
        is_guide: Whether that is :data:`precision_probe.analysis.errors.GUIDE`, not a tolerance of the user's.
    """
    table = plain_table("The model as a whole: error against float64")
    table.add_column("\nprecision", no_wrap=True)
    for name in rows[0].errors:
        heading = f"{_HEADINGS.get(name, name)}\n{units[name][0]}"
        table.add_column(heading, justify="right", no_wrap=True, rank=_RANKS.get(name, _RANKS["other"]))
    if rows[0].time is not None:
        table.add_column("time\n× float64", justify="right", no_wrap=True, rank=_RANKS["time"])
    table.add_column("\nverdict")
    if any(row.causes for row in rows):
        for quantity in ("energy", "force"):
            table.add_column(f"{quantity} error\nmostly from", no_wrap=True, rank=_RANKS["causes"])
    for row in rows:
        time = [] if row.time is None else [f"{row.time[0]:.2f} ± {row.time[1] / 2:.2f}"]
        # parts that come later may undo most of an error: what is far above all of it says nothing here
        causes = [f"{part}{f' {share:.0%}' if 0 < share <= 1.5 else ''}" for part, share in row.causes.values()]
        table.add_row(row.precision, *map(number, row.errors.values()), *time, _verdict(row), *causes)
    return Group(table, Text(_notes(rows[0], limits, is_guide=is_guide), style="dim"))


def block_table(errors: pd.DataFrame) -> RenderableType:
    """Block by block: for each precision, block and direction the tensor with the largest relative error."""
    captured = set(errors.loc[errors["block"] != MODEL, "mode"])
    modes = [mode for mode in (*MODES, LOSS) if mode in captured]
    table = plain_table("Block by block: error against float64")
    table.add_column("\nblock", no_wrap=True)
    table.add_column("", no_wrap=True)
    for mode in modes:
        for position, heading in enumerate(_METRICS.values()):
            table.add_column(f"{'' if position else mode}\n{heading}", justify="right", no_wrap=True, rank=position)
    rows = block_errors(errors)
    worst = worst_blocks(errors)
    for precision in rows.index.unique("precision"):
        table.add_section()
        table.add_row(Text(f"{precision}, u = {parse_precision(precision).unit_roundoff:.1e}", style="bold"))
        for (block, direction), row in rows.loc[precision].iterrows():
            style = "bold yellow" if direction == "forward" and worst.get(precision) == block else ""
            cells = [_cell(row, mode, metric) for mode in modes for metric in _METRICS]
            table.add_row(block if direction == "forward" else "", DIRECTIONS[direction], *cells, style=style)
    notes = (
        "propagated: in the whole model; isolated: the block alone, on float64's inputs rounded. fwd: outputs; bwd: "
        "gradients with respect to inputs; of several tensors the one with the largest rel_l2. mean_rel with "
        f"ε = {EPS:g}. ampl.: rel_l2 in unit roundoffs u. ~0: the exact gradient is zero. In colour: the largest "
        f"relative error of a block's output{' alone' if 'isolated' in modes else ''}, which need not matter most to "
        "energies and forces. Every tensor and metric: precision-probe errors TRACE"
    )
    return Group(table, Text(notes, style="dim"))


def errors_table(errors: pd.DataFrame) -> RenderableType:
    """Every row of :func:`precision_probe.errors`, with all metrics; dim where the reference is noise."""
    shown = {*METRICS, "floor", *(["noise"] if errors["noise"].notna().any() else [])}
    metrics = [name for name in errors.columns if name in shown]
    resolved = [name for name in ("irrep", "element") if name in errors]
    table = plain_table(None, "precision", "mode", "tensor", "direction", *resolved)
    # In a narrow terminal the headline is always there, and the rest as long as it fits, the block table's first.
    first = [*_METRICS, *(metric for metric in metrics if metric not in _METRICS)]
    table.add_column("units", rank=len(first))
    table.add_column("n", rank=len(first))
    for metric in metrics:
        table.add_column(_METRICS.get(metric, metric), justify="right", rank=first.index(metric))
    for column in table.columns:
        column.no_wrap = True
    for row in errors.to_dict("records"):
        identity = (row["precision"], row["mode"], f"{row['block']}.{row['tensor']}", DIRECTIONS[row["direction"]])
        numbers = (number(row[name]) for name in metrics)
        labels = [row[name] for name in resolved]
        table.add_row(*identity, *labels, row["units"], str(row["n"]), *numbers, style="" if row["resolved"] else "dim")
    return table


def view_tables(trace: Trace, name: str | None = None) -> Iterator[RenderableType]:
    """The tables of a trace that explain its errors, or one of them by name."""
    for each in views(trace) if name is None else (name,):
        shown = view(trace, each)
        table = plain_table(shown.title, str(shown.frame.index.name or ""))
        for rank, column in enumerate(shown.frame.columns):
            table.add_column(str(column), justify="right", no_wrap=True, rank=rank)
        for label, row in shown.frame.iterrows():
            table.add_row(str(label), *(entry(value) for value in row))
        yield Group(table, Text(shown.note, style="dim"))


def _notes(row: ModelRow, limits: Tolerance, *, is_guide: bool) -> str:
    """What the table of the model means: what was judged by, and what its columns are."""
    shown = ", ".join(f"{name} {limit:g} {TOLERANCE_UNITS[name]}" for name, limit in limits.items())
    source = "a guide: set your own with --tolerance" if is_guide else "--tolerance"
    notes = [
        f"ok: within {shown} ({source}); the largest error over structures, atoms and components."
        if limits
        else f"Largest errors; to have them judged, give --tolerance with one of {', '.join(TOLERANCE_UNITS)}.",
        "interact.: energy less the isolated atoms'." if "interaction_energy" in row.errors else "",
        "time: median ± half the interquartile range.",
    ]
    return " ".join(filter(None, notes))


def _verdict(row: ModelRow) -> Text:
    """Whether a precision is within the tolerance, which quantities are not, and how many numbers are not finite."""
    if row.precision == REFERENCE:
        return Text("reference")
    verdict = Text("ok" if row.is_judged else "", style="bold green")
    if row.exceeded:
        verdict = Text("too large: " + ", ".join(row.exceeded), style="bold red")
    if row.n_broken:
        verdict.append(f" ({row.n_broken} NaN/inf)")
    return verdict


def _cell(row: "pd.Series[float]", mode: str, metric: str) -> str:
    value = row[metric, mode]
    if metric != "max_abs" and not row["resolved", mode]:
        return "~0"
    return f"{value:.3g}" if metric == "amplification" and 0.1 < value < 1e4 else number(value)
