"""How errors are distributed: of forces over atoms, of the numbers of forces or of a block's outputs."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from precision_probe.analysis.frames import per_atom
from precision_probe.analysis.pairs import arrays, paired
from precision_probe.exceptions import InputError
from precision_probe.precisions import PrecisionSource
from precision_probe.report.figures import canvas
from precision_probe.report.figures.canvas import Blocks
from precision_probe.report.findings import MILLI
from precision_probe.trace.schema import REFERENCE
from precision_probe.trace.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_distribution", "plot_forces"]

_PER_DECADE = 4  # bins: a choice, so that some hundred numbers make a line


def plot_forces(
    trace: Trace,
    *,
    precisions: PrecisionSource | None = None,
    blocks: Blocks | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Which part of the atoms has an error of the force above a size.

    Args:
        trace: Of a model that predicts forces.
        precisions: Which; by default all that it has.
        blocks: Not used: forces are of the whole model. Here so that all figures are called alike.
        ax: Where to draw.

    Raises:
        InputError: If matplotlib is not installed, or the trace has no forces or no such precision.
    """
    del blocks
    found, names = per_atom(trace)["error"], canvas.chosen(trace, precisions)
    ax, n_out = ax or canvas.new_axes(), 0
    looks = canvas.looks(trace, names, canvas.stroke)
    for name, look in looks.items():
        errors = MILLI * found.xs(name, level="precision").to_numpy(dtype=float)
        n_out += canvas.n_without_place(errors)
        placed = np.sort(errors[(errors > 0) & np.isfinite(errors)])
        above = 1 - np.arange(len(placed)) / len(errors)
        ax.step(placed, above, where="post", label=name, **look)
    ax.set_xscale("log")
    ax.set_xlabel("error of the force on an atom / meV/Å")
    ax.set_ylabel("part of the atoms with at least this error")
    canvas.title(ax, "forces", n_out)
    canvas.legend(ax, looks)
    return ax


def plot_distribution(
    trace: Trace,
    *,
    precisions: PrecisionSource | None = None,
    blocks: Blocks | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """How large the errors of single numbers are: of the forces' components, or of the outputs of blocks.

    Args:
        trace: Of a model that predicts forces; for blocks, one that keeps tensors.
        precisions: Which; by default all that it has.
        blocks: Globs over names of blocks, whose outputs are shown instead of the forces, each error divided by the
            root mean square of float64's numbers.
        ax: Where to draw.

    Raises:
        InputError: If matplotlib is not installed, or the trace has no such precision or block, no forces, or no
            outputs of blocks.
    """
    names = canvas.chosen(trace, precisions)
    if blocks is None:
        shown, measured = ["forces"], "|Δ| of a component of a force / meV/Å"
        components = MILLI * per_atom(trace)[["error_x", "error_y", "error_z"]].abs()
    else:
        shown, measured = canvas.chosen_blocks(trace.blocks, blocks), "|Δ| of an output's number / RMS of float64's"
    ax, n_out = ax or canvas.new_axes(), 0
    of_precisions = {name: {"color": look["color"]} for name, look in canvas.looks(trace, names, canvas.style).items()}
    of_shown = {what: {"linestyle": canvas.dashes(at)["linestyle"]} for at, what in enumerate(shown)}
    for what in shown:
        for name in names:
            errors = [components.loc[name].to_numpy(dtype=float)] if blocks is None else _of_block(trace, what, name)
            parts, edges, n_others = _histogram(errors)
            ax.stairs(parts, edges, **of_precisions[name], **of_shown[what])
            n_out += n_others
    ax.set_xscale("log")
    ax.set_xlabel(measured)
    ax.set_ylabel(f"part of the numbers in each 1/{_PER_DECADE} of a decade")
    canvas.title(ax, ", ".join(map(canvas.label, shown)), n_out)
    of_blocks = {what: {"color": "0.3", **look} for what, look in of_shown.items()}
    canvas.legend(ax, of_precisions | (of_blocks if len(shown) > 1 else {}))
    return ax


def _histogram(chunks: Iterable[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """The part of all numbers in each bin, the edges of bins, and how many numbers are in none."""
    counts: Counter[int] = Counter()
    n_all = 0
    for errors in chunks:
        placed = errors[(errors > 0) & np.isfinite(errors)]
        bins, n_in = np.unique(np.floor(_PER_DECADE * np.log10(placed)).astype(int), return_counts=True)
        counts.update(dict(zip(bins.tolist(), n_in.tolist(), strict=True)))
        n_all += errors.size
    bins = np.arange(min(counts, default=0), max(counts, default=0) + 1)
    parts = np.array([counts[each] for each in bins.tolist()]) / n_all
    return parts, 10.0 ** (np.append(bins, bins[-1] + 1) / _PER_DECADE), n_all - counts.total()


def _of_block(trace: Trace, block: str, name: str) -> Iterator[NDArray[np.float64]]:
    """In one precision |Δ| of the numbers of a block's outputs, by the root mean square of the reference's."""
    mode = canvas.mode_of(trace)
    outputs = [
        array
        for array in arrays(trace, trace.group(mode, REFERENCE), mode)
        if array.block == block and array.direction == "forward"
    ]
    if not outputs:
        raise InputError(
            f"The trace keeps no outputs of {block}, so its errors cannot be shown number by number. Audit with "
            "--keep tensors."
        )
    for array in outputs:
        variant = array.in_group(trace.group(mode, name))
        squares = sum(float(np.square(pair.y).sum()) for (pair,) in paired(array, [array]))
        scale = math.sqrt(squares / max(1, math.prod(array.shape))) or 1.0
        for (pair,) in paired(array, [variant]):
            yield np.abs(pair.y_hat - pair.y) / scale
