"""The top of the page of findings: what to take from it, a line each."""

from collections.abc import Sequence

from findings_contributions import largest_part
from findings_data import (
    STORED_BITS,
    TOLERANCES,
    Lines,
    Model,
    beside,
    bits_cell,
    broken,
    each,
    extremes,
    interval,
    labelled,
    line_of,
    listing,
    number,
    paragraph,
    percent,
    wrapped,
)
from records import Record

__all__ = ["top"]


def top(models: Sequence[Model]) -> Lines:
    """What to take from it: a line for each finding."""
    findings = [of_forces, of_energies, of_sources, of_bits, of_symmetry, of_steps, of_drift, of_prediction]
    beside = f" Numbers side by side are of {' / '.join(model.name for model in models)}." if len(models) > 1 else ""
    return [
        *paragraph(
            "Where digits are lost in trained MACE models when they run in lower precision, measured with "
            "precision_probe. float64 is the reference throughout: an error is a difference from float64, not from the "
            "quantum chemistry that the model was trained on."
        ),
        "",
        "## What to take from it",
        "",
        *paragraph(f"How each was measured is said below.{beside}"),
        "",
        *(line for finding in findings for line in wrapped(f"- {finding(models)}", "  ")),
    ]


def of_forces(models: Sequence[Model]) -> str:
    """Force errors, and what they are of the model's own."""
    text = f"**Mean force errors** / meV/Å: {beside(models, lambda m, p: number(m.overall.forces_mae[p]))}."
    with_labels = [model for model in models if labelled(model, "forces")]
    if with_labels:
        names = " / ".join(model.name for model in with_labels)
        shares = beside(with_labels, lambda m, p: percent(m.overall.forces_share[p]))
        text += f" As a share of the model's own error against its labels ({names}): {shares}."
    return text


def of_energies(models: Sequence[Model]) -> str:
    """Both energies' errors."""
    low, high = extremes(
        [(m.label(p), m.overall.energy[p] / m.overall.interaction_energy[p]) for m in models for p in m.precisions]
    )
    return (
        f"**The error of the total energy is {number(low[1])} ({low[0]}) to {number(high[1])} ({high[0]}) times that "
        "of the interaction energy.** Interaction energy, mean error / meV/atom: "
        f"{beside(models, lambda m, p: number(m.overall.interaction_energy[p]))}."
    )


def of_sources(models: Sequence[Model]) -> str:
    """The part that makes most of the errors of forces, and of total energies, in each precision."""

    def largest(name: str) -> str:
        """Its name and share, side by side."""
        parts = {(m.name, p): largest_part(m, p, name) for m in models for p in m.precisions}
        return beside(models, lambda m, p: f"{parts[m.name, p][0]} {percent(parts[m.name, p][1])}")

    forces = dict.fromkeys(largest_part(m, p)[0] for m in models for p in m.precisions)
    return (
        f"**What makes most of the squared force error is {' or '.join(forces)}**: {largest('forces')}. Of that of the "
        f"total energy: {largest('energy')}."
    )


def of_bits(models: Sequence[Model]) -> str:
    """The whole model, and the blocks that need most and least."""

    def blocks(model: Model) -> str:
        """The single blocks of a model that need most and fewest bits."""
        needed = model.bits(TOLERANCES[1])
        filled = needed.iloc[1:].fillna(99)
        most, least = (list(map(str, filled.index[filled == value])) for value in (filled.max(), filled.min()))
        return (
            f"of single blocks {listing(most)} the most ({bits_cell(model, needed[most[0]])}), {listing(least)} the "
            f"fewest ({bits_cell(model, needed[least[0]])})"
        )

    whole = " / ".join(bits_cell(model, model.bits(TOLERANCES[1]).iloc[0]) for model in models)
    return (
        f"**For a largest force error of {TOLERANCES[1]:g} meV/Å the whole model needs {whole} stored bits** (float16 "
        f"has {STORED_BITS['float16']}, float32 {STORED_BITS['float32']}); {each(models, blocks)}."
    )


def of_symmetry(models: Sequence[Model]) -> str:
    """How far rotations are broken."""

    def forces(model: Model, precision: str) -> str:
        return number(broken(model, precision, "rotation", "forces"))

    return f"**Turning a structure changes the forces** (relative difference): {beside(models, forces, exact=True)}."


def of_steps(models: Sequence[Model]) -> str:
    """Steps, and how many energies there are."""

    def distinct(model: Model, precision: str) -> str:
        return str(model.table("steps").set_index("precision")["n_distinct"][precision])

    return (
        f"**Different energies along {line_of(models)}** (1: the energy does not change at all): "
        f"{beside(models, distinct)}."
    )


def of_drift(models: Sequence[Model]) -> str:
    """Which precisions drift."""
    drifts = [row for model in models for row in model.drifts]
    if not drifts:
        return "Dynamics were not run."
    precisions = list(dict.fromkeys(row["precision"] for row in drifts if row["precision"] != "float64"))
    parts = []
    for precision in precisions:
        rows = [row for row in drifts if row["precision"] == precision]
        apart = sum(row["apart"] for row in rows)
        fastest = max(rows, key=lambda row: abs(row["drift"]))
        parts.append(
            f"{precision} in {apart} of {len(rows)} cases (the fastest {interval(fastest)} meV/atom/ps, "
            f"{fastest['label']}{smallest_seen(rows)})"
        )
    return f"**Energy drift at constant energy, distinguishable from float64's**: {', '.join(parts)}."


def smallest_seen(rows: Sequence[Record]) -> str:
    """Where no difference from float64 was seen, the one that would have been."""
    detectable = [row["detectable"] for row in rows if not row["apart"] and row["detectable"] is not None]
    return f"; where it is not, {number(max(detectable))} would have been" if detectable else ""


def of_prediction(models: Sequence[Model]) -> str:
    """Ratios."""

    def ratio(model: Model, precision: str) -> str:
        (row,) = (row for row in model.rows("prediction") if row["precision"] == precision)
        return number(row["forces"] / row["forces_expected"])

    return (
        "**Force error measured ÷ expected** from adjoints of one float64 run, without running the precision: "
        f"{beside(models, ratio)}."
    )
