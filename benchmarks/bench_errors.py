"""What the errors of a large trace take: time beside reading its file once, memory beside its size.

    python benchmarks/bench_errors.py                          # a file of 4 GB and a folder of 4 parts, on the CPU
    python benchmarks/bench_errors.py --size 20 --parts 8 --folder /scratch
    python benchmarks/bench_errors.py --smoke                  # in seconds, for CI

A model is audited once, its tensors are kept, and its structures are written to the trace over and over, as a run does
that goes on. Then processes of their own, in turn, read every number once with h5py alone, and take all errors
(``precision_probe.errors``): so each file is in the page cache or not for both. Imports are not counted in times, but
in memory, which is the peak of what the process has.

Writes ``bench_errors-cpu.json`` and ``.md`` into the output folder; the traces are deleted.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from records import Record, check_folder, concluded, source_sha256, teller, without_paths, write_results

from precision_probe.exceptions import InputError

_GB = 1e9


def arguments(argv: Iterable[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--size", type=float, help="of the traces, GB (default: 4; 0.01 with --smoke)")
    add("--parts", type=int, default=4, help="of the folder (default: %(default)s)")
    add("--precisions", default="float32,bfloat16", help="beside float64 (default: %(default)s)")
    add("--rounds", type=int, help="rounds (default: 5; 1 with --smoke)")
    add("--folder", type=Path, help="where the traces are for a while (default: that of temporary files)")
    add("--output", "-o", type=Path, default=Path(__file__).parent / "results", help="folder (default: %(default)s)")
    add("--smoke", action="store_true", help="a small model and small traces")
    add("--quiet", action="store_true", help="no progress and no table")
    args = parser.parse_args(list(argv))
    args.size = (0.01 if args.smoke else 4.0) if args.size is None else args.size
    args.rounds = (1 if args.smoke else 5) if args.rounds is None else args.rounds
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse what can be known to be wrong before torch is imported, which takes seconds.

    Raises:
        InputError: If an option is wrong.
    """
    for name in ("size", "parts", "rounds"):
        if not getattr(args, name) > 0:
            raise InputError(f"--{name} must be above 0; got {getattr(args, name)}.")
    if args.folder is not None:
        check_folder(args.folder, "--folder")
    check_folder(args.output)


def make(args: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """A trace in a file, and one in a folder of parts."""
    from errors_run import make_trace  # here, because these import torch and mace
    from systems import architecture, supercells

    import precision_probe as pp
    from precision_probe.models.building import build
    from precision_probe.trace.parts.part import Part

    model = build(architecture(seed=0, smoke=args.smoke), seed=0)
    with pp.attach(model, precisions=args.precisions, device="cpu", keep="tensors", time=False) as probe:
        probe.run(supercells([8], seed=0), progress=False)
    trace = probe.trace()
    one, parts = folder / "one.h5", folder / "parts"
    make_trace(trace, one, _GB * args.size)
    parts.mkdir()
    first = 0
    for number in range(args.parts):
        part = Part(number, args.parts, first)
        first += make_trace(trace, parts / part.file_name, _GB * args.size / args.parts, part)
    return {"one file": one, f"a folder of {args.parts} parts": parts}


def measured(path: Path, rounds: int) -> Record:
    """Times and memory of both, after one round that does not count."""
    from errors_run import size_of

    found: dict[str, list[Record]] = {"read": [], "errors": []}
    for _ in range(rounds + 1):
        for task, runs in found.items():
            command = [sys.executable, str(Path(__file__).with_name("errors_run.py")), task, str(path)]
            runs.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
    read, errors = ([run["s"] for run in found[task][1:]] for task in ("read", "errors"))
    size, peaks = size_of(path), {task: max(run["peak"] for run in runs) for task, runs in found.items()}
    return {
        "bytes": size,
        "read_s": statistics.median(read),
        "errors_s": statistics.median(errors),
        "ratio": statistics.median([mine / raw for mine, raw in zip(errors, read, strict=True)]),
        "ratios": [mine / raw for mine, raw in zip(errors, read, strict=True)],
        "cpu_ratio": statistics.median(
            [mine["cpu_s"] / raw["cpu_s"] for mine, raw in zip(found["errors"][1:], found["read"][1:], strict=True)]
        ),
        "peak_bytes": peaks["errors"],
        "imports_bytes": max(run["imports"] for run in found["errors"]),
        "peak_ratio": peaks["errors"] / size,
    }


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Path]:
    """Measure, and write what was found after each trace: a run that is cut short has something."""
    say = teller(args.quiet)
    rows: list[Record] = []
    record = {
        "command": " ".join(["bench_errors.py", *without_paths(argv)]),
        "source_sha256": source_sha256(),
        "machine": platform.processor() or platform.machine(),
        "processors": os.cpu_count(),
        "precisions": ["float64", *args.precisions.split(",")],
        "rounds": args.rounds,
        "rows": rows,
    }
    stem = f"bench_errors-cpu{'-smoke' if args.smoke else ''}"
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        say("Making the traces…")
        for what, path in make(args, Path(name)).items():
            say(f"Measuring {what}…")
            rows.append({"what": what, **measured(path, args.rounds)})
            written = write_results(args.output, stem, record, table(record))
    return written


def table(record: Record) -> str:
    """The rows as Markdown."""
    lines = [
        "# What the errors of a large trace take",
        "",
        f"`{record['command']}`; {', '.join(record['precisions'])}; {record['machine']}, {record['processors']} "
        f"processors. Medians over {record['rounds']} rounds, in each of which the trace is read with h5py and then "
        "its errors are taken.",
        "",
        "| trace | GB | read once, s | errors, s | ÷ reading [least, most] | CPU time ÷ reading's | peak memory, MB "
        "| of it imports | ÷ size |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in record["rows"]:
        least, most = min(row["ratios"]), max(row["ratios"])
        lines.append(
            f"| {row['what']} | {row['bytes'] / _GB:.2f} | {row['read_s']:.2f} | {row['errors_s']:.2f} | "
            f"{row['ratio']:.2f} [{least:.2f}, {most:.2f}] | {row['cpu_ratio']:.2f} | {row['peak_bytes'] / 1e6:.0f} | "
            f"{row['imports_bytes'] / 1e6:.0f} | {row['peak_ratio']:.3f} |"
        )
    return "\n".join([*lines, ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if it is done, 2 if what was asked for cannot be."""
    return concluded("bench_errors", argv, arguments, check, run)


if __name__ == "__main__":
    sys.exit(main())
