"""Figures of the page of findings; neither torch nor mace is needed."""

from io import BytesIO
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from plots import STYLES, tidy

__all__ = ["draw_bits", "draw_budget", "draw_displacement"]

# Okabe and Ito's colours
SOURCES = {
    "geometry": "#E69F00",
    "weights": "#999999",
    "node_embedding": "#F0E442",
    "radial_embedding": "#0072B2",
    "spherical_harmonics": "#56B4E9",
    "interactions": "#009E73",
    "products": "#D55E00",
    "readouts": "#CC79A7",
}
DARK = {"radial_embedding", "interactions", "products"}
HARDWARE = {7: "bfloat16", 10: "float16", 23: "float32"}
DPI = 110
SHOWN = 0.05


def draw_budget(shares: pd.DataFrame, path: Path) -> None:
    """A bar for each model and precision, cut into the sources' shares of the squared force error.

    Args:
        shares: Columns ``label`` (of a bar), ``source`` and ``share``.
        path: The file.
    """
    labels, sources = list(shares["label"].unique()), list(shares["source"].unique())
    figure = Figure(figsize=(8.2, 1.1 + 0.36 * len(labels)), layout="constrained")
    axes = figure.add_subplot()
    spare = iter(f"C{number}" for number in range(10))
    colours = {source: SOURCES.get(source) or next(spare) for source in sources}
    for row, label in enumerate(labels):
        left = 0.0
        for source, share in shares[shares["label"] == label][["source", "share"]].itertuples(index=False):
            axes.barh(row, share, left=left, color=colours[source], height=0.74, edgecolor="white", lw=0.6)
            if share > SHOWN:
                colour = "white" if source in DARK else "black"
                axes.text(
                    left + share / 2, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=8
                )
            left += share
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    axes.set_xlabel("share of the sum of squared force errors / %", fontsize=9)
    tidy(axes)
    axes.grid(visible=False)
    handles = [Patch(color=colour, label=source) for source, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    save(figure, path)


def draw_bits(sweeps: dict[str, pd.DataFrame], tolerances: list[float], path: Path) -> None:
    """The largest force error against the bits of the significand, a panel for each model, a line for each block.

    Args:
        sweeps: For each model its sweep, ``forces`` in meV/Å.
        tolerances: Drawn as lines, meV/Å.
        path: The file.
    """
    figure = Figure(figsize=(4.1 * len(sweeps) + 1.6, 3.7), layout="constrained")
    panels = figure.subplots(1, len(sweeps), sharey=True, squeeze=False)[0]
    families: dict[str, str] = {}
    for axes, (name, sweep) in zip(panels, sweeps.items(), strict=True):
        for number, (block, rows) in enumerate(sweep[sweep["forces"] > 0].groupby("block", sort=False)):
            label, rows = str(block), rows.sort_values("bits")
            family, _, layer = label.partition(".")
            families.setdefault(label, SOURCES.get(family, "black" if number == 0 else "0.5"))
            line = "--" if layer not in ("", "0") else "-"
            width, size = (2.2, 4.5) if number == 0 else (1.2, 3)
            axes.semilogy(rows["bits"], rows["forces"], line, marker="o", ms=size, lw=width, color=families[label])
        for tolerance in tolerances:
            axes.axhline(tolerance, color="0.5", lw=0.8, ls=":")
        bits = sorted(sweep["bits"].unique())
        for number, hardware in HARDWARE.items():
            if number in bits:
                axes.axvline(number, color="0.8", lw=0.8, zorder=0)
                where = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
                axes.text(number, 1.0, hardware, fontsize=7.5, color="0.3", rotation=20, **where)
        axes.set_xticks(bits, [f"{number:.0f}" for number in bits])
        axes.set_xlabel(f"stored bits of the significand, {name}", fontsize=9)
        tidy(axes)
    panels[0].set_ylabel("largest force error / meV/Å", fontsize=9)
    handles = [
        axes.plot([], [], "--" if block.partition(".")[2] not in ("", "0") else "-", color=colour, label=block)[0]
        for block, colour in families.items()
    ]
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8, title="rounded")
    save(figure, path)


def draw_displacement(curves: dict[str, pd.DataFrame], path: Path) -> None:
    """Energy along a line: a row of panels for each model, a panel for each precision, float64 behind it.

    Args:
        curves: For each model the table ``displacement``.
        path: The file.
    """
    precisions = list(dict.fromkeys(name for table in curves.values() for name in table["precision"].unique()[1:]))
    figure = Figure(figsize=(2.7 * len(precisions) + 0.7, 2.2 * len(curves) + 0.4), layout="constrained")
    panels = figure.subplots(len(curves), len(precisions), squeeze=False, sharex=True, sharey="row")
    for row, (name, table) in zip(panels, curves.items(), strict=True):
        by_precision = dict(iter(table.groupby("precision", sort=False)))
        exact = by_precision[table["precision"].iloc[0]]
        for axes, precision in zip(row, precisions, strict=True):
            axes.set_xticks([0, exact["position"].max() / 2, exact["position"].max()])
            axes.plot(exact["position"], exact["energy"], color="0.55", lw=3, alpha=0.6)
            if precision in by_precision:
                curve = by_precision[precision]
                colour = STYLES.get(precision, ("C0",))[0]
                axes.step(curve["position"], curve["energy"], where="mid", color=colour, lw=1)
            axes.set_title(f"{name}, {precision}", fontsize=9)
            tidy(axes)
        row[0].set_ylabel("energy / meV/atom", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("displacement / Å (grey: float64)", fontsize=9)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG file with a palette, a third as large."""
    drawn = BytesIO()
    figure.savefig(drawn, dpi=DPI)
    Image.open(drawn).convert("RGB").quantize(128).save(path, optimize=True)
