"""What it takes to keep all tensors of an audit in a file, beside the disk and beside the bare model.

    python benchmarks/bench_tensors.py                       # on a GPU if there is one
    python benchmarks/bench_tensors.py --atoms 512 --rounds 5
    python benchmarks/bench_tensors.py --device cpu --atoms 64 --repeat 48
    python benchmarks/bench_tensors.py --smoke               # in seconds, for CI

A supercell of SiC is audited once (propagated, ``per_block``), and each round then takes the time of

* a plain h5py write of the arrays that this gave, one dataset each, without chunks, filters or checksums, and an fsync;
* the same in the chunks that a trace has them in;
* the same arrays handed to the recorder that writes traces, up to the finished file;
* the floor: one evaluation, forces included, of each precision's bare variant;
* the audit without a file, and the audit up to the finished file, by the same variants, which are warm; making the
  graph is within neither.

Rates are of the arrays' bytes, as the trace gives them back. Ratios are within one round, medians [quartiles] over the
rounds, after a warm-up; the order turns from round to round. The device is waited for before and after each. With
``--repeat N`` the arrays written are N copies, one after another, of those of the supercell: a large one's, where the
audit of such would take too long. ``--folder`` says which disk is written to.

Processor seconds are of all threads. Writes ``bench_tensors-DEVICE.json`` and ``.md`` into the output folder, anew
after each round.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from records import check_folder, concluded

from precision_probe.exceptions import InputError


def arguments(argv: Iterable[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    add("--atoms", type=int, help="about how many (default: 4096; 8 with --smoke)")
    add("--repeat", type=int, default=1, help="how many copies of the arrays are written (default: %(default)s)")
    add("--precisions", help="beside float64 (default: all that the device has)")
    add("--rounds", type=int, help="rounds (default: 5; 1 with --smoke)")
    add("--folder", type=Path, default=Path(tempfile.gettempdir()), help="of the files written (default: %(default)s)")
    add("--output", "-o", type=Path, default=Path(__file__).parent / "results", help="folder (default: %(default)s)")
    add("--smoke", action="store_true", help="a small model and one round, on the CPU unless --device is given")
    add("--quiet", action="store_true", help="no progress and no table")
    args = parser.parse_args(list(argv))
    args.rounds = (1 if args.smoke else 5) if args.rounds is None else args.rounds
    args.atoms = (8 if args.smoke else 4096) if args.atoms is None else args.atoms
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse what can be known to be wrong before torch is imported, which takes seconds.

    Raises:
        InputError: If an option is wrong.
    """
    for option in ("atoms", "repeat", "rounds"):
        if getattr(args, option) < 1:
            raise InputError(f"--{option} must be 1 or more; got {getattr(args, option)}.")
    check_folder(args.folder, "--folder")
    check_folder(args.output)


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Path]:
    """Measure, and write what was found."""
    from tensors_run import run  # here, because it imports torch and mace

    return run(args, argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if it is done, 2 if what was asked for cannot be."""
    return concluded("bench_tensors", argv, arguments, check, run)


if __name__ == "__main__":
    sys.exit(main())
