"""What a probe costs a live model in the calls that it does not observe.

    python benchmarks/bench_in_situ.py                 # the demo model in ASE, on a GPU if there is one
    python benchmarks/bench_in_situ.py --device cuda --rounds 40
    python benchmarks/bench_in_situ.py --smoke         # in seconds, for CI

A MACE calculator is called again and again with ethanol, its atoms displaced a little each time, as a molecular
dynamics run calls it. Each round times a block of calls of the bare model (twice: the second shows what noise alone
does), one with a probe whose limit is reached (``limit=0``), and one with a probe that never comes to its turn
(``every`` huge), in an order that rotates from round to round. A block's time is the median of its calls; ratios are of
blocks within one round. The target is a median overhead of at most 1 %.

Beside them, how long one call of the hooks takes: a module that does nothing is called with and without a probe, and
the difference is what they take (the interpreter's part of calling a module with hooks included). And how long it takes
to compare a model's weights with a copy, which is done in each call that is observed, beside a bare call of ethanol.

Writes ``bench_in_situ-DEVICE.json`` and ``.md`` into the output folder.
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
    add("--output", "-o", type=Path, default=Path(__file__).parent / "results", help="folder (default: %(default)s)")
    add("--rounds", type=int, help="interleaved rounds (default: 24; 2 with --smoke)")
    add("--calls", type=int, help="calls in each block of a round (default: 20; 3 with --smoke)")
    add("--seed", type=int, default=0, help="of the displacements (default: %(default)s)")
    add("--smoke", action="store_true", help="few calls, on the CPU unless --device is given")
    add("--quiet", action="store_true", help="no progress and no table")
    args = parser.parse_args(list(argv))
    args.rounds = (2 if args.smoke else 24) if args.rounds is None else args.rounds
    args.calls = (3 if args.smoke else 20) if args.calls is None else args.calls
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse what can be known to be wrong before torch is imported, which takes seconds.

    Raises:
        InputError: If an option is wrong.
    """
    if args.rounds < 1 or args.calls < 1:
        raise InputError("--rounds and --calls must be 1 or more.")
    check_folder(args.output)


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Path]:
    """Measure, and write what was found."""
    from in_situ_run import run  # here, because it imports torch and mace

    return run(args, argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if it is done, 2 if what was asked for cannot be."""
    return concluded("bench_in_situ", argv, arguments, check, run)


if __name__ == "__main__":
    sys.exit(main())
