"""What explains the errors: the parts of the model, and the sources of rounding."""

from typing import TYPE_CHECKING

import numpy as np

from precision_probe.analysis.views import shares, view
from precision_probe.precisions import PrecisionSource
from precision_probe.report.figures import canvas
from precision_probe.report.figures.canvas import Blocks, Look
from precision_probe.trace.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_budget", "plot_contributions"]

_APART = 0.12  # rows, between precisions


def plot_contributions(
    trace: Trace,
    *,
    precisions: PrecisionSource | None = None,
    blocks: Blocks | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """How much of the squared error each part of the model makes: of the energy, forward, and of forces, backward.

    Shares of a precision add up to 100 %; a negative one undoes some of the others'.

    Args:
        trace: One that keeps the table ``contributions``, as every audit of the command line does.
        precisions: Which; by default all of the table.
        blocks: Globs over names of parts: blocks, ``geometry``, ``sums``, ``the rest``; by default all.
        ax: Where to draw.

    Raises:
        InputError: If matplotlib is not installed, or the trace has no such table, precision or part.
    """
    table = canvas.stored(trace, "contributions", 'precision-probe audit, or probe.explain(…, only=["contributions"])')
    names = canvas.chosen(trace, precisions, set(table["precision"]))
    parts = canvas.chosen_blocks(table["part"], blocks)
    ax, n_out = ax or canvas.new_axes(len(parts)), 0
    of_precisions = canvas.looks(trace, names, canvas.point)
    looks: dict[str, Look] = {}
    for quantity, fill in (("energy", "none"), ("forces", "full")):
        of_parts = shares(table, quantity).loc[parts]
        for at, name in enumerate(names):
            values = of_parts[name].to_numpy(dtype=float)
            n_out += int((~np.isfinite(values)).sum())
            looks[f"{quantity}, {name}"] = look = of_precisions[name] | {"fillstyle": fill}
            ax.plot(values, np.arange(len(parts)) + _APART * (at - (len(names) - 1) / 2), **look)
    ax.axvline(0, color="0.6", linewidth=1)
    canvas.rows(ax, parts)
    ax.set_xlabel("share of the squared error / %")
    ax.set_ylabel("part, in the order of a run")
    canvas.title(ax, "open: energy, forward; filled: forces, backward", n_out)
    canvas.legend(ax, looks)
    return ax


def plot_budget(
    trace: Trace,
    *,
    precisions: PrecisionSource | None = None,
    blocks: Blocks | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """The mean absolute error of forces that each source of rounding makes alone, and what they make together.

    Args:
        trace: One that keeps the table ``budget``.
        precisions: Which; by default all of the table.
        blocks: Globs over the rows' names: ``geometry``, ``weights``, ``inputs BLOCK``, ``arithmetic BLOCK``, …
        ax: Where to draw.

    Raises:
        InputError: If matplotlib is not installed, or the trace has no such table, precision or row.
    """
    table = canvas.stored(trace, "budget", canvas.EXPLAIN)
    names = canvas.chosen(trace, precisions, set(table["precision"]))
    frame = view(trace, "budget").frame
    frame = frame.loc[canvas.chosen_blocks(frame.index, blocks), names]
    ax, n_out = ax or canvas.new_axes(len(frame)), 0
    looks = canvas.looks(trace, names, canvas.point)
    for name, look in looks.items():
        values = frame[name].to_numpy(dtype=float)
        n_out += canvas.n_without_place(values)
        ax.plot(canvas.placed(values), range(len(frame)), **look)
    ax.set_xscale("log")
    canvas.rows(ax, list(frame.index))
    ax.set_xlabel("mean absolute error of forces / meV/Å")
    ax.set_ylabel("what alone is rounded")
    canvas.title(ax, "sources of the force error", n_out)
    canvas.legend(ax, looks)
    return ax
