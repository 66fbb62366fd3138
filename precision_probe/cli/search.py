"""Verbs that run a model many times: sweep, recommend, apply."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from precision_probe.cli.common import (
    BlocksOption,
    DeviceOption,
    Format,
    FormatOption,
    HeadOption,
    ModelArgument,
    SchedulerOption,
    StructuresArgument,
    TracebackOption,
    WideOption,
    exit_codes,
    say,
    table_console,
    write,
)
from precision_probe.cli.configuration import configured
from precision_probe.cli.trust import SafeOption, admit
from precision_probe.exceptions import InputError
from precision_probe.interruption import INTERRUPTIONS

if TYPE_CHECKING:
    from precision_probe.search.recommendation import Recommendation

__all__ = ["apply", "recommend", "sweep"]


class Objective(StrEnum):
    """What a search makes least."""

    time = "time"
    memory = "memory"


class Granularity(StrEnum):
    """What has a precision of its own."""

    block = "block"
    module = "module"


class Interface(StrEnum):
    """What a model in mixed precision takes and gives."""

    float64 = "float64"
    float32 = "float32"


class Run(StrEnum):
    """How a model is run, and so timed."""

    graph = "graph"
    eager = "eager"


class Backend(StrEnum):
    """Which library computes a model."""

    auto = "auto"
    e3nn = "e3nn"
    cuequivariance = "cuEquivariance"


_INTERFACE = "What the mixed model takes and gives; float32 rounds the positions before anything is computed."


def sweep(
    context: typer.Context,
    model: ModelArgument = "demo",
    structures: StructuresArgument = "demo",
    tolerance: Annotated[
        str, typer.Option(help="The error that bits are to keep, such as forces=1e-3 (eV/Å) or energy=1e-4 (eV/atom).")
    ] = "forces=1e-3",
    bits: Annotated[
        str, typer.Option(help="Stored bits of the significand to try: 23 are float32's, 10 float16's, 7 bfloat16's.")
    ] = "4,6,7,8,10,12,14,16,18,20,23",
    blocks: BlocksOption = None,
    head: HeadOption = None,
    device: DeviceOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A trace to keep the errors in, with the reference run.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="A figure to draw, .png, .svg or .pdf. Needs matplotlib.")] = None,
    safe: SafeOption = False,
    force: Annotated[bool, typer.Option("--force", help="Replace outputs that exist.")] = False,
    format: FormatOption = Format.table,  # noqa: A002
    wide: WideOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing of progress.")] = False,
    traceback: TracebackOption = False,
) -> None:
    """How many bits each block needs: round to fewer and fewer, in the whole model and in one block at a time."""
    with exit_codes(traceback):
        from precision_probe.analysis.errors import parse_tolerances

        limits = parse_tolerances(tolerance)
        if len(limits) != 1 or not set(limits) <= {"energy", "forces"}:
            raise InputError(f"A sweep has one tolerance, of energy or of forces; got {tolerance!r}.")
        numbers = _whole_numbers(bits)
        log = None if output is None else _log_of(output, force=force)
        if plot is not None:
            from precision_probe.report.figures.files import check_figure

            check_figure(plot, force=force)
        configuration = configured(context, quiet=quiet)
        admit(model, safe=safe, quiet=quiet)
        import precision_probe as pp
        from precision_probe.probe.options import Options
        from precision_probe.trace.claim import claim_output
        from precision_probe.trace.tables import StoredTable

        find, attach = pp.sweep, pp.attach  # imported here, while an interruption ends the process at once
        ((quantity, limit),) = limits.items()
        with (
            INTERRUPTIONS.working(lambda: _kept(log, "; give an --output to keep errors as they are measured")),
            nullcontext() if output is None else claim_output(output, force=force, resume=True),
        ):
            table = find(
                model,
                structures,
                bits=numbers,
                blocks=blocks,
                head=head,
                device=device,
                log=log,
                force=force,
                progress=not quiet,
            )
            if output is not None and log is not None:
                options = Options(
                    precisions="float64", blocks=blocks, head=head, device=device, configuration=configuration
                )
                with attach(model, **options) as probe:
                    probe.run(structures, progress=not quiet)
                probe.add_tables({"sweep": StoredTable(table, table.attrs["title"], table.attrs["units"])})
                probe.trace().save(output, force=True)
                INTERRUPTIONS.keep(f"The trace is complete: {output}.")
                log.unlink(missing_ok=True)
            if plot is not None:
                from precision_probe.report.figures.bits import plot_sweep
                from precision_probe.report.figures.files import save_figure

                save_figure(plot_sweep(table, quantity=quantity, tolerance=limit), plot, force=True)
        if format is not Format.table:
            write(table, format)
            return
        from precision_probe.cli.tables.search import sweep_table
        from precision_probe.cli.tables.style import FULL_WIDTH

        table_console(FULL_WIDTH, wide=wide).print(sweep_table(table, quantity, limit))


def recommend(
    context: typer.Context,
    model: ModelArgument = "demo",
    structures: StructuresArgument = "demo",
    tolerance: Annotated[
        str,
        typer.Option(
            help="Largest errors allowed, one or more: forces=1e-3,energy=1e-4,stress=1e-5 (eV/Å, eV/atom, eV/Å³)."
        ),
    ] = "forces=1e-3",
    output: Annotated[Path, typer.Option("--output", "-o", help="The policy to write, JSON.")] = Path("policy.json"),
    allow: Annotated[
        str | None,
        typer.Option(help="Precisions to choose from beside float64. Default: float32,bfloat16,float16; tf32 on CUDA."),
    ] = None,
    objective: Annotated[Objective, typer.Option(help="What is to be least.")] = Objective.time,
    granularity: Annotated[
        Granularity, typer.Option(help="Whether parts of a block may have a precision of their own.")
    ] = Granularity.block,
    head: HeadOption = None,
    device: DeviceOption = None,
    interface: Annotated[Interface, typer.Option(help=_INTERFACE)] = Interface.float64,
    run: Annotated[
        Run | None,
        typer.Option(
            help="How the model will be run, and is timed: as one CUDA graph (the default on a GPU), or eager."
        ),
    ] = None,
    backend: Annotated[
        Backend,
        typer.Option(
            help="Which library computes what is launched as a graph: auto takes the faster one where cuEquivariance's "
            "kernels are installed.",
            case_sensitive=False,
        ),
    ] = Backend.auto,
    seed: Annotated[int, typer.Option(help="Of the choice of structures that are held out.")] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Have so many processes measure errors, each on a GPU of its own where there are several; times are "
            "measured by one process, while the others wait."
        ),
    ] = None,
    scheduler: SchedulerOption = None,
    safe: SafeOption = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an output that exists.")] = False,
    wide: WideOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing of progress, and print no tables.")] = False,
    traceback: TracebackOption = False,
) -> None:
    """Find the fastest precision for each block within a tolerance, and test its file on structures held out."""
    with exit_codes(traceback):
        from precision_probe.analysis.errors import parse_tolerances

        limits = parse_tolerances(tolerance)
        log = _log_of(output, force=force)
        configuration = configured(context, quiet=quiet)
        admit(model, safe=safe, quiet=quiet)
        import precision_probe as pp
        from precision_probe.trace.claim import claim_output

        find = pp.recommend  # imported here, while an interruption ends the process at once
        with (
            INTERRUPTIONS.working(lambda: _kept(log)),
            claim_output(output, force=force, resume=True),
            nullcontext(find) if workers is None and scheduler is None else _on_workers(workers, scheduler) as find,
        ):
            recommendation = find(
                model,
                structures,
                limits,
                allow=allow,
                objective=objective.value,
                granularity=granularity.value,
                head=head,
                device=device,
                interface=interface.value,
                run=None if run is None else run.value,
                backend=backend.value,
                seed=seed,
                log=log,
                force=force,
                progress=not quiet,
            )
            policy = recommendation.policy
            if configuration is not None:
                policy = replace(policy, evidence={**policy.evidence, "configuration": configuration})
            policy.save(output, force=True)
            INTERRUPTIONS.keep(f"The policy is complete: {output}.")
            log.unlink(missing_ok=True)
        if not quiet:
            from precision_probe.cli.tables.search import recommendation_table
            from precision_probe.cli.tables.style import FULL_WIDTH

            table = recommendation_table(recommendation.policy, recommendation.candidates, recommendation.notes)
            table_console(FULL_WIDTH, wide=wide).print(table)
        how = ""
        if recommendation.policy.evidence["run"] == "graph":
            how = f". As it was timed: Policy.load({str(output)!r}).calculator({model!r}, device={device or 'cuda'!r})"
        say(quiet, f"Policy written to {output}{how}")


def apply(
    model: Annotated[str, typer.Argument(help="The checkpoint that the policy was made for, or 'demo'.")],
    policy: Annotated[Path, typer.Argument(help="A policy that recommend wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The checkpoint to write; MACECalculator loads it.")],
    device: DeviceOption = None,
    interface: Annotated[Interface, typer.Option(help=_INTERFACE)] = Interface.float64,
    safe: SafeOption = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an output that exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing.")] = False,
    traceback: TracebackOption = False,
) -> None:
    """Write a checkpoint of a model that computes as a policy says."""
    with exit_codes(traceback):
        admit(model, safe=safe, quiet=quiet)
        import precision_probe as pp
        from precision_probe.files import check_writable, replacing

        rules = pp.Policy.load(policy)
        check_writable(output, force=force)
        import torch

        from precision_probe.models.loading import load_model

        mixed = rules.apply(load_model(model)[0], device, interface=interface.value)
        with INTERRUPTIONS.working(lambda: "Nothing was written."), replacing(output) as unfinished:
            torch.save(mixed, unfinished)
        say(quiet, f"{output}: {len(rules.rules)} rule(s). Load it with MACECalculator(model_paths={str(output)!r}).")


@contextmanager
def _on_workers(n_workers: int | None, scheduler: str | None) -> "Iterator[Callable[..., Recommendation]]":
    """What searches with the help of workers, which are started here or are there already."""
    from precision_probe.parallel.cluster import connected
    from precision_probe.parallel.recommend import recommend

    with connected(n_workers, scheduler) as client:
        yield partial(recommend, client=client)


def _log_of(output: Path, *, force: bool) -> Path:
    """Where a search keeps what it measures until its output is written; an interrupted search goes on from there.

    Raises:
        InputError: If the output cannot be written, or exists and is not to be replaced.
    """
    from precision_probe.files import check_writable, unfinished

    log = unfinished(output)
    if output.is_file() and not force:
        raise InputError(f"The output {output} exists. Choose another name, or replace it with --force.")
    check_writable(output, force=force or log.exists())
    return log


def _kept(log: Path | None, otherwise: str = "") -> str:
    """What an interrupted search leaves."""
    if log is None or not log.exists():
        return f"Nothing was written{otherwise}."
    return f"The errors measured so far are in {log}; the same command goes on from there."


def _whole_numbers(text: str) -> list[int]:
    """Read ``"7,10,23"``."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InputError(f"Bits are whole numbers separated by commas, such as 7,10,23; got {text!r}.") from error
