"""What capturing every block of a model in one precision takes, beside other tools that capture what modules compute.

    python benchmarks/bench_capture.py                                    # the demo model
    python benchmarks/bench_capture.py --model my.model --structures my.xyz@0:8
    python benchmarks/bench_capture.py --smoke                            # in seconds, for CI

On the CPU in float32: one evaluation of energy and forces, of all structures in one graph, bare and with each tool as
its documentation says to use it. A tool may leave torch changed, so each is measured in a process of its own, beside
the bare model there: medians [quartiles] over rounds in which both are timed in turn, after a warm-up. Tools that are
not installed are reported as that (``pip install torchlens nnsight mindstudio-probe``, apart from what they must not
change), and those that fail with how.

Writes ``bench_capture-cpu.json`` and ``.md`` into the output folder.
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
    add("--model", help="a checkpoint, beside the demo model")
    add("--structures", help="a file, with --model")
    add("--rounds", type=int, help="rounds (default: 15; 1 with --smoke)")
    add("--output", "-o", type=Path, default=Path(__file__).parent / "results", help="folder (default: %(default)s)")
    add("--smoke", action="store_true", help="one round, without other tools, in this process")
    add("--quiet", action="store_true", help="no progress and no table")
    args = parser.parse_args(list(argv))
    args.rounds = (1 if args.smoke else 15) if args.rounds is None else args.rounds
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse what can be known to be wrong before torch is imported, which takes seconds.

    Raises:
        InputError: If an option is wrong.
    """
    if args.rounds < 1:
        raise InputError(f"--rounds must be 1 or more; got {args.rounds}.")
    if (args.model is None) != (args.structures is None):
        raise InputError("--model and --structures go together: a model is run on structures that it knows.")
    check_folder(args.output)


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Path]:
    """Measure, and write what was found."""
    from capture_run import run  # here, because it imports torch and mace

    return run(args, argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if it is done, 2 if what was asked for cannot be."""
    return concluded("bench_capture", argv, arguments, check, run)


if __name__ == "__main__":
    sys.exit(main())
