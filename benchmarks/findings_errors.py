"""Sections of the page of findings: errors in the user's units, what they come from, and how many digits remain."""

import math
from collections.abc import Sequence

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
    decimal,
    each,
    extremes,
    labelled,
    listing,
    number,
    paragraph,
    percent,
)
from plots import table

__all__ = ["bits", "budget", "digits", "orders", "prediction", "ranges", "units"]

ENERGIES = {"energy": "total energy", "interaction_energy": "interaction energy"}


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
