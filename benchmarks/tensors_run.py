"""A run of bench_tensors.py once its options are known: each way to write the same arrays in turn, and their table."""

import argparse
import contextlib
import dataclasses
import os
import resource
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import torch
from measure import spread, summary
from numpy.typing import NDArray
from records import Record, plain, source_sha256, teller, without_paths, write_results
from systems import architecture, supercells

from precision_probe.models.blocks import select_blocks
from precision_probe.models.building import build
from precision_probe.models.graphs import Graph, build_graph
from precision_probe.models.provenance import provenance
from precision_probe.precisions import PRECISIONS, parse_precisions
from precision_probe.probe.observing.observer import Observed, Observer
from precision_probe.probe.observing.to_numpy import sample_arrays
from precision_probe.search.timing import seconds_of
from precision_probe.trace import recorder
from precision_probe.trace.arrays import Sizes
from precision_probe.trace.claim import claim_output
from precision_probe.trace.recorder import Recorder
from precision_probe.variants.devices import check_device, default_precisions, undisturbed
from precision_probe.variants.variant import Variant

__all__ = ["RATIOS", "SCHEMA", "markdown", "run"]

SCHEMA = "precision-probe/bench_tensors/2"
PLAIN, CHUNKED, RECORDED = "plain h5py", "h5py, in chunks", "recorder"
FLOOR, WITHOUT, AUDIT = "floor", "audit without a file", "audit to a file"
STAGES = ("append", "check_counts", "finish")  # of the recorder
RATIOS = ((PLAIN, RECORDED), (CHUNKED, RECORDED), (AUDIT, FLOOR), (AUDIT, WITHOUT), (WITHOUT, FLOOR))


