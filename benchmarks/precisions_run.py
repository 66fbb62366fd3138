"""A run of bench_precisions.py once its options are known: model, structures, measurements, files."""

import argparse
import gc
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import ase
import plots
import torch
from measure import (
    PERCENTILES,
    WARM_UP,
    Measured,
    block_errors,
    call_block,
    call_model,
    interleave,
    model_errors,
    ratio,
    reference_calls,
    summary,
)
from records import Record, plain, source_sha256, without_paths
from rich.console import Console
from rich.progress import Progress
from systems import architecture, parse_sizes, supercells

from precision_probe.analysis.metrics import EPS
from precision_probe.models.blocks import Block, select_blocks
from precision_probe.models.building import build
from precision_probe.models.graphs import Graph, build_graph
from precision_probe.models.loading import load_model
from precision_probe.models.memory import attempt
from precision_probe.models.provenance import provenance
from precision_probe.precisions import PRECISIONS, Precision, parse_precisions
from precision_probe.probe.probe import attach
from precision_probe.search.timing import peak_of
from precision_probe.structures import read_structures
from precision_probe.variants.devices import check_device, check_precisions, default_precisions
from precision_probe.variants.variant import Variant

__all__ = ["SCHEMA", "run"]

SCHEMA = "precision-probe/bench_precisions/1"
BLOCK_REPEATS = 5


def run(args: argparse.Namespace, argv: Sequence[str], sizes: str) -> list[Path]:
    """Measure every structure, and write results after each; return the paths of the files.

    Args:
        args: The options of ``bench_precisions.py``.
        argv: As they were given.
        sizes: Numbers of atoms of the default structures.

    Raises:
        InputError: If the device, a precision on it, the model or the structures cannot be used.
    """
    device = check_device(args.device or ("cpu" if args.smoke else None))
    wanted = args.precisions or ("float32,bfloat16,float16" if args.smoke else default_precisions(device))
    precisions = parse_precisions(wanted)
    check_precisions(precisions, device)
    structures = read_structures(args.structures or supercells(parse_sizes(sizes), args.seed))
    model, name = load_model(args.model or build(architecture(args.seed, args.smoke), args.seed))
    graphs = [(atoms, build_graph(atoms, model)) for atoms in structures]
    graphs.sort(key=lambda item: item[1].n_atoms)
    args.output.mkdir(parents=True, exist_ok=True)
    record = describe(args, argv, model, device) | {"model_name": name}
    slug = re.sub(r"[^a-z0-9]+", "-", (record["gpu"] or {"name": "cpu"})["name"].lower()).strip("-")
    stem = args.output / f"bench_precisions-{slug}{'-smoke' if args.smoke else ''}"
    written: list[Path] = []
    with progress(args.quiet) as bar:
        blocks = select_blocks(model, None)
        task = bar.add_task("", total=len(graphs) * (WARM_UP + args.repeats + len(blocks)))
        variants = [Variant(model, precision, device) for precision in (PRECISIONS["float64"], *precisions)]
        for atoms, graph in graphs:
            bar.update(task, description=atoms.info["name"])
            system = bench_structure(variants, graph.to(device), blocks, args, partial(bar.advance, task))
            record["systems"].append({"name": atoms.info["name"], "formula": atoms.get_chemical_formula(), **system})
            written = write(record, stem)
        if device.type == "cuda" and precisions:
            bar.update(task, description="memory of an audit")
            # float32 first: it is what the peak with all precisions is compared with
            names = sorted((precision.name for precision in precisions), key=lambda name: name != "float32")
            # the second largest structure: an audit needs more memory than a call, and of the largest it may not fit
            record["audit_memory"] = probe_memory(model, graphs[max(0, len(graphs) - 2)][0], names, device)
            written = write(record, stem)
    return written


def bench_structure(
    variants: Sequence[Variant],
    graph: Graph,
    blocks: Sequence[Block],
    args: argparse.Namespace,
    advance: Callable[[], None],
) -> Record:
    """Everything about one structure."""
    record: Record = {"n_atoms": graph.n_atoms, "n_edges": graph.n_edges}
    prediction = attempt(variants[0].predict, graph)
    if prediction is not None:
        rms = prediction["forces"].square().mean().sqrt()
        record["reference_forces_rms_eV_per_A"] = float(rms)
        energy = float(prediction["interaction_energy"].sum())
        record["reference_interaction_energy_eV_per_atom"] = energy / graph.n_atoms
    record["end_to_end"] = bench_model(variants, graph, args.repeats, args.stress, advance)
    record["blocks"] = bench_blocks(variants, graph, blocks, advance)
    return record


