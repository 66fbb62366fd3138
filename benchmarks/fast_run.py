"""A run of bench_fast.py once its options are known: each way to take a step in turn, and their tables."""

import argparse
import copy
import gc
import importlib.util
import shlex
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ase
import numpy as np
import torch
from ase import units
from ase.calculators.calculator import Calculator
from ase.md.verlet import VelocityVerlet
from liquid import equilibrated, water
from mace.calculators import MACECalculator
from measure import spread, summary
from records import Record, plain, source_sha256, teller, without_paths, write_results
from systems import AFTER, DIGITS, architecture, parse_sizes, supercells

from precision_probe.fast.calculator import GraphCalculator
from precision_probe.fast.drivers import launcher
from precision_probe.fast.launcher import Launcher
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.backends import has_cuequivariance_kernels, to_cuequivariance
from precision_probe.models.building import build
from precision_probe.models.loading import load_model
from precision_probe.models.provenance import provenance
from precision_probe.policy import Policy
from precision_probe.search.timing import seconds_of
from precision_probe.variants.devices import check_device, undisturbed

__all__ = ["SCHEMA", "markdown", "run"]

SCHEMA = "precision-probe/bench_fast/1"
TIMESTEP, TEMPERATURE = 0.5, 300.0  # fs, K
EXACT = "MACECalculator, float64"
CAST = "cast to float32, graph"
NAMES = {
    "float64": "float64, graph",
    "float32": "interactions, products, readouts in float32, graph",
    "digits": "the same, but the first radial network in float64, graph",
    "float16": "interactions, products, readouts in float16, graph",
}
# without rules a model is in float64
POLICIES = {"float64": Policy(()), **AFTER, "digits": DIGITS}
COLUMNS = (
    *(
        "step / ms",
        "÷ fastest of MACECalculator",
        "model alone / ms",
        "first step / s",
        "called / GiB",
        "launched / GiB",
    ),
    *("relative force error", "total energy error / meV/atom"),
)
_REPLAYS, _WARM_UP = 20, 5


@dataclass
class Way:
    """One way to take steps, and what was found of it."""

    is_ours: bool
    calculator: Calculator
    atoms: ase.Atoms
    seconds_to_first: float
    bytes_called: int
    bytes_launched: int
    energy: float
    forces: np.ndarray
    seconds: list[float] = field(default_factory=list)
    dynamics: VelocityVerlet | None = None


def makers(
    model: torch.nn.Module, device: torch.device, n_atoms: int, args: argparse.Namespace
) -> dict[str, Callable[[], Calculator]]:
    """The ways to run a model, by name: functions that make a calculator."""
    has_cueq = has_cuequivariance_kernels(device)

    def theirs(dtype: str, **options: object) -> Calculator:
        module = copy.deepcopy(model).to(getattr(torch, dtype))
        return MACECalculator(models=[module], device=device.type, default_dtype=dtype, **options)

    def cast() -> Calculator:
        module = copy.deepcopy(model).to(device=device, dtype=torch.float32)
        module = to_cuequivariance(module, device) if has_cueq else module
        return GraphCalculator(Launcher(module.requires_grad_(False)))

    def mixed(compute: str) -> Calculator:
        return GraphCalculator(launcher(POLICIES[compute], model, str(device), enable_cueq=has_cueq))

    ways: dict[str, Callable[[], Calculator]] = {
        EXACT: lambda: theirs("float64"),
        "MACECalculator, float32": lambda: theirs("float32"),
    }
    if has_cueq:
        ways["MACECalculator, float32, enable_cueq"] = lambda: theirs("float32", enable_cueq=True)
    if n_atoms <= args.compile:
        ways["MACECalculator, float32, compile_mode"] = lambda: theirs("float32", compile_mode="default")
        if has_cueq:
            ways["MACECalculator, float32, both"] = lambda: theirs("float32", compile_mode="default", enable_cueq=True)
    ways[NAMES["float64"]] = lambda: mixed("float64")
    ways[CAST] = cast
    ways[NAMES["float32"]] = lambda: mixed("float32")
    ways[NAMES["digits"]] = lambda: mixed("digits")
    if not args.no_float16:
        ways[NAMES["float16"]] = lambda: mixed("float16")
    return ways


def first_steps(make: Callable[[], Calculator], start: ase.Atoms, device: torch.device) -> Way:
    """Make a calculator and take the first two steps, which compile and capture."""
    before = memory(device)[0]
    begin = time.perf_counter()
    calculator = make()
    seconds = time.perf_counter() - begin
    memory(device)  # without what is left of making it
    begin = time.perf_counter()
    atoms = start.copy()
    atoms.calc = calculator
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()  # of ours too by a call, captured the second time
    called = memory(device)[1] - before
    dynamics = VelocityVerlet(atoms, TIMESTEP * units.fs)
    dynamics.run(1)
    seconds += time.perf_counter() - begin
    dynamics.run(2)
    launched = memory(device)[1] - before
    is_ours = isinstance(calculator, GraphCalculator)
    if is_ours and device.type == "cuda" and calculator.launcher.why_not:
        raise RuntimeError(f"No graph: {calculator.launcher.why_not}")
    return Way(is_ours, calculator, atoms, seconds, called, launched, energy, forces, dynamics=dynamics)


