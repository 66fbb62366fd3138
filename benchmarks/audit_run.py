"""A run of bench_audit.py once its options are known: the floor and each kind of audit in turn, and their table."""

import argparse
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ase
import torch
from measure import spread, summary
from records import Record, plain, source_sha256, teller, without_paths, write_results
from systems import architecture, parse_sizes, supercells

from precision_probe.models.blocks import select_blocks
from precision_probe.models.building import build
from precision_probe.models.graphs import Graph, build_graph, joined
from precision_probe.models.loading import load_model
from precision_probe.models.provenance import provenance
from precision_probe.precisions import PRECISIONS, parse_precisions
from precision_probe.probe.observing.observer import Observer
from precision_probe.probe.options import Keep
from precision_probe.probe.probe import attach
from precision_probe.search.timing import peak_of, seconds_of
from precision_probe.structures import read_structures
from precision_probe.variants.devices import check_device, default_precisions, undisturbed
from precision_probe.variants.variant import Variant

__all__ = ["KINDS", "SCHEMA", "markdown", "run"]

SCHEMA = "precision-probe/bench_audit/1"
BOTH = ("propagated", "isolated")


@dataclass(frozen=True)
class Kind:
    """One kind of audit."""

    gradients: str
    modes: tuple[str, ...]
    keep: str

    @property
    def words(self) -> str:
        """What it is called in the table."""
        return f"{' + '.join(self.modes) or 'predictions'}, {self.gradients}, keep {self.keep}"


KINDS = (
    Kind("shared", (), "none"),
    Kind("shared", BOTH[:1], "errors"),
    Kind("per_block", BOTH[:1], "errors"),
    Kind("per_block", BOTH, "errors"),
    Kind("per_block", BOTH[:1], "tensors"),
)


@dataclass(frozen=True)
class Case:
    """What is audited: graphs, one after the other, and the structures that they were made of."""

    name: str
    atoms: Sequence[ase.Atoms]
    graphs: Sequence[Graph]


def cases(args: argparse.Namespace, model: torch.nn.Module) -> list[Case]:
    """Structures of a file; or supercells one by one, and several in one graph."""
    if args.structures:
        atoms = read_structures(args.structures)
        name = f"{len(atoms)} structures of {Path(args.structures).name}"
        return [Case(name, atoms, [build_graph(each, model) for each in atoms])]
    single = supercells(parse_sizes(args.sizes), args.seed)
    size, number = map(int, args.batch.split("x"))
    several = [supercells([size], args.seed + index)[0] for index in range(number)]
    together = joined([build_graph(each, model) for each in several])
    return [
        *(Case(f"{len(each)} atoms", [each], [build_graph(each, model)]) for each in single),
        Case(f"{number} × {len(several[0])} atoms in one graph", several, [together]),
    ]


