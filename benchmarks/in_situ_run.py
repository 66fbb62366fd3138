"""A run of bench_in_situ.py once its options are known: blocks of calls, times of hooks, tables."""

import argparse
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
from mace.calculators import MACECalculator
from measure import spread, summary
from records import Record, source_sha256, teller, without_paths, write_results

from precision_probe.models.building import build, default_config
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import Graph, build_graph
from precision_probe.models.loading import load_model
from precision_probe.models.provenance import provenance
from precision_probe.probe.probe import attach
from precision_probe.probe.weights import Weights
from precision_probe.search.timing import seconds_of
from precision_probe.structures import read_structures
from precision_probe.variants.devices import check_device

__all__ = ["SCHEMA", "TARGET", "markdown", "run", "verdict"]

SCHEMA = "precision-probe/bench_in_situ/1"
TARGET = 0.01
NEVER = 2**62  # calls: more than there will be
WARM_UP = 20  # calls
WIDER = {"hidden_irreps": "72x0e + 72x1o", "radial_MLP": [64, 64, 64]}  # than the demo: 200,000 parameters
PROBES: dict[str, dict[str, Any] | None] = {
    "bare": None,
    "bare again": None,
    "limit=0": {"limit": 0},
    "every huge": {"every": NEVER},
}


class Nothing(torch.nn.Module):
    """A module whose call takes no time of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What it is given."""
        return x


def attached(model: torch.nn.Module, options: dict[str, Any] | None, **more: Any) -> AbstractContextManager[object]:
    """A probe with these options, or nothing."""
    return nullcontext() if options is None else attach(model, precisions="float32", **options, **more)


def time_calls(atoms: ase.Atoms, displacements: np.ndarray, device: torch.device) -> float:
    """Seconds that one call of the calculator takes: the median of a block, which what else runs disturbs least."""
    positions = atoms.positions.copy()
    seconds = []
    for displacement in displacements:
        atoms.positions = positions + displacement
        seconds.append(seconds_of(atoms.get_forces, device))
    atoms.positions = positions
    return float(np.median(seconds))


def bench_calculator(args: argparse.Namespace, device: torch.device, say: Callable[[str], None]) -> Record:
    """Blocks of calls, bare and with each probe, in turn."""
    model, name = load_model("demo")
    with default_dtype(torch.get_default_dtype()):  # mace-torch's calculator sets it
        return _bench_calculator(model, name, args, device, say)


def _bench_calculator(
    model: torch.nn.Module, name: str, args: argparse.Namespace, device: torch.device, say: Callable[[str], None]
) -> Record:
    """Times of calls (ms) with each kind of probe, and their ratios to bare calls within a round."""
    atoms = next(atoms for atoms in read_structures("demo") if atoms.info["name"] == "ethanol")
    atoms.calc = MACECalculator(models=model, device=str(device), default_dtype="float64")
    rng = np.random.default_rng(args.seed)
    time_calls(atoms, rng.normal(0, 0.01, (WARM_UP, len(atoms), 3)), device)
    milliseconds: dict[str, list[float]] = {kind: [] for kind in PROBES}
    kinds = list(PROBES)
    for turn in range(args.rounds):
        displacements = rng.normal(0, 0.01, (args.calls, len(atoms), 3))
        first = turn % len(kinds)
        for kind in (*kinds[first:], *kinds[:first]):
            with attached(model, PROBES[kind], blocks="readouts.*"):
                milliseconds[kind].append(1e3 * time_calls(atoms, displacements, device))
        say(f"round {turn + 1} of {args.rounds}")
    ratios = {
        kind: [own / bare for own, bare in zip(milliseconds[kind], milliseconds["bare"], strict=True)]
        for kind in kinds[1:]
    }
    return {
        "model": name,
        "structure": atoms.info["name"],
        "n_atoms": len(atoms),
        "ms_per_call": {kind: summary(values) | {"samples": values} for kind, values in milliseconds.items()},
        "ratio_to_bare": {kind: summary(values) | {"samples": values} for kind, values in ratios.items()},
    }


def bench_hooks(args: argparse.Namespace) -> Record:
    """Microseconds that the hooks of a probe which never chooses a call take in each call."""
    module, x = Nothing(), torch.zeros(1)
    microseconds: dict[str, list[float]] = {kind: [] for kind in PROBES}
    for _ in range(args.rounds):
        for kind, options in PROBES.items():
            call = {"call": lambda module, value: module(value), "blocks": "inner", "device": "cpu"}
            with attached(module, options, **call):
                # 20 times as many calls: one takes microseconds, and a block of them is to outlast the clock's ticks
                microseconds[kind].append(1e6 * _seconds_per_call(module, x, 20 * args.calls))
    return {
        kind: summary([own - bare for own, bare in zip(microseconds[kind], microseconds["bare"], strict=True)])
        for kind, options in PROBES.items()
        if options is not None
    }


