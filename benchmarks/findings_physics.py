"""Sections of the page of findings: symmetry, smoothness and energy drift."""

from collections.abc import Iterator, Sequence

from findings_data import (
    MILLI,
    Lines,
    Model,
    beside,
    broken_and_spread,
    each,
    interval,
    line_of,
    listing,
    longest,
    number,
    paragraph,
    percent,
)
from plots import table
from records import Record

__all__ = ["drift", "smoothness", "symmetry"]

THERMAL = 3 * 8.617333262e-2  # meV/K: the mean energy of an atom in a harmonic solid, 3 k_B T


OF_SEEDS = (
    "Numbers are means over random motions ± their standard deviation. For a permutation atoms are renumbered and the "
    "graph is built anew; edge order is another order of the edges alone; batch is the structure as one of a batch of "
    "eight, against alone."
)


def symmetry(models: Sequence[Model]) -> Lines:
    """Equivariance by precision."""
    keys = [(model, precision) for model in models for precision in ("float64", *model.precisions)]
    motions = list(models[0].table("equivariance")["motion"].unique())
    rows = [
        [
            f"{motion}, {tensor or 'worst block'}",
            *(with_spread(*broken_and_spread(model, p, motion, tensor)) for model, p in keys),
        ]
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
            "so far apart that the energy stays the same one. " + OF_SEEDS
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


def with_spread(mean: float, spread: float) -> str:
    """A mean and its standard deviation, where there is one."""
    return f"{number(mean)} ± {number(spread)}" if spread > 0 else number(mean)


def worst_motion(model: Model, precision: str, motions: Sequence[str]) -> str:
    """Of forces; all that the spread over random motions does not tell from it."""
    errors = {motion: broken_and_spread(model, precision, motion, "forces") for motion in motions}
    worst = max(errors, key=lambda name: errors[name][0])
    lowest = errors[worst][0] - errors[worst][1]
    others = [motion for motion, (mean, spread) in errors.items() if motion != worst and mean + spread > lowest]
    return f"{' or '.join([worst, *others])} ({with_spread(*errors[worst])})"


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
    difference = (
        f"more than threefold what truncation and noise explain in {listing(above)}"
        if above
        else f"at most {number(ratio.max())} times what truncation and noise explain, in every precision"
    )
    return f"the difference is {difference}. What they explain, and hide, is of the forces: {seen}"


def drift(models: Sequence[Model]) -> Lines:
    """Energy drift of dynamics."""
    drifts = [row for model in models for row in model.drifts]
    if not drifts:
        return ["## Energy drift", "", "Dynamics were not run."]
    rows = [
        [
            f"{row['label']}, {row['precision']}",
            interval(row),
            "no" if row["is_zero"] else "yes",
            "–" if row["precision"] == "float64" else told_from_float64(row),
            number(row["fluctuation"]),
        ]
        for row in drifts
    ]
    fastest = max(drifts, key=lambda row: abs(row["drift"]))
    options = "{n_runs} runs of {steps:,} steps of 0.5 fs, from velocities of 300 K"
    lengths = each(models, lambda model: options.format(**model.dynamics["options"]) if model.dynamics else "")
    return [
        "## Energy drift",
        "",
        *paragraph(
            f"Dynamics at constant energy (velocity Verlet), from the same velocities in every precision; {lengths}. "
            "Drift is the slope of the total energy, the mean over runs with its 95 % confidence interval (Student's t "
            "over runs); it differs from zero where the interval leaves zero out, and from float64's where that of the "
            "differences, run by run, does. With so few runs an interval is wide: “no” means not shown, not absent, "
            "and names the difference that would have been shown in 95 % of cases. Fluctuation is the root mean square "
            "about the line."
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
            f"{number(fastest['drift'] / THERMAL)} K in a picosecond. {by_chance(drifts)}"
        ),
    ]


def by_chance(drifts: Sequence[Record]) -> str:
    """How many of the comparisons would differ if nothing did."""
    n_compared = sum(row["precision"] != "float64" for row in drifts)
    return (
        f"Of {n_compared} comparisons at 95 % confidence {number(0.05 * n_compared)} would differ by chance if none "
        "did: a difference near the end of its interval is no more than a hint."
    )


def told_from_float64(row: Record) -> str:
    """Whether a drift differs from float64's, and by how much; if not, the difference that would have been shown."""
    if row["apart"]:
        return f"yes, by {number(row['difference'])} ± {number(row['difference_confidence'])}"
    return f"no, {number(row['detectable'])} would have been"
