"""Whether an audit's memory is bounded: of the host by the number of structures, of a GPU beside the bare model.

    python benchmarks/bench_memory.py                                        # on a GPU if there is one
    python benchmarks/bench_memory.py --device cuda --atoms 40000 --cueq     # from a guess, converted to cuEquivariance
    python benchmarks/bench_memory.py --device cpu                           # the host's memory alone
    python benchmarks/bench_memory.py --smoke                                # in seconds, for CI

The host: molecules are audited on the CPU by the demo model (both modes, errors kept), few and many, with a file and
without one, each time in a process of its own, whose peak of resident memory the kernel tells. What Python, torch and
the model take is within.

The GPU: supercells of SiC grow by a tenth, or shrink, from a guess until the next does not fit: the bare model in
float64, forces included, and then audits in float64 and one more precision, without and with --offload. On a CPU this
is left out, as a process that runs out of memory there is killed.

Writes ``bench_memory-[BACKEND-]DEVICE.json`` and ``.md`` into the output folder.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from records import check_folder, concluded

from precision_probe.exceptions import InputError


def arguments(argv: Iterable[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    add("--cueq", action="store_true", help="convert the model to cuEquivariance")
    add("--atoms", type=int, default=20_000, help="a guess of how many fit (default: %(default)s)")
    add("--precision", default="float32", help="beside float64, on the GPU (default: %(default)s)")
    add("--precisions", default="float32", help="beside float64, on the host (default: %(default)s)")
    add("--few", type=int, help="structures (default: 10; 2 with --smoke)")
    add("--many", type=int, help="structures (default: 300; 4 with --smoke)")
    add("--output", "-o", type=Path, default=Path(__file__).parent / "results", help="folder (default: %(default)s)")
    add("--smoke", action="store_true", help="few structures and a small model, on the CPU unless --device is given")
    add("--quiet", action="store_true", help="no progress and no table")
    args = parser.parse_args(list(argv))
    args.few = (2 if args.smoke else 10) if args.few is None else args.few
    args.many = (4 if args.smoke else 300) if args.many is None else args.many
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse what can be known to be wrong before torch is imported, which takes seconds.

    Raises:
        InputError: If an option is wrong.
    """
    if args.atoms < 8:
        raise InputError(f"--atoms must be 8 or more, a cell of SiC; got {args.atoms}.")
    if not 1 <= args.few < args.many:
        raise InputError(f"--few must be 1 or more, and --many more than that; got {args.few} and {args.many}.")
    if not Path("/proc/self/status").exists():
        raise InputError("The peak of a process's memory is read in /proc/self/status, which Linux alone has.")
    check_folder(args.output)


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Path]:
    """Measure, and write what was found."""
    from memory_run import run  # here, because it imports torch and mace

    return run(args, argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if it is done, 2 if what was asked for cannot be."""
    return concluded("bench_memory", argv, arguments, check, run)


if __name__ == "__main__":
    sys.exit(main())
