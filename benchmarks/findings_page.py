"""The page of findings, docs/what-we-learned.md, and its figures, from the JSON files of findings.py.

Every number is looked up in these files, and what a sentence claims is computed from them: whichever model is measured
next, the page says what is true of that one. Neither torch nor mace is needed.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from findings_contributions import contributions
from findings_data import MILLI, TOLERANCES, Lines, Model, listing, paragraph, read
from findings_digits import bits, digits, orders, prediction, ranges
from findings_errors import budget, units
from findings_figures import draw_bits, draw_budget, draw_displacement
from findings_physics import drift, smoothness, symmetry
from findings_top import top
from plots import table

__all__ = ["write"]


def write(results: Path, docs: Path) -> None:
    """Write what-we-learned.md and figures/*.png into a folder.

    Args:
        results: The folder of findings-NAME.json and findings-NAME-drift.json.
        docs: Where the page goes.
    """
    models = read(results)
    (docs / "figures").mkdir(parents=True, exist_ok=True)
    figures(models, docs / "figures")
    sections = [
        top,
        setup,
        units,
        contributions,
        budget,
        bits,
        orders,
        symmetry,
        smoothness,
        drift,
        prediction,
        digits,
        ranges,
    ]
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
        """What stands beside a model in the table, by the name of the row."""
        about, versions = model.record["provenance"], model.record["provenance"]["versions"]
        names, n_atoms = model.record["structures"], model.record["n_atoms"]
        layers = f"{len(about['interactions'])} layers" if "interactions" in about else "layers unknown"
        yield (
            "architecture",
            f"{about['model_class']}, {about['hidden_irreps']}, edges {about['edge_irreps']}, {layers}",
        )
        yield "parameters", f"{about['n_parameters']:,}"
        yield "cutoff / Å", f"{about['cutoff']:g}"
        yield "SHA-256 of the weights", f"{about['model_sha256'][:12]}…"
        yield "stored in", about["model_dtype"]
        yield "structures", ", ".join(names) if len(set(names)) < 10 else f"{len(names)}, {names[0]} to {names[-1]}"
        yield "atoms of each", f"{min(n_atoms)} to {max(n_atoms)}" if len(set(n_atoms)) > 1 else f"{n_atoms[0]}"
        yield "precisions", ", ".join(about["precisions"])
        yield "device", about["device"]
        yield "versions", ", ".join(f"{name} {versions[name]}" for name in ("torch", "mace-torch", "e3nn", "ase"))
        yield "measured", about["created"]

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
