"""How much faster an audit of many structures is on several workers, each with a GPU of its own where there are.

    python benchmarks/bench_workers.py                       # 2,000 structures; one process, then 2 and 4 workers
    python benchmarks/bench_workers.py --workers 0,2 --kill  # and once more, with a worker killed half way
    python benchmarks/bench_workers.py --smoke               # a few molecules on two workers, for CI

Each row is one audit of the same structures, from start to finished file: with workers, their start (of Python, torch
and a model) and the tables of contributions are within; how long it takes until workers are there, and until the first
of them has done a structure, stands beside it. Row 0 is one process without any, which has imported torch before. Times
are single runs, as an audit is long against what varies between two. With ``--kill``, the worker that writes the
first part is killed when a third of the structures are done. What each row recorded is compared with the first row's.

Writes ``bench_workers-DEVICE.json`` and ``.md`` into the output folder.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from records import Record, check_folder, concluded, source_sha256, teller, without_paths, write_results

from precision_probe.exceptions import InputError

if TYPE_CHECKING:
    import ase

OPTIONS: dict[str, Any] = {
    "precisions": "float32,bfloat16",
    "modes": "propagated",
    "gradients": "shared",
    "keep": "errors",
    "time": False,
}


def arguments(argv: Iterable[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--device", help="cpu or cuda (default: a GPU if there is one)")
    add("--workers", default="0,2,4", help="numbers of workers, 0 for one process without any (default: %(default)s)")
    add("--structures", type=int, default=2000, help="how many, rattled cells of SiC (default: %(default)s)")
    add("--atoms", type=int, default=64, help="of each (default: %(default)s)")
    add("--kill", action="store_true", help="once more with the last number of workers, of which one is killed")
    add("--output", "-o", type=Path, default=Path(__file__).parent / "results", help="folder (default: %(default)s)")
    add("--smoke", action="store_true", help="six molecules and a small model")
    add("--quiet", action="store_true", help="no progress and no table")
    args = parser.parse_args(list(argv))
    if args.smoke:
        args.workers, args.structures, args.device = "0,2", 6, "cpu"
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be.

    Raises:
        InputError: If an option is wrong.
    """
    if not all(part.isdigit() for part in args.workers.split(",")):
        raise InputError(f"--workers {args.workers!r} is not a list of numbers such as 0,2,4.")
    if args.structures < 1 or args.atoms < 8:
        raise InputError("--structures must be 1 or more, and --atoms 8 or more.")
    check_folder(args.output)


def systems(args: argparse.Namespace, folder: Path) -> tuple[str, "list[ase.Atoms]"]:
    """A model and structures of its elements, whose atoms are displaced differently in each."""
    import torch
    from systems import architecture, supercells

    from precision_probe.models.building import build
    from precision_probe.structures import read_structures

    if args.smoke:
        return "demo", [read_structures("demo@0")[0] for _ in range(args.structures)]
    path = folder / "mace-mp.model"
    torch.save(build(architecture(0, smoke=False), seed=0), path)
    cells = [supercells([args.atoms], seed)[0] for seed in range(args.structures)]
    for number, atoms in enumerate(cells):
        atoms.info["name"] = f"SiC {number}"
    return str(path), cells


def one_process(model: str, structures: "list[ase.Atoms]", output: Path, device: str | None) -> float:
    """An audit without workers: how long it takes, s."""
    import precision_probe as pp

    start = time.perf_counter()
    with pp.attach(model, **OPTIONS, device=device, output=output) as probe:
        probe.run(structures, progress=False)
        probe.explain(structures, only=("contributions",), progress=False)
    return time.perf_counter() - start


