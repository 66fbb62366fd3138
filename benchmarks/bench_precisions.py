"""Time, memory and error of a MACE model in each precision, end to end and block by block.

    python benchmarks/bench_precisions.py             # the default model and structures, on a GPU if there is one
    python benchmarks/bench_precisions.py --model my.model --structures "my.xyz@:4" --precisions float32,tf32
    python benchmarks/bench_precisions.py --smoke     # a small model on a CPU in well under a minute, for CI

The default model has the architecture of a MACE-MP (128x0e + 128x1o, max_ell 3, 89 elements, 4.7 million parameters)
and random weights; the default structures are zincblende SiC supercells with Gaussian displacements. So energies and
forces are those of an untrained model: its times and memory are a trained model's, its errors mean something relative
to its own forces only. Isolated-atom energies are between -10 and -1 eV, as with pseudopotentials; all-electron ones
beyond 65504 eV would make every float16 energy infinite.

What is timed: ``model(data)`` with energy and forces (and virials with ``--stress``), inputs already in the precision,
by CUDA events (on a CPU by the wall clock), after a warm-up, all precisions in turn so that ratios are of neighbours in
time. Each block is timed alone on the float64 run's own inputs, forward and backward (from the cotangent 2 * output).
Errors are against float64. Peak memory is what one call adds to what is there before it, plus the variant's weights.

Writes ``bench_precisions-DEVICE.json`` (everything, with what is needed to run it again), ``.md`` (tables) and ``.png``
figures into the output folder, after each structure. ``plots.py`` redraws them from the JSON file. What does not fit
into memory is recorded as such.
"""

import argparse
import gc
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ase
import ase.build
import numpy as np
import plots
import torch
from measure import (
    PERCENTILES,
    WARM_UP,
    Record,
    block_errors,
    call_block,
    call_model,
    interleave,
    model_errors,
    ratio,
    reference_calls,
    summary,
)
from rich.console import Console
from rich.progress import Progress

import precision_probe
from precision_probe.analysis.metrics import EPS
from precision_probe.exceptions import InputError
from precision_probe.models.blocks import Block, select_blocks
from precision_probe.models.building import build, default_config
from precision_probe.models.graphs import Graph, build_graph
from precision_probe.models.loading import load_model
from precision_probe.models.provenance import provenance
from precision_probe.precisions import PRECISIONS, parse_precisions
from precision_probe.probe.probe import attach
from precision_probe.search.timing import attempt, peak_of
from precision_probe.structures import read_structures
from precision_probe.variants.devices import check_device, check_precisions, default_precisions
from precision_probe.variants.variant import Variant

SCHEMA = "precision-probe/bench_precisions/1"
BLOCK_REPEATS = 5
SIZES, SMOKE_SIZES = "64,512,1728,4096", "8,64"  # atoms
LATTICE_CONSTANT, DISPLACEMENT = 4.36, 0.05  # Å, of zincblende SiC; standard deviation


def architecture(seed: int, smoke: bool) -> Record:
    """The default model's architecture, in the form that ``precision_probe.models.build`` takes."""
    channels, max_ell, radial = (16, 2, 16) if smoke else (128, 3, 64)
    energies = np.random.default_rng(seed).uniform(-10, -1, size=89).round(3)
    return default_config() | {
        "atomic_numbers": list(range(1, 90)),
        "atomic_energies": energies.tolist(),
        "r_max": 5.0,
        "max_ell": max_ell,
        "hidden_irreps": f"{channels}x0e + {channels}x1o",
        "radial_MLP": [radial] * 3,
        "avg_num_neighbors": 46.0,  # of SiC within 5 Å
    }


def supercells(sizes: str, seed: int) -> list[ase.Atoms]:
    """Displaced SiC supercells with about as many atoms as asked for, 8 n³."""
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", sizes) or any(int(size) < 1 for size in sizes.split(",")):
        raise InputError(f"--sizes {sizes!r} is not a list of numbers of atoms, such as {SIZES}.")
    found = []
    for n in sorted({max(1, round((int(size) / 8) ** (1 / 3))) for size in sizes.split(",")}):
        atoms = ase.build.bulk("SiC", "zincblende", a=LATTICE_CONSTANT, cubic=True).repeat(n)
        atoms.positions += np.random.default_rng(seed).normal(0, DISPLACEMENT, atoms.positions.shape)
        atoms.info["name"] = f"SiC {n}×{n}×{n}"
        found.append(atoms)
    return found


def bench_model(
    variants: Sequence[Variant], graph: Graph, repeats: int, stress: bool, advance: Callable[[], None]
) -> Record:
    """Every precision end to end on one structure."""
    found = interleave(variants, partial(call_model, graph, stress), repeats, advance)
    record: Record = {}
    for variant in variants:
        name = variant.precision.name
        if name not in found:
            record[name] = {"status": "out_of_memory"}
            continue
        measured = found[name]
        errors = None
        if "float64" in found:
            errors = model_errors(found["float64"].results[-1], measured.results, variant.precision, graph.n_atoms)
        weights = sum(tensor.nbytes for tensor in (*variant.model.parameters(), *variant.model.buffers()))
        record[name] = {
            "status": "ok",
            "time_ms": summary(measured.phase(0)) | {"samples": measured.phase(0)},
            "time_ratio_to_float64": ratio(measured, found.get("float64")),
            "time_ratio_to_float32": ratio(measured, found.get("float32")),
            "peak_memory_bytes": None if measured.peak is None else measured.peak + weights,
            "errors": errors,
        }
    return record


