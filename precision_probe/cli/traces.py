"""Verbs that read traces: errors, explain, compare, report."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from precision_probe.cli.common import (
    EXCEEDED,
    Format,
    FormatOption,
    Resolved,
    TraceArgument,
    TracebackOption,
    WideOption,
    complain,
    exit_codes,
    say,
    table_console,
    write,
    write_json,
)
from precision_probe.cli.console import PlainConsole
from precision_probe.cli.validate import UntrustedOption, validate_first
from precision_probe.exceptions import InputError
from precision_probe.files import check_writable, replacing, unwritable
from precision_probe.globs import matches

if TYPE_CHECKING:
    import pandas as pd

    from precision_probe.trace.trace import Trace

__all__ = ["compare", "errors", "explain", "opened", "report"]


@contextlib.contextmanager
def opened(path: Path) -> Iterator["Trace"]:
    """A trace; what its reader should know of the file is said as a note, without a line of Python."""
    from precision_probe.trace.reading import open_trace

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        trace = open_trace(path)
    for warning in found:
        complain(f"Note: {warning.message}")
    with trace:
        yield trace


def errors(
    trace: TraceArgument,
    format: Annotated[  # noqa: A002
        Format | None,
        typer.Option(
            help="How to print the table. Default: by the end of --output, .csv or .json, else a table. In CSV, text "
            "that a spreadsheet would take for a formula has an apostrophe before it."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file to write, instead of printing.")] = None,
    block: Annotated[
        list[str] | None,
        typer.Option(help="Of these blocks alone, a glob: 'interactions.*', or 'model' for its results; repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an output that exists.")] = False,
    eps: Annotated[float, typer.Option(help="The ε of mean_rel, |Δ| / (|y| + ε).", min=0)] = 1e-12,
    by: Annotated[Resolved | None, typer.Option(help="Resolve every array by irrep or by chemical element.")] = None,
    wide: WideOption = False,
    untrusted: UntrustedOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Print every error in a trace: each block, tensor, precision and mode, with all metrics."""
    with exit_codes(traceback):
        if output is not None:
            check_writable(output, force=force)
        validate_first(untrusted, trace)
        import precision_probe as pp
        from precision_probe.cli.tables.errors import errors_table
        from precision_probe.cli.tables.style import FULL_WIDTH

        with opened(trace) as found:
            table = _of_blocks(pp.errors(found, eps=eps, by=None if by is None else by.value), block)
        kind = format or _format_of(output)
        with contextlib.nullcontext() if output is None else _written(output) as file:
            if kind is not Format.table:
                write(table, kind, file)
            else:
                console = (
                    table_console(FULL_WIDTH, wide=wide) if file is None else PlainConsole(width=FULL_WIDTH, file=file)
                )
                console.print(errors_table(table))


