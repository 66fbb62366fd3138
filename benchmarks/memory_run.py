"""A run of bench_memory.py once its options are known: processes on the host, sizes on a GPU, and their tables."""

import argparse
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import ase
import ase.build
import numpy as np
import torch
from records import Record, plain, source_sha256, teller, without_paths, write_results
from systems import DISPLACEMENT, LATTICE_CONSTANT, architecture

from precision_probe.models.backends import to_cuequivariance
from precision_probe.models.blocks import select_blocks
from precision_probe.models.building import build
from precision_probe.models.graphs import Graph, build_graph
from precision_probe.models.loading import load_model
from precision_probe.models.memory import attempt
from precision_probe.models.provenance import provenance
from precision_probe.precisions import PRECISIONS, parse_precision
from precision_probe.probe.observing.observer import DoesNotFitError, Observer
from precision_probe.probe.options import Options
from precision_probe.probe.probe import attach
from precision_probe.search.timing import peak_of
from precision_probe.structures import read_structures
from precision_probe.variants.devices import check_device, check_precisions, current, undisturbed
from precision_probe.variants.variant import Variant

__all__ = ["SCHEMA", "largest", "markdown", "run", "supercell"]

SCHEMA = "precision-probe/bench_memory/1"
STEP = 1.1
KINDS = {
    "propagated, shared": (("propagated",), "shared"),
    "propagated + isolated, per_block": (("propagated", "isolated"), "per_block"),
}


# The host


def audit_molecules(n_structures: int, precisions: str, output: Path | None) -> int:
    """Audit rattled methanol in this process; the peak of its resident memory, bytes.

    All are of one size: oneDNN, which computes in bfloat16 on a CPU, keeps kernels for every size that it meets.
    """
    rng = np.random.default_rng(0)
    structures = [read_structures(ase.build.molecule("CH3OH"))[0] for _ in range(n_structures)]
    for atoms in structures:
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
    options = Options(precisions=precisions, keep="errors", time=False, device="cpu")
    with attach("demo", **options, output=output) as probe:
        probe.run(structures, progress=False)
    trace = probe.trace()  # which is read, or laid out, too
    assert trace.structures.sizes["structure"] == n_structures
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(peak.split()[1])


def host(args: argparse.Namespace, say: Callable[[str], None]) -> list[Record]:
    """The peak memory of processes that audit few and many structures, with a file and without one."""
    rows = []
    for has_file in (True,) if args.smoke else (False, True):
        peaks = []
        for n_structures in (args.few, args.many):
            with tempfile.TemporaryDirectory() as folder:
                output = [str(Path(folder) / "a.h5")] if has_file else []
                command = [sys.executable, __file__, str(n_structures), args.precisions, *output]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            peaks.append(int(done.stdout.split()[-1]))
            say(f"{n_structures} structures {'with' if has_file else 'without'} a file: {peaks[-1] / 2**20:.0f} MiB")
        rows.append({"has_file": has_file, "few_bytes": peaks[0], "many_bytes": peaks[1], "ratio": peaks[1] / peaks[0]})
    return rows


# The GPU


def supercell(n_atoms: int) -> ase.Atoms:
    """Displaced SiC of about so many atoms, nearly a cube."""
    n_cells = max(1, round(n_atoms / 8))
    n = max(1, round(n_cells ** (1 / 3)))
    atoms = ase.build.bulk("SiC", "zincblende", a=LATTICE_CONSTANT, cubic=True).repeat(
        (n, n, max(1, round(n_cells / n**2)))
    )
    atoms.positions += np.random.default_rng(0).normal(0, DISPLACEMENT, atoms.positions.shape)
    return atoms


def largest(guess: int, fits: Callable[[int], int | None]) -> tuple[int, int]:
    """The largest number of atoms that fits, to a tenth, and the bytes that it takes; zeros if nothing does.

    Args:
        guess: Where to begin.
        fits: Of about so many atoms: the bytes that they take, or nothing if these are too many.
    """
    n, found = guess, fits(guess)
    is_growing = found is not None
    best = (n, found) if found is not None else (0, 0)
    while is_growing or (not best[0] and n > 8):
        n = max(8, round(n * STEP if is_growing else n / STEP))
        found = fits(n)
        if found is not None:
            best = n, found
        elif is_growing:
            break
    return best