def costs(make: Callable[[], Calculator], start: ase.Atoms, device: torch.device) -> dict[str, Any]:
    """Time to the first step and memory of a way that is not kept."""
    way = first_steps(make, start, device)
    return {name: getattr(way, name) for name in ("seconds_to_first", "bytes_called", "bytes_launched")}


def memory(device: torch.device) -> tuple[int, int]:
    """Bytes that the allocator has, with what is free in it given back, and the most since this was last asked."""
    if device.type != "cuda":
        return 0, 0
    most = torch.cuda.max_memory_reserved(device)
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # which an earlier way would have paid for
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_reserved(device), most


def model_alone(way: Way, device: torch.device, n_replays: int = _REPLAYS) -> list[float]:
    """Seconds of replays of the graph that a calculator launches; empty without one."""
    sized = list(way.calculator.launcher._sized.values())[-1] if way.is_ours else None
    if sized is None or sized.captured is None:
        return []
    return [seconds_of(sized.captured, device) for _ in range(n_replays)]


def in_torch_sim(way: Way, start: ase.Atoms, device: torch.device) -> Record | None:
    """Steps of torch-sim at constant energy, in turn with the model alone and with its own part of the step.

    ``None`` where torch-sim is not installed, or the way has no model for it.
    """
    if not way.is_ours or importlib.util.find_spec("torch_sim") is None:
        return None
    from precision_probe.fast.torch_sim import GraphModel  # imports torch-sim

    model = GraphModel(way.calculator.launcher)
    state, step = constant_energy(model, [start], device)
    for _ in range(_WARM_UP):
        state = step(state)
    known = model(state)
    steps, ratios, own = [], [], []
    for _ in range(_REPLAYS):
        steps.append(seconds_of(partial(step, state), device))
        if alone := model_alone(way, device, 1):
            ratios.append(steps[-1] / alone[0])
        with patch.object(model, "forward", lambda _: known):  # nothing is computed
            own.append(seconds_of(partial(step, state), device))
    return {"step": summary(steps), "of_model": summary(ratios) if ratios else None, "without_model": summary(own)}


def constant_energy(
    model: torch.nn.Module, structures: Sequence[ase.Atoms], device: torch.device
) -> tuple[Any, Callable[[Any], Any]]:
    """A state of torch-sim with momenta of the temperature, and what takes a step."""
    import torch_sim

    state = torch_sim.initialize_state(list(structures), device, torch.float64)
    # on the device, as torch-sim's own runners have them
    dt, kT = torch.tensor([1e-3 * TIMESTEP, TEMPERATURE * units.kB], dtype=torch.float64, device=device)  # noqa: N806
    if hasattr(torch_sim, "nve"):  # 0.3, the last for Python 3.11
        begin, step = torch_sim.nve(model, dt=dt, kT=kT, seed=0)
        return begin(state), step
    state.rng = 0
    return torch_sim.nve_init(state, model, kT=kT), partial(torch_sim.nve_step, model=model, dt=dt)


def measured(
    start: ase.Atoms, model: torch.nn.Module, device: torch.device, args: argparse.Namespace, say: Callable[[str], None]
) -> Record:
    """Every way on one structure."""
    ways: dict[str, Way] = {}
    failed: dict[str, str] = {}

    def tried(name: str, function: Callable[..., Any], *given: object) -> Any:
        try:
            return function(*given, start, device)
        except Exception as error:  # of any library: that a way cannot be run is a result
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            say(f"  {name}: {failed[name]}")

    made = makers(model, device, len(start), args)
    # of what is launched, with nothing else on the GPU: a graph cannot use what is free between others' weights
    first = {name: tried(name, costs, made[name]) for name in made if name in (CAST, *NAMES.values())}
    for name, make in made.items():
        if name not in failed and (way := tried(name, first_steps, make)):
            ways[name] = replace(way, **first.get(name, {}))
            say(f"  {name}: {ways[name].seconds_to_first:.1f} s to the first step")
    for turn in range(args.rounds):
        names = list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]
        for name in names:
            dynamics = ways[name].dynamics
            assert dynamics is not None
            ways[name].seconds.append(seconds_of(partial(dynamics.run, args.steps), device) / args.steps)
    return {
        "n_atoms": len(start),
        "name": start.info["name"],
        "failed": failed,
        "ways": {name: row(way, ways, start, device) for name, way in ways.items()},
    }


