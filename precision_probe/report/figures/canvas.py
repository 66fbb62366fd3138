"""What all figures have in common: axes, what is chosen of a trace, colours, and numbers that have no place."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from precision_probe.exceptions import InputError, printable
from precision_probe.globs import matches
from precision_probe.precisions import PrecisionSource, parse_precisions
from precision_probe.report.drawing.scales import CIVIDIS, OKABE_ITO
from precision_probe.report.figures.files import NO_MATPLOTLIB
from precision_probe.report.findings import shown_mode, slots
from precision_probe.trace.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "EXPLAIN",
    "Blocks",
    "Look",
    "chosen",
    "chosen_blocks",
    "colours",
    "columns",
    "dashes",
    "label",
    "legend",
    "line",
    "looks",
    "mode_of",
    "n_without_place",
    "new_axes",
    "placed",
    "point",
    "rows",
    "stored",
    "stroke",
    "style",
    "title",
]

Blocks = str | Sequence[str]
Look = dict[str, Any]  # what matplotlib takes for a line and its markers
EXPLAIN = "precision-probe audit --explain, or probe.explain(structures)"  # what makes tables that explain errors
_MARKERS = ("o", "s", "^", "D", "v", "P")  # so that colours are not needed to tell precisions apart
_DASHES = ("-", "--", ":", "-.")
_EXACT = {"color": "black", "marker": "x"}  # float64
_ROW, _FRAME = 0.2, 1.2  # inches: of a row, and of what stands around them


def new_axes(n_rows: int | None = None) -> "Axes":
    """Of a figure of its own, high enough for so many rows.

    Raises:
        InputError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # and not pyplot, which opens windows and keeps every figure
    except ImportError as error:
        raise InputError(NO_MATPLOTLIB) from error
    height = 4.5 if n_rows is None else max(2.5, _FRAME + _ROW * n_rows)
    return Figure(figsize=(7.5, height), layout="constrained").add_subplot()


def chosen(trace: Trace, precisions: PrecisionSource | None, of: Collection[str] | None = None) -> list[str]:
    """Names of the precisions to show, in the order of the run unless they are asked for in another.

    Args:
        trace: What was recorded.
        precisions: What is asked for; by default all that there are.
        of: Those of a table, which may lack some and have float64; by default the trace's.

    Raises:
        InputError: If there is no such precision, or none at all.
    """
    known = list(map(str, trace.precisions))
    has = known if of is None else [name for name in ("float64", *known) if name in of]
    asked = has if precisions is None else list(map(str, parse_precisions(precisions)))
    missing = [name for name in asked if name not in has]
    if missing or not asked:
        what = ", ".join(missing) or "precision beside float64"
        where = "The trace has no" if of is None else "The trace's table has no"
        raise InputError(f"{where} {what}. It has: {', '.join(has) or 'none'}.")
    return asked


def chosen_blocks(names: Iterable[object], blocks: Blocks | None) -> list[str]:
    """Those of some names that are asked for.

    Raises:
        InputError: If none is.
    """
    has = list(dict.fromkeys(map(str, names)))
    if blocks is None:
        return has
    globs = [blocks] if isinstance(blocks, str) else list(blocks)
    kept = [name for name in has if any(matches(name, glob) for glob in globs)]
    if not kept:
        raise InputError(f"No block is named as {', '.join(globs)}. There are: {', '.join(has)}.")
    return kept


def mode_of(trace: Trace) -> str:
    """The mode that figures of blocks show.

    Raises:
        InputError: If no blocks were recorded.
    """
    if not trace.modes or not trace.blocks:
        raise InputError("The trace has no blocks beside float64, which this figure is of. Audit without --keep none.")
    return shown_mode(trace)


def stored(trace: Trace, name: str, made_by: str) -> pd.DataFrame:
    """A table that a trace keeps where it was asked for.

    Raises:
        InputError: If it has none of that name, which says how it is made.
    """
    if name not in trace.tables:
        has = ", ".join(trace.tables) or "no table at all"
        raise InputError(f"This figure is of the table {name!r}, and the trace has {has}. Make it with: {made_by}.")
    return trace.table(name).frame


def looks(trace: Trace, names: Iterable[str], styled: Callable[[int], Look]) -> dict[str, Look]:
    """Of each precision that is shown the look of its slot in the trace, so that all figures agree; float64 is black.

    Args:
        trace: What was recorded.
        names: Of the trace's precisions and float64.
        styled: From a slot to its look: :func:`style`, :func:`point`, :func:`stroke` or :func:`dashes`.
    """
    of_slots = {name: styled(slot) for name, slot in slots(trace).items()}
    exact = {key: _EXACT.get(key, value) for key, value in styled(0).items()}
    return {name: of_slots.get(name, exact) for name in names}


def style(slot: int) -> Look:
    """Colour and marker of a series: when colours come again, markers are others."""
    marker = _MARKERS[(slot + slot // len(OKABE_ITO)) % len(_MARKERS)]
    return {"color": OKABE_ITO[slot % len(OKABE_ITO)], "marker": marker}


def point(slot: int) -> Look:
    """Colour and marker of points that no line joins."""
    return style(slot) | {"linestyle": ""}


def stroke(slot: int) -> Look:
    """Colour and dashes of a line without markers: when colours come again, dashes are others."""
    return {"color": style(slot)["color"], "linestyle": _DASHES[slot // len(OKABE_ITO) % len(_DASHES)]}


def line(slot: int) -> Look:
    """Colour, marker and dashes of a line among dozens."""
    return style(slot) | stroke(slot) | {"linewidth": 1.2}


def dashes(slot: int) -> Look:
    """Marker and dashes, where colours tell something else."""
    return {"marker": style(slot)["marker"], "linestyle": _DASHES[slot % len(_DASHES)]}


def colours(n: int) -> list[str]:
    """So many that are told apart: of the cycle, or, where there are more than it has, of cividis, dark to light."""
    if n <= len(OKABE_ITO):
        return list(OKABE_ITO[:n])
    return [CIVIDIS[round(at * (len(CIVIDIS) - 1) / (n - 1))] for at in range(n)]


def placed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers that have a logarithm, and NaN."""
    return np.where((values > 0) & np.isfinite(values), values, math.nan)


def n_without_place(values: NDArray[np.float64]) -> int:
    """How many have none."""
    return int(np.isnan(placed(values)).sum())


def title(ax: "Axes", text: str, n_out: int = 0, *, pad: float | None = None) -> None:
    """What is shown, and how many numbers are not; so many points above the drawing."""
    left_out = f" ({n_out} zero, not finite or not there: not shown)" if n_out else ""
    ax.set_title(text + left_out, fontsize="medium", pad=pad)


def label(name: object) -> str:
    """A name as matplotlib shows it: between dollars it takes text for formulas."""
    return printable(name).replace("$", r"\$")


def columns(ax: "Axes", names: Sequence[object]) -> None:
    """Names from left to right, each of which ends below its place."""
    ax.set_xticks(range(len(names)), [label(name) for name in names], rotation=45, ha="right", rotation_mode="anchor")


def legend(ax: "Axes", styles: Mapping[str, Look]) -> None:
    """Beside the drawing, where nothing is in its way: of each name the look of its line."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], **each) for each in styles.values()]
    ax.legend(lines, list(map(label, styles)), loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def rows(ax: "Axes", names: Sequence[object]) -> None:
    """Rows from top to bottom, with a line across each along which points are found."""
    ax.set_yticks(range(len(names)), [label(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)