@dataclass(frozen=True)
class Recorded:
    """What an audit of one graph gave, as a recorder is given it."""

    structures: dict[str, NDArray[Any]]
    sizes: Sizes
    observed: Observed

    @classmethod
    def of(cls, graph: Graph, observed: Observed, repeat: int) -> "Recorded":
        """The same of so many copies of the graph's atoms and edges, taken for one structure."""
        n_atoms, n_edges = repeat * graph.n_atoms, repeat * graph.n_edges

        def tiled(values: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate([values] * repeat) if len(values) in (graph.n_atoms, graph.n_edges) else values

        structures = {name: tiled(values) for name, values in sample_arrays(graph).items()}
        structures |= {"n_atoms": np.array([n_atoms]), "n_edges": np.array([n_edges])}
        predictions = {
            name: [dataclasses.replace(each, values=tiled(each.values)) for each in arrays]
            for name, arrays in observed.predictions.items()
        }
        captured = {
            group: [each.with_values(tiled(each.values)) for each in arrays]
            for group, arrays in observed.captured.items()
        }
        return cls(structures, Sizes(1, n_atoms, n_edges), Observed(predictions, captured))

    def arrays(self) -> list[NDArray[Any]]:
        """Of the blocks, by far the most of it."""
        return [each.values for group in self.observed.captured.values() for each in group]


def write_plainly(arrays: Sequence[NDArray[Any]], path: Path, *, chunked: bool) -> None:
    """Write arrays by h5py, and wait for the disk."""
    with h5py.File(path, "w") as file:
        for number, values in enumerate(arrays):
            rows = max(1, min(len(values), 2**18 // max(1, values[:1].nbytes)))
            file.create_dataset(str(number), data=values, chunks=(rows, *values.shape[1:]) if chunked else None)
    with path.open("rb+") as written:
        os.fsync(written.fileno())


def write_trace(recorded: Recorded, path: Path) -> None:
    """Write a trace."""
    recorder = Recorder(claim_output(path))
    recorder.attributes = {"complete": True}
    recorder.add(recorded.structures, recorded.sizes, recorded.observed.predictions, recorded.observed.captured)
    recorder.save()
    assert recorder.written_to == path, recorder.problem


@dataclass(frozen=True)
class Taken:
    """What one call took.

    Attributes:
        seconds: By the clock, until the device was done.
        processor_seconds: Of all threads, the system's included.
        page_faults: How often the system gave memory.
    """

    seconds: float
    processor_seconds: float
    page_faults: int

    @classmethod
    def by(cls, call: Callable[[], object], device: torch.device) -> "Taken":
        """Make a call."""
        before = resource.getrusage(resource.RUSAGE_SELF)
        seconds = seconds_of(call, device)
        after = resource.getrusage(resource.RUSAGE_SELF)
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return cls(seconds, processor, after.ru_minflt - before.ru_minflt)


@contextlib.contextmanager
def stages() -> Iterator[dict[str, float]]:
    """The seconds of each stage of the recorder, once it is done."""
    seconds = dict.fromkeys(STAGES, 0.0)

    def timed(name: str, stage: Callable[..., None], *args: Any, **options: Any) -> None:
        begin = time.perf_counter()
        stage(*args, **options)
        seconds[name] += time.perf_counter() - begin

    with contextlib.ExitStack() as patches:
        for name in STAGES:
            patches.enter_context(mock.patch.object(recorder, name, partial(timed, name, getattr(recorder, name))))
        yield seconds


def bench(
    args: argparse.Namespace,
    model: torch.nn.Module,
    variants: Sequence[Variant],
    say: Callable[[str], None],
    keep: Callable[[Record], object],
) -> None:
    """Times of each way, and the ratios of them, kept after every round."""
    device = variants[0].device
    (atoms,) = supercells([args.atoms], 0)
    graph = build_graph(atoms, model).to(device)
    observer = Observer(variants, select_blocks(model, None), ("propagated",), "per_block", "eV", "tensors")
    recorded = Recorded.of(graph, observer.observe(graph, repeats=0), args.repeat)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "written.h5"
        ways: dict[str, Callable[[], object]] = {
            PLAIN: partial(write_plainly, recorded.arrays(), path, chunked=False),
            CHUNKED: partial(write_plainly, recorded.arrays(), path, chunked=True),
            RECORDED: partial(write_trace, recorded, path),
            FLOOR: lambda: [variant.predict(graph) for variant in variants],
            WITHOUT: lambda: observer.observe(graph, repeats=0),
            AUDIT: lambda: write_trace(Recorded.of(graph, observer.observe(graph, repeats=0), 1), path),
        }
        taken: dict[str, list[Taken]] = {way: [] for way in ways}
        in_stages: list[dict[str, float]] = []
        for turn in range(-1, args.rounds):  # the first is the warm-up
            order = list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]
            for way in order:
                with stages() as seconds:
                    took = Taken.by(ways[way], device)
                if way == RECORDED:
                    n_file_bytes = path.stat().st_size
                path.unlink(missing_ok=True)
                if turn >= 0:
                    taken[way].append(took)
                    in_stages += [seconds] if way == RECORDED else []
            say(f"round {turn + 1} of {args.rounds}")
            if turn >= 0:
                sizes = {"n_atoms": graph.n_atoms, "n_edges": graph.n_edges, "repeat": args.repeat}
                n_bytes = sum(values.nbytes for values in recorded.arrays())
                keep(sizes | {"bytes": n_bytes, "file_bytes": n_file_bytes} | summaries(taken, in_stages))


def summaries(taken: dict[str, list[Taken]], in_stages: Sequence[dict[str, float]]) -> Record:
    """Medians and quartiles over the rounds that there were."""
    found: Record = {
        each.name: {way: summary([getattr(took, each.name) for took in calls]) for way, calls in taken.items()}
        for each in dataclasses.fields(Taken)
    }
    found["stages"] = {name: summary([seconds[name] for seconds in in_stages]) for name in STAGES}
    found["ratios"] = {
        f"{one} ÷ {other}": summary([a.seconds / b.seconds for a, b in zip(taken[one], taken[other], strict=True)])
        for one, other in RATIOS
    }
    return found | {"rounds": len(in_stages)}


def markdown(record: Record) -> str:
    """The tables."""
    case = record["case"]
    copies = f", {case['repeat']} copies of whose arrays are written" if case["repeat"] > 1 else ""
    megabytes = case["bytes"] / 1e6
    lines = [
        f"# What it takes to keep all tensors in a file, {record['provenance']['device']}",
        "",
        f"{record['model']}, precisions {', '.join(record['precisions'])}; {case['n_atoms']:,} atoms{copies}. The "
        f"arrays are {megabytes:,.1f} MB, the trace of them {case['file_bytes'] / 1e6:,.1f} MB. Medians [quartiles] "
        f"over {case['rounds']} rounds.",
        "",
        "| | s | MB/s of the arrays | processor s | page faults |",
        "|---|--:|--:|--:|--:|",
    ]
    for way, seconds in case["seconds"].items():
        rate = f"{megabytes / seconds['median']:,.0f}" if way in (PLAIN, CHUNKED, RECORDED) else ""
        processor, faults = case["processor_seconds"][way]["median"], case["page_faults"][way]["median"]
        lines.append(f"| {way} | {spread(seconds, '.3f')} | {rate} | {processor:.2f} | {faults:,.0f} |")
    of_stages = (f"{name} {seconds['median']:.3f} s" for name, seconds in case["stages"].items())
    lines += ["", f"Of the recorder: {', '.join(of_stages)}."]
    lines += ["", "| time ÷ time | |", "|---|--:|"]
    lines += [f"| {name} | {spread(values, '.2f')} |" for name, values in case["ratios"].items()]
    return "\n".join([*lines, ""])


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Path]:
    """Measure, and write the results; return the paths of the files.

    Args:
        args: The options of ``bench_tensors.py``.
        argv: As they were given.

    Raises:
        InputError: If the device or a precision cannot be used.
    """
    device = check_device(args.device or ("cpu" if args.smoke else None))
    model = build(architecture(0, args.smoke), seed=0)
    asked = parse_precisions(args.precisions) if args.precisions else default_precisions(device, model)
    variants = [Variant(model, precision, device) for precision in (PRECISIONS["float64"], *asked)]
    record: Record = {
        "schema": SCHEMA,
        "command": shlex.join(["python", "benchmarks/bench_tensors.py", *without_paths(argv)]),
        "source_sha256": source_sha256(),
        "provenance": provenance(model, device),
        "options": {key: value for key, value in vars(args).items() if key not in ("folder", "output", "quiet")},
        "model": f"{'a small ' if args.smoke else ''}MACE-MP with random weights",
        "precisions": [variant.precision.name for variant in variants],
    }
    stem = f"bench_tensors-{device.type}{'-smoke' if args.smoke else ''}"
    paths: list[Path] = []

    def keep(case: Record) -> None:
        kept = plain(record | {"case": case})
        paths[:] = write_results(args.output, stem, kept, markdown(kept))

    with undisturbed():
        bench(args, model, variants, teller(args.quiet), keep)
    return paths
