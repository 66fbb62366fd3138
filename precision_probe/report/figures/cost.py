"""Errors against time: of a policy's candidates, and of precisions as a whole."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from precision_probe.analysis.errors import GUIDE
from precision_probe.exceptions import InputError
from precision_probe.policy import Policy
from precision_probe.precisions import PrecisionSource
from precision_probe.report.costs import ERROR, TIME, candidates, is_recommended, placed, times
from precision_probe.report.drawing.axes import are_far_apart
from precision_probe.report.figures import canvas
from precision_probe.report.figures.canvas import Blocks, Look
from precision_probe.report.findings import MILLI, Findings
from precision_probe.trace.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_policy", "plot_times"]


def plot_times(
    trace: Trace,
    *,
    precisions: PrecisionSource | None = None,
    blocks: Blocks | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """The largest error of a force against the time of the model as a whole, in each precision, float64's being one.

    Bars are half the interquartile range. Errors are on a logarithmic scale that has a place for float64's, zero.

    Args:
        trace: Of a model that predicts forces.
        precisions: Which; by default all that it has.
        blocks: Not used: times are of the whole model. Here so that all figures are called alike.
        ax: Where to draw.

    Raises:
        InputError: If matplotlib is not installed, or the trace has no times, no forces or no such precision.
    """
    del blocks
    names = canvas.chosen(trace, precisions)
    table = times(Findings(trace, GUIDE, is_guide=True))
    if table.empty:
        raise InputError(
            "The trace does not say how long precisions take, or has no forces. Audit a model of forces with --time, "
            "or attach(…, time=True)."
        )
    time, spread, error = map(str, table)
    ax = ax or canvas.new_axes()
    shown = table.loc[[name for name in ("float64", *names) if name in table.index]]
    n_out = _points(ax, shown[[time, error]], canvas.looks(trace, shown.index, canvas.point))
    ax.errorbar(shown[time], shown[error], xerr=shown[spread], fmt="none", ecolor="0.6", capsize=3, zorder=0)
    ax.set_xlabel("time ÷ float64's")
    ax.set_ylabel(error.replace("forces, largest, ", "largest error of a force / "))
    canvas.title(ax, "the model as a whole in each precision", n_out)
    return ax


def plot_policy(policy: Policy, *, ax: "Axes | None" = None) -> "Axes":
    """The largest error of a force against time, of all that a search measured, and of what people run otherwise.

    A ring marks what is recommended. Errors are on a logarithmic scale that has a place for zero, float64's.

    Args:
        policy: One that a search made, or its file: ``Policy.load("policy.json")``.
        ax: Where to draw.

    Raises:
        InputError: If matplotlib is not installed, or the policy does not say what was measured.
    """
    table = placed(candidates(policy))
    if table.empty:
        raise InputError(
            "The policy does not say what candidates lose and how long they take. Take one that recommend made: "
            "precision-probe recommend -o policy.json, or pp.recommend(…).policy."
        )
    ax = ax or canvas.new_axes()
    limit = MILLI * policy.tolerance.get("forces", 0.0)
    _points(ax, table, {str(name): canvas.point(slot) for slot, name in enumerate(table.index)}, limit)
    for name, row in table.iterrows():
        if is_recommended(policy, str(name)):
            ax.plot(row[TIME], row[ERROR], "o", color="black", fillstyle="none", markersize=14)
    if limit:
        ax.axhline(limit, color="0.5", linestyle="--", linewidth=1)
        at = (1, limit)
        ax.annotate("tolerance ", at, xycoords=("axes fraction", "data"), ha="right", va="bottom", color="0.4")
    ax.set_xlabel("time of energy and forces / ms")
    ax.set_ylabel("largest error of a force / meV/Å")
    canvas.title(ax, "what the search measured; the ring: recommended")
    return ax


def _points(ax: "Axes", table: pd.DataFrame, looks: Mapping[str, Look], limit: float = 0.0) -> int:
    """A point for each row of times and errors, on scales that have zero too; how many have no place on them."""
    durations, errors = table.to_numpy(dtype=float).T
    for (name, look), time, error in zip(looks.items(), durations, errors, strict=True):
        if np.isfinite(error):
            ax.plot(time, error, label=canvas.label(name), **look)
    above = errors[(errors > 0) & np.isfinite(errors)]
    decade = 10.0 ** np.floor(np.log10(above.min(initial=limit or 1.0)))
    ax.set_yscale("symlog", linthresh=decade)
    ax.set_ylim(-decade / 3, 3 * above.max(initial=max(limit, decade)))
    if are_far_apart(durations.tolist()):
        ax.set_xscale("log")
    else:
        ax.set_xlim(0, 1.1 * durations.max())
    ax.grid(color="0.9")
    ax.set_axisbelow(True)
    canvas.legend(ax, looks)
    return int((~np.isfinite(errors)).sum())
