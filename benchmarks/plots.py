"""Tables and figures of a benchmark's JSON file; neither torch nor mace is needed.

python benchmarks/plots.py benchmarks/results/bench_precisions-DEVICE.json      # redraw them beside the file
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, ScalarFormatter
from records import Record

__all__ = ["draw", "markdown"]

# Okabe and Ito's colours, told apart by the colour-blind; markers, lines and sizes that show when one covers another
STYLES = {
    "float64": ("#000000", "o", "-", 5),
    "float32": ("#0072B2", "s", "-", 7.5),
    "tf32": ("#009E73", "D", "--", 4),
    "bfloat16": ("#D55E00", "v", "-", 8.5),
    "float16": ("#CC79A7", "^", "--", 4.5),
}
GIB = 2.0**30
OFF_SCALE = 1e-300  # for 0 on a logarithmic axis: left of what is shown
PHASES = ("forward", "backward")


def markdown(record: Record) -> str:
    """The results as Markdown: a table for each structure, and two of the blocks of the largest."""
    lines = [f"# Precisions of a MACE: {model_of(record)}", "", *facts(record)]
    for system in record["systems"]:
        lines += ["", f"## {system['name']}: {system['n_atoms']:,} atoms, {system['n_edges']:,} edges", ""]
        lines += table(
            [
                "precision",
                "time / ms (quartiles)",
                "float64 time ÷ time",
                "float32 time ÷ time",
                "peak memory / GiB",
                "force MAE / meV/Å",
                "force max / meV/Å",
                "force rel. L2",
                "run to run, force max / meV/Å",
                "energy / meV/atom",
                "interaction energy / meV/atom",
                "non-finite forces",
            ],
            [model_row(name, row) for name, row in system["end_to_end"].items()],
        )
    system = largest_with_blocks(record)
    if system:
        lines += block_tables(system)
    return "\n".join(lines)


def block_tables(system: Record) -> list[str]:
    """The blocks of one structure alone: times, errors and, where it was measured, memory."""
    names, blocks = list(system["end_to_end"]), system["blocks"].items()
    parts: list[tuple[str, Callable[[Record], str]]] = [
        ("time forward + backward / ms", times),
        ("relative L2 error forward, backward", relative_errors),
    ]
    if any(row.get("peak_memory_bytes") for _, rows in blocks for row in rows.values()):
        parts.append(("peak memory / MiB", lambda row: number(row["peak_memory_bytes"], 2.0**-20, ".1f")))
    lines = []
    for title, cell in parts:
        lines += ["", f"## Blocks alone, {system['name']}: {title}", ""]
        cells = [[f"`{block}`", *(cell_of(rows[name], cell) for name in names)] for block, rows in blocks]
        lines += table(["block", *names], cells)
    zero = [block for block, rows in blocks if has_zero_gradients(rows)]
    if zero:
        shown = ", ".join(f"`{block}`" for block in zero)
        lines += ["", f"The gradients of {shown} are zero but for rounding, so they have no relative error."]
    return lines


def has_zero_gradients(rows: Record) -> bool:
    """Whether all input gradients of a block are zero but for rounding, so that nothing can be relative to them."""
    tensors = rows["float64"].get("backward", {}).get("tensors", {}).values()
    return bool(tensors) and all(tensor["zero_but_for_rounding"] for tensor in tensors)


def facts(record: Record) -> Iterator[str]:
    """What was run, line by line."""
    about, versions = record["provenance"], record["provenance"]["versions"]
    options = record["options"]
    revision = re.sub(r"^(\w{12})\w*", r"\1", record["revision"]) or "unknown"
    weights = "random weights" if record["architecture"] else "its own weights"
    yield f"- Run: `{record['command']}`, {about['created']}, revision {revision}"
    yield f"- Device: {about['device']}; torch {versions['torch']}, mace-torch {versions['mace-torch']}"
    yield (
        f"- Model: {about['model_class']} {about['hidden_irreps']}, edges {about['edge_irreps']}, "
        f"{len(about['atomic_numbers'])} elements, cutoff {about['cutoff']} Å, {about['n_parameters']:,} parameters, "
        f"{weights}, SHA-256 {about['model_sha256'][:12]}…"
    )
    yield f"- Time: median of {options['repeats']} rounds, ratios within rounds; blocks of {record['block_repeats']}"
    rms = [s["reference_forces_rms_eV_per_A"] for s in record["systems"] if "reference_forces_rms_eV_per_A" in s]
    if rms:
        yield f"- Errors against float64, whose forces are {number(max(rms), 1, '.3g')} eV/Å (root mean square)"
    audit = record.get("audit_memory")
    if audit:
        shown = [
            f"{', '.join(run['precisions'])}: {number(run['peak_memory_bytes'], 1 / GIB, '.2f')} GiB"
            for run in audit["runs"]
        ]
        yield f"- Peak memory of a whole audit of {audit['structure']}, float64 against {'; against '.join(shown)}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, numbers to the right."""
    return [
        "| " + " | ".join(head) + " |",
        "|---|" + "--:|" * (len(head) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def model_row(name: str, row: Record) -> list[str]:
    """One precision end to end."""
    if row["status"] != "ok":
        return [name, "out of memory", *["–"] * 10]
    time, errors = row["time_ms"], row["errors"] or {}
    return [
        name,
        f"{time['median']:.1f} ({time['q25']:.1f}–{time['q75']:.1f})",
        speed_up(row["time_ratio_to_float64"]),
        speed_up(row["time_ratio_to_float32"]),
        number(row["peak_memory_bytes"], 1 / GIB, ".2f"),
        number(errors.get("forces_mae_meV_per_A"), 1, ".2g"),
        number(errors.get("forces_max_meV_per_A"), 1, ".2g"),
        number(errors.get("forces_rel_l2"), 1, ".2g"),
        number(errors.get("forces_run_to_run_max_meV_per_A"), 1, ".2g"),
        number(errors.get("energy_abs_meV_per_atom"), 1, ".2g"),
        number(errors.get("interaction_energy_abs_meV_per_atom"), 1, ".2g"),
        number(errors.get("forces_nonfinite"), 1, "d"),
    ]


def cell_of(row: Record, cell: Callable[[Record], str]) -> str:
    """One block in one precision."""
    return cell(row) if row["status"] == "ok" else "out of memory"


def times(row: Record) -> str:
    """Median times of a block."""
    return f"{row['forward_ms']['median']:.2f} + {row['backward_ms']['median']:.2f}"


def relative_errors(row: Record) -> str:
    """Errors of a block, the worst of its outputs and the worst of its inputs' gradients."""
    return ", ".join(number(row.get(phase, {}).get("rel_l2"), 1, ".1e") for phase in PHASES)


def number(value: float | None, factor: float, how: str) -> str:
    """A number in a table; a dash where there is none."""
    return "–" if value is None else f"{value * factor:{how}}"


def speed_up(ratio: Record | None) -> str:
    """How many times faster."""
    return "–" if ratio is None else f"{1 / ratio['median']:.2f}"


def model_of(record: Record) -> str:
    """What to call the model in a title."""
    about = record["provenance"]
    name = f"{about['model_class']} {about['hidden_irreps']}"
    return f"{name}, random weights" if record["architecture"] else f"{record['model_name']}, {name}"


def largest_with_blocks(record: Record) -> Record | None:
    """The largest structure whose blocks were measured."""
    systems = [system for system in record["systems"] if system["blocks"]]
    return systems[-1] if systems else None


def draw(record: Record, stem: Path) -> list[Path]:
    """Draw every figure that the results have; return the paths of the PNG files."""
    figures = {"pareto": pareto(record), "blocks": blocks(record), "scaling": scaling(record)}
    paths = []
    for name, figure in figures.items():
        if figure is not None:
            paths.append(stem.with_name(f"{stem.name}-{name}.png"))
            figure.savefig(paths[-1], dpi=130, bbox_inches="tight")
    return paths


def pareto(record: Record) -> Figure | None:
    """Force error against time, a panel for each structure; a line joins what nothing beats in both."""
    systems = [system for system in record["systems"] if measured(system)]
    if not systems:
        return None
    columns = min(2, len(systems))
    rows = -(-len(systems) // columns)
    figure = Figure(figsize=(4.2 * columns, 0.5 + 3.1 * rows), layout="constrained")
    for index, system in enumerate(systems):
        axes = figure.add_subplot(rows, columns, index + 1)
        points = measured(system)
        for name, (time, error) in points.items():
            color, marker, *_ = STYLES[name]
            row = system["end_to_end"][name]["time_ms"]
            axes.plot([row["q25"], row["q75"]], [error, error], color=color, lw=1.2)
            axes.plot(time, error, marker, color=color, ms=7, mec="white", mew=0.6)
        reference = system["end_to_end"]["float64"].get("time_ms")
        rivals = list(points.values())
        if reference:
            axes.axvline(reference["median"], color="black", lw=1, ls="--")
            rivals.append((reference["median"], 0.0))
        front = sorted(point for point in points.values() if not any(beats(rival, point) for rival in rivals))
        axes.plot([time for time, _ in front], [error for _, error in front], color="0.6", lw=1, zorder=0)
        axes.set_yscale("log")
        axes.set_xlim(0, 1.04 * axes.get_xlim()[1])
        axes.set_title(f"{system['name']}, {system['n_atoms']:,} atoms", fontsize=9)
        axes.set_xlabel("time of energy and forces / ms", fontsize=9)
        if index % columns == 0:
            axes.set_ylabel("relative force error, ‖ΔF‖₂ / ‖F‖₂", fontsize=9)
        tidy(axes)
    shown = [name for name in STYLES if any(name in measured(system) for system in systems)]
    handles = [*handles_of(shown), Line2D([], [], color="black", ls="--", lw=1, label="float64 (no error)")]
    handles.append(Line2D([], [], color="0.6", lw=1, label="Pareto front"))
    return finish(figure, handles, "Error against time", record)


def measured(system: Record) -> dict[str, tuple[float, float]]:
    """Time (ms) and relative force error of each reduced precision that has both."""
    return {
        name: (row["time_ms"]["median"], row["errors"]["forces_rel_l2"])
        for name, row in system["end_to_end"].items()
        if row["status"] == "ok" and row["errors"] and row["errors"]["forces_rel_l2"]
        if name != "float64"
    }


def beats(other: tuple[float, float], point: tuple[float, float]) -> bool:
    """Whether something is at least as fast and as accurate, and not the same."""
    return other != point and all(theirs <= own for theirs, own in zip(other, point, strict=True))


def blocks(record: Record) -> Figure | None:
    """How the errors of each block are distributed, forward and backward, in the largest structure."""
    system = largest_with_blocks(record)
    reduced = [name for name in system["end_to_end"] if name != "float64"] if system else []
    if not system or not reduced:
        return None
    names = list(system["blocks"])
    figure = Figure(figsize=(9.6, 1.2 + len(names) * (0.16 + 0.11 * len(reduced))), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True, sharex=True)
    titles = ("forward: outputs", "backward: gradients of the inputs")
    for axes, phase, title in zip(panels, PHASES, titles, strict=True):
        for row, block in enumerate(names):
            axes.axhspan(row - 0.5, row + 0.5, color="0.95" if row % 2 else "white", lw=0, zorder=0)
            for index, name in enumerate(reduced):
                errors = system["blocks"][block][name].get(phase)
                if errors:
                    offset = 0.72 * ((index + 0.5) / len(reduced) - 0.5)
                    whisker(axes, row + offset, errors["abs_error_over_rms_percentiles"], *STYLES[name][:2])
            if phase == "backward" and has_zero_gradients(system["blocks"][block]):
                where = {"transform": axes.get_yaxis_transform(), "ha": "center", "va": "center"}
                axes.text(
                    0.5, row, "zero but for rounding: nothing to be relative to", fontsize=8, color="0.4", **where
                )
        axes.set_xscale("log")
        axes.set_xlim(*decades(system))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), names)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("|Δ| / rms of the float64 values\n(a line from the left edge: that share is exact)", fontsize=9)
        tidy(axes)
        axes.xaxis.set_major_locator(LogLocator(numticks=9))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(visible=False, axis="y")
    title = f"Errors of each block alone, {system['name']}, {system['n_atoms']:,} atoms: percentiles 5–95, 25–75 and 50"
    return finish(figure, handles_of(reduced), title, record)


def whisker(axes: Axes, y: float, percentiles: Sequence[float | None], color: str, marker: str) -> None:
    """Percentiles 5 to 95 as a thin line, 25 to 75 as a thick one, the median as a marker; zeros are off the scale."""
    _, low, q25, median, q75, high, _ = percentiles
    for start, end, width in ((low, high, 1.0), (q25, q75, 3.0)):
        if end:
            axes.plot([start or OFF_SCALE, end], [y, y], color=color, lw=width, solid_capstyle="butt")
    if median:
        axes.plot(median, y, marker, color=color, ms=5, mec="white", mew=0.5)


def decades(system: Record) -> tuple[float, float]:
    """Limits of the error axis: whole decades around all percentiles that are drawn."""
    rows = [row.get(phase) for rows in system["blocks"].values() for row in rows.values() for phase in PHASES]
    values = [value for row in rows if row for value in row["abs_error_over_rms_percentiles"][1:-1] if value]
    low, high = (min(values), max(values)) if values else (1.0, 1.0)
    return 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high) + 0.1)