def bench(
    case: Case, model: torch.nn.Module, variants: Sequence[Variant], rounds: int, say: Callable[[str], None]
) -> Record:
    """Times and ratios of each kind on one case, and peak memory beside the float64 run's."""
    device = variants[0].device
    graphs = [graph.to(device) for graph in case.graphs]
    blocks = select_blocks(model, None)

    def predict(those: Sequence[Variant]) -> None:
        for graph in graphs:
            for variant in those:
                variant.predict(graph)

    def audit(kind: Kind) -> int:
        observer = Observer(variants, blocks, kind.modes, kind.gradients, "eV", kind.keep)
        observed = [observer.observe(graph, repeats=0) for graph in graphs]
        arrays = (array for each in observed for group in each.captured.values() for array in group)
        return sum(array.values.nbytes for array in arrays)

    for _ in range(2):
        predict(variants)  # TorchScript compiles in the second call
        kept = {kind: audit(kind) for kind in KINDS}
    floor: list[float] = []
    taken: dict[Kind, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(rounds):
        floor.append(seconds_of(partial(predict, variants), device))
        first = turn % len(KINDS)
        for kind in (*KINDS[first:], *KINDS[:first]):
            taken[kind].append(seconds_of(partial(audit, kind), device))
        say(f"{case.name}: round {turn + 1} of {rounds}")
    record: Record = {
        "case": case.name,
        "n_atoms": sum(graph.n_atoms for graph in graphs),
        "n_edges": sum(graph.n_edges for graph in graphs),
        "floor_ms": summary([1e3 * each for each in floor]),
        "kinds": {
            kind.words: {
                "ms": summary([1e3 * each for each in taken[kind]]),
                "ratio": summary([own / bare for own, bare in zip(taken[kind], floor, strict=True)]),
                "bytes_kept": kept[kind],
            }
            for kind in KINDS
        },
    }
    if device.type == "cuda":
        torch.cuda.empty_cache()
        bare = peak_of(device, partial(predict, variants[:1]))[1] or 0
        for kind in KINDS:
            torch.cuda.empty_cache()
            peak = peak_of(device, partial(audit, kind))[1] or 0
            record["kinds"][kind.words]["peak_ratio"] = peak / bare
        record["bare_peak_bytes"] = bare
    return record


def bench_files(case: Case, model: torch.nn.Module, precisions: str, device: torch.device) -> Record:
    """Milliseconds that making graphs, and a whole run with a file, take for one case."""
    graph_seconds = seconds_of(lambda: [build_graph(each, model) for each in case.atoms], device)
    record: Record = {"case": case.name, "graph_ms": 1e3 * graph_seconds}
    keeps: tuple[Keep, ...] = ("errors", "tensors")
    for keep in keeps:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.h5"
            probe = attach(
                model, output=path, modes="propagated", keep=keep, time=False, device=device, precisions=precisions
            )
            taken = seconds_of(partial(probe.run, case.atoms, progress=False), device)
            taken += seconds_of(probe.detach, device)
            record |= {f"{keep}_ms": 1e3 * taken, f"{keep}_bytes": path.stat().st_size}
    return record


def markdown(record: Record) -> str:
    """The tables."""
    precisions = ", ".join(record["precisions"])
    lines = [
        f"# What an audit takes beside the bare model, {record['provenance']['device']}",
        "",
        f"{record['model']}, precisions {precisions}. The floor is one evaluation of each precision's bare variant; "
        f"medians [quartiles] over {record['options']['rounds']} rounds, in each of which the floor and every kind is "
        "timed.",
    ]
    for case in record["cases"]:
        has_peaks = "bare_peak_bytes" in case
        peak = f"; peak memory of the float64 run {case['bare_peak_bytes'] / 2**30:.2f} GiB" if has_peaks else ""
        lines += [
            "",
            f"## {case['case']}, {case['n_edges']:,} edges",
            "",
            f"Floor {spread(case['floor_ms'], '.1f')} ms{peak}.",
            "",
            f"| audit | ms | ÷ floor | kept | {'peak ÷ bare float64 |' if has_peaks else ''}",
            f"|---|--:|--:|--:|{'--:|' if has_peaks else ''}",
        ]
        for words, each in case["kinds"].items():
            cells = [words, spread(each["ms"], ".1f"), spread(each["ratio"], ".2f"), _size(each["bytes_kept"])]
            cells += [f"{each['peak_ratio']:.2f}"] if has_peaks else []
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Making the graphs, and the whole of `run()` and `detach()` with a file (propagated, per_block, once):",
        "",
        "| | graphs | keep errors | keep tensors |",
        "|---|--:|--:|--:|",
    ]
    for each in record["files"]:
        cells = [f"{each[f'{keep}_ms']:.0f} ms, {_size(each[f'{keep}_bytes'])}" for keep in ("errors", "tensors")]
        lines.append(f"| {each['case']} | {each['graph_ms']:.0f} ms | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:,.1f} kB"


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Path]:
    """Measure, and write the results; return the paths of the files.

    Args:
        args: The options of ``bench_audit.py``.
        argv: As they were given.

    Raises:
        InputError: If the device, the model or the structures cannot be used.
    """
    device = check_device(args.device or ("cpu" if args.smoke else None))
    if args.model:
        model, name = load_model(args.model)
    else:
        model, name = build(architecture(args.seed, args.smoke), seed=args.seed), "MACE-MP with random weights"
    asked = parse_precisions(args.precisions) if args.precisions else default_precisions(device, model)
    variants = [Variant(model, precision, device) for precision in (PRECISIONS["float64"], *asked)]

    say = teller(args.quiet)
    with undisturbed():
        made = cases(args, model)
        measured = [bench(case, model, variants, args.rounds, say) for case in made]
        names = ",".join(precision.name for precision in asked)
        files = [bench_files(case, model, names, device) for case in made if len(case.graphs) == len(case.atoms)]
    record: Record = plain(
        {
            "schema": SCHEMA,
            "command": shlex.join(["python", "benchmarks/bench_audit.py", *without_paths(argv)]),
            "source_sha256": source_sha256(),
            "provenance": provenance(model, device),
            "options": {key: value for key, value in vars(args).items() if key not in ("output", "quiet", "model")},
            "model": name,
            "precisions": [variant.precision.name for variant in variants],
            "cases": measured,
            "files": files,
        }
    )
    model_part = f"-{Path(args.model).stem}" if args.model else ""
    stem = f"bench_audit{model_part}-{device.type}{'-smoke' if args.smoke else ''}"
    return write_results(args.output, stem, record, markdown(record))
