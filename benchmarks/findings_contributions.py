"""Section of the page of findings: which parts of the model make the errors, by shares that add up to the whole."""

from collections.abc import Callable, Sequence

import pandas as pd
from findings_data import MILLI, Lines, Model, beside, listing, number, paragraph, percent
from plots import table

__all__ = ["contributions", "largest_part"]


def contributions(models: Sequence[Model]) -> Lines:
    """Shares of the squared error of forces and energies."""
    keys = [(model, precision) for model in models for precision in model.precisions]
    parts = list(dict.fromkeys(part for model in models for part in model.table("contributions")["part"]))

    def cells(part: str, name: str) -> list[str]:
        """A part's share and what it adds, for each model and precision."""
        return [cell(of_precision(model, precision), part, name) for model, precision in keys]

    columns = [model.label(precision) for model, precision in keys]
    return [
        "## Which parts make the errors",
        "",
        *paragraph(
            "The model in float64 becomes the model in the precision one part at a time, in the order of a run: edge "
            "vectors and lengths (geometry), the blocks, the sums of energies. What each step changes is that part's, "
            "and its share is its length along the whole error, so that shares add up to one exactly; a step that "
            "undoes what others did has a negative one. These are the precision's own operations and not rounding in "
            "its place. “The rest” is by what the model in the precision differs from all these parts together. For "
            "forces, all components: the share, and the root mean square of what the part adds in meV/Å."
        ),
        "",
        *table(["part", *columns], [[part, *cells(part, "forces")] for part in parts]),
        "",
        *paragraph(uncertain(models)),
        "",
        *paragraph("Total energies per atom: share, and the root mean square of what the part adds in meV/atom."),
        "",
        *table(["part", *columns], [[part, *cells(part, "energy")] for part in parts]),
        "",
        *paragraph(
            f"The largest parts of the total energy's error: {beside(models, largest_of('energy'))}. Each is of a few "
            "energies only, of which any two steps may happen to point the same or the opposite way: a share above "
            "100 % is one that others partly undo."
        ),
    ]


def of_precision(model: Model, precision: str) -> pd.DataFrame:
    """The parts of one precision, by name."""
    rows = model.table("contributions")
    return rows[rows["precision"] == precision].set_index("part")


def cell(rows: pd.DataFrame, part: str, name: str) -> str:
    """A share, and what the part adds."""
    if part not in rows.index:
        return "–"
    row = rows.loc[part].to_dict()
    return f"{percent(row[f'{name}_share'])} ({number(MILLI * row[name])})"


def largest_part(model: Model, precision: str, name: str = "forces") -> tuple[str, float]:
    """The part with the largest share of the squared error, and the share."""
    shares = of_precision(model, precision)[f"{name}_share"]
    return str(shares.idxmax()), float(shares.max())


def largest_of(name: str) -> Callable[[Model, str], str]:
    """What ``beside`` needs for the largest part of a quantity's error."""

    def text(model: Model, precision: str) -> str:
        part, share = largest_part(model, precision, name)
        return f"{part} {percent(share)}"

    return text


def uncertain(models: Sequence[Model]) -> str:
    """How large a share is by chance: as large as the most negative one; which parts are larger than that."""
    keys = [(model, precision) for model in models for precision in model.precisions]
    clear = []
    for model, precision in keys:
        shares = of_precision(model, precision)["forces_share"]
        above = shares[shares > max(0.0, -float(shares.min()))].sort_values(ascending=False)
        named = listing(f"{part} {percent(share)}" for part, share in above.items() if share > 0.01)
        clear.append(f"{model.label(precision)}: {named}")
    lowest = min(float(of_precision(model, precision)["forces_share"].min()) for model, precision in keys)
    return (
        "Steps that know nothing of one another are not exactly at right angles, so that small shares are partly "
        f"chance: the most negative is {percent(lowest)}. Larger than its own column's most negative share, and than "
        f"1 %, are: {'; '.join(clear)}."
    )
