"""How many bits of the significand each block needs, from a sweep."""

from typing import TYPE_CHECKING

import pandas as pd

from precision_probe.analysis.errors import GUIDE, TOLERANCE_UNITS, bits_needed
from precision_probe.exceptions import InputError
from precision_probe.precisions import PrecisionSource
from precision_probe.report.figures import canvas
from precision_probe.report.figures.canvas import Blocks, Look
from precision_probe.trace.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_bits", "plot_sweep"]

# By stored bits, one fewer than the significand has: a format's name, and how it is aligned, so that none is on another
_HARDWARE = {7: ("bfloat16", "right"), 10: ("float16, tf32", "center"), 23: ("float32", "center")}
_MADE_BY = "precision-probe sweep -o, precision-probe audit --explain, or probe.explain(structures)"
_FRACTIONS = (1.0, 0.1, 0.01)  # of the tolerance
_ABOVE = 18  # points, where names of formats stand above the drawing
_APART = 0.15  # rows, between tolerances


def plot_bits(
    trace: Trace | pd.DataFrame,
    *,
    precisions: PrecisionSource | None = None,
    blocks: Blocks | None = None,
    quantity: str = "forces",
    tolerance: float | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """The fewest stored bits with which each block keeps a tolerance, a tenth and a hundredth of it.

    Args:
        trace: One that keeps the table ``sweep``; or that table, from :func:`precision_probe.sweep`.
        precisions: Not used: formats of any number of bits are emulated. Here so that all figures are called alike.
        blocks: Globs over names of blocks and ``whole model``; by default all.
        quantity: ``forces`` or ``energy``.
        tolerance: In eV/Å or eV/atom; by default a guide, 1e-2 eV/Å or 1e-3 eV/atom.
        ax: Where to draw.

    Raises:
        InputError: If matplotlib is not installed, or the trace has no such table or block.
    """
    del precisions
    table, names = _sweep(trace, blocks)
    limit = _limit(table, quantity, tolerance)
    ax, n_out = ax or canvas.new_axes(len(names)), 0
    looks: dict[str, Look] = {}
    for slot, fraction in enumerate(_FRACTIONS):
        needed = bits_needed(table, fraction * limit, quantity)[names].astype(float)
        n_out += int(needed.isna().sum())
        looks[f"{fraction * limit:g} {TOLERANCE_UNITS[quantity]}"] = look = canvas.point(slot)
        ax.plot(needed, [row + _APART * (slot - 1) for row in range(len(names))], **look)
    canvas.rows(ax, names)
    ax.set_xlim(table["bits"].min() - 1, table["bits"].max() + 1)
    ax.set_xticks(sorted(table["bits"].unique()))
    _mark_formats(ax, table["bits"])
    ax.set_xlabel("stored bits of the significand that are enough")
    ax.set_ylabel("rounded")
    too_few = f" ({n_out} points: no number of bits tried is enough)" if n_out else ""
    ax.set_title(f"tolerance of {quantity}{too_few}", fontsize="medium", pad=_ABOVE)
    canvas.legend(ax, looks)
    return ax


def plot_sweep(
    trace: Trace | pd.DataFrame,
    *,
    precisions: PrecisionSource | None = None,
    blocks: Blocks | None = None,
    quantity: str = "forces",
    tolerance: float | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """The largest error against the bits of the significand, a line for each block.

    Args:
        trace: As :func:`plot_bits` takes it.
        precisions: Not used, likewise.
        blocks: Globs over names of blocks and ``whole model``, which is black; by default all.
        quantity: ``forces`` or ``energy``.
        tolerance: Drawn as a line, in eV/Å or eV/atom; by default a guide, likewise.
        ax: Where to draw.

    Raises:
        InputError: As :func:`plot_bits`.
    """
    del precisions
    table, names = _sweep(trace, blocks)
    limit = _limit(table, quantity, tolerance)
    ax, n_out = ax or canvas.new_axes(), 0
    looks: dict[str, Look] = {}
    whole = str(table["block"].iloc[0])
    for slot, name in enumerate(names):
        line = table[table["block"] == name].sort_values("bits")
        values = line[quantity].to_numpy(dtype=float)
        n_out += canvas.n_without_place(values)
        looks[name] = {"color": "black", "linewidth": 2} if name == whole else canvas.line(slot)
        ax.semilogy(line["bits"], canvas.placed(values), markersize=4, label=canvas.label(name), **looks[name])
    ax.axhline(limit, color="0.5", linestyle="--", linewidth=1)
    ax.text(table["bits"].max(), limit, " tolerance", color="0.4", va="bottom", ha="right")
    _mark_formats(ax, table["bits"])
    ax.set_xticks(sorted(table["bits"].unique()))
    ax.set_xlabel("stored bits of the significand")
    ax.set_ylabel(f"largest error of {quantity} / {TOLERANCE_UNITS[quantity]}")
    canvas.title(ax, "one block rounded at a time", n_out, pad=_ABOVE)
    canvas.legend(ax, looks)
    return ax


def _sweep(trace: Trace | pd.DataFrame, blocks: Blocks | None) -> tuple[pd.DataFrame, list[str]]:
    """The table, and the names in it that are to be shown."""
    table = canvas.stored(trace, "sweep", _MADE_BY) if isinstance(trace, Trace) else trace
    return table, canvas.chosen_blocks(table["block"], blocks)


def _limit(table: pd.DataFrame, quantity: str, tolerance: float | None) -> float:
    """The tolerance of a quantity that the sweep has."""
    known = [name for name in ("forces", "energy") if name in table]
    if quantity not in known:
        raise InputError(f"The sweep has errors of {', '.join(known)}; got the quantity {quantity!r}.")
    return GUIDE[quantity] if tolerance is None else tolerance


def _mark_formats(ax: "Axes", bits: "pd.Series[int]") -> None:
    """Upright the formats that hardware has, where they are within what was tried."""
    for stored, (name, side) in _HARDWARE.items():
        if bits.min() <= stored <= bits.max():
            ax.axvline(stored, color="0.85", zorder=0)
            height = ax.get_xaxis_transform()  # x in bits, y from 0 to 1: names stand above the figure
            ax.text(stored, 1.01, name, transform=height, ha=side, va="bottom", fontsize="small")
