"""The verb that runs a model on structures in each precision: audit."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from precision_probe.cli.auditing.finish import Shown, finish
from precision_probe.cli.auditing.on_workers import audit_on_workers
from precision_probe.cli.auditing.outputs import claimed, kept
from precision_probe.cli.auditing.verdict import judge
from precision_probe.cli.common import (
    BlocksOption,
    DeviceOption,
    EnergyKeyOption,
    ForcesKeyOption,
    HeadOption,
    ModelArgument,
    SchedulerOption,
    Shape,
    ShapeOption,
    StressKeyOption,
    StructureFormatOption,
    StructuresArgument,
    TracebackOption,
    WideOption,
    exit_codes,
    say,
)
from precision_probe.cli.configuration import configured
from precision_probe.cli.trust import SafeOption, admit
from precision_probe.exceptions import InputError, ProbeError
from precision_probe.files import check_writable, unfinished
from precision_probe.interruption import INTERRUPTIONS

if TYPE_CHECKING:
    import ase

    import precision_probe as pp

__all__ = ["audit"]


def audit(
    context: typer.Context,
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
    keep: Annotated[
        str | None,
        typer.Option(
            help="Of what blocks compute: tensors, errors (some numbers for each element and irrep), or none. Default: "
            "tensors, and errors where these would take more than 1 GiB."
        ),
    ] = None,
    time: Annotated[
        bool | None,
        typer.Option(
            "--time/--no-time",
            help="Time each precision, in evaluations of its own. Default: up to 5 structures of up to 1,000 atoms.",
        ),
    ] = None,
    batch_edges: Annotated[
        str | None,
        typer.Option(
            help="Run structures together, in graphs of up to so many edges; auto is 60,000 on a GPU. One by one by "
            "default, and with auto on a CPU."
        ),
    ] = None,
    offload: Annotated[
        bool,
        typer.Option(
            "--offload", help="With --keep errors: float64's tensors wait in the host's memory, not in the GPU's."
        ),
    ] = False,
    head: HeadOption = None,
    energy_key: EnergyKeyOption = None,
    forces_key: ForcesKeyOption = None,
    stress_key: StressKeyOption = None,
    structures_format: StructureFormatOption = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also find out why: budgets, symmetry, noise, … (minutes more).")
    ] = False,
    dynamics: Annotated[
        int, typer.Option(help="With --explain: steps of dynamics at constant energy, whose drift is compared.", min=0)
    ] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Share the structures between so many processes, each with a GPU of its own where there are several. "
            "The output is a folder. Of --keep, errors is the default then."
        ),
    ] = None,
    scheduler: SchedulerOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an output that exists.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from what an interrupted run of the same command left.")
    ] = False,
    format: ShapeOption = Shape.table,  # noqa: A002
    junit: Annotated[
        Path | None, typer.Option(help="A JUnit report to write too, one test for each precision and tolerance.")
    ] = None,
    wide: WideOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing of progress, and print no tables.")] = False,
    safe: SafeOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Run a model in each precision, record what every block computes, and print the errors."""
    with exit_codes(traceback):
        from precision_probe.analysis.errors import parse_tolerances
        from precision_probe.precisions import parse_precisions
        from precision_probe.probe.options import Options, parse_batch_edges, parse_keep, parse_modes
        from precision_probe.spelling import check_device_name

        if dynamics and not explain:
            raise InputError(f"--dynamics {dynamics} needs --explain, which the drift is a part of.")
        is_shared = workers is not None or scheduler is not None
        limits = parse_tolerances(tolerance) if tolerance else None
        keeping = parse_keep(keep)  # words are looked at at once, before torch is waited for
        parse_modes(modes)
        joining = parse_batch_edges(batch_edges)
        if precisions is not None:
            parse_precisions(precisions)
        if device is not None:
            check_device_name(device)
        if output is not None:
            # at once; again when it is claimed
            check_writable(output, force=force or resume, as_folder=is_shared)
        if junit is not None:
            if limits is None:
                raise InputError("--junit reports tests, and needs a --tolerance to test, such as forces=1e-3.")
            check_writable(junit, force=force or resume)
        shown = Shown(format, junit, wide, quiet)
        configuration = configured(context, quiet=quiet)
        admit(model, safe=safe, quiet=quiet)
        import precision_probe as pp
        from precision_probe.labels import LabelKeys
        from precision_probe.structures import read_structures

        keys = LabelKeys(energy_key, forces_key, stress_key)
        atoms = read_structures(
            structures, keys=keys, format=structures_format
        )  # once, for the audit and what explains it
        attach = pp.attach  # imported here, while an interruption ends the process at once
        options = Options(
            precisions=precisions,
            blocks=blocks,
            modes=modes,
            keep=keeping,
            time=time,
            batch_edges=joining,
            offload=offload,
            head=head,
            device=device,
            configuration=configuration,
        )
        with claimed(output, model, structures, force=force, resume=resume, quiet=quiet, as_folder=is_shared) as claim:
            if is_shared:
                steps = dynamics if explain else None
                done = audit_on_workers(
                    model, atoms, claim, options, n_workers=workers, scheduler=scheduler, steps=steps, quiet=quiet
                )
                with pp.open_trace(done.path) as trace:
                    verdict = judge(trace, limits, _lacking(trace, done.path))
                    finish(trace, verdict, done.notes, done.path, shown)
                return
            with attach(model, **options, output=claim, force=force, resume=resume) as probe:
                say(quiet, f"Auditing {probe.name} on {structures}, {probe.device}, in {probe.precision_names}")
                if probe.n_resumed:
                    say(quiet, f"{probe.n_resumed} structure(s) are done already, in {unfinished(claim.path)}.")
                outcome = _run(probe, atoms, quiet=quiet, steps=dynamics if explain else None)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)  # what it warns of is said below
                    probe.detach()
            INTERRUPTIONS.keep(f"The trace is in {probe.written_to}." if probe.written_to else "Nothing was written.")
        trace = probe.trace()
        is_whole = outcome is None and probe.written_to == claim.path
        failure = _lacking(trace, claim.path) if is_whole else _failure(outcome, probe, claim.path)
        finish(trace, judge(trace, limits, failure), probe.notes, probe.written_to, shown)


