"""What an audit takes beside the runs of the bare model that it cannot do without.

    python benchmarks/bench_audit.py                                    # on a GPU if there is one
    python benchmarks/bench_audit.py --sizes 4096 --batch 64x8 --rounds 7
    python benchmarks/bench_audit.py --device cpu --model my.model --structures my.xyz@:8
    python benchmarks/bench_audit.py --smoke                            # in seconds, for CI

The floor is the sum of one evaluation, forces included, of each precision's bare variant. Each round times the floor
and then each kind of audit on the same structures: what is captured, in which modes, with which gradients, and what of
it is kept. Ratios are of one kind and the floor within one round, medians [quartiles] over the rounds, after a warm-up.
The device is synchronised before and after each. An audit here is what runs between a graph and what the trace is
given; making graphs and writing files are timed apart.

Writes ``bench_audit-DEVICE.json`` and ``.md`` into the output folder.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from records import check_folder, concluded
from systems import parse_sizes

from precision_probe.exceptions import InputError


def arguments(argv: Iterable[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    add("--model", help="a checkpoint (default: a MACE-MP with random weights)")
    add("--structures", help="a file, with --model (default: supercells of SiC)")
    add("--sizes", help="numbers of atoms of supercells (default: 512,4096; 8 with --smoke)")
    add("--batch", help="ATOMSxNUMBER: so many supercells in one graph (default: 64x8; 8x2 with --smoke)")
    add("--precisions", help="beside float64 (default: all that the device has)")
    add("--rounds", type=int, help="rounds (default: 7; 1 with --smoke)")
    add("--output", "-o", type=Path, default=Path(__file__).parent / "results", help="folder (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights and displacements (default: %(default)s)")
    add("--smoke", action="store_true", help="a small model and few rounds, on the CPU unless --device is given")
    add("--quiet", action="store_true", help="no progress and no table")
    args = parser.parse_args(list(argv))
    args.rounds = (1 if args.smoke else 7) if args.rounds is None else args.rounds
    args.sizes = args.sizes or ("8" if args.smoke else "512,4096")
    args.batch = args.batch or ("8x2" if args.smoke else "64x8")
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse what can be known to be wrong before torch is imported, which takes seconds.

    Raises:
        InputError: If an option is wrong.
    """
    if args.rounds < 1:
        raise InputError(f"--rounds must be 1 or more; got {args.rounds}.")
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", args.batch):
        raise InputError(f"--batch {args.batch!r} is not written as ATOMSxNUMBER, such as 64x8.")
    if (args.model is None) != (args.structures is None):
        raise InputError("--model and --structures go together: a model is run on structures that it knows.")
    parse_sizes(args.sizes)
    check_folder(args.output)


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Path]:
    """Measure, and write what was found."""
    from audit_run import run  # here, because it imports torch and mace

    return run(args, argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if it is done, 2 if what was asked for cannot be."""
    return concluded("bench_audit", argv, arguments, check, run)


if __name__ == "__main__":
    sys.exit(main())
