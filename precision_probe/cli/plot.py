"""The verb that draws figures: plot."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from precision_probe.cli.common import TracebackOption, exit_codes, say
from precision_probe.cli.traces import opened
from precision_probe.cli.validate import UntrustedOption, validate_first
from precision_probe.exceptions import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Kind", "plot"]


class Kind(StrEnum):
    """What a figure shows."""

    growth = "growth"
    gradients = "gradients"
    blocks = "blocks"
    irreps = "irreps"
    elements = "elements"
    forces = "forces"
    distribution = "distribution"
    contributions = "contributions"
    budget = "budget"
    bits = "bits"
    sweep = "sweep"
    displacement = "displacement"
    equivariance = "equivariance"
    digits = "digits"
    times = "times"
    policy = "policy"


def plot(
    trace: Annotated[Path, typer.Argument(help="A trace that audit wrote; for policy, the file that recommend wrote.")],
    kind: Annotated[Kind, typer.Argument(help="Which figure, of those above.")] = Kind.growth,
    output: Annotated[Path, typer.Option("--output", "-o", help="The figure, .png, .svg or .pdf.")] = Path(
        "errors.pdf"
    ),
    precisions: Annotated[str | None, typer.Option("--precisions", "-p", help="Which. Default: all.")] = None,
    block: Annotated[
        str | None,
        typer.Option(help="A glob over names of blocks, or of rows: of distribution, their outputs. Default: all."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a figure that is there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but what went wrong.")] = False,
    untrusted: UntrustedOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Draw a figure of a trace, or of a policy. Needs matplotlib.

    Errors, of any trace:

    - growth: errors of outputs from block to block
    - gradients: the same of gradients, from the last block to the first
    - blocks: a heat map of blocks and precisions
    - irreps: from block to block, of each order l and parity
    - elements: from block to block, of each chemical element
    - forces: which part of the atoms has which error
    - distribution: how large errors of forces' components are; with --block, of outputs (audit --keep tensors)
    - times: errors of forces against time, where they were timed (audit --time)

    What explains them, of a trace of audit --explain:

    - contributions: what part of the model makes how much (any audit)
    - budget: how much each source of rounding makes alone
    - bits: how many bits each block needs (also of sweep -o)
    - sweep: the largest error against bits (also of sweep -o)
    - displacement: energies along a line, of which rounding makes stairs
    - equivariance: by how much each symmetry is broken
    - digits: on how many digits runs agree

    Of a policy:

    - policy: errors against time of all that recommend measured
    """
    with exit_codes(traceback):
        from precision_probe.report.figures.files import check_figure, save_figure

        check_figure(output, force=force)
        if kind is Kind.policy:
            save_figure(_of_policy(trace, is_chosen=bool(precisions or block)), output, force=force)
        else:
            validate_first(untrusted, trace)
            from precision_probe.report.figures.kinds import FIGURES

            with opened(trace) as found:
                save_figure(FIGURES[kind.value](found, precisions=precisions, blocks=block), output, force=force)
        say(quiet, f"Figure written to {output}")


def _of_policy(path: Path, *, is_chosen: bool) -> "Axes":
    """What a policy's file says of candidates, among which nothing is chosen."""
    if is_chosen:
        raise InputError("A figure of a policy is of whole models: leave --precisions and --block out.")
    from precision_probe.policy import Policy
    from precision_probe.report.figures.cost import plot_policy

    return plot_policy(Policy.load(path))
