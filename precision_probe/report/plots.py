"""Figures of tables. Needs matplotlib (the extra ``plots``), and neither torch nor mace."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from precision_probe.analysis.errors import TOLERANCE_UNITS
from precision_probe.exceptions import InputError, printable
from precision_probe.files import check_writable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_figure", "label", "plot_sweep", "save_figure"]

_HARDWARE = {7: "bfloat16", 10: "float16, tf32", 23: "float32"}  # stored bits: one fewer than the significand has
_N_COLOURS = 10  # matplotlib's own, C0 to C9; then they come again
_DASHES = ("-", "--", ":", "-.")  # so that forty blocks can be told apart


def check_figure(path: str | Path, *, force: bool = False) -> Path:
    """Return the path, once it is known that a figure can be drawn there: asked before hours of work, not after.

    Raises:
        InputError: If matplotlib is not installed or does not know the suffix, or the file cannot be written, or is
            there without ``force``.
    """
    path = Path(path)
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise InputError("Figures need matplotlib. Install it with: pip install 'precision-probe[plots]'") from error
    if path.suffix.lower().removeprefix(".") not in FigureCanvasBase.get_supported_filetypes():
        raise InputError(f"The figure {path} has the suffix {path.suffix!r}. Name it .png, .svg or .pdf.")
    return check_writable(path, force=force)


def plot_sweep(sweep: pd.DataFrame, quantity: str, tolerance: float, path: str | Path) -> None:
    """Draw the largest error against the bits of the significand, a line for each block.

    Args:
        sweep: From :func:`precision_probe.sweep`.
        quantity: ``energy`` or ``forces``.
        tolerance: Drawn as a line, in eV/atom or eV/Å.
        path: The file, replaced if it is there; its suffix says which format.

    Raises:
        InputError: If matplotlib is not installed or does not know the suffix, or the file cannot be written.
    """
    path = check_figure(path, force=True)
    from matplotlib.figure import Figure  # and not pyplot, which opens windows and keeps every figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")  # inches
    axes = figure.add_subplot()
    _draw_blocks(axes, sweep, quantity)
    _mark_limits(axes, sweep["bits"], tolerance)
    axes.set_xticks(sorted(sweep["bits"].unique()))
    axes.set_xlabel("stored bits of the significand")
    axes.set_ylabel(f"largest error of {quantity} / {TOLERANCE_UNITS[quantity]}")
    # Beside the lines: with a dozen blocks there is no room among them.
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, title="rounded")
    save_figure(axes, path, force=True)


def save_figure(ax: "Axes", path: str | Path, *, force: bool = False) -> Path:
    """Write the figure that axes are in; the suffix says which format.

    Raises:
        InputError: If matplotlib does not know the suffix, the file cannot be written, or is there without ``force``.
    """
    path = check_figure(path, force=force)
    figure = ax.get_figure(root=True)
    try:
        figure.savefig(path, dpi=150)  # type: ignore[union-attr]
    except OSError as error:  # a disk that is full, say, which could not be asked before
        raise InputError(f"The figure {path} cannot be written ({error.strerror or error}).") from error
    return path


def label(name: object) -> str:
    """A name as matplotlib shows it: between dollars it takes text for formulas."""
    return printable(name).replace("$", r"\$")


def _draw_blocks(axes: "Axes", sweep: pd.DataFrame, quantity: str) -> None:
    """A line for each block, in colours; black is the whole model, which comes first, to compare them with."""
    shown = sweep.assign(**{quantity: sweep[quantity].where(sweep[quantity] > 0)})  # zero has no logarithm
    for number, (block, rows) in enumerate(shown.groupby("block", sort=False)):
        rows = rows.sort_values("bits")
        is_whole = number == 0
        axes.semilogy(
            rows["bits"],
            rows[quantity],
            color="black" if is_whole else f"C{number - 1}",
            linestyle=_DASHES[0] if is_whole else _DASHES[(number - 1) // _N_COLOURS % len(_DASHES)],
            linewidth=2 if is_whole else 1.2,
            marker="o",
            markersize=3,
            label=label(block),
        )


def _mark_limits(axes: "Axes", bits: "pd.Series[int]", tolerance: float) -> None:
    """The tolerance across, and upright the formats that hardware has, where they are within what was tried."""
    axes.axhline(tolerance, color="0.5", linestyle="--", linewidth=1)
    axes.text(bits.max(), tolerance, " tolerance", color="0.4", va="bottom", ha="right")
    for stored, name in _HARDWARE.items():
        if bits.min() <= stored <= bits.max():
            axes.axvline(stored, color="0.85", zorder=0)
            height = axes.get_xaxis_transform()  # x in bits, y from 0 to 1: names stand above the figure
            axes.text(stored, 1.0, name, transform=height, ha="center", va="bottom", fontsize="small")
