"""Energy drift of liquid water under policies, by models that are launched as CUDA graphs.

    python benchmarks/bench_liquid.py my.model                        # 64 molecules, four runs of 20 ps, on a GPU
    python benchmarks/bench_liquid.py demo --smoke                    # in seconds, for CI

A box is equilibrated with the model itself. Then runs at constant energy, all at once as one batch, begin from it with
velocities drawn anew, the same under each policy: float64, and interactions, products and readouts in float32 or
float16. Energies are summed in float64; their drift under a policy is compared with float64's run by run.

Writes ``bench_liquid-DEVICE.json`` and ``.md`` into the output folder, anew after each policy.
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
    add("model", help="a trained model that knows H and O")
    add("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    add("--atoms", type=int, help="of the box (default: 192; 3 with --smoke)")
    add("--picoseconds", type=float, help="of each run (default: 20; 0.02 with --smoke)")
    add("--timestep", type=float, default=0.5, help="fs (default: %(default)s)")
    add("--runs", type=int, help="at once (default: 4; 2 with --smoke)")
    add("--equilibrate", type=int, help="steps of half a femtosecond before (default: 4000; 2 with --smoke)")
    add("--output", "-o", type=Path, default=Path(__file__).parent / "results", help="folder (default: %(default)s)")
    add("--smoke", action="store_true", help="a molecule and forty steps, on the CPU unless --device is given")
    add("--quiet", action="store_true", help="no progress and no table")
    args = parser.parse_args(list(argv))
    defaults = {"atoms": (192, 3), "picoseconds": (20.0, 0.02), "runs": (4, 2), "equilibrate": (4000, 2)}
    for name, (usual, smoke) in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, smoke if args.smoke else usual)
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse what can be known to be wrong before torch is imported, which takes seconds.

    Raises:
        InputError: If an option is wrong.
    """
    if args.runs < 2:
        raise InputError(f"--runs must be 2 or more, as one says nothing of others; got {args.runs}.")
    for option in ("atoms", "picoseconds", "timestep"):
        if not getattr(args, option) > 0:
            raise InputError(f"--{option} must be above 0; got {getattr(args, option)}.")
    check_folder(args.output)


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Path]:
    """Measure, and write what was found."""
    from liquid_run import run  # here, because it imports torch and mace

    return run(args, argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if it is done, 2 if what was asked for cannot be."""
    return concluded("bench_liquid", argv, arguments, check, run)


if __name__ == "__main__":
    sys.exit(main())
