"""Figures of a trace on axes of matplotlib, for papers. Needs the extra ``plots``, and neither torch nor mace.

All take a trace, the precisions and blocks to show, and axes to draw on; without axes they make a figure. Units stand
on every axis. Colours are those of Okabe and Ito, and cividis. What is zero, NaN or infinite has no place on a
logarithmic axis: it is left out, and the title says how many there are.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from precision_probe.analysis.frames import per_atom, per_block
from precision_probe.exceptions import InputError
from precision_probe.globs import matches
from precision_probe.precisions import PrecisionSource, parse_precision, parse_precisions
from precision_probe.report.drawing.scales import OKABE_ITO
from precision_probe.report.findings import shown_mode
from precision_probe.report.plots import label
from precision_probe.trace.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FIGURES", "plot_blocks", "plot_forces", "plot_growth"]

Direction = Literal["forward", "backward"]
_MARKERS = ("o", "s", "^", "D", "v", "P")  # so that colours are not needed to tell precisions apart
_MILLI = 1e3  # eV to meV


def plot_growth(
    trace: Trace,
    *,
    precisions: PrecisionSource | None = None,
    blocks: str | Sequence[str] | None = None,
    direction: Direction = "forward",
    ax: "Axes | None" = None,
) -> "Axes":
    """The largest relative error of each block's tensors, from block to block, beside √n·u.

    Args:
        trace: A trace, whatever it keeps.
        precisions: Which; by default all that it has.
        blocks: Globs over names of blocks; by default all.
        direction: ``forward``, outputs; or ``backward``, gradients, which run from the last block to the first.
        ax: Where to draw.

    Raises:
        InputError: If matplotlib is not installed, or the trace has no such precision or block.
    """
    table, ax = _largest(trace, precisions, blocks), ax or _axes()
    if direction not in table.columns.get_level_values("direction"):
        raise InputError(f"The trace has no errors of the direction {direction!r}.")
    mode = shown_mode(trace)
    rows = table[mode, direction] if direction == "forward" else table[mode, direction].iloc[::-1]
    n_out = 0
    for slot, name in enumerate(_in_order(trace, rows.columns)):
        values = rows[name].to_numpy(dtype=float)
        n_out += _n_without_place(values)
        colour, marker = OKABE_ITO[slot % len(OKABE_ITO)], _MARKERS[slot % len(_MARKERS)]
        ax.plot(range(len(rows)), _placed(values), label=name, color=colour, marker=marker)
        steps = parse_precision(name).unit_roundoff * np.sqrt(np.arange(1, len(rows) + 1))
        ax.plot(range(len(rows)), steps, color=colour, linestyle=":", linewidth=1)
    ax.set_yscale("log")
    ax.set_xticks(range(len(rows)), [label(block) for block in rows.index], rotation=60, ha="right")
    ax.set_xlabel(f"block, in the order of the {direction} pass")
    ax.set_ylabel("relative error (rel_l2); dotted: √n·u")
    _title(ax, f"{mode}, {direction}", n_out)
    ax.legend(frameon=False)
    return ax


def plot_blocks(
    trace: Trace,
    *,
    precisions: PrecisionSource | None = None,
    blocks: str | Sequence[str] | None = None,
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
    table, ax = _largest(trace, precisions, blocks), ax or _axes()
    mode = shown_mode(trace)
    of_mode = table[mode]
    wanted = [
        (way, name)
        for name in _in_order(trace, of_mode.columns.get_level_values("precision"))
        for way in ("forward", "backward")
        if (way, name) in of_mode.columns
    ]
    values = of_mode[wanted].to_numpy(dtype=float)
    image = ax.imshow(np.log10(_placed(values)), cmap="cividis", aspect="auto")
    arrows = {"forward": "→", "backward": "←"}
    ax.set_xticks(range(len(wanted)), [f"{name} {arrows[way]}" for way, name in wanted], rotation=60, ha="right")
    ax.set_yticks(range(len(of_mode)), [label(block) for block in of_mode.index])
    ax.set_xlabel("precision; → outputs, ← gradients")
    ax.set_ylabel("block")
    ax.figure.colorbar(image, ax=ax, label="log₁₀ of the relative error (rel_l2)")
    _title(ax, mode, _n_without_place(values))
    return ax


def plot_forces(
    trace: Trace,
    *,
    precisions: PrecisionSource | None = None,
    blocks: str | Sequence[str] | None = None,
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
    found, ax = per_atom(trace)["error"], ax or _axes()
    n_out = 0
    for slot, name in enumerate(_chosen(trace, precisions)):
        errors = _MILLI * found.xs(name, level="precision").to_numpy(dtype=float)
        n_out += _n_without_place(errors)
        placed = np.sort(errors[(errors > 0) & np.isfinite(errors)])
        above = 1 - np.arange(len(placed)) / len(errors)
        ax.step(placed, above, where="post", label=name, color=OKABE_ITO[slot % len(OKABE_ITO)])
    ax.set_xscale("log")
    ax.set_xlabel("error of the force on an atom / meV/Å")
    ax.set_ylabel("part of the atoms with at least this error")
    _title(ax, "forces", n_out)
    ax.legend(frameon=False)
    return ax


FIGURES = {"growth": plot_growth, "blocks": plot_blocks, "forces": plot_forces}  # by what the command line calls them


def _axes() -> "Axes":
    """Of a figure of its own."""
    try:
        from matplotlib.figure import Figure  # and not pyplot, which opens windows and keeps every figure
    except ImportError as error:
        raise InputError("Figures need matplotlib. Install it with: pip install 'precision-probe[plots]'") from error
    return Figure(figsize=(7.5, 4.5), layout="constrained").add_subplot()


def _largest(trace: Trace, precisions: PrecisionSource | None, blocks: str | Sequence[str] | None) -> pd.DataFrame:
    """The largest relative error of each block, of what was chosen."""
    table = per_block(trace)
    names = _chosen(trace, precisions)
    table = table.loc[:, table.columns.get_level_values("precision").isin(names)]
    if blocks is not None:
        globs = [blocks] if isinstance(blocks, str) else list(blocks)
        kept = [block for block in table.index if any(matches(block, glob) for glob in globs)]
        if not kept:
            raise InputError(f"No block is named as {', '.join(globs)}. There are: {', '.join(map(str, table.index))}.")
        table = table.loc[kept]
    return table


def _chosen(trace: Trace, precisions: PrecisionSource | None) -> list[str]:
    """Names of the precisions, all of which the trace has."""
    has = list(map(str, trace.precisions))
    asked = has if precisions is None else list(map(str, parse_precisions(precisions)))
    missing = [name for name in asked if name not in has]
    if missing or not asked:
        what = ", ".join(missing) or "precision beside float64"
        raise InputError(f"The trace has no {what}. It has: {', '.join(has) or 'none'}.")
    return asked


def _in_order(trace: Trace, names: "pd.Index[str]") -> list[str]:
    """Precisions in the order of the run."""
    return [name for name in map(str, trace.precisions) if name in set(names)]


def _placed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers that have a logarithm, and NaN."""
    return np.where((values > 0) & np.isfinite(values), values, math.nan)


def _n_without_place(values: NDArray[np.float64]) -> int:
    """How many have none."""
    return int(np.isnan(_placed(values)).sum())


def _title(ax: "Axes", text: str, n_out: int) -> None:
    left_out = f" ({n_out} zero, not finite or not there: not shown)" if n_out else ""
    ax.set_title(text + left_out, fontsize="medium")
