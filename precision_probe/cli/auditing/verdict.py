"""What an audit prints at its end, and whether it keeps the tolerance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from precision_probe.cli.common import complain, say, wide_console

if TYPE_CHECKING:
    from precision_probe.trace.trace import Trace

__all__ = ["finish"]


def finish(
    trace: "Trace", notes: Sequence[str], path: Path | None, limits: Mapping[str, float] | None, *, quiet: bool
) -> bool:
    """Print the tables, and judge the tolerance: whether it is exceeded.

    Args:
        trace: What was recorded.
        notes: What a reader of the results should know.
        path: Where it is, if it is anywhere.
        limits: Largest errors allowed; by default a guide, by which nothing is judged.
        quiet: Print no tables.
    """
    import precision_probe as pp
    from precision_probe.analysis.causes import main_causes
    from precision_probe.analysis.errors import GUIDE, exceeded
    from precision_probe.cli.style import WIDTH
    from precision_probe.cli.tables import block_table, model_table, view_tables

    summary = pp.summary(trace)
    judged = {name: limit for name, limit in (limits or GUIDE).items() if name in summary}
    over = exceeded(summary, judged)
    if not quiet:
        table = pp.errors(trace)
        console = wide_console(WIDTH)
        causes = main_causes(trace) if "contributions" in trace.tables else None
        console.print(model_table(summary, table, over, judged, is_guide=limits is None, causes=causes))
        if trace.modes:  # else nothing of the blocks was kept
            console.print(block_table(table))
        if trace.tables:
            for each in view_tables(trace):
                console.print(each)
        for note in notes:
            console.print(f"Note: {note}", markup=False)
    if path is not None:
        say(quiet, f"Trace written to {path}")
    if limits is None:
        return False
    for name in set(limits) - set(summary):
        why = "no structure is periodic in all directions" if name == "stress" else "the model does not predict it"
        complain(f"Note: the tolerance of {name} was not judged: {why}.")
    for row in over.to_dict("records"):
        complain(
            f"{row['precision']}: {row['quantity']} error {row['error']:.2e} exceeds the tolerance "
            f"{row['tolerance']:.2e} {row['unit']} ({row['error'] / row['tolerance']:.1f} times)."
        )
    return len(over) > 0