def row(way: Way, ways: Mapping[str, Way], start: ase.Atoms, device: torch.device) -> Record:
    """What the results keep of one way."""
    exact = ways[EXACT]
    # round by round, against the fastest of what people run
    theirs = [other for other in ways.values() if not other.is_ours]
    fastest = min(theirs, key=lambda other: float(np.median(other.seconds)))
    alone = model_alone(way, device)
    return {
        "is_ours": way.is_ours,
        "step": summary(way.seconds),
        "of_fastest": summary([one / other for one, other in zip(way.seconds, fastest.seconds, strict=True)]),
        "model": summary(alone) if alone else None,
        "seconds_to_first": way.seconds_to_first,
        "bytes_called": way.bytes_called,
        "bytes_launched": way.bytes_launched,
        "forces_rel_l2": float(np.linalg.norm(way.forces - exact.forces) / np.linalg.norm(exact.forces)),
        "energy_meV_per_atom": 1e3 * abs(way.energy - exact.energy) / len(start),
        "torch_sim": in_torch_sim(way, start, device),
    }


def markdown(record: Record) -> str:
    """The tables."""
    lines = [
        f"# Steps of dynamics, {record['provenance']['device']}",
        "",
        f"`{record['command']}`, torch {record['provenance']['versions']['torch']}. {record['model']}. Medians "
        f"[quartiles] of {record['options']['rounds']} rounds of {record['options']['steps']} steps each; the ratio is "
        "to the fastest of MACECalculator's rows in the same round.",
    ]
    for case in record["cases"]:
        lines += [
            "",
            f"## {case['n_atoms']:,} atoms ({case['name']})",
            "",
            f"| | {' | '.join(COLUMNS)} |",
            f"|---|{'--:|' * len(COLUMNS)}",
        ]
        for name, found in case["ways"].items():
            cells = [
                in_milliseconds(found["step"]),
                spread(found["of_fastest"], ".3f"),
                in_milliseconds(found["model"]) if found["model"] else "–",
                f"{found['seconds_to_first']:.1f}",
                f"{found['bytes_called'] / 2**30:.2f}",
                f"{found['bytes_launched'] / 2**30:.2f}" if found["is_ours"] else "–",
                f"{found['forces_rel_l2']:.1e}",
                f"{found['energy_meV_per_atom']:.1e}",
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines += [f"| {name} | fails: {why} |" for name, why in case["failed"].items()]
        lines += torch_sim_table(case["ways"])
    return "\n".join([*lines, ""])


def torch_sim_table(ways: Mapping[str, Record]) -> list[str]:
    """Steps of torch-sim, where they were timed."""
    timed = {name: found["torch_sim"] for name, found in ways.items() if found.get("torch_sim")}
    if not timed:
        return []
    lines = [
        "",
        "| torch-sim, constant energy | step / ms | ÷ model alone | without the model / ms |",
        "|---|--:|--:|--:|",
    ]
    for name, found in timed.items():
        ratio = spread(found["of_model"], ".2f") if found["of_model"] else "–"
        own = in_milliseconds(found["without_model"]) if "without_model" in found else "–"  # not in older results
        lines.append(f"| {name} | {in_milliseconds(found['step'])} | {ratio} | {own} |")
    return lines


def in_milliseconds(values: Record) -> str:
    """A summary of seconds, in milliseconds."""
    return spread({name: 1e3 * value for name, value in values.items()}, ".2f")


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Path]:
    """Measure, and write the results after each size; return the paths of the files.

    Args:
        args: The options of ``bench_fast.py``.
        argv: As they were given.

    Raises:
        InputError: If the device or the model cannot be used.
    """
    device = check_device(args.device or ("cpu" if args.smoke else None))
    say, sizes = teller(args.quiet), parse_sizes(args.atoms, "--atoms")
    if args.model is None:
        model, about, stem = build(architecture(0, args.smoke), seed=0), "A MACE-MP with random weights", ""
    else:
        model, _ = load_model(args.model)
        about, stem = f"The model with weights of SHA-256 {weights_sha256(model)[:12]}…, boxes of water", "trained-"
    record: Record = {
        "schema": SCHEMA,
        "command": shlex.join(["python", "benchmarks/bench_fast.py", *without_paths(argv)]),
        "source_sha256": source_sha256(),
        "provenance": provenance(model, device),
        "options": {key: value for key, value in vars(args).items() if key not in ("output", "quiet", "model")},
        "model": about,
        "cases": [],
    }
    paths: list[Path] = []
    for n_atoms in sizes:
        with undisturbed(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript and mace-torch, once for each model made
            (start,) = [water(n_atoms)] if args.model else supercells([n_atoms], 0)
            has_cueq = has_cuequivariance_kernels(device)
            settling = GraphCalculator(launcher(AFTER["float32"], model, str(device), enable_cueq=has_cueq))
            start = equilibrated(start, settling, args.equilibrate if args.model else 0)
            say(f"{len(start)} atoms")
            record["cases"].append(measured(start, model, device, args, say))
        del settling
        full = plain(record)
        paths = write_results(
            args.output, f"bench_fast-{stem}{device.type}{'-smoke' if args.smoke else ''}", full, markdown(full)
        )
    return paths
