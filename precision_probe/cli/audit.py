"""The verb that runs a model on structures in each precision: audit."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from precision_probe.cli.common import (
    EXCEEDED,
    BlocksOption,
    DeviceOption,
    EnergyKeyOption,
    ForcesKeyOption,
    HeadOption,
    ModelArgument,
    StressKeyOption,
    StructureFormatOption,
    StructuresArgument,
    TracebackOption,
    complain,
    exit_codes,
    say,
    termination_interrupts,
    wide_console,
)
from precision_probe.exceptions import InputError, ProbeError

if TYPE_CHECKING:
    import ase

    import precision_probe as pp

__all__ = ["audit"]


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
    energy_key: EnergyKeyOption = None,
    forces_key: ForcesKeyOption = None,
    stress_key: StressKeyOption = None,
    format: StructureFormatOption = None,  # noqa: A002
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
        from precision_probe.analysis.errors import parse_tolerances
        from precision_probe.files import check_writable

        if dynamics and not explain:
            raise InputError(f"--dynamics {dynamics} needs --explain, which the drift is a part of.")
        limits = parse_tolerances(tolerance) if tolerance else None
        if output is not None:
            check_writable(output, force=force)
        import precision_probe as pp
        from precision_probe.labels import LabelKeys
        from precision_probe.structures import read_structures

        keys = LabelKeys(energy_key, forces_key, stress_key)
        atoms = read_structures(structures, keys=keys, format=format)  # once, for the audit and what explains it
        output = output or _free_name(model, structures)
        with pp.attach(
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
            outcome = _run(probe, atoms, quiet=quiet, steps=dynamics if explain else None)
        over = _finish(probe, output, limits, quiet=quiet)
        if outcome is not None:
            raise outcome
        if over:
            raise typer.Exit(EXCEEDED)


def _run(probe: "pp.Probe", structures: "list[ase.Atoms]", *, quiet: bool, steps: int | None) -> ProbeError | None:
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
            elif probe.predicts_energies:
                probe.explain(structures, only=("contributions",), progress=not quiet)
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


def _finish(probe: "pp.Probe", output: Path, limits: dict[str, float] | None, *, quiet: bool) -> bool:
    """Write the trace, print the tables, and judge the tolerance: whether it is exceeded."""
    import precision_probe as pp
    from precision_probe.analysis.causes import main_causes
    from precision_probe.analysis.errors import exceeded
    from precision_probe.cli.style import WIDTH
    from precision_probe.cli.tables import GUIDE, block_table, model_table, view_tables

    trace = probe.trace()
    summary = pp.summary(trace)
    judged = {name: limit for name, limit in (limits or GUIDE).items() if name in summary}
    over = exceeded(summary, judged)
    if not quiet:
        table = pp.errors(trace)
        console = wide_console(WIDTH)
        causes = main_causes(trace) if "contributions" in trace.tables else None
        console.print(model_table(summary, table, over, judged, is_guide=limits is None, causes=causes))
        console.print(block_table(table))
        if trace.tables:
            for each in view_tables(trace):
                console.print(each)
        for note in probe.notes:
            console.print(f"Note: {note}", markup=False)
    say(quiet, f"Trace written to {output}")
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


def _free_name(model: str, structures: str) -> Path:
    """The first of MODEL-STRUCTURES-1.h5, -2.h5, … that is not taken, nor by a run under way."""
    from precision_probe.files import unfinished

    stem = f"{Path(model).stem.replace(':', '-')}-{Path(structures.split('@')[0]).stem}"
    names = (Path(f"{stem}-{number}.h5") for number in itertools.count(1))
    return next(name for name in names if not name.exists() and not unfinished(name).exists())
