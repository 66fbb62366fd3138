"""A liquid under a policy: constant energy and constant temperature, beside float64, and a figure of both.

    python examples/liquid_dynamics.py                                  # seconds, on a CPU: the bundled ice, 10 fs
    python examples/liquid_dynamics.py my.model box.xyz --policy policy.json --picoseconds 20 --device cuda \
        --processes 4

The second is what a GPU is for: there the policy's calculator launches the model as one CUDA graph. ASE takes about as
long for a step as a GPU does for a small box, so that several runs, each in a process of its own, share one well. Needs
matplotlib.
"""

import argparse
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

import ase
import numpy as np
from ase import units
from ase.calculators.calculator import Calculator
from ase.md.bussi import Bussi
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from matplotlib.figure import Figure

import precision_probe as pp
from precision_probe.structures import read_structures

BY_HAND = pp.Policy(tuple(pp.Rule(each, "float32") for each in ("interactions.*", "products.*", "readouts.*")))
TEMPERATURE, TIMESTEP = 300.0, 0.5  # K, fs
ENSEMBLES = {"NVE": "constant energy", "NVT": "constant temperature"}
EVERY = 10  # steps


def thermostatted(atoms: ase.Atoms) -> Bussi:
    """Dynamics at constant temperature."""
    return Bussi(atoms, TIMESTEP * units.fs, TEMPERATURE, taut=100 * units.fs, rng=np.random.default_rng(0))


def visited(start: ase.Atoms, calculator: Calculator, ensemble: str, n_steps: int) -> np.ndarray:
    """Time (ps), temperature (K) and total energy (meV/atom, from its first) at every tenth step, (3, n)."""
    atoms = start.copy()
    atoms.calc = calculator
    dynamics = VelocityVerlet(atoms, TIMESTEP * units.fs) if ensemble == "NVE" else thermostatted(atoms)
    rows: list[tuple[float, float, float]] = []

    def note() -> None:
        time = dynamics.get_time() / (1000 * units.fs)
        rows.append((time, atoms.get_temperature(), 1e3 * atoms.get_total_energy() / len(atoms)))

    dynamics.attach(note, interval=EVERY)
    dynamics.run(n_steps)
    found = np.array(rows).T
    found[2] -= found[2, 0]
    return found


def run(given: argparse.Namespace, start: ase.Atoms, ensemble: str, name: str) -> np.ndarray:
    """One of the runs, by a calculator of its own."""
    n_steps = round(1000 * given.picoseconds / TIMESTEP)
    return visited(start, policies(given)[name].calculator(given.model, given.device), ensemble, n_steps)


def policies(given: argparse.Namespace) -> dict[str, pp.Policy]:
    """The two ways to compute, by the same library."""
    policy = pp.Policy.load(given.policy) if given.policy else BY_HAND
    return {"float64": replace(policy, rules=()), "policy": policy}


def mean(values: np.ndarray) -> np.ndarray:
    """Over half a picosecond, or all that there is."""
    window = min(len(values), round(500 / (EVERY * TIMESTEP)))
    return np.convolve(values, np.ones(window) / window, mode="valid")


def draw(runs: dict[tuple[str, str], np.ndarray], path: Path) -> None:
    """Temperature and total energy of each ensemble, one line for each way to compute: pale, and means of 0.5 ps."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    colours = dict(zip(dict.fromkeys(name for _, name in runs), ("#000000", "#D55E00"), strict=True))  # Okabe and Ito's
    styles = dict(zip(colours, ("-", "--"), strict=True))
    for column, (ensemble, title) in enumerate(ENSEMBLES.items()):
        for (other, name), (time, temperature, energy) in runs.items():
            if other == ensemble:
                for row, values in enumerate((temperature, energy)):
                    axes[row, column].plot(time, values, color=colours[name], linewidth=0.5, alpha=0.25)
                    axes[row, column].plot(mean(time), mean(values), styles[name], label=name, color=colours[name])
        axes[0, column].set(title=f"{title} ({ensemble})", ylabel="temperature / K")
        axes[1, column].set(xlabel="time / ps", ylabel="total energy, from its first / meV/atom")
    axes[0, 0].legend()
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Warm a box, run it in both ways and both ensembles, and draw what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("structures", nargs="?", default="demo")
    parser.add_argument("--index", type=int, default=-1, help="of the structure")
    parser.add_argument("--policy", help="a policy's JSON file")
    parser.add_argument("--picoseconds", type=float, default=0.01)
    parser.add_argument("--equilibrate", type=int, default=10, help="steps of half a femtosecond before")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=1, help="runs at once, each in a process of its own")
    parser.add_argument("--figure", type=Path, default=Path("liquid.png"))
    given = parser.parse_args(arguments)
    start = read_structures(given.structures)[given.index]
    MaxwellBoltzmannDistribution(start, temperature_K=TEMPERATURE, rng=np.random.default_rng(0))
    start.calc = policies(given)["policy"].calculator(given.model, given.device)
    thermostatted(start).run(given.equilibrate)
    start.calc = None
    asked = list(product(ENSEMBLES, policies(given)))
    if given.processes == 1:
        found = [run(given, start, *each) for each in asked]
    else:
        with ProcessPoolExecutor(given.processes, multiprocessing.get_context("spawn")) as pool:
            found = [each.result() for each in [pool.submit(run, given, start, *each) for each in asked]]
    runs = dict(zip(asked, found, strict=True))
    for (ensemble, name), (_, temperature, energy) in runs.items():
        print(
            f"{ensemble}, {name}: {temperature.mean():.1f} K on average; total energy from "
            f"{energy.min():.3f} to {energy.max():.3f} meV/atom of its first"
        )
    draw(runs, given.figure)
    print(f"Figure written to {given.figure}")


if __name__ == "__main__":
    main()