def bench_weights(args: argparse.Namespace, device: torch.device) -> Record:
    """What comparing a model's weights with a copy takes, as each observed call does, and a bare call in turn."""
    (atoms,) = (atoms for atoms in read_structures("demo") if atoms.info["name"] == "ethanol")
    models = {"demo": load_model("demo")[0], "wider": build(default_config() | WIDER)}
    return {name: _bench_weights(model.to(device), build_graph(atoms, model), args) for name, model in models.items()}


def _bench_weights(model: torch.nn.Module, graph: Graph, args: argparse.Namespace) -> Record:
    """Microseconds of a comparison, and its ratio to a bare call within a round."""
    device = next(model.parameters()).device
    weights, graph = Weights(model, []), graph.to(device)
    runs: dict[str, Callable[[], object]] = {
        "compared": weights.follow,
        "called": lambda: model(graph.cast(torch.float64)),
    }
    timed: dict[str, list[float]] = {kind: [] for kind in runs}
    for _ in range(2):
        runs["called"]()  # TorchScript compiles in the second call
    for _ in range(args.rounds):
        for kind, run in runs.items():
            timed[kind].append(_median_seconds(run, args.calls, device))
    return {
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "us": summary([1e6 * seconds for seconds in timed["compared"]]),
        "of_a_bare_call": summary([a / b for a, b in zip(timed["compared"], timed["called"], strict=True)]),
    }


def _median_seconds(run: Callable[[], object], number: int, device: torch.device) -> float:
    """Of one call, in a block of several."""
    return float(np.median([seconds_of(run, device) for _ in range(number)]))


def _seconds_per_call(module: torch.nn.Module, x: torch.Tensor, number: int) -> float:
    start = time.perf_counter()
    for _ in range(number):
        module(x)
    return (time.perf_counter() - start) / number


def markdown(record: Record) -> str:
    """The tables."""
    calculator, hooks = record["calculator"], record["hooks_us"]
    lines = [
        f"# What a probe costs calls that it does not observe, {record['provenance']['device']}",
        "",
        f"{calculator['structure']} ({calculator['n_atoms']} atoms), model {calculator['model']}, float64, "
        "through ASE's calculator; "
        f"medians [quartiles] over {record['options']['rounds']} interleaved rounds, in each of which the median of "
        f"{record['options']['calls']} calls counts. "
        "The hooks' time is what a module that does nothing takes longer with the probe attached.",
        "",
        "| | ms per call | ratio to bare | hooks alone / µs per call | of a bare call |",
        "|---|--:|--:|--:|--:|",
    ]
    bare = calculator["ms_per_call"]["bare"]["median"]
    for kind, times in calculator["ms_per_call"].items():
        ratio = calculator["ratio_to_bare"].get(kind)
        own = hooks.get(kind)
        cells = [
            kind,
            spread(times, ".2f"),
            "1" if ratio is None else spread(ratio, ".4f"),
            "" if own is None else spread(own, ".1f"),
            "" if own is None else f"{own['median'] / (1e3 * bare):.3%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", verdict(record), *_on_weights(record.get("weights", {})), ""])


def _on_weights(weights: Record) -> list[str]:
    """A paragraph on what following the weights takes; results of before it was measured have none."""
    if not weights:
        return []
    each = (
        f"{own['us']['median']:.0f} µs for {own['n_parameters']:,} parameters "
        f"({own['of_a_bare_call']['median']:.1%} of a bare call)"
        for own in weights.values()
    )
    return ["", f"In a call that is observed, comparing the weights with a copy takes {', '.join(each)}."]


def verdict(record: Record) -> str:
    """Whether the target is met, or the two bare blocks differ by so much that the ratios cannot tell."""
    noise = record["calculator"]["ratio_to_bare"]["bare again"]
    target = f"Target: a median overhead of at most {TARGET:.0%}: "
    if max(abs(noise[key] - 1) for key in ("q25", "median", "q75")) > TARGET:
        return (
            target + "the ratios cannot tell, since two blocks of bare calls differ by more; see the hooks' own time."
        )
    return target + ("met." if record["meets_target"] else "not met.")


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Path]:
    """Measure, and write the results; return the paths of the files.

    Args:
        args: The options of ``bench_in_situ.py``.
        argv: As they were given.

    Raises:
        InputError: If the device cannot be used.
    """
    device = check_device(args.device or ("cpu" if args.smoke else None))

    say = teller(args.quiet)
    calculator = bench_calculator(args, device, say)
    record = {
        "schema": SCHEMA,
        "command": shlex.join(["python", "benchmarks/bench_in_situ.py", *without_paths(argv)]),
        "source_sha256": source_sha256(),
        "provenance": provenance(load_model("demo")[0], device),
        "options": {key: value for key, value in vars(args).items() if key not in ("output", "quiet")},
        "target": TARGET,
        "meets_target": all(
            calculator["ratio_to_bare"][kind]["median"] <= 1 + TARGET for kind in PROBES if PROBES[kind] is not None
        ),
        "calculator": calculator,
        "hooks_us": bench_hooks(args),
        "weights": bench_weights(args, device),
    }
    stem = f"bench_in_situ-{device.type}{'-smoke' if args.smoke else ''}"
    return write_results(args.output, stem, record, markdown(record))
