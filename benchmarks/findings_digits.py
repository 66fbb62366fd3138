"""Sections of the page of findings: how many bits and digits are needed, lost and left, and what can be foreseen."""

import math
from collections.abc import Sequence

import pandas as pd
from findings_data import (
    MILLI,
    STORED_BITS,
    TOLERANCES,
    TOTAL,
    Lines,
    Model,
    bits_cell,
    decimal,
    each,
    extremes,
    listing,
    number,
    paragraph,
)
from plots import table

__all__ = ["bits", "digits", "orders", "prediction", "ranges"]


def bits(models: Sequence[Model]) -> Lines:
    """Bits that blocks need."""
    needed = {(model.name, tolerance): model.bits(tolerance) for model in models for tolerance in TOLERANCES}
    blocks = list(dict.fromkeys(name for series in needed.values() for name in series.index))
    by_name = {model.name: model for model in models}
    rows = [
        [
            block,
            *(
                bits_cell(by_name[name], series[block]) if block in series else "–"
                for (name, _), series in needed.items()
            ),
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
    by_formats: dict[str, list[str]] = {}
    for tolerance in TOLERANCES:
        needed = model.bits(tolerance).iloc[0]
        formats = [name for name, stored in STORED_BITS.items() if pd.notna(needed) and stored >= needed]
        by_formats.setdefault(listing(formats) or "none", []).append(f"{tolerance:g}")
    return "; ".join(f"for {listing(tolerances)} meV/Å {formats}" for formats, tolerances in by_formats.items())


def orders(models: Sequence[Model]) -> Lines:
    """Amplification by order l and parity."""
    keys = [(model, precision) for model in models for precision in model.precisions]
    amplifications = {}
    for model in models:
        irreps = model.table("irreps")
        chosen = irreps["tensor"].eq("message") | irreps["block"].str.startswith("products")
        amplifications[model.name] = irreps[chosen].set_index(["block", "tensor", "irrep", "precision", "mode"])[
            "amplification"
        ]
    arrays = sorted(dict.fromkeys(key[:3] for series in amplifications.values() for key in series.index), key=by_layer)

    def cell(model: Model, precision: str, array: tuple[str, ...]) -> str:
        series = amplifications[model.name]
        alone_and_within = [series.get((*array, precision, mode)) for mode in ("isolated", "propagated")]
        return "–" if None in alone_and_within else " → ".join(map(number, alone_and_within))

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
        *paragraph(each(models, lambda model: scalars(amplifications[model.name])) + "."),
        "",
        *paragraph(
            "The mean number of unit roundoffs, alone, over these rows: "
            + each(models, lambda model: mean_amplification(model, amplifications[model.name]))
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
    stored = [STORED_BITS[name] for model in models for name in model.precisions]
    return 2.0 ** (max(stored) - min(stored))


def digits(models: Sequence[Model]) -> Lines:
    """Significant digits, beside the measured ones."""
    rows, differences = [], []
    for model in models:
        estimated = {(row["precision"], row["quantity"]): row["digits"] for row in model.rows("digits")}
        errors = {row["precision"]: row["forces_rel_l2"] for row in model.rows("budget") if row["source"] == TOTAL}
        for precision in ("float64", *model.precisions):
            measured = -math.log10(errors[precision]) if precision in errors else None
            if measured is not None:
                differences.append((model.label(precision), estimated[precision, "forces"] - measured))
            cells = [estimated.get((precision, name)) for name in ("energy", "interaction_energy", "forces")]
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