@contextlib.contextmanager
def _written(output: Path) -> Iterator[IO[str]]:
    """A file to write, which takes its place when it is complete.

    Raises:
        InputError: If it cannot be written.
    """
    try:
        with replacing(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise unwritable(output, error) from error


def _format_of(output: Path | None) -> Format:
    """What the end of a file's name says."""
    known = {".csv": Format.csv, ".json": Format.json}
    return Format.table if output is None else known.get(output.suffix, Format.table)


def _of_blocks(table: "pd.DataFrame", globs: list[str] | None) -> "pd.DataFrame":
    """The rows of blocks that one of the globs matches.

    Raises:
        InputError: If a glob matches none.
    """
    if not globs:
        return table
    blocks = [str(name) for name in table["block"].unique()]
    for glob in globs:
        if not any(matches(name, glob) for name in blocks):
            raise InputError(f"No block of the trace matches --block {glob!r}. It has: {', '.join(blocks)}.")
    return table[[any(matches(name, glob) for glob in globs) for name in table["block"]]]


def explain(
    trace: TraceArgument,
    table: Annotated[str | None, typer.Option(help="One table alone, such as physics or budget. Default: all.")] = None,
    format: FormatOption = Format.table,  # noqa: A002
    wide: WideOption = False,
    untrusted: UntrustedOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Print why the digits go, from a trace that audit --explain wrote: in your units, budgets, symmetry, bits."""
    with exit_codes(traceback):
        validate_first(untrusted, trace)
        from precision_probe.analysis.views import numbers, views
        from precision_probe.cli.tables.errors import view_tables
        from precision_probe.cli.tables.style import WIDTH

        with opened(trace) as found:
            if format is Format.table:
                for each in view_tables(found, table):
                    table_console(WIDTH, wide=wide).print(each)
                if table is None and not found.tables:
                    complain("Note: the trace keeps no tables that say why. Make one that does: audit --explain.")
            elif table is not None:
                write(numbers(found, table), format)
            elif format is Format.json:
                write_json({"trace": str(trace), "tables": [_whole(found, name) for name in views(found)]})
            else:
                raise InputError("Name one table with --table to print it as csv; json takes all of them.")


def _whole(trace: "Trace", name: str) -> dict[str, object]:
    """A table that explains errors, and what a reader must know of it."""
    from precision_probe.analysis.views import numbers, view

    shown = view(trace, name)
    units = trace.table(name).units if name in trace.tables else {}
    rows = numbers(trace, name).to_dict("records")
    return {"name": name, "title": shown.title, "note": shown.note, "units": units, "rows": rows}


def compare(
    a: Annotated[Path, typer.Argument(metavar="TRACE_A", help="A trace that audit wrote.")],
    b: Annotated[Path, typer.Argument(metavar="TRACE_B", help="Another, of the same structures.")],
    format: FormatOption = Format.table,  # noqa: A002
    wide: WideOption = False,
    untrusted: UntrustedOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Compare two runs block by block: backends, versions, machines. Exits with 1 if rounding does not explain it."""
    with exit_codes(traceback):
        validate_first(untrusted, a, b)
        import precision_probe as pp
        from precision_probe.analysis.comparison import first_difference, provenance_differences

        with opened(a) as ours, opened(b) as theirs:
            table = pp.compare_traces(ours, theirs)
            differences = provenance_differences(ours, theirs)
        if format is Format.table:
            from precision_probe.cli.tables.comparison import comparison_table, provenance_table
            from precision_probe.cli.tables.style import WIDTH

            console = table_console(WIDTH, wide=wide)
            console.print(provenance_table(differences))
            console.print(comparison_table(table))
        else:
            write(table, format)
        if table.attrs["left_out"]:
            from precision_probe.cli.tables.comparison import listed_by_reason

            complain(f"Note: not comparable, and left out: {listed_by_reason(table.attrs['left_out'])}.")
        first = first_difference(table)
        if first is None:
            complain("Equivalent: every difference is within rounding.")
            return
        complain(
            f"Not equivalent: rounding does not explain {(~table['equivalent']).sum()} of {len(table)} arrays. As the "
            f"model runs, the first is {first['block']} {first['tensor']} ({first['direction']}, {first['mode']}, "
            f"{first['precision']}): rel_l2 {first['difference']:.1e}, allowed {first['allowed']:.1e}."
        )
        raise typer.Exit(EXCEEDED)


def report(
    trace: TraceArgument,
    other: Annotated[
        Path | None, typer.Argument(help="Another trace, of the same structures: what changed, beyond rounding.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write, an HTML file.")] = Path(
        "report.html"
    ),
    tolerance: Annotated[
        str | None, typer.Option(help="Largest errors allowed, as audit takes them. Default: the policy's, or a guide.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="What recommend wrote: errors against time, with what it recommends.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a page that is there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but what went wrong.")] = False,
    untrusted: UntrustedOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Write a page to look at, one file that opens without a network: the verdict, where errors grow, and why."""
    with exit_codes(traceback), contextlib.ExitStack() as traces:
        validate_first(untrusted, trace, *([] if other is None else [other]))
        import precision_probe as pp
        from precision_probe.analysis.errors import parse_tolerances

        limits = None if tolerance is None else parse_tolerances(tolerance)
        recommended = None if policy is None else pp.Policy.load(policy)
        pp.write_report(
            traces.enter_context(opened(trace)),
            output,
            tolerance=limits,
            policy=recommended,
            other=None if other is None else traces.enter_context(opened(other)),
            file=str(trace),
            force=force,
            progress=not quiet,
        )
        say(quiet, f"Page written to {output}")
