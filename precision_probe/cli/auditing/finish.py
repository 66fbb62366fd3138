"""What an audit says at its end, and how it exits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from precision_probe.cli.auditing.verdict import Verdict, document
from precision_probe.cli.common import EXCEEDED, Shape, complain, say, table_console, write_json

if TYPE_CHECKING:
    from precision_probe.trace.trace import Trace

__all__ = ["Shown", "finish"]


@dataclass(frozen=True)
class Shown:
    """How results are shown.

    Attributes:
        shape: Tables, or a JSON document.
        junit: A JUnit report to write too.
        wide: Tables have all their columns, however narrow a terminal is.
        quiet: There are no tables.
    """

    shape: Shape = Shape.table
    junit: Path | None = None
    wide: bool = False
    quiet: bool = False


def finish(trace: "Trace", verdict: Verdict, notes: Sequence[str], path: Path | None, shown: Shown) -> None:
    """Print what was found.

    Args:
        trace: What was recorded.
        verdict: Of it.
        notes: What a reader of the results should know.
        path: Where the trace is, if it is anywhere.
        shown: How it is shown.

    Raises:
        ProbeError: If the audit is not complete.
        typer.Exit: If it exceeds a tolerance.
    """
    if shown.junit is not None:
        from precision_probe.cli.auditing.junit import write_junit

        write_junit(verdict, str(trace.attributes["model_name"]), shown.junit)
    if shown.shape is Shape.json:
        write_json(document(trace, verdict, None if path is None else str(path), list(notes)))
    elif not shown.quiet:
        _print_tables(trace, verdict, notes, wide=shown.wide)
    if path is not None:
        say(shown.quiet, f"Trace written to {path}")
    for name, why in verdict.not_judged.items():
        complain(f"Note: the tolerance of {name} was not judged: {why}.")
    for row in verdict.over.to_dict("records") if not verdict.is_guide else ():
        complain(
            f"{row['precision']}: {row['quantity']} error {row['error']:.2e} exceeds the tolerance "
            f"{row['tolerance']:.2e} {row['unit']} ({row['error'] / row['tolerance']:.1f} times)."
        )
    if verdict.failure is not None:
        raise verdict.failure
    if verdict.exit_code:
        raise typer.Exit(EXCEEDED)


def _print_tables(trace: "Trace", verdict: Verdict, notes: Sequence[str], *, wide: bool) -> None:
    import precision_probe as pp
    from precision_probe.analysis.whole_model import main_causes, model_rows, shown_units
    from precision_probe.cli.tables.errors import block_table, model_table, view_tables
    from precision_probe.cli.tables.style import WIDTH

    table = pp.errors(trace)
    console = table_console(WIDTH, wide=wide)
    causes = main_causes(trace) if "contributions" in trace.tables else None
    units, limits = shown_units(table), verdict.limits
    rows = model_rows(verdict.summary, units, verdict.over, causes, is_judged=bool(limits))
    console.print(model_table(rows, units, limits, is_guide=verdict.is_guide))
    if trace.modes:  # else nothing of the blocks was kept
        console.print(block_table(table))
    if trace.tables:
        for each in view_tables(trace):
            console.print(each)
    for note in notes:
        console.print(f"Note: {note}", markup=False)
