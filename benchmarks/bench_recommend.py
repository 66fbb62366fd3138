"""The policies that ``recommend`` finds for a large model on a GPU, beside what people do today.

    python benchmarks/bench_recommend.py --device cuda             # a MACE-MP-like model, 4,096 atoms of SiC
    python benchmarks/bench_recommend.py --device cuda --cueq      # the same, converted to cuEquivariance
    python benchmarks/bench_recommend.py --device cuda --cueq --graph        # launched as CUDA graphs
    python benchmarks/bench_recommend.py --smoke                   # small, on a CPU, for CI

Questions asked of the model and structures of ``bench_precisions.py`` (random weights, so errors mean something
relative to the model's own forces only):

- *free digits*: what is as fast as the model cast to float32, with forces 5 and the total energy 50 times better?
- *fast*: what is the fastest with a relative force error (L2) of 2.5e-3?
- *fast, by module*: the same, where parts of blocks may have a precision of their own.
- *small*: what needs the least memory at that error?

With ``--graph`` the first two are asked of models that are launched, beside what people run otherwise.

What each block costs in each precision is measured once; proposals are then searched and measured for each question on
one structure, and the file of the chosen one is tested on another held out. Writes ``bench_recommend-NAME.json`` and
``.md``.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from records import check_folder
from systems import parse_sizes

from precision_probe.exceptions import InputError
from precision_probe.precisions import parse_precisions


def check(given: argparse.Namespace) -> None:
    """Refuse what can be known to be wrong before torch is imported and a model is built, which takes seconds.

    Raises:
        InputError: If an option is wrong.
    """
    if given.allow and "float16" not in {precision.name for precision in parse_precisions(given.allow)}:
        raise InputError(f"--allow {given.allow!r} lacks float16, whose errors the tolerances are made of.")
    parse_sizes(given.atoms, "--atoms")
    check_folder(given.out, "--out")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if it is done, 2 if what was asked for cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    parser.add_argument("--cueq", action="store_true", help="convert the model to cuEquivariance")
    parser.add_argument("--graph", action="store_true", help="of models that are launched as CUDA graphs")
    parser.add_argument("--allow", help="precisions, separated by commas; by default all")
    parser.add_argument("--atoms", default="4096", help="of each structure, about")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--smoke", action="store_true", help="a small model and structures, for CI")
    argv = sys.argv[1:] if argv is None else argv
    given = parser.parse_args(argv)
    try:
        check(given)
        from recommend_run import run  # here, because it imports torch and mace

        run(given, argv)
    except InputError as error:
        print(f"bench_recommend: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
