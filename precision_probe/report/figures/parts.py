"""Errors of parts of the blocks' outputs: of each irrep, and of each chemical element."""

from typing import TYPE_CHECKING

import numpy as np

from precision_probe.analysis.frames import per_part
from precision_probe.analysis.pairs import By
from precision_probe.exceptions import InputError
from precision_probe.precisions import PrecisionSource
from precision_probe.report.figures import canvas
from precision_probe.report.figures.canvas import Blocks
from precision_probe.trace.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_elements", "plot_irreps"]

_MEANS = {"irrep": "order l and parity", "element": "chemical element"}


def plot_irreps(
    trace: Trace,
    *,
    precisions: PrecisionSource | None = None,
    blocks: Blocks | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """The largest relative error of each irrep (order l and parity) of the blocks' outputs, from block to block.

    Args:
        trace: A trace, whatever it keeps.
        precisions: Which, each with a marker of its own; by default all that it has.
        blocks: Globs over names of blocks; by default all whose outputs have irreps.
        ax: Where to draw.

    Raises:
        InputError: If matplotlib is not installed, the trace has no such precision or block, or no irreps.
    """
    return _plot_parts(trace, "irrep", precisions, blocks, ax)


def plot_elements(
    trace: Trace,
    *,
    precisions: PrecisionSource | None = None,
    blocks: Blocks | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """The largest relative error of the blocks' outputs for atoms of each element, an edge being its end's.

    Args:
        trace: A trace, whatever it keeps.
        precisions: Which, each with a marker of its own; by default all that it has.
        blocks: Globs over names of blocks; by default all whose outputs are of atoms or edges.
        ax: Where to draw.

    Raises:
        InputError: If matplotlib is not installed, the trace has no such precision or block, or no atoms.
    """
    return _plot_parts(trace, "element", precisions, blocks, ax)


def _plot_parts(
    trace: Trace, by: By, precisions: PrecisionSource | None, blocks: Blocks | None, ax: "Axes | None"
) -> "Axes":
    """A colour for each part, a marker and dashes for each precision."""
    names = canvas.chosen(trace, precisions)
    table = per_part(trace, by, mode := canvas.mode_of(trace))
    if table.empty:
        raise InputError(f"No output of a block has parts by {_MEANS[by]}: the trace does not say of which {by} it is.")
    table = table.loc[canvas.chosen_blocks(table.index, blocks)]
    parts = list(table.columns.unique(by))
    colours = dict(zip(parts, canvas.colours(len(parts)), strict=True))
    looks = canvas.looks(trace, names, canvas.dashes)
    ax, n_out = ax or canvas.new_axes(), 0
    for name, look in looks.items():
        for part, colour in colours.items():
            if (name, part) in table:
                values = table[name, part].to_numpy(dtype=float)
                n_out += int(np.isin(values, (0.0, np.inf)).sum())  # most blocks do not have all parts
                ax.plot(range(len(values)), canvas.placed(values), color=colour, **look)
    ax.set_yscale("log")
    canvas.columns(ax, list(table.index))
    ax.set_xlabel("block, in the order of the forward pass")
    ax.set_ylabel("relative error of outputs (rel_l2)")
    canvas.title(ax, f"{mode}, by {_MEANS[by]}", n_out)
    of_precisions = {name: {"color": "0.3", **look} for name, look in looks.items()}
    canvas.legend(ax, of_precisions | {part: {"color": colour} for part, colour in colours.items()})
    return ax
