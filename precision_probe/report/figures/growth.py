"""Errors along the network: from block to block, and of blocks in each precision."""

from typing import TYPE_CHECKING, Literal

import numpy as np

from precision_probe.analysis.errors import GUIDE
from precision_probe.analysis.frames import per_block
from precision_probe.exceptions import InputError
from precision_probe.precisions import PrecisionSource, parse_precision
from precision_probe.report.figures import canvas
from precision_probe.report.figures.canvas import Blocks
from precision_probe.report.findings import Findings
from precision_probe.trace.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_blocks", "plot_growth"]

Direction = Literal["forward", "backward"]


def plot_growth(
    trace: Trace,
    *,
    precisions: PrecisionSource | None = None,
    blocks: Blocks | None = None,
    direction: Direction = "forward",
    ax: "Axes | None" = None,
) -> "Axes":
    """The largest relative error of each block's tensors, from block to block, beside two lines to compare with.

    Dashed is the floor, float64's own result stored in the precision: no arithmetic is better. Dotted is √n·u, what n
    blocks would make each of which adds one independent rounding u.

    Args:
        trace: A trace, whatever it keeps.
        precisions: Which; by default all that it has.
        blocks: Globs over names of blocks; by default all.
        direction: ``forward``, outputs; or ``backward``, gradients, which run from the last block to the first.
        ax: Where to draw.

    Raises:
        InputError: If matplotlib is not installed, or the trace has no such precision or block.
    """
    findings, names = Findings(trace, GUIDE, is_guide=True), canvas.chosen(trace, precisions)
    mode, table = canvas.mode_of(trace), findings.errors
    of_mode = table[table["block"].isin(trace.blocks) & (table["mode"] == mode)]
    found = of_mode[of_mode["direction"] == direction]
    if found.empty:
        raise InputError(f"The trace has no errors of the direction {direction!r}.")
    shown = canvas.chosen_blocks([name for name in trace.blocks if name in set(found["block"])], blocks)
    order = shown if direction == "forward" else shown[::-1]
    ax, n_out = ax or canvas.new_axes(), 0
    looks = canvas.looks(trace, names, canvas.style)
    for name, look in looks.items():
        worst = findings.worst(mode, name, direction).reindex(order)
        values = worst["rel_l2"].where(worst["resolved"].eq(True)).to_numpy(dtype=float)
        n_out += canvas.n_without_place(values)
        ax.plot(range(len(order)), canvas.placed(values), label=name, **look)
        floors = np.where(np.isnan(values), np.nan, worst["floor"].to_numpy(dtype=float))
        steps = parse_precision(name).unit_roundoff * np.sqrt(np.arange(1, len(order) + 1))
        for line, dashes in ((canvas.placed(floors), "--"), (steps, ":")):
            ax.plot(range(len(order)), line, color=look["color"], linestyle=dashes, linewidth=1)
    ax.set_yscale("log")
    canvas.columns(ax, order)
    ax.set_xlabel(f"block, in the order of the {direction} pass")
    ax.set_ylabel("relative error (rel_l2)")
    canvas.title(ax, f"{mode}, {direction}", n_out)
    yardsticks = {"floor": {"color": "0.3", "linestyle": "--"}, "√n·u": {"color": "0.3", "linestyle": ":"}}
    canvas.legend(ax, looks | yardsticks)
    return ax


def plot_blocks(
    trace: Trace,
    *,
    precisions: PrecisionSource | None = None,
    blocks: Blocks | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Blocks by precisions, forward and backward: the largest relative error of each block's tensors, as colours.

    Args:
        trace: A trace, whatever it keeps.
        precisions: Which; by default all that it has.
        blocks: Globs over names of blocks; by default all.
        ax: Where to draw.

    Raises:
        InputError: As :func:`plot_growth`.
    """
    names, mode = canvas.chosen(trace, precisions), canvas.mode_of(trace)
    table = per_block(trace)[mode]
    table = table.loc[canvas.chosen_blocks(table.index, blocks)]
    wanted = [(way, name) for name in names for way in ("forward", "backward") if (way, name) in table.columns]
    values = table[wanted].to_numpy(dtype=float)
    ax = ax or canvas.new_axes()
    image = ax.imshow(np.log10(canvas.placed(values)), cmap="cividis", aspect="auto")
    arrows = {"forward": "→", "backward": "←"}
    canvas.columns(ax, [f"{name} {arrows[way]}" for way, name in wanted])
    ax.set_yticks(range(len(table)), [canvas.label(block) for block in table.index])
    ax.set_xlabel("precision; → outputs, ← gradients")
    ax.set_ylabel("block")
    ax.figure.colorbar(image, ax=ax, label="log₁₀ of the relative error (rel_l2)")
    canvas.title(ax, mode, canvas.n_without_place(values))
    return ax