def sizes(
    model: torch.nn.Module, device: torch.device, args: argparse.Namespace, say: Callable[[str], None]
) -> list[Record]:
    """The largest structure that the bare model runs, and the largest that is audited, in each way."""
    precisions = PRECISIONS["float64"], parse_precision(args.precision)
    variants = [Variant(model, precision, device) for precision in precisions]
    graphs: dict[int, Graph] = {}
    for _ in range(2):  # TorchScript compiles in the second call
        for variant in variants:
            variant.predict(build_graph(supercell(8), model).to(device))

    def peak(run: Callable[[Graph], object], n_atoms: int) -> int | None:
        if n_atoms not in graphs:
            graphs[n_atoms] = build_graph(supercell(n_atoms), model)
        torch.cuda.empty_cache()
        try:
            found = attempt(peak_of, device, partial(run, graphs[n_atoms]))
        except DoesNotFitError:
            found = None
        taken = "does not fit" if found is None else f"{(found[1] or 0) / 2**30:.1f} GiB"
        say(f"  {graphs[n_atoms].n_atoms} atoms: {taken}")
        return None if found is None else found[1] or 0

    rows: list[Record] = []

    def search(name: str, run: Callable[[Graph], object], guess: int, *, offload: bool = False) -> None:
        say(f"{name}{', offload' if offload else ''}")
        n_atoms, n_bytes = largest(guess, partial(peak, run))
        row = {"kind": name, "offload": offload, "n_atoms": graphs[n_atoms].n_atoms if n_atoms else 0}
        rows.append(
            {**row, "guess": guess, "peak_bytes": n_bytes, "n_edges": graphs[n_atoms].n_edges if n_atoms else 0}
        )

    search("bare float64", lambda graph: variants[0].predict(graph.to(device)), args.atoms)
    for name, (modes, gradients) in KINDS.items():
        for offload in (False, True):
            observer = Observer(variants, select_blocks(model, None), modes, gradients, "eV", "errors", offload)
            run = partial(observer.observe, repeats=0, may_lack=False)
            search(name, run, max(8, rows[-1]["n_atoms"]), offload=offload)
    return rows


# The results


def markdown(record: Record) -> str:
    """The tables."""
    few, many = (record["options"][name] for name in ("few", "many"))
    lines = [
        f"# The memory of an audit, {record['provenance']['device']}",
        "",
        f"`{record['command']}`, torch {record['provenance']['versions']['torch']}.",
        "",
        f"Peak of resident memory of a process that audits so many molecules (methanol, the demo model, float64 and "
        f"{record['options']['precisions']}, both modes, errors kept):",
        "",
        f"| | {few} structures | {many} structures | ratio |",
        "|---|--:|--:|--:|",
    ]
    for row in record["host"]:
        cells = [f"{row[name] / 2**20:,.0f} MiB" for name in ("few_bytes", "many_bytes")]
        lines.append(
            f"| {'with' if row['has_file'] else 'without'} a file | {' | '.join(cells)} | {row['ratio']:.3f} |"
        )
    if record["sizes"]:
        bare = record["sizes"][0]["n_atoms"]
        lines += [
            "",
            f"The largest supercell of SiC, to a tenth: {record['model']}, {record['backend']}, float64 and "
            f"{record['options']['precision']}, errors kept.",
            "",
            "| | atoms | edges | peak memory | ÷ bare |",
            "|---|--:|--:|--:|--:|",
        ]
    for row in record["sizes"]:
        name = f"{row['kind']}{', offload' if row['offload'] else ''}"
        peak = f"{row['peak_bytes'] / 2**30:.1f} GiB"
        of_bare = f"{row['n_atoms'] / bare:.2f}" if bare else "–"
        lines.append(f"| {name} | {row['n_atoms']:,} | {row['n_edges']:,} | {peak} | {of_bare} |")
    return "\n".join([*lines, ""])


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Path]:
    """Measure, and write the results; return the paths of the files.

    Args:
        args: The options of ``bench_memory.py``.
        argv: As they were given.

    Raises:
        InputError: If the device or the precision cannot be used.
    """
    device = check_device(args.device or ("cpu" if args.smoke else None))
    say, backend = teller(args.quiet), "cueq" if args.cueq else "e3nn"
    model, _ = load_model("demo")
    measured: list[Record] = []
    if device.type == "cuda":
        model = build(architecture(0, args.smoke), seed=0)
        model = to_cuequivariance(model, device) if args.cueq else model
        check_precisions([parse_precision(args.precision)], device, model)
        with undisturbed(), current(device):
            measured = sizes(model, device, args, say)
    record: Record = plain(
        {
            "schema": SCHEMA,
            "command": shlex.join(["python", "benchmarks/bench_memory.py", *without_paths(argv)]),
            "source_sha256": source_sha256(),
            "provenance": provenance(model, device),
            "options": {key: value for key, value in vars(args).items() if key not in ("output", "quiet")},
            "model": "MACE-MP with random weights",
            "backend": backend,
            "host": host(args, say),
            "sizes": measured,
        }
    )
    stem = f"bench_memory{f'-{backend}' if measured else ''}-{device.type}{'-smoke' if args.smoke else ''}"
    return write_results(args.output, stem, record, markdown(record))


if __name__ == "__main__":
    print(audit_molecules(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]) if len(sys.argv) > 3 else None))