def scaling(record: Record) -> Figure | None:
    """Error, speed-up and, where it was measured, memory against the number of atoms."""
    systems = record["systems"]
    names = list(systems[0]["end_to_end"])
    has_memory = any(row.get("peak_memory_bytes") for system in systems for row in system["end_to_end"].values())
    panels: list[tuple[str, Callable[[Record], float | None]]] = [
        ("relative force error, ‖ΔF‖₂ / ‖F‖₂", lambda row: (row["errors"] or {}).get("forces_rel_l2")),
        (
            "speed-up, float64 time / time",
            lambda row: 1 / (row["time_ratio_to_float64"] or {"median": math.inf})["median"],
        ),
    ]
    if has_memory:
        panels.append(("peak memory / GiB", lambda row: (row["peak_memory_bytes"] or 0) / GIB))
    figure = Figure(figsize=(3.6 * len(panels), 3.5), layout="constrained")
    for index, (label, value) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        for name in names:
            rows = [(s["n_atoms"], s["end_to_end"][name]) for s in systems]
            points = [(n, value(row)) for n, row in rows if row["status"] == "ok"]
            shown = [(n, y) for n, y in points if y]
            if shown:
                color, marker, line, size = STYLES[name]
                axes.plot(*zip(*shown, strict=True), color=color, marker=marker, ls=line, ms=size, lw=1.2)
        axes.set_xscale("log")
        if "speed-up" in label:
            axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
        else:
            axes.set_yscale("log")
        axes.xaxis.set_major_locator(FixedLocator(sorted({system["n_atoms"] for system in systems})))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("atoms", fontsize=9)
        axes.set_ylabel(label, fontsize=9)
        tidy(axes)
    return finish(figure, handles_of(names), "Against system size", record)


