"""The page of findings, docs/what-we-learned.md, and its figures, from the JSON files of findings.py.

Every number is looked up in these files, and what a sentence claims is computed from them: whichever model is measured
next, the page says what is true of that one. Neither torch nor mace is needed.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from findings_data import (
    MILLI,
    PARTS,
    REST,
    STORED_BITS,
    TOLERANCES,
    TOTAL,
    Lines,
    Model,
    beside,
    bits_cell,
    broken,
    decimal,
    each,
    extremes,
    interval,
    labelled,
    line_of,
    listing,
    longest,
    number,
    paragraph,
    percent,
    read,
)
from findings_figures import draw_bits, draw_budget, draw_displacement
from findings_top import top
from plots import table

__all__ = ["write"]

THERMAL = 3 * 8.617333262e-2  # meV/K: the mean energy of an atom in a harmonic solid, 3 k_B T
ENERGIES = {"energy": "total energy", "interaction_energy": "interaction energy"}


def write(results: Path, docs: Path) -> None:
    """Write what-we-learned.md and figures/*.png into a folder.

    Args:
        results: The folder of findings-NAME.json and findings-NAME-drift.json.
        docs: Where the page goes.
    """
    models = read(results)
    (docs / "figures").mkdir(parents=True, exist_ok=True)
    figures(models, docs / "figures")
    sections = [top, setup, units, budget, bits, orders, symmetry, smoothness, drift, prediction, digits, ranges]
    lines = ["# What we learned about MACE"]
    for section in sections:
        lines += ["", *section(models)]
    (docs / "what-we-learned.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def figures(models: Sequence[Model], folder: Path) -> None:
    """Draw all figures."""
    bars = [
        model.shares.loc[precision].reset_index().assign(label=model.label(precision))
        for model in models
        for precision in model.precisions
    ]
    draw_budget(pd.concat(bars), folder / "findings-budget.png")
    sweeps = {model.name: model.table("sweep") for model in models}
    sweeps = {name: sweep.assign(forces=MILLI * sweep["forces"]) for name, sweep in sweeps.items()}
    draw_bits(sweeps, list(TOLERANCES), folder / "findings-bits.png")
    draw_displacement({model.name: model.table("displacement") for model in models}, folder / "findings-energy.png")


def setup(models: Sequence[Model]) -> Lines:
    """What was run on what."""

    def facts(model: Model) -> Iterator[tuple[str, str]]:
        found, versions = model.record["provenance"], model.record["provenance"]["versions"]
        names, n_atoms = model.record["structures"], model.record["n_atoms"]
        layers = f"{len(found['interactions'])} layers" if "interactions" in found else "layers unknown"
        yield (
            "architecture",
            f"{found['model_class']}, {found['hidden_irreps']}, edges {found['edge_irreps']}, {layers}",
        )
        yield "parameters", f"{found['n_parameters']:,}"
        yield "cutoff / Å", f"{found['cutoff']:g}"
        yield "SHA-256 of the weights", f"{found['model_sha256'][:12]}…"
        yield "stored in", found["model_dtype"]
        yield "structures", ", ".join(names) if len(set(names)) < 10 else f"{len(names)}, {names[0]} to {names[-1]}"
        yield "atoms of each", f"{min(n_atoms)} to {max(n_atoms)}" if len(set(n_atoms)) > 1 else f"{n_atoms[0]}"
        yield "precisions", ", ".join(found["precisions"])
        yield "device", found["device"]
        yield "versions", ", ".join(f"{name} {versions[name]}" for name in ("torch", "mace-torch", "e3nn", "ase"))
        yield "measured", found["created"]

    columns = [dict(facts(model)) for model in models]
    n_explained = {model.record["n_explained"] for model in models}
    return [
        "## How it was measured",
        "",
        *table(
            ["", *(model.name for model in models)], [[key, *(column[key] for column in columns)] for key in columns[0]]
        ),
        "",
        *paragraph(
            "Energies, forces, stress and the errors of blocks are over all structures. What takes many runs (budget, "
            f"bits, prediction, digits) is over {listing(map(str, sorted(n_explained)))} of them, evenly spread; "
            "symmetry and smoothness are of the largest of these. To make the page again, with your own model in "
            "place of `my.model`:"
        ),
        "",
        "```console",
        "$ python benchmarks/findings.py measure demo demo demo",
        '$ python benchmarks/findings.py measure mine my.model "my.xyz@:16"',
        '$ python benchmarks/findings.py drift demo demo "benzene=demo@4" "ice VIII=demo@6"',
        '$ python benchmarks/findings.py drift mine my.model "first=my.xyz@0"',
        "$ python benchmarks/findings.py write",
        "```",
    ]


def units(models: Sequence[Model]) -> Lines:
    """Errors in physical terms."""
    columns = {
        "energy": "energy / meV/atom",
        "interaction_energy": "interaction energy / meV/atom",
        "forces_mae": "forces MAE / meV/Å",
        "forces_max": "forces, largest / meV/Å",
        "stress": "stress / GPa",
        "forces_share": "forces MAE ÷ model's own",
        "energy_share": "energy ÷ model's own",
        "net_force": "net force / meV/Å",
        "net_torque": "net torque / meV",
    }
    rows = [
        [
            model.label(str(precision)),
            *((percent if name.endswith("share") else number)(row.get(name)) for name in columns),
        ]
        for model in models
        for precision, row in model.overall.iterrows()
    ]
    own = each(
        [model for model in models if labelled(model, "forces")],
        lambda model: (
            f"{number(model.overall.model_forces_mae.iloc[0])} meV/Å and "
            f"{number(model.overall.model_energy.iloc[0])} meV/atom"
        ),
    )
    return [
        "## In your units",
        "",
        *paragraph(
            "Energies are means of |Δ| per atom over structures, forces over all components; stress is the largest "
            "component. The total energy contains the isolated atoms' energies, large numbers whose sum few digits "
            "cannot hold; the interaction energy is without them. Net force and torque are the precision's own, the "
            "largest over isolated molecules, and zero in exact arithmetic. "
            + (
                f"“The model's own” is the mean error of float64 against the labels of the structures; {own}."
                if own
                else ""
            )
        ),
        "",
        *table(["model, precision", *columns.values()], rows),
        "",
        *paragraph(
            "The error of the total energy from structure to structure, smallest to largest / meV/atom: "
            f"{beside(models, energy_range)}. Where that range is narrow beside its numbers the error is mostly an "
            "offset, which differences of energies do not see."
        ),
    ]


def energy_range(model: Model, precision: str) -> str:
    """Errors of the total energy over structures."""
    physics = model.table("physics")
    energy = physics.loc[(physics["precision"] == precision) & (physics["structure"] != "all"), "energy"]
    return f"{number(energy.min())}–{number(energy.max())}"


def budget(models: Sequence[Model]) -> Lines:
    """Sources of the error."""
    keys = [(model, precision) for model in models for precision in model.precisions]
    sources = list(dict.fromkeys(name for model in models for name in model.shares.index.get_level_values("source")))

    def cell(model: Model, precision: str, source: str) -> str:
        if (precision, source) not in model.shares.index:
            return "–"
        row = model.shares.loc[precision].loc[source]
        return f"{number(row['forces'])} ({percent(row['share'])})"

    rows = [[name, *(cell(model, precision, name) for model, precision in keys)] for name in sources]
    rows += [
        [name, *(number(model.budget_row(p, name)["forces_rms"]) for model, p in keys)] for name in (PARTS, TOTAL, REST)
    ]
    energies = [
        [model.label(p), *(number(model.budget_row(p, row)[name]) for name in ENERGIES for row in (PARTS, TOTAL))]
        for model, p in keys
    ]
    return [
        "## What the error comes from",
        "",
        *paragraph(
            "One thing at a time is rounded in a float64 run: the geometry, all weights, or one block's inputs and the "
            "results of the operations in it, forward and backward. Errors are root mean squares over force "
            "components, in meV/Å, with the share of the sum of squares; blocks of a kind are taken together. Errors "
            "that know nothing of one another add as squares. What the parts do not explain is "
            "√(all² − parts²), negative where the parts are larger: rounding outside the blocks, and errors that do "
            "know of one another."
        ),
        "",
        *table(["rounded alone", *(model.label(precision) for model, precision in keys)], rows),
        "",
        "![Shares of the squared force error by source](figures/findings-budget.png)",
        "",
        *paragraph(f"{explained(models)} {without(models)}"),
        "",
        *paragraph(
            "For energies (meV/atom, the largest over structures) the parts and all together are as follows. The "
            "isolated atoms' energies are among the weights, and the error of an element's is multiplied by its number "
            "of atoms; errors of different elements, and of the sums, may cancel."
        ),
        "",
        *table(["model, precision", *(f"{ENERGIES[n]}, {w}" for n in ENERGIES for w in ("parts", "all"))], energies),
        "",
        *paragraph(outside(models)),
    ]


def explained(models: Sequence[Model]) -> str:
    """How well the parts add up."""
    low, high = extremes(
        [
            (m.label(p), m.budget_row(p, PARTS)["forces_rms"] / m.budget_row(p, TOTAL)["forces_rms"])
            for m in models
            for p in m.precisions
        ]
    )
    return f"The parts together make {number(low[1])} ({low[0]}) to {number(high[1])} ({high[0]}) of the whole error."


def without(models: Sequence[Model]) -> str:
    """What would remain if positions were not rounded."""

    def remaining(model: Model, precision: str) -> str:
        return percent(math.sqrt(1 - model.shares["share"].get((precision, "geometry"), 0.0)))

    return (
        "The geometry is positions, cell and shifts rounded before neighbours' positions are subtracted, which takes "
        "digits from short vectors. If it were left in float64, of the parts would remain: "
        f"{beside(models, remaining)}."
    )


def outside(models: Sequence[Model]) -> str:
    """Where the total energy loses its digits."""
    found = [
        (model.label(p), 1 - (model.budget_row(p, PARTS)["energy"] / model.budget_row(p, TOTAL)["energy"]) ** 2)
        for model in models
        for p in model.precisions
    ]
    mostly = [f"{label} ({percent(share)})" for label, share in found if share > 0.5]
    if not mostly:
        return "Nowhere does more than half of the squared error of the total energy arise outside the parts."
    return (
        f"More than half of the squared error of the total energy arises outside the parts in {listing(mostly)}. "
        "Outside the blocks are scale and shift, and the sums over atoms."
    )


def bits(models: Sequence[Model]) -> Lines:
    """Bits that blocks need."""
    needed = {(model.name, tolerance): model.bits(tolerance) for model in models for tolerance in TOLERANCES}
    blocks = list(dict.fromkeys(name for found in needed.values() for name in found.index))
    by_name = {model.name: model for model in models}
    rows = [
        [
            block,
            *(bits_cell(by_name[name], found[block]) if block in found else "–" for (name, _), found in needed.items()),
        ]
        for block in blocks
    ]
    tried = sorted({int(b) for model in models for b in model.table("sweep")["bits"]})
    return [
        "## How many bits each block needs",
        "",
        *paragraph(
            "One block at a time, its inputs, weights and arithmetic, is rounded to fewer and fewer bits with "
            "float64's range, and the largest error of any force component must stay within "
            f"{listing(f'{tolerance:g}' for tolerance in TOLERANCES)} meV/Å. Tried were "
            f"{listing(map(str, tried))} stored bits; bfloat16 stores {STORED_BITS['bfloat16']}, float16 "
            f"{STORED_BITS['float16']}, float32 {STORED_BITS['float32']}. In the whole model all is rounded, the "
            f"geometry too; {'no' if all(map(whole_needs_most, needed.values())) else 'some'} block alone needs more."
        ),
        "",
        *table(["rounded", *(f"{name}, {tolerance:g} meV/Å" for name, tolerance in needed)], rows),
        "",
        "![Largest force error against stored bits](figures/findings-bits.png)",
        "",
        *paragraph(f"Formats with bits enough for the whole model, of the three: {each(models, enough)}."),
    ]


def whole_needs_most(needed: pd.Series) -> bool:
    """Whether no block needs more bits than the whole model, the first row."""
    filled = needed.fillna(99)
    return bool(filled.iloc[0] >= filled.max())


def enough(model: Model) -> str:
    """Which hardware format has bits enough for the whole model."""
    found: dict[str, list[str]] = {}
    for tolerance in TOLERANCES:
        needed = model.bits(tolerance).iloc[0]
        formats = [name for name, stored in STORED_BITS.items() if pd.notna(needed) and stored >= needed]
        found.setdefault(listing(formats) or "none", []).append(f"{tolerance:g}")
    return "; ".join(f"for {listing(tolerances)} meV/Å {formats}" for formats, tolerances in found.items())


def orders(models: Sequence[Model]) -> Lines:
    """Amplification by order l and parity."""
    keys = [(model, precision) for model in models for precision in model.precisions]
    found = {}
    for model in models:
        irreps = model.table("irreps")
        chosen = irreps["tensor"].eq("message") | irreps["block"].str.startswith("products")
        found[model.name] = irreps[chosen].set_index(["block", "tensor", "irrep", "precision", "mode"])["amplification"]
    arrays = sorted(dict.fromkeys(key[:3] for series in found.values() for key in series.index), key=by_layer)

    def cell(model: Model, precision: str, array: tuple[str, ...]) -> str:
        series = found[model.name]
        pair = [series.get((*array, precision, mode)) for mode in ("isolated", "propagated")]
        return "–" if None in pair else " → ".join(map(number, pair))

    rows = [
        [f"{block} {tensor}, {irrep}", *(cell(model, precision, (block, tensor, irrep)) for model, precision in keys)]
        for block, tensor, irrep in arrays
    ]
    return [
        "## By order l and parity",
        "",
        *paragraph(
            "Relative errors (L2) in unit roundoffs u of the precision, of the irreps of messages and of what products "
            "give: the block alone on float64's inputs rounded → within the whole model. An amplification of 10 in "
            "float16 is a relative error of 10 × 2⁻¹¹."
        ),
        "",
        *table(["output, irrep", *(model.label(precision) for model, precision in keys)], rows),
        "",
        *paragraph(each(models, lambda model: scalars(found[model.name])) + "."),
        "",
        *paragraph(
            "The mean number of unit roundoffs, alone, over these rows: "
            + each(models, lambda model: mean_amplification(model, found[model.name]))
            + ". CPUs and tensor cores add the products of half precisions in float32 and round once at the end, but "
            "those of float32 in float32."
        ),
    ]


def by_layer(array: tuple[str, ...]) -> tuple[str, str, str]:
    """Order of rows: by layer, messages before products."""
    block, tensor, irrep = array
    return block.partition(".")[2] + block, tensor, irrep


def scalars(series: pd.Series) -> str:
    """Whether scalars come out better than the other orders."""
    propagated = series.xs("propagated", level="mode").unstack("irrep")
    several = propagated[propagated.notna().sum(axis=1) > 1]
    best = int((several.idxmin(axis=1) == "0e").sum())
    spread = several.max(axis=1) / several.min(axis=1)
    return (
        f"within the whole model scalars (0e) have the smallest relative error in {best} of the {len(several)} outputs "
        f"with more than one order, precisions counted apart; the worst order is {number(spread.min())} to "
        f"{number(spread.max())} times the best"
    )


def mean_amplification(model: Model, series: pd.Series) -> str:
    """Of each precision, isolated."""
    means = series.xs("isolated", level="mode").groupby("precision").mean()
    return ", ".join(f"{precision} {number(means[precision])}" for precision in model.precisions)


def symmetry(models: Sequence[Model]) -> Lines:
    """Equivariance by precision."""
    keys = [(model, precision) for model in models for precision in ("float64", *model.precisions)]
    motions = list(models[0].table("equivariance")["motion"].unique())
    rows = [
        [f"{motion}, {tensor or 'worst block'}", *(number(broken(model, p, motion, tensor)) for model, p in keys)]
        for motion in motions
        for tensor in ("energy", "forces", "")
    ]
    irreps = [row for model in models for row in irreps_of_worst(model)]
    return [
        "## Symmetry",
        "",
        *paragraph(
            "The structure is turned, inverted, moved or its atoms are renumbered; the relative difference (L2) is "
            "between the results and those of the structure at rest, turned or renumbered likewise. float64 stands "
            "beside the others, because its own rounding breaks symmetries too, and so does that of the comparison, "
            "some 1e-16. Energies are interaction energies: where the isolated atoms' energies of a model are averages "
            "fitted to its data these are small, and relative errors of them large. A 0 may mean symmetry, or numbers "
            "so far apart that the energy stays the same one."
        ),
        "",
        *table(["motion, what", *(model.label(precision) for model, precision in keys)], rows),
        "",
        *paragraph(
            "The motion that changes forces most: "
            + beside(models, lambda model, precision: worst_motion(model, precision, motions))
            + ". A translation makes coordinates larger, up to 3.7 Å along each axis, and a rotation moves them to "
            "other numbers: both round the positions anew."
        ),
        "",
        *paragraph(
            "Under rotation, the block output that each model's coarsest precision breaks most, irrep by irrep:"
        ),
        "",
        *table(["output, irrep", *(["float64", *longest(models)])], irreps),
    ]


def worst_motion(model: Model, precision: str, motions: Sequence[str]) -> str:
    """Of forces."""
    errors = {motion: broken(model, precision, motion, "forces") for motion in motions}
    motion = max(errors, key=lambda name: errors[name])
    return f"{motion} ({number(errors[motion])})"


def irreps_of_worst(model: Model) -> Iterator[list[str]]:
    """A row for each irrep of the block output that rotation breaks most, in the precision of the largest errors."""
    rows = model.table("equivariance").query("motion == 'rotation' and block != 'model'").dropna(subset=["rel_l2"])
    block, tensor = rows.sort_values("rel_l2")[["block", "tensor"]].iloc[-1]
    own = rows[(rows["block"] == block) & (rows["tensor"] == tensor)]
    wide = own.pivot_table(index="irrep", columns="precision", values="rel_l2", sort=False)
    for irrep, row in wide.iterrows():
        yield [
            f"{model.name}, {block} {tensor}, {irrep}",
            *(number(row.get(precision)) for precision in ("float64", *model.precisions)),
        ]


def smoothness(models: Sequence[Model]) -> Lines:
    """Finite differences, and steps along a displacement."""
    rows = []
    for model in models:
        for row, step in zip(model.rows("finite_differences"), model.rows("steps"), strict=True):
            values = [MILLI * row["difference"], MILLI * row["expected"], row["relative"], row["step"]]
            energy_step = number(step["energy_step"]) if step["n_distinct"] > 1 else "constant"
            cells = [*map(number, values), energy_step, number(step["force_step"]), f"{step['n_distinct']:.0f}"]
            rows.append([model.label(row["precision"]), *cells])
    return [
        "## Smoothness",
        "",
        *paragraph(
            "Forces beside central differences of the precision's own energy, with the step that suits each best, and "
            "the difference that truncation and noise of the energy alone would make. Then the energy and the force "
            f"along {line_of(models)}: steps are what a cubic does not explain of the difference from "
            "float64 (root mean square), so float64 has none by definition; the interaction energy is taken, where "
            "the isolated atoms' energies cannot hide how the rest changes."
        ),
        "",
        *table(
            [
                "model, precision",
                "difference / meV/Å",
                "truncation and noise / meV/Å",
                "relative to forces",
                "finite step / Å",
                "energy steps / meV/atom",
                "force steps / meV/Å",
                "different energies",
            ],
            rows,
        ),
        "",
        "![Energy along a displacement](figures/findings-energy.png)",
        "",
        *paragraph(each(models, gradients) + "."),
    ]


def gradients(model: Model) -> str:
    """Whether forces are the gradient of the energy, and what can be seen of it."""
    rows = model.table("finite_differences").set_index("precision")
    ratio = rows["difference"] / rows["expected"]
    above = [f"{precision} ({number(value)} times)" for precision, value in ratio.items() if value > 3]
    seen = ", ".join(
        f"{precision} {percent(value)}" for precision, value in (rows["relative"] / ratio).items() if value
    )
    found = (
        f"more than threefold what truncation and noise explain in {listing(above)}"
        if above
        else f"at most {number(ratio.max())} times what truncation and noise explain, in every precision"
    )
    return f"the difference is {found}. What they explain, and hide, is of the forces: {seen}"


def drift(models: Sequence[Model]) -> Lines:
    """Energy drift of dynamics."""
    found = [row for model in models for row in model.drifts]
    if not found:
        return ["## Energy drift", "", "Dynamics were not run."]
    rows = [
        [
            f"{row['label']}, {row['precision']}",
            interval(row),
            "no" if row["is_zero"] else "yes",
            "–" if row["precision"] == "float64" else "yes" if row["apart"] else "no",
            number(row["fluctuation"]),
        ]
        for row in found
    ]
    fastest = max(found, key=lambda row: abs(row["drift"]))
    options = "{n_runs} runs of {steps:,} steps of 0.5 fs, from velocities of 300 K"
    lengths = each(models, lambda model: options.format(**model.dynamics["options"]) if model.dynamics else "")
    return [
        "## Energy drift",
        "",
        *paragraph(
            f"Dynamics at constant energy (velocity Verlet), from the same velocities in every precision; {lengths}. "
            "Drift is the slope of the total energy, the mean over runs with its 95 % confidence interval (Student's t "
            "over runs); it differs from zero where the interval leaves zero out, and from float64's where the two "
            "intervals are apart. With so few runs an interval is wide: “no” means not shown, not absent. Fluctuation "
            "is the root mean square about the line."
        ),
        "",
        *table(
            [
                "model, structure, precision",
                "drift / meV/atom/ps",
                "differs from zero",
                "differs from float64's",
                "fluctuation / meV/atom",
            ],
            rows,
        ),
        "",
        *paragraph(
            f"The fastest drift, {number(fastest['drift'])} meV/atom/ps ({fastest['label']}, {fastest['precision']}), "
            "would change the temperature of a harmonic solid, 3 k_B T for each atom, by "
            f"{number(fastest['drift'] / THERMAL)} K in a picosecond."
        ),
    ]


def prediction(models: Sequence[Model]) -> Lines:
    """Predicted beside measured."""
    rows, ratios = [], list[tuple[str, float]]()
    for model in models:
        for row in model.rows("prediction"):
            ratios.append((model.label(row["precision"]), row["forces"] / row["forces_expected"]))
            values = [MILLI * row["forces_expected"], MILLI * row["forces"], ratios[-1][1]]
            values += [MILLI * row[name] for name in ("energy_bound", "energy_expected", "energy")]
            rows.append([ratios[-1][0], *map(number, values), number(row["energy"] / row["energy_expected"])])
    low, high = extremes(ratios)
    return [
        "## Predicted without running the precision",
        "",
        *paragraph(
            "From adjoints of one float64 run, to first order: every input of every block rounded once, errors "
            "independent (the energy's bound: all in the worst direction). Rounding inside blocks, of the geometry "
            "and of the weights is not in it, nor of sums over atoms, so that more is to be measured; it cannot see "
            "overflow or underflow, and does not hold where errors are no longer small. Forces are root mean squares; "
            "energies are interaction energies, the largest over structures."
        ),
        "",
        *table(
            [
                "model, precision",
                "forces expected / meV/Å",
                "measured",
                "ratio",
                "energy bound / meV/atom",
                "expected",
                "measured",
                "ratio",
            ],
            rows,
        ),
        "",
        *paragraph(
            f"The measured force error is {number(low[1])} ({low[0]}) to {number(high[1])} ({high[0]}) times the "
            f"expected one over precisions whose unit roundoffs differ by up to {number(span(models))}."
        ),
    ]


def span(models: Sequence[Model]) -> float:
    """How much coarser the coarsest precision is than the finest."""
    found = [STORED_BITS[name] for model in models for name in model.precisions]
    return 2.0 ** (max(found) - min(found))


def digits(models: Sequence[Model]) -> Lines:
    """Significant digits, beside the measured ones."""
    rows, differences = [], []
    for model in models:
        found = {(row["precision"], row["quantity"]): row["digits"] for row in model.rows("digits")}
        errors = {row["precision"]: row["forces_rel_l2"] for row in model.rows("budget") if row["source"] == TOTAL}
        for precision in ("float64", *model.precisions):
            measured = -math.log10(errors[precision]) if precision in errors else None
            if measured is not None:
                differences.append((model.label(precision), found[precision, "forces"] - measured))
            cells = [found.get((precision, name)) for name in ("energy", "interaction_energy", "forces")]
            rows.append([model.label(precision), *map(decimal, [*cells, measured])])
    low, high = extremes(differences)
    return [
        "## Significant digits",
        "",
        *paragraph(
            "Decimal digits on which runs with stochastic rounding agree, the fewest over structures; no reference is "
            "used. Beside them −log₁₀ of the relative force error (L2) against float64, over all these structures. "
            "Runs rounded stochastically are up to √2 noisier than rounding to nearest, and the worst structure is "
            "below all together: somewhat fewer digits are to be expected."
        ),
        "",
        *table(["model, precision", "energy", "interaction energy", "forces", "forces, against float64"], rows),
        "",
        *paragraph(
            f"The estimate without a reference is off by {decimal(low[1], '+')} ({low[0]}) to {decimal(high[1], '+')} "
            f"({high[0]}) digits."
        ),
    ]


def ranges(models: Sequence[Model]) -> Lines:
    """Overflow, underflow, NaN."""

    def first(model: Model) -> str:
        rows = model.table("range")
        if rows.empty:
            return f"every number stays within range in {listing(model.precisions)}"
        rows = rows.sort_values("kind", key=lambda kind: kind == "flush", kind="stable").drop_duplicates("precision")
        fine = [name for name in model.precisions if name not in set(rows["precision"])]
        return "; ".join([*rows["message"], *([f"nothing in {listing(fine)}"] if fine else [])])

    return [
        "## Range",
        "",
        *paragraph(
            "What first overflows, becomes NaN, or vanishes with more of its tensor than rounding takes, weights "
            f"included: {each(models, first)}."
        ),
    ]
