"""What rounding breaks that holds for an exact model: smooth energies, symmetries, results that repeat themselves."""

from typing import TYPE_CHECKING

import numpy as np

from precision_probe.analysis.views import broken_symmetry, view
from precision_probe.precisions import PrecisionSource
from precision_probe.report.figures import canvas
from precision_probe.report.figures.canvas import Blocks
from precision_probe.trace.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_digits", "plot_displacement", "plot_equivariance"]

_SEEN = {"linestyle": ":", "zorder": 3}  # so that float64's line is seen above one that is close


def plot_displacement(
    trace: Trace,
    *,
    precisions: PrecisionSource | None = None,
    blocks: Blocks | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """The energy along a straight line, of which rounding makes stairs, beside float64's.

    Args:
        trace: One that keeps the table ``displacement``.
        precisions: Which; by default all of the table, float64 among them.
        blocks: Not used: energies are of the whole model. Here so that all figures are called alike.
        ax: Where to draw.

    Raises:
        InputError: If matplotlib is not installed, or the trace has no such table or precision.
    """
    del blocks
    table = canvas.stored(trace, "displacement", canvas.EXPLAIN)
    names = canvas.chosen(trace, precisions, set(table["precision"]))
    looks = canvas.looks(trace, names, canvas.stroke)
    if "float64" in looks:
        looks["float64"] |= _SEEN
    ax, n_out = ax or canvas.new_axes(), 0
    for name, look in looks.items():
        curve = table[table["precision"] == name]
        n_out += int((~np.isfinite(curve["energy"])).sum())
        ax.plot(curve["position"], curve["energy"], label=name, **look)
    ax.set_xlabel("displacement / Å")
    ax.set_ylabel("energy less the first point's / meV/atom")
    canvas.title(ax, "energy along a line", n_out)
    canvas.legend(ax, looks)
    return ax


def plot_equivariance(
    trace: Trace,
    *,
    precisions: PrecisionSource | None = None,
    blocks: Blocks | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """By how much results for a moved structure differ from moved results; bars are standard deviations over motions.

    Args:
        trace: One that keeps the table ``equivariance``.
        precisions: Which; by default all of the table, float64 among them.
        blocks: Globs over the rows' names: ``rotation: forces``, ``inversion: blocks, 1o``, …; by default all.
        ax: Where to draw.

    Raises:
        InputError: If matplotlib is not installed, or the trace has no such table, precision or row.
    """
    table = canvas.stored(trace, "equivariance", canvas.EXPLAIN)
    names = canvas.chosen(trace, precisions, set(table["precision"]))
    worst = broken_symmetry(table)
    shown = canvas.chosen_blocks(worst["label"], blocks)
    ax, n_out = ax or canvas.new_axes(len(shown)), 0
    looks = canvas.looks(trace, names, canvas.point)
    for name, look in looks.items():
        found = worst[worst["precision"] == name].set_index("label").reindex(shown)
        values = canvas.placed(found["value"].to_numpy(dtype=float))
        n_out += int(np.isnan(values).sum())
        spread = found["spread"].fillna(0.0).to_numpy(dtype=float)
        ax.errorbar(values, range(len(shown)), xerr=(np.minimum(spread, 0.9 * values), spread), label=name, **look)
    ax.set_xscale("log")
    canvas.rows(ax, shown)
    ax.set_xlabel("relative difference (L2)")
    ax.set_ylabel("motion: result, or worst block")
    canvas.title(ax, "broken symmetry", n_out)
    canvas.legend(ax, looks)
    return ax


def plot_digits(
    trace: Trace,
    *,
    precisions: PrecisionSource | None = None,
    blocks: Blocks | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """The decimal digits of each result on which runs with stochastic rounding agree.

    Args:
        trace: One that keeps the table ``digits``.
        precisions: Which; by default all of the table, float64 among them.
        blocks: Globs over quantities: ``energy``, ``interaction_energy``, ``forces``; by default all.
        ax: Where to draw.

    Raises:
        InputError: If matplotlib is not installed, or the trace has no such table, precision or quantity.
    """
    table = canvas.stored(trace, "digits", canvas.EXPLAIN)
    names = canvas.chosen(trace, precisions, set(table["precision"]))
    frame = view(trace, "digits").frame
    shown = canvas.chosen_blocks(frame.index, blocks)
    frame = frame.loc[shown, names]
    ax = ax or canvas.new_axes(len(shown))
    looks = canvas.looks(trace, names, canvas.point)
    for name, look in looks.items():
        ax.plot(frame[name], range(len(shown)), label=name, **look)
    canvas.rows(ax, [quantity.replace("_", " ") for quantity in shown])
    ax.set_xlim(np.nanmin(frame.to_numpy(dtype=float), initial=0.0), None)
    ax.set_xlabel("significant decimal digits")
    ax.set_ylabel("result")
    canvas.title(ax, "runs rounded stochastically", int(frame.isna().to_numpy().sum()))
    canvas.legend(ax, looks)
    return ax
