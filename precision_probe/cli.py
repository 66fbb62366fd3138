"""The command line: one verb for each task. Nothing heavy is imported before a verb needs it."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from precision_probe.cli_common import (
    EXCEEDED,
    BlocksOption,
    By,
    DeviceOption,
    Format,
    HeadOption,
    ModelArgument,
    StructuresArgument,
    TraceArgument,
    TracebackOption,
    complain,
    exit_codes,
    say,
    termination_interrupts,
    wide_console,
    write,
)
from precision_probe.cli_search import apply, recommend, sweep
from precision_probe.exceptions import InputError, ProbeError

if TYPE_CHECKING:
    from precision_probe.probe import Probe
    from precision_probe.trace import Trace

__all__ = ["app", "main"]

app = typer.Typer(
    name="precision-probe",
    help="Which precision a MACE interatomic potential can be trusted in, and where the digits go.",
    epilog="Exit codes: 0 fine, 1 a tolerance was exceeded, 2 bad input or usage, 3 the run failed or was interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def audit(
    model: ModelArgument = "demo",
    structures: StructuresArgument = "demo",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The trace to write. Default: MODEL-STRUCTURES-N.h5, N counting up."),
    ] = None,
    precisions: Annotated[
        str | None,
        typer.Option(
            "--precisions",
            "-p",
            help="Comma-separated: float32, tf32, bfloat16, float16. Default: all; tf32 on CUDA only.",
        ),
    ] = None,
    device: DeviceOption = None,
    tolerance: Annotated[
        str | None,
        typer.Option(
            help="Largest errors allowed, such as forces=1e-3,energy=1e-4,stress=1e-5 (eV/Å, eV/atom, eV/Å³); also of "
            "dipole and polarizability, in the model's own unit."
        ),
    ] = None,
    blocks: BlocksOption = None,
    modes: Annotated[str, typer.Option(help="propagated, isolated, or both.")] = "propagated,isolated",
    head: HeadOption = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also find out why: budgets, symmetry, noise, … (minutes more).")
    ] = False,
    dynamics: Annotated[
        int, typer.Option(help="With --explain: steps of dynamics at constant energy, whose drift is compared.", min=0)
    ] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an output that exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no tables.")] = False,
    traceback: TracebackOption = False,
) -> None:
    """Run a model in each precision, record what every block computes, and print the errors."""
    with exit_codes(traceback):
        from precision_probe.analysis import parse_tolerances
        from precision_probe.trace import check_writable

        if dynamics and not explain:
            raise InputError(f"--dynamics {dynamics} needs --explain, which the drift is a part of.")
        limits = parse_tolerances(tolerance) if tolerance else None
        if output is not None:
            check_writable(output, force=force)
        from precision_probe.probe import attach

        output = output or _free_name(model, structures)
        with attach(
            model,
            precisions=precisions,
            blocks=blocks,
            modes=modes,
            head=head,
            device=device,
            output=output,
            force=force,
        ) as probe:
            say(quiet, f"Auditing {probe.name} on {structures}, {probe.device}, in {probe.precision_names}")
            outcome = _run(probe, structures, quiet=quiet, steps=dynamics if explain else None)
        over = _finish(probe, output, limits, quiet=quiet)
        if outcome is not None:
            raise outcome
        if over:
            raise typer.Exit(EXCEEDED)


@app.command()
def inspect(
    model: ModelArgument = "demo", structures: StructuresArgument = "demo", traceback: TracebackOption = False
) -> None:
    """Show what a model and structures are, and run the first interaction block as a smoke test."""
    with exit_codes(traceback):
        from precision_probe.describe import print_inspection
        from precision_probe.tables import WIDTH

        print_inspection(model, structures, wide_console(WIDTH))


@app.command()
def errors(
    trace: TraceArgument,
    format: Annotated[Format, typer.Option(help="How to print them.")] = Format.table,  # noqa: A002
    eps: Annotated[float, typer.Option(help="The ε of mean_rel, |Δ| / (|y| + ε).", min=0)] = 1e-12,
    by: Annotated[By | None, typer.Option(help="Resolve every array by irrep or by chemical element.")] = None,
    traceback: TracebackOption = False,
) -> None:
    """Print every error in a trace: each block, tensor, precision and mode, with all metrics."""
    with exit_codes(traceback):
        import precision_probe as pp

        with pp.open_trace(trace) as opened:
            table = pp.errors(opened, eps=eps, by=None if by is None else by.value)
        if format is Format.table:
            from precision_probe.tables import FULL_WIDTH, errors_table

            wide_console(FULL_WIDTH).print(errors_table(table))
        else:
            write(table, format)


@app.command()
def explain(
    trace: TraceArgument,
    table: Annotated[str | None, typer.Option(help="One table alone, such as physics or budget. Default: all.")] = None,
    format: Annotated[Format, typer.Option(help="How to print one table.")] = Format.table,  # noqa: A002
    traceback: TracebackOption = False,
) -> None:
    """Print why the digits go, from a trace that audit --explain wrote: in your units, budgets, symmetry, bits."""
    with exit_codes(traceback):
        import precision_probe as pp

        with pp.open_trace(trace) as opened:
            if format is Format.table:
                _print_views(opened, table)
                if table is None and not opened.tables:
                    complain("Note: the trace keeps no tables that say why. Make one that does: audit --explain.")
            elif table is None:
                raise InputError(f"Name one table with --table to print it as {format.value}.")
            else:
                from precision_probe.explanations import numbers

                write(numbers(opened, table), format)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="TRACE_A", help="A trace that audit wrote.")],
    b: Annotated[Path, typer.Argument(metavar="TRACE_B", help="Another, of the same structures.")],
    format: Annotated[Format, typer.Option(help="How to print the differences.")] = Format.table,  # noqa: A002
    traceback: TracebackOption = False,
) -> None:
    """Compare two runs block by block: backends, versions, machines. Exits with 1 if rounding does not explain it."""
    with exit_codes(traceback):
        import precision_probe as pp
        from precision_probe.comparison import first_difference, provenance_differences

        with pp.open_trace(a) as ours, pp.open_trace(b) as theirs:
            table = pp.compare_traces(ours, theirs)
            differences = provenance_differences(ours, theirs)
        if format is Format.table:
            from precision_probe.tables import WIDTH, comparison_table, provenance_table

            console = wide_console(WIDTH)
            console.print(provenance_table(differences))
            console.print(comparison_table(table))
        else:
            write(table, format)
        if table.attrs["left_out"]:
            complain(f"Note: not comparable, and left out: {', '.join(table.attrs['left_out'])}.")
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


for verb in (sweep, recommend, apply):
    app.command()(verb)


def main() -> None:
    """Run the command line; the exit code says how it went."""
    app()


def _run(probe: "Probe", structures: str, *, quiet: bool, steps: int | None) -> ProbeError | None:
    """Run the structures, and explain their errors if there is a number of steps of dynamics, even none.

    An interruption or a failure is returned, so that what is done can be kept first.
    """
    is_audited = False
    try:
        with termination_interrupts():
            probe.run(structures, progress=not quiet)
            is_audited = True
            if steps is not None:
                probe.explain(structures, steps=steps, progress=not quiet)
    except InputError as error:
        if not is_audited:
            raise
        return InputError(f"{error} The audit itself is complete, and in the trace.")
    except KeyboardInterrupt:
        if not probe.n_structures:
            raise
        return ProbeError(f"Interrupted after {probe.n_structures} structure(s); those that finished are in the trace.")
    except Exception as error:
        if not probe.n_structures:
            raise
        failure = ProbeError(
            f"The run failed after {probe.n_structures} structure(s) ({type(error).__name__}: {error}). "
            "Those that finished are in the trace."
        )
        failure.__cause__ = error
        return failure
    return None


def _finish(probe: "Probe", output: Path, limits: dict[str, float] | None, *, quiet: bool) -> bool:
    """Write the trace, print the tables, and judge the tolerance: whether it is exceeded."""
    import precision_probe as pp
    from precision_probe.analysis import exceeded
    from precision_probe.tables import WIDTH, block_table, model_table

    trace = probe.trace()
    summary = pp.summary(trace)
    if not quiet:
        table = pp.errors(trace)
        console = wide_console(WIDTH)
        console.print(model_table(summary, table, limits))
        console.print(block_table(table))
        if trace.tables:
            _print_views(trace, None)
        for note in probe.notes:
            console.print(f"Note: {note}", markup=False)
    say(quiet, f"Trace written to {output}")
    for name in set(limits or {}) - set(summary):
        why = "no structure is periodic in all directions" if name == "stress" else "the model does not predict it"
        complain(f"Note: the tolerance of {name} was not judged: {why}.")
    over = exceeded(summary, limits or {})
    for row in over.to_dict("records"):
        complain(
            f"{row['precision']}: {row['quantity']} error {row['error']:.2e} exceeds the tolerance "
            f"{row['tolerance']:.2e} {row['unit']} ({row['error'] / row['tolerance']:.1f} times)."
        )
    return len(over) > 0


def _print_views(trace: "Trace", name: str | None) -> None:
    from precision_probe.explanations import view, views
    from precision_probe.tables import WIDTH, view_table

    console = wide_console(WIDTH)
    for each in views(trace) if name is None else (name,):
        console.print(view_table(view(trace, each)))


def _free_name(model: str, structures: str) -> Path:
    """The first of MODEL-STRUCTURES-1.h5, -2.h5, … that is not taken, nor by a run under way."""
    from precision_probe.trace import unfinished

    stem = f"{Path(model).stem.replace(':', '-')}-{Path(structures.split('@')[0]).stem}"
    names = (Path(f"{stem}-{number}.h5") for number in itertools.count(1))
    return next(name for name in names if not name.exists() and not unfinished(name).exists())
