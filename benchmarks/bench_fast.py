"""What a step of dynamics takes: the ways in which people run a MACE on a GPU, and models launched as CUDA graphs.

    python benchmarks/bench_fast.py                                            # on a GPU if there is one
    python benchmarks/bench_fast.py --model my.model --atoms 192,1536,3000     # boxes of water by a trained model
    python benchmarks/bench_fast.py --smoke                                    # in seconds, for CI

For each size, with ASE's velocity Verlet at 300 K:

* what people run: mace-torch's ``MACECalculator`` in float64 and float32, with ``enable_cueq``, and up to ``--compile``
  atoms with ``compile_mode="default"``, and both;
* models launched as graphs, with cuEquivariance where it is installed: in float64, cast to float32, and interactions,
  products and readouts in float32 or float16 with the rest in float64; in float32 also with the first interaction's
  radial network in float64, of which half of the error of forces is that is left with SiC.

Steps are timed in turn, round after round, the device waited for; the model alone by replaying its graph. Errors are
those of the first structure, beside float64. Where torch-sim is installed, single steps of its dynamics at constant
energy are timed in turn with the model alone, and with steps in which nothing is computed. The time to the first step
includes converting, compiling and capturing. Memory is what the allocator had at most beyond what was there before the
calculator was made: while the model was called the first time, and, of models that are launched, from their capture on.
These are made twice, and their times to the first step and memory are of the first time, with nothing else on the GPU.

Writes ``bench_fast-[MODEL-]DEVICE.json`` and ``.md`` into the output folder, anew after each size.
"""

import argparse
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
    add("--model", help="a trained model that knows H and O (default: a MACE-MP with random weights, on SiC)")
    add("--atoms", help="numbers of atoms (default: 64,512,4096; 8 with --smoke)")
    add("--rounds", type=int, help="rounds (default: 7; 1 with --smoke)")
    add("--steps", type=int, default=5, help="of each round (default: %(default)s)")
    add("--compile", type=int, default=0, help="up to so many atoms compile_mode is timed too (default: none)")
    add("--no-float16", action="store_true", help="leave it out: cuEquivariance compiles for it for more than a minute")
    add("--equilibrate", type=int, default=2000, help="steps of half a femtosecond before (default: %(default)s)")
    add("--output", "-o", type=Path, default=Path(__file__).parent / "results", help="folder (default: %(default)s)")
    add("--smoke", action="store_true", help="a small model and one round, on the CPU unless --device is given")
    add("--quiet", action="store_true", help="no progress and no table")
    args = parser.parse_args(list(argv))
    args.rounds = (1 if args.smoke else 7) if args.rounds is None else args.rounds
    args.atoms = ("8" if args.smoke else "64,512,4096") if args.atoms is None else args.atoms
    args.equilibrate = 2 if args.smoke else args.equilibrate
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse what can be known to be wrong before torch is imported, which takes seconds.

    Raises:
        InputError: If an option is wrong.
    """
    parse_sizes(args.atoms, "--atoms")
    for option in ("rounds", "steps"):
        if getattr(args, option) < 1:
            raise InputError(f"--{option} must be 1 or more; got {getattr(args, option)}.")
    check_folder(args.output)


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Path]:
    """Measure, and write what was found."""
    from fast_run import run  # here, because it imports torch and mace

    return run(args, argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if it is done, 2 if what was asked for cannot be."""
    return concluded("bench_fast", argv, arguments, check, run)


if __name__ == "__main__":
    sys.exit(main())