def _run(probe: "pp.Probe", structures: "list[ase.Atoms]", *, quiet: bool, steps: int | None) -> BaseException | None:
    """Run the structures, and explain their errors if there is a number of steps of dynamics, even none.

    What ends that is returned, if there are structures whose results can be kept.
    """
    is_audited = False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "precision_probe: .* did not fit", RuntimeWarning)  # an error says it
            probe.run(structures, progress=not quiet)
        is_audited = True
        if steps is not None:
            probe.explain(structures, steps=steps, progress=not quiet)
        elif probe.predicts_energies and not probe.failures:
            probe.explain(structures, only=("contributions",), progress=not quiet)
    except (KeyboardInterrupt, Exception) as error:
        if not probe.n_structures or (isinstance(error, InputError) and not is_audited):
            raise
        INTERRUPTIONS.told()
        return error
    return None


def _lacking(trace: "pp.Trace", path: Path) -> ProbeError | None:
    """That there are results that the trace lacks, if so."""
    failures = trace.attributes["failures"]
    if not failures:
        return None
    others = f" So did {len(failures) - 1} other(s)." if len(failures) > 1 else ""
    return ProbeError(f"{failures[0]}.{others} The trace is in {path}, and says that it is not complete.")


def _failure(outcome: BaseException | None, probe: "pp.Probe", output: Path) -> ProbeError:
    """What ended an audit before it was complete, and what there is of it."""
    n, problem = probe.n_structures, probe.output_problem
    if outcome is None:
        what = []
    elif isinstance(outcome, ProbeError):
        what = [str(outcome)]
    elif isinstance(outcome, KeyboardInterrupt):
        what = [f"Interrupted after {n} structure(s)."]
    else:
        what = [f"The run failed after {n} structure(s) ({type(outcome).__name__}: {outcome})."]
    if probe.written_to == output:
        what.append(f"The audit itself is complete, and in {output}.")
    else:
        # what is in memory ends with the process, whose user has no probe
        known, in_memory, _ = problem.partition(" in memory:")
        what += [] if problem.startswith("The run did not") else [f"{known} nowhere." if in_memory else known]
        what.append(kept(output))
    failure = (InputError if isinstance(outcome, InputError) else ProbeError)(" ".join(what))
    failure.__cause__ = outcome
    return failure