def handles_of(names: Sequence[str]) -> list[Line2D]:
    """Legend entries of precisions."""
    return [Line2D([], [], color=STYLES[name][0], marker=STYLES[name][1], ls="", ms=6, label=name) for name in names]


def tidy(axes: Axes) -> None:
    """What all panels share."""
    axes.grid(color="0.88", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def finish(figure: Figure, handles: Sequence[Line2D], title: str, record: Record) -> Figure:
    """Add the legend and the titles."""
    figure.legend(handles=list(handles), loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8.5)
    device = (record["gpu"] or {"name": record["provenance"]["device"]})["name"]
    rows = [(name, s["n_atoms"], row["status"]) for s in record["systems"] for name, row in s["end_to_end"].items()]
    failed = [f"{name} with {n_atoms:,} atoms" for name, n_atoms, status in rows if status != "ok"]
    note = f"\nout of memory: {', '.join(failed)}" if failed else ""
    figure.suptitle(f"{title}\n{model_of(record)}, on {device}{note}", fontsize=10)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Redraw tables and figures of the files named on the command line, beside them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="JSON", help="what bench_precisions.py wrote")
    for path in parser.parse_args(argv).files:
        record = json.loads(path.read_text(encoding="utf-8"))
        path.with_suffix(".md").write_text(markdown(record) + "\n", encoding="utf-8")
        draw(record, path.with_suffix(""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
