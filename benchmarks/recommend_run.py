"""A run of bench_recommend.py once its options are known: questions, searches, tables."""

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from records import Record, plain, without_paths
from systems import architecture, parse_sizes, supercells

from precision_probe.diagnostics.reference import Reference
from precision_probe.models.backends import to_cuequivariance
from precision_probe.models.blocks import default_blocks
from precision_probe.models.building import build
from precision_probe.models.provenance import provenance
from precision_probe.precisions import parse_precisions
from precision_probe.search.measuring import Candidates
from precision_probe.search.proposals import uniform
from precision_probe.search.recommendation import Recommendation, answer
from precision_probe.search.running.rivals import rivals
from precision_probe.search.search import Search
from precision_probe.variants.devices import check_device, check_precisions, default_precisions

__all__ = ["HALF", "RELATIVE", "SCHEMA", "markdown", "run"]

SCHEMA = "precision-probe/bench_recommend/1"
HALF = "float16"
# What a plain policy just reaches with the margin of a search, by bench_recommend-e3nn-cuda-4096.json: float32 after
# the embeddings has 7 times better forces than model.to(float32), float16 after the embeddings an error of 2.0e-3
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
    "held_out_at_least": "at least (95 % confidence)",
}


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
    half = uniform(blocks, precisions)[f"{HALF} after the embeddings"]
    errors = candidates.errors(half)
    relative = np.sqrt((errors["forces_l2"] ** 2).sum() / (errors["forces_norm"] ** 2).sum())
    fast = {"forces": float(errors["forces"].max() / relative * RELATIVE)}
    asked = {
        "free digits": Question(free),
        "fast": Question(fast),
    }
    if candidates.run == "graph":
        return asked
    asked["fast, by module"] = Question(fast, granularity="module")
    if candidates.reference.device.type == "cuda":  # a CPU's peak memory is not measured
        asked["small"] = Question(fast, objective="memory")
    return asked


def record_of(answered: Recommendation, question: Question) -> Record:
    """What the results keep of an answer."""
    rows = answered.candidates.reset_index().to_dict("records")
    return {
        "tolerance": question.tolerance,
        "objective": question.objective,
        "chosen": answered.policy.evidence["chosen"],
        "rules": [[rule.blocks, rule.compute] for rule in answered.policy.rules],
        "candidates": [{key: plain(value) for key, value in row.items()} for row in rows],
        "notes": list(answered.notes),
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
    """One number; how many times faster with the confidence interval of the median ratio within rounds."""
    value = row[column]
    if value is None:
        return "not finite" if column in ("forces_rel_l2", "energy") else ""
    if column == "seconds":
        return f"{1e3 * value:.1f}"
    if column.startswith("vs_"):
        low, high = row[f"{column}_low"], row[f"{column}_high"]
        return f"{value:.2f}" if high is None else f"{value:.2f} ({low:.2f}–{high:.2f})"
    if column.startswith("held_out"):
        return f"{value:.0%}"
    if column in ("energy", "stress"):
        value *= 1e3
    return f"{value:.2f}" if column.endswith(("64", "32", "gib")) else f"{value:.1e}"


def run(given: argparse.Namespace, argv: Sequence[str]) -> None:
    """Search, and write the results after each question.

    Args:
        given: The options of ``bench_recommend.py``.
        argv: As they were given.

    Raises:
        InputError: If the device, or a precision on it, cannot be used.
    """
    device = check_device(given.device)
    sizes = [8] if given.smoke else parse_sizes(given.atoms, "--atoms")
    model = build(architecture(0, given.smoke), seed=0)
    users = model
    model = to_cuequivariance(model, device) if given.cueq else model
    searched, held_out = (supercells(sizes, seed) for seed in (0, 1))
    allowed = parse_precisions(given.allow) if given.allow else default_precisions(device, model)
    check_precisions(allowed, device, model)
    precisions = [precision.name for precision in allowed]
    reference = Reference(model, searched, device=str(device))
    others, _ = rivals(users, reference) if given.graph else ({}, [])
    candidates = Candidates(reference, run="graph" if given.graph else "eager", rivals=others)
    held = candidates.reference.on(held_out)
    n_atoms = len(searched[0])
    name = f"{'cueq' if given.cueq else 'e3nn'}-{device.type}-{n_atoms}{'-graph' if given.graph else ''}"
    record: Record = {
        "schema": SCHEMA,
        "name": name,
        "command": shlex.join(["python", "benchmarks/bench_recommend.py", *without_paths(argv)]),
        "provenance": provenance(model, device),
        "n_atoms": n_atoms,
        "questions": {},
    }
    given.out.mkdir(parents=True, exist_ok=True)
    asked = questions(candidates, precisions)
    blocks = Search(candidates, asked["fast"].tolerance).alone(precisions, progress=True)
    record["blocks"] = [{key: plain(value) for key, value in row.items()} for row in blocks.to_dict("records")]
    for name_asked, question in asked.items():
        search = Search(candidates, question.tolerance, question.objective)
        answered = answer(search, blocks, precisions, held, granularity=question.granularity, progress=True)
        record["questions"][name_asked] = record_of(answered, question)
        write(record, given.out / f"bench_recommend-{name}")


def write(record: Record, stem: Path) -> None:
    """Write the JSON file and the tables."""
    text = json.dumps(record, ensure_ascii=False, indent=1, default=str)
    stem.with_name(f"{stem.name}.json").write_text(text + "\n", encoding="utf-8")
    stem.with_name(f"{stem.name}.md").write_text(markdown(record), encoding="utf-8")
