"""A run of bench_liquid.py once its options are known: boxes at constant energy, all at once, and how they drift."""

import argparse
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ase
import ase.units
import numpy as np
import torch
from bench_policy_drift import difference
from liquid import equilibrated, water
from numpy.typing import NDArray
from records import Record, plain, source_sha256, teller, without_paths, write_results
from systems import AFTER

from precision_probe.diagnostics.dynamics import drifts
from precision_probe.fast.calculator import GraphCalculator
from precision_probe.fast.drivers import launcher
from precision_probe.fast.launcher import Launcher
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.backends import has_cuequivariance_kernels
from precision_probe.models.loading import load_model
from precision_probe.models.provenance import provenance
from precision_probe.policy import Policy
from precision_probe.variants.devices import check_device

__all__ = ["SCHEMA", "constant_energy", "markdown", "run"]

SCHEMA = "precision-probe/bench_liquid/1"
POLICIES = {
    "float64": Policy(()),
    **{f"{name} after the embeddings": policy for name, policy in AFTER.items()},
}
TEMPERATURE = 300.0  # K
_EVERY = 20  # steps: energies in between say nothing more of a drift over picoseconds


def constant_energy(
    launched: Launcher, start: ase.Atoms, n_runs: int, n_steps: int, timestep: float, told: Callable[[int], object]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Velocity Verlet of copies of one box from velocities that differ.

    Args:
        launched: The model.
        start: The box.
        n_runs: How many copies.
        n_steps: Of each.
        timestep: fs.
        told: Called with the number of steps that are done, now and then.

    Returns:
        Total energies, meV/atom, and temperatures, K, each (n_runs, n_times), at every 20th step.
    """
    device = launched.device
    structures = launched.structures([start] * n_runs)
    masses = torch.as_tensor(np.tile(start.get_masses(), n_runs), device=device)[:, None]
    positions = torch.as_tensor(np.tile(start.positions, (n_runs, 1)), device=device)
    cells = torch.as_tensor(start.cell.array, device=device).expand(n_runs, 3, 3).contiguous()
    velocities = torch.as_tensor(_velocities(start, n_runs), device=device)
    step = timestep * ase.units.fs
    energies, temperatures = [], []
    forces = launched.evaluate(structures, positions, cells).forces
    for number in range(n_steps + 1):
        velocities = velocities + 0.5 * step * forces / masses
        positions = positions + step * velocities
        found = launched.evaluate(structures, positions, cells)
        forces = found.forces
        velocities = velocities + 0.5 * step * forces / masses
        if number % _EVERY == 0:
            kinetic = (0.5 * masses * velocities.square()).view(n_runs, -1).sum(dim=1)
            energies.append(1e3 * (found.energy + kinetic) / len(start))
            temperatures.append(kinetic / (1.5 * len(start) * ase.units.kB))
            told(number)
    return (torch.stack(energies, dim=1).cpu().numpy(), torch.stack(temperatures, dim=1).cpu().numpy())


def _velocities(start: ase.Atoms, n_runs: int) -> NDArray[np.float64]:
    """Maxwell and Boltzmann's, (n_runs · n_atoms, 3), no box moving as a whole."""
    masses = start.get_masses()[:, None]
    drawn = np.random.default_rng(0).normal(size=(n_runs, len(start), 3)) * np.sqrt(ase.units.kB * TEMPERATURE / masses)
    drawn = drawn - (masses * drawn).sum(axis=1, keepdims=True) / masses.sum()
    flat: NDArray[np.float64] = drawn.reshape(-1, 3)
    return flat


def markdown(record: Record) -> str:
    """The table."""
    options = record["options"]
    lines = [
        f"# Drift of liquid water, {record['provenance']['device']}",
        "",
        f"`{record['command']}`, torch {record['provenance']['versions']['torch']}. Weights of SHA-256 "
        f"{record['model_sha256'][:12]}…, {record['n_atoms']} atoms, {options['runs']} runs of "
        f"{options['picoseconds']:g} ps in steps of {options['timestep']:g} fs.",
        "",
        "| computed in | drift / meV/atom/ps | 95 % interval | fluctuation / meV/atom | mean temperature / K | "
        "ms a step of all runs | less float64's, run by run | 95 % interval | told from float64's |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in record["drift"]:
        numbers = f"{row['drift']:.2g} | ± {row['confidence']:.2g} | {row['fluctuation']:.3g}"
        also = f"{row['temperature']:.1f} | {row['ms_per_step']:.2f}"
        lines.append(f"| {row['precision']} | {numbers} | {also} | {difference(row)} |")
    return "\n".join([*lines, ""])


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Path]:
    """Measure, and write the results after each policy; return the paths of the files.

    Args:
        args: The options of ``bench_liquid.py``.
        argv: As they were given.

    Raises:
        InputError: If the device or the model cannot be used.
    """
    device = check_device(args.device or ("cpu" if args.smoke else None))
    say = teller(args.quiet)
    model, _ = load_model(args.model)
    has_cueq = has_cuequivariance_kernels(device)
    n_steps = round(1000 * args.picoseconds / args.timestep)
    energies: dict[str, NDArray[np.float64]] = {}
    about: dict[str, Record] = {}
    start = ase.Atoms()
    paths: list[Path] = []
    for name, policy in POLICIES.items():
        launched = launcher(policy, model, str(device), enable_cueq=has_cueq)
        if not len(start):
            start = equilibrated(water(args.atoms), GraphCalculator(launched), args.equilibrate)
        say(f"{name}: {n_steps} steps")
        begin = time.perf_counter()
        tenth = max(1, n_steps // 10)
        energies[name], temperatures = constant_energy(
            launched,
            start,
            args.runs,
            n_steps,
            args.timestep,
            lambda done: say(f"  {done} of {n_steps}") if done % tenth == 0 else None,  # noqa: B023  called within
        )
        about[name] = {
            "temperature": float(temperatures.mean()),
            "ms_per_step": 1e3 * (time.perf_counter() - begin) / (n_steps + 1),
        }
        table = drifts(energies, _EVERY * args.timestep / 1000).astype(object)
        rows = table.where(table.notna(), None).reset_index().to_dict("records")
        record: Record = plain(
            {
                "schema": SCHEMA,
                "command": shlex.join(["python", "benchmarks/bench_liquid.py", *without_paths(argv)]),
                "source_sha256": source_sha256(),
                "provenance": provenance(model, device),
                "options": {key: value for key, value in vars(args).items() if key not in ("output", "quiet", "model")},
                "model_sha256": weights_sha256(model),
                "n_atoms": len(start),
                "drift": [{**row, **about[row["precision"]]} for row in rows],
                # of each run from its first, as all digits of the energies themselves would be needed
                "energies": {each: (values - values[:, :1]).tolist() for each, values in energies.items()},
            }
        )
        stem = f"bench_liquid-{device.type}{'-smoke' if args.smoke else ''}"
        paths = write_results(args.output, stem, record, markdown(record))
    return paths
