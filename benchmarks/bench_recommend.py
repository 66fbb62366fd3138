"""The policies that ``recommend`` finds for a large model on a GPU, beside what people do today.

    python benchmarks/bench_recommend.py --device cuda             # a MACE-MP-like model, 4,096 atoms of SiC
    python benchmarks/bench_recommend.py --device cuda --cueq      # the same, converted to cuEquivariance
    python benchmarks/bench_recommend.py --smoke                   # small, on a CPU, for CI

Questions asked of the model and structures of ``bench_precisions.py`` (random weights, so errors mean something
relative to the model's own forces only):

- *free digits*: what is as fast as the model cast to float32, with forces 5 and the total energy 50 times better?
- *fast*: what is the fastest with a relative force error (L2) of 2.5e-3?
- *fast, by module*: the same, where parts of blocks may have a precision of their own.
- *small*: what needs the least memory at that error?

What each block costs in each precision is measured once; proposals are then searched, measured and verified for each
question, on one structure, and on another held out. Writes ``bench_recommend-NAME.json`` and ``.md``.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_precisions import architecture, plain, supercells

from precision_probe.diagnostics.reference import Reference
from precision_probe.models.blocks import default_blocks
from precision_probe.models.building import build
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.provenance import provenance
from precision_probe.precisions import parse_precisions
from precision_probe.search.measuring import Candidates
from precision_probe.search.proposals import uniform
from precision_probe.search.recommendation import Recommendation, answer
from precision_probe.search.search import Search
from precision_probe.variants.devices import check_device, default_precisions

SCHEMA = "precision-probe/bench_recommend/1"
BETTER_FORCES, BETTER_ENERGY, RELATIVE = 5, 50, 2.5e-3
COLUMNS = {
    "forces_rel_l2": "forces, rel. L2",
    "energy": "energy / meV/atom",
    "stress": "stress / meV/Å³",
    "seconds": "time / ms",
    "vs_float64": "× float64 speed",
    "vs_float32": "× float32 speed",
    "peak_gib": "memory / GiB",
    "memory_vs_float32": "÷ float32 memory",
    "held_out": "held out, within",
}

Record = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What is asked: the tolerance (eV/Å, eV/atom), what is to be least, and of what parts."""

    tolerance: dict[str, float]
    objective: str = "time"
    granularity: str = "block"


def questions(candidates: Candidates, precisions: Sequence[str]) -> dict[str, Question]:
    """All questions; tolerances are from the errors of float32 and of a half precision after the embeddings."""
    float32 = candidates.cast_errors("float32")
    free = {
        "forces": float(float32["forces"].max()) / BETTER_FORCES,
        "energy": float(float32["energy"].max()) / BETTER_ENERGY,
    }
    blocks = [block.name for block in default_blocks(candidates.reference.model)]
    half = uniform(blocks, precisions)["float16 after the embeddings"]
    errors = candidates.errors(half)
    relative = np.sqrt((errors["forces_l2"] ** 2).sum() / (errors["forces_norm"] ** 2).sum())
    fast = {"forces": float(errors["forces"].max() / relative * RELATIVE)}
    found = {
        "free digits": Question(free),
        "fast": Question(fast),
        "fast, by module": Question(fast, granularity="module"),
    }
    if candidates.reference.device.type == "cuda":
        found["small"] = Question(fast, objective="memory")
    return found


def converted(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The model with cuEquivariance's kernels."""
    from mace.cli.convert_e3nn_cueq import run

    with default_dtype(torch.float64):
        found: torch.nn.Module = run(model.to(device), device=device.type)
    return found


def record_of(found: Recommendation, question: Question) -> Record:
    """What the results keep of an answer."""
    rows = found.candidates.reset_index().to_dict("records")
    return {
        "tolerance": question.tolerance,
        "objective": question.objective,
        "chosen": found.policy.evidence["chosen"],
        "rules": [[rule.blocks, rule.compute] for rule in found.policy.rules],
        "candidates": [{key: plain(value) for key, value in row.items()} for row in rows],
        "notes": list(found.notes),
    }


def markdown(record: Record) -> str:
    """The results as Markdown."""
    about = record["provenance"]
    torch_version = about["versions"]["torch"]
    lines = [
        f"# Policies found: {record['name']}",
        "",
        f"{record['n_atoms']:,} atoms, {about['device']}, torch {torch_version}.",
    ]
    for question, result in record["questions"].items():
        limits = ", ".join(f"{name} {value:.2g}" for name, value in result["tolerance"].items())
        lines += ["", f"## {question}", "", f"Tolerance: {limits} (eV/Å, eV/atom). Chosen: **{result['chosen']}**.", ""]
        lines += ["| candidate | rules | " + " | ".join(COLUMNS.values()) + " |", "|---|---|" + "--:|" * len(COLUMNS)]
        for row in result["candidates"]:
            cells = [cell(row, column) for column in COLUMNS]
            lines.append(f"| {row['candidate']} | {row['rules']} | " + " | ".join(cells) + " |")
        lines += ["", *(f"- {note}" for note in result["notes"])]
    return "\n".join(lines) + "\n"


def cell(row: Record, column: str) -> str:
    """One number; times with their interquartile range."""
    value = row[column]
    if value is None:
        return "not finite" if column in ("forces_rel_l2", "energy") else ""
    if column == "seconds":
        return f"{1e3 * value:.1f} ± {1e3 * row['iqr'] / 2:.1f}"
    if column == "held_out":
        return f"{value:.0%}"
    if column in ("energy", "stress"):
        value *= 1e3
    return f"{value:.2f}" if column.endswith(("64", "32", "gib")) else f"{value:.1e}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Search, and write the results after each question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cueq", action="store_true", help="convert the model to cuEquivariance")
    parser.add_argument("--allow", help="precisions, separated by commas; by default all")
    parser.add_argument("--atoms", default="4096", help="of each structure, about")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--smoke", action="store_true", help="a small model and structures, for CI")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    device = check_device(given.device)
    model = build(architecture(0, given.smoke), seed=0)
    model = converted(model, device) if given.cueq else model
    sizes = "8" if given.smoke else given.atoms
    searched, held_out = (supercells(sizes, seed) for seed in (0, 1))
    allowed = parse_precisions(given.allow) if given.allow else default_precisions(device, model)
    precisions = [precision.name for precision in allowed]
    candidates = Candidates(Reference(model, searched, device=str(device)))
    held = candidates.reference.on(held_out)
    n_atoms = len(searched[0])
    name = f"{'cueq' if given.cueq else 'e3nn'}-{device.type}-{n_atoms}"
    record: Record = {
        "schema": SCHEMA,
        "name": name,
        "command": shlex.join(["python", *sys.argv]),
        "provenance": provenance(model, device),
        "n_atoms": n_atoms,
        "questions": {},
    }
    asked = questions(candidates, precisions)
    blocks = Search(candidates, asked["fast"].tolerance).alone(precisions, progress=True)
    record["blocks"] = [{key: plain(value) for key, value in row.items()} for row in blocks.to_dict("records")]
    for name_asked, question in asked.items():
        search = Search(candidates, question.tolerance, question.objective)
        found = answer(search, blocks, precisions, held, granularity=question.granularity, progress=True)
        record["questions"][name_asked] = record_of(found, question)
        (given.out / f"bench_recommend-{name}.json").write_text(
            json.dumps(record, ensure_ascii=False, indent=1, default=str) + "\n", encoding="utf-8"
        )
        (given.out / f"bench_recommend-{name}.md").write_text(markdown(record), encoding="utf-8")


if __name__ == "__main__":
    main()