def bench_model(
    variants: Sequence[Variant], graph: Graph, repeats: int, stress: bool, advance: Callable[[], None]
) -> Record:
    """Every precision end to end on one structure."""
    measured = interleave(variants, partial(call_model, graph, stress), repeats, advance)
    float64 = measured.get("float64")
    record: Record = {}
    for variant in variants:
        name = variant.precision.name
        if name not in measured:
            record[name] = {"status": "out_of_memory"}
            continue
        own = measured[name]
        errors = None
        if float64:
            errors = model_errors(float64.results[-1], own.results, variant.precision, graph.n_atoms)
        weights = sum(tensor.nbytes for tensor in (*variant.model.parameters(), *variant.model.buffers()))
        record[name] = {
            "status": "ok",
            "time_ms": summary(own.phase(0)) | {"samples": own.phase(0)},
            "time_ratio_to_float64": ratio(own, float64),
            "time_ratio_to_float32": ratio(own, measured.get("float32")),
            "peak_memory_bytes": None if own.peak is None else own.peak + weights,
            "errors": errors,
        }
    return record


def bench_blocks(
    variants: Sequence[Variant], graph: Graph, blocks: Sequence[Block], advance: Callable[[], None]
) -> Record:
    """Every default block on the float64 run's own inputs, in every precision; empty if that run needs more memory."""
    record: Record = {}
    for call in attempt(reference_calls, variants[0], graph, blocks) or []:
        measured = interleave(variants, partial(call_block, call), BLOCK_REPEATS)
        record[call.block.name] = {
            variant.precision.name: block_row(variant.precision, measured) for variant in variants
        }
        advance()
    return record


def block_row(precision: Precision, measured: Mapping[str, Measured]) -> Record:
    """Times and errors of one block in one precision, forward and backward."""
    if precision.name not in measured:
        return {"status": "out_of_memory"}
    own, float64 = measured[precision.name], measured.get("float64")
    row: Record = {"status": "ok", "peak_memory_bytes": own.peak}
    for index, phase in enumerate(("forward", "backward")):
        row[f"{phase}_ms"] = summary(own.phase(index))
        if float64:
            outputs, gradients, vanishing = float64.results[-1]
            reference, zero = (outputs, ()) if phase == "forward" else (gradients, vanishing)
            errors = attempt(block_errors, reference, own.results[-1][index], precision, zero)
            row |= {phase: errors} if errors else {}
    return row


def probe_memory(model: torch.nn.Module, atoms: ase.Atoms, names: Sequence[str], device: torch.device) -> Record:
    """Peak memory of a whole audit with one reduced precision and with all: it should be the same."""

    def audit(precisions: Sequence[str]) -> None:
        with attach(model, precisions=precisions, device=device) as probe:
            probe.run(atoms, progress=False)

    runs = []
    for precisions in dict.fromkeys((tuple(names[:1]), tuple(names))):
        audited = attempt(peak_of, device, partial(audit, precisions))
        runs.append({"precisions": precisions, "peak_memory_bytes": audited and audited[1]})
        gc.collect()  # else what reference cycles still hold counts as memory in use before the next
    return {"structure": atoms.info["name"], "n_atoms": len(atoms), "runs": runs}


def describe(args: argparse.Namespace, argv: Sequence[str], model: torch.nn.Module, device: torch.device) -> Record:
    """What a run is, and all that is needed to run it again."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        revision = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        revision = ""
    gpu = None
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        gpu = {"name": card.name, "memory_bytes": card.total_memory, "capability": f"{card.major}.{card.minor}"}
    return {
        "schema": SCHEMA,
        "command": shlex.join(["python", "benchmarks/bench_precisions.py", *without_paths(argv)]),
        "revision": revision,
        "source_sha256": source_sha256(),
        "provenance": provenance(model, device),
        "gpu": gpu,
        "options": {key: value for key, value in vars(args).items() if key not in ("output", "quiet")},
        "warm_up_calls": WARM_UP,
        "block_repeats": BLOCK_REPEATS,
        "percentiles": list(PERCENTILES),
        "mean_rel_eps": EPS,
        "architecture": architecture(args.seed, args.smoke) if args.model is None else None,
        "systems": [],
    }


def write(record: Record, stem: Path) -> list[Path]:
    """Write the JSON file (atomically), the tables and the figures; return their paths."""
    kept = plain(record)
    text = json.dumps(kept, indent=1, ensure_ascii=False, allow_nan=False)
    text = re.sub(r"\[\n[^][{}]*\]", lambda numbers: " ".join(numbers.group().split()), text)  # lists on one line
    paths = [stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.md")]
    for path, content in zip(paths, (text, plots.markdown(kept)), strict=True):
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(content + "\n", encoding="utf-8")
        temporary.replace(path)
    return [*paths, *plots.draw(kept, stem)]


def progress(quiet: bool) -> Progress:
    """A progress bar on stderr, if that is a terminal."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=quiet or not console.is_terminal)
