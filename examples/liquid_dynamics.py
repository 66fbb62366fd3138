"""A liquid under a policy: constant energy and constant temperature, beside float64, and a figure of both.

    python examples/liquid_dynamics.py                                  # seconds, on a CPU: the bundled ice, 10 fs
    python examples/liquid_dynamics.py my.model box.xyz --policy policy.json --picoseconds 20 --device cuda

The second is what a GPU is for: there the policy's calculator launches the model as one CUDA graph. Needs matplotlib.
"""

import argparse
from collections.abc import Sequence
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


def draw(runs: dict[tuple[str, str], np.ndarray], path: Path) -> None:
    """Temperature and total energy of each ensemble, one line for each way to compute."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    colours = dict(zip(dict.fromkeys(name for _, name in runs), ("#000000", "#D55E00"), strict=True))  # Okabe and Ito's
    styles = dict(zip(colours, ("-", "--"), strict=True))
    for column, (ensemble, title) in enumerate(ENSEMBLES.items()):
        for (other, name), (time, temperature, energy) in runs.items():
            if other == ensemble:
                for row, values in enumerate((temperature, energy)):
                    axes[row, column].plot(
                        time, values, label=name, color=colours[name], linewidth=1, linestyle=styles[name]
                    )
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
    parser.add_argument("--figure", type=Path, default=Path("liquid.png"))
    given = parser.parse_args(arguments)
    policy = pp.Policy.load(given.policy) if given.policy else BY_HAND
    calculators = {
        name: each.calculator(given.model, given.device)
        for name, each in {"float64": pp.Policy(()), "policy": policy}.items()
    }
    start = read_structures(given.structures)[given.index]
    MaxwellBoltzmannDistribution(start, temperature_K=TEMPERATURE, rng=np.random.default_rng(0))
    start.calc = calculators["policy"]
    thermostatted(start).run(given.equilibrate)
    n_steps = round(1000 * given.picoseconds / TIMESTEP)
    runs = {}
    for ensemble in ENSEMBLES:
        for name, calculator in calculators.items():
            runs[ensemble, name] = visited(start, calculator, ensemble, n_steps)
            _, temperature, energy = runs[ensemble, name]
            print(
                f"{ensemble}, {name}: {temperature.mean():.1f} K on average; total energy from "
                f"{energy.min():.3f} to {energy.max():.3f} meV/atom of its first"
            )
    draw(runs, given.figure)
    print(f"Figure written to {given.figure}")


if __name__ == "__main__":
    main()