def by_workers(
    model: str, structures: "list[ase.Atoms]", output: Path, device: str | None, n: int, *, kill: bool = False
) -> Record:
    """An audit with workers, and their start: how long it takes, s, and how much of that passes before they work."""
    from precision_probe.parallel.audit import audit
    from precision_probe.parallel.cluster import connected

    killed: list[int] = []
    row: Record = {"workers": n, "killed": kill}

    def told(n_done: int) -> None:
        if n_done and "first_structure" not in row:
            row["first_structure"] = time.perf_counter() - start
        if kill and not killed and n_done > len(structures) / 3:
            with contextlib.suppress(OSError):
                lock = output.with_name(f"{output.name}.partial") / "part-0000.h5.lock"
                killed.append(json.loads(lock.read_text())["pid"])
                os.kill(killed[0], signal.SIGKILL)

    start = time.perf_counter()
    with connected(n) as client:
        row["workers_there"] = time.perf_counter() - start
        audit(model, structures, output, client, options={**OPTIONS, "device": device}, told=told)  # type: ignore[arg-type]
    if kill and not killed:
        raise InputError("No worker was killed: the audit was over before. Take more structures.")
    return row | {"seconds": time.perf_counter() - start}


def difference(ours: Path, theirs: Path) -> Record:
    """Whether two traces have the same structures, and how far what the models predict and their errors differ."""
    import numpy as np

    import precision_probe as pp

    with pp.open_trace(ours) as a, pp.open_trace(theirs) as b:
        names = [trace.structures["name"].values.tolist() for trace in (a, b)]
        largest = 0.0
        for precision in a.attributes["precisions"]:
            for quantity in ("energy", "forces"):
                y, y_hat = (trace.group("propagated", precision)[quantity].values for trace in (b, a))
                largest = max(largest, float(np.linalg.norm(y_hat - y) / np.linalg.norm(y)))
        complete = [trace.attributes["complete"] for trace in (a, b)]
    return {"same_names": names[0] == names[1], "complete": all(complete), "rel_l2": largest}


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Path]:
    """Measure, and write what was found."""
    import torch

    from precision_probe.models.provenance import describe_device

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    say = teller(args.quiet)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, structures = systems(args, folder)
        record: Record = {
            "command": " ".join(["bench_workers.py", *without_paths(argv)]),
            "source_sha256": source_sha256(),
            "device": describe_device(torch.device(device)),
            "n_devices": torch.cuda.device_count(),
            "n_structures": len(structures),
            "n_atoms": len(structures[0]),
            "options": OPTIONS,
            "rows": [],
        }
        others = folder
        for n, is_killed in asked_for(args):
            output = folder / f"workers-{n}{'-killed' if is_killed else ''}{'' if n else '.h5'}"
            if n:
                row = by_workers(model, structures, output, device, n, kill=is_killed)
            else:
                row = {"workers": 0, "seconds": one_process(model, structures, output, device)}
            others = output if others == folder else others
            record["rows"].append(row | {"of_first": difference(output, others)})
            say(f"{n} workers{', one killed' if is_killed else ''}: {row['seconds']:.1f} s")
            # each time anew, as machines are lent for so long
            written = write_results(args.output, f"bench_workers-{device}", record, table(record))
    return written


def asked_for(args: argparse.Namespace) -> list[tuple[int, bool]]:
    """The rows: how many workers, and whether one of them is killed."""
    rows = [(int(n), False) for n in args.workers.split(",")]
    return [*rows, (rows[-1][0], True)] if args.kill else rows


def table(record: Record) -> str:
    """The rows as Markdown."""
    whole = next((row["seconds"] for row in record["rows"] if row["workers"] == 0), None)
    lines = [
        f"# An audit of {record['n_structures']} structures of {record['n_atoms']} atoms, shared by workers",
        "",
        f"{record['n_devices']} × {record['device']}; `{record['command']}`; {record['options']}.",
        "",
        "| workers | s | are there after, s | first structure after, s | × one process | beside the first row |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for row in record["rows"]:
        name = f"{row['workers'] or 'one process'}{', one killed' if row.get('killed') else ''}"
        faster = "–" if whole is None else f"{whole / row['seconds']:.2f}"
        found = row["of_first"]
        same = f"{'same' if found['same_names'] else 'OTHER'} structures, rel_l2 {found['rel_l2']:.1e}"
        started = " | ".join(f"{row[key]:.1f}" if key in row else "–" for key in ("workers_there", "first_structure"))
        lines.append(f"| {name} | {row['seconds']:.1f} | {started} | {faster} | {same} |")
    return "\n".join([*lines, ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if it is done, 2 if what was asked for cannot be."""
    return concluded("bench_workers", argv, arguments, check, run)


if __name__ == "__main__":
    sys.exit(main())