def bench_blocks(
    variants: Sequence[Variant], graph: Graph, blocks: Sequence[Block], advance: Callable[[], None]
) -> Record:
    """Every default block on the float64 run's own inputs, in every precision; empty if that run needs more memory."""
    record: Record = {}
    for call in attempt(reference_calls, variants[0], graph, blocks) or []:
        found = interleave(variants, partial(call_block, call), BLOCK_REPEATS)
        rows = record[call.block.name] = {}
        for variant in variants:
            name = variant.precision.name
            if name not in found:
                rows[name] = {"status": "out_of_memory"}
                continue
            measured = found[name]
            rows[name] = {"status": "ok", "peak_memory_bytes": measured.peak}
            for index, phase in enumerate(("forward", "backward")):
                rows[name][f"{phase}_ms"] = summary(measured.phase(index))
                if "float64" in found:
                    reference, own = found["float64"].results[-1], measured.results[-1]
                    zero = reference[2] if phase == "backward" else ()
                    errors = attempt(block_errors, reference[index], own[index], variant.precision, zero)
                    rows[name] |= {phase: errors} if errors else {}
        advance()
    return record


def probe_memory(model: torch.nn.Module, atoms: ase.Atoms, names: Sequence[str], device: torch.device) -> Record:
    """Peak memory of a whole audit with one reduced precision and with all: it should be the same."""

    def audit(precisions: Sequence[str]) -> None:
        with attach(model, precisions=precisions, device=device) as probe:
            probe.run(atoms, progress=False)

    runs = []
    for precisions in dict.fromkeys((tuple(names[:1]), tuple(names))):
        found = attempt(peak_of, device, partial(audit, precisions))
        runs.append({"precisions": precisions, "peak_memory_bytes": found and found[1]})
        gc.collect()
    return {"structure": atoms.info["name"], "n_atoms": len(atoms), "runs": runs}


def source_sha256() -> str:
    """SHA-256 of the package's and the benchmark's sources, for where there is no git repository."""
    digest = hashlib.sha256()
    for folder in (Path(precision_probe.__file__).parent, Path(__file__).parent):
        for path in sorted(folder.glob("*.py")):
            digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def describe(args: argparse.Namespace, argv: Sequence[str], model: torch.nn.Module, device: torch.device) -> Record:
    """What a run is, and all that is needed to run it again."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        revision = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        revision = ""
    gpu = None
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        gpu = {"name": found.name, "memory_bytes": found.total_memory, "capability": f"{found.major}.{found.minor}"}
    return {
        "schema": SCHEMA,
        "command": shlex.join(["python", "benchmarks/bench_precisions.py", *argv]),
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
    found = plain(record)
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
    text = re.sub(r"\[\n[^][{}]*\]", lambda numbers: " ".join(numbers.group().split()), text)  # lists on one line
    paths = [stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.md")]
    for path, content in zip(paths, (text, plots.markdown(found)), strict=True):
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(content + "\n", encoding="utf-8")
        temporary.replace(path)
    return [*paths, *plots.draw(found, stem)]


def plain(value: Any) -> Any:
    """The same as JSON has it: six digits, and null for what is not finite (counts say how often)."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Path]:
    """Check what was asked for, measure every structure, and write results after each."""
    if args.repeats < 1:
        raise InputError(f"--repeats is how often each precision is timed, at least 1; got {args.repeats}.")
    if args.structures and args.sizes:
        raise InputError("--sizes is for the default structures; leave it out, or leave out --structures.")
    device = check_device(args.device or ("cpu" if args.smoke else None))
    wanted = args.precisions or ("float32,bfloat16,float16" if args.smoke else default_precisions(device))
    precisions = parse_precisions(wanted)
    check_precisions(precisions, device)
    model, name = load_model(args.model or build(architecture(args.seed, args.smoke), args.seed))
    sizes = args.sizes or (SMOKE_SIZES if args.smoke else SIZES)
    structures = read_structures(args.structures or supercells(sizes, args.seed))
    graphs = [(atoms, build_graph(atoms, model)) for atoms in structures]
    graphs.sort(key=lambda item: item[1].n_atoms)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {args.output} cannot be used as a folder: {error.strerror}.") from error
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
            names = sorted((precision.name for precision in precisions), key=lambda name: name != "float32")
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


def progress(quiet: bool) -> Progress:
    """A progress bar on stderr, if that is a terminal."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=quiet or not console.is_terminal)


def arguments(argv: Iterable[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--model", help="a MACE checkpoint or 'demo' (default: MACE-MP-like with random weights)")
    add("--structures", help="anything ASE reads, with @0:4 to select, or 'demo' (default: SiC supercells)")
    add("--sizes", help=f"about how many atoms the SiC supercells have (default: {SIZES})")
    add("--precisions", "-p", help="beside float64 (default: float32, bfloat16, float16, and on CUDA tf32)")
    add("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    add("--output", "-o", type=Path, default=Path(__file__).parent / "results", help="folder (default: %(default)s)")
    add("--repeats", type=int, help="rounds timed after the warm-up (default: 20; 3 with --smoke)")
    add("--seed", type=int, default=0, help="of the random weights and displacements (default: %(default)s)")
    add("--stress", action="store_true", help="compute the virials too")
    add("--smoke", action="store_true", help="a small model, 8 and 64 atoms, on the CPU unless --device is given")
    add("--quiet", action="store_true", help="no progress bar and no table")
    args = parser.parse_args(list(argv))
    if args.repeats is None:
        args.repeats = 3 if args.smoke else 20
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if it is done, 2 if what was asked for cannot be."""
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    try:
        written = run(args, argv)
    except InputError as error:
        print(f"bench_precisions: {error}", file=sys.stderr)
        return 2
    if not args.quiet:
        print(written[1].read_text(encoding="utf-8"))
    print("\n".join(map(str, written)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
