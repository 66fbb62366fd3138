"""What lies behind figures published on MACE in low precision: docs/published-numbers.md sets ours beside them.

    python benchmarks/bench_published.py --device cpu      # what needs no GPU
    python benchmarks/bench_published.py --device cuda     # all of it
    python benchmarks/bench_published.py --smoke           # in seconds, for CI: all of it, small, on the CPU

* **diamond**: float32's largest error of a force beside the largest force, where symmetry makes all forces zero, with
  positions rounded to float32, and with the atoms displaced more and more.
* **loss**: the sum of the squares of a block's outputs in float16, beside their mean.
* **near zero**: the largest relative error of a component of a force, beside the largest error over the RMS.

and on a GPU, where times are medians over rounds in which each way has its turn:

* **linears**: a model in float32 beside the same with its linear layers alone in half precision; and which part of the
  device's time they take, which bounds what making them faster can give.
* **backends**: e3nn and cuEquivariance in float32, called as they are and launched as CUDA graphs.
* **conv_tp**: the tensor product of the second interaction alone, forward and backward.

Writes ``bench_published-DEVICE.json`` and ``.md`` into the output folder, anew after each part.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from records import check_folder, concluded
from systems import parse_sizes

from precision_probe.exceptions import InputError

HALVES = ("bfloat16", "float16")


def arguments(argv: Iterable[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    add("--atoms", help="numbers of atoms of what is timed (default: 64,4096; 8 with --smoke)")
    add("--rounds", type=int, help="rounds (default: 11; 1 with --smoke)")
    add("--half", default="bfloat16", help=f"of the linear layers: {' or '.join(HALVES)} (default: %(default)s)")
    add("--output", "-o", type=Path, default=Path(__file__).parent / "results", help="folder (default: %(default)s)")
    add("--smoke", action="store_true", help="a small model and one round, on the CPU unless --device is given")
    add("--quiet", action="store_true", help="no progress and no table")
    args = parser.parse_args(list(argv))
    args.rounds = (1 if args.smoke else 11) if args.rounds is None else args.rounds
    args.atoms = ("8" if args.smoke else "64,4096") if args.atoms is None else args.atoms
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse what can be known to be wrong before torch is imported, which takes seconds.

    Raises:
        InputError: If an option is wrong.
    """
    parse_sizes(args.atoms, "--atoms")
    if args.rounds < 1:
        raise InputError(f"--rounds must be 1 or more; got {args.rounds}.")
    if args.half not in HALVES:
        raise InputError(f"--half must be {' or '.join(HALVES)}; got {args.half!r}.")
    check_folder(args.output)


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Path]:
    """Measure, and write what was found."""
    from published_run import run  # here, because it imports torch and mace

    return run(args, argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if it is done, 2 if what was asked for cannot be."""
    return concluded("bench_published", argv, arguments, check, run)


if __name__ == "__main__":
    sys.exit(main())
