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
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from records import check_folder, concluded
from systems import parse_sizes

from precision_probe.exceptions import InputError
from precision_probe.precisions import parse_precisions

SIZES, SMOKE_SIZES = "64,512,1728,4096", "8,64"  # atoms


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


def check(args: argparse.Namespace) -> None:
    """Refuse what can be known to be wrong before torch is imported and a model is built, which takes seconds.

    Raises:
        InputError: If an option is wrong, or two contradict each other.
    """
    if args.repeats < 1:
        raise InputError(f"--repeats is how often each precision is timed, at least 1; got {args.repeats}.")
    if args.structures and args.sizes:
        raise InputError("--sizes is for the default structures; leave it out, or leave out --structures.")
    if args.sizes:
        parse_sizes(args.sizes)
    if args.precisions:
        parse_precisions(args.precisions)
    check_folder(args.output)


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Path]:
    """Measure, and write what was found."""
    from precisions_run import run  # here, because it imports torch and mace

    return run(args, argv, args.sizes or (SMOKE_SIZES if args.smoke else SIZES))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if it is done, 2 if what was asked for cannot be."""
    return concluded("bench_precisions", argv, arguments, check, run)


if __name__ == "__main__":
    sys.exit(main())
