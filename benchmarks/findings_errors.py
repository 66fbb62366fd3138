"""Sections of the page of findings: errors in the user's units, and what they come from."""

import math
from collections.abc import Sequence

from findings_contributions import largest_part, of_precision
from findings_data import (
    PARTS,
    REST,
    TOTAL,
    Lines,
    Model,
    beside,
    each,
    extremes,
    labelled,
    listing,
    number,
    paragraph,
    percent,
)
from plots import table

__all__ = ["budget", "units"]

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
        row = model.shares.loc[precision].loc[source].to_dict()
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
        *paragraph(f"{explained(models)} {without(models)} {otherwise(models)}"),
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


def otherwise(models: Sequence[Model]) -> str:
    """Where rounding alone has another largest source than the precision's own operations."""
    cases = []
    for model in models:
        for precision in model.precisions:
            shares = model.shares.loc[precision]["share"]
            largest, part = str(shares.idxmax()), largest_part(model, precision)[0]
            if largest != part:
                own = of_precision(model, precision)["forces_share"]
                share = float(own[own.index.str.split(".").str[0] == largest].sum())
                cases.append(
                    f"{model.label(precision)}: {largest} has {percent(shares.max())} here, {percent(share)} by the "
                    "precision's own operations"
                )
    if not cases:
        return (
            "The largest source is everywhere the part that makes most of the error by the precision's own operations."
        )
    return (
        f"Rounding in place of a precision names another largest source than the precision itself in {listing(cases)}, "
        "which is what counts."
    )


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
    shares = [
        (model.label(p), 1 - (model.budget_row(p, PARTS)["energy"] / model.budget_row(p, TOTAL)["energy"]) ** 2)
        for model in models
        for p in model.precisions
    ]
    mostly = [f"{label} ({percent(share)})" for label, share in shares if share > 0.5]
    if not mostly:
        return "Nowhere does more than half of the squared error of the total energy arise outside the parts."
    return (
        f"More than half of the squared error of the total energy arises outside the parts in {listing(mostly)}. Sums "
        "over atoms are among the parts."
    )
