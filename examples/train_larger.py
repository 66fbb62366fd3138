"""Make the data for a larger model, 128x0e + 128x1o and seven elements, and train it.

    python examples/train_larger.py data -o larger.xyz                     # needs tblite; half an hour on one core
    python examples/train_larger.py train larger.xyz -o larger --device cuda --minutes 8

``data`` labels water, other liquids, molecules and crystals with GFN1-xTB. It appends each structure as it comes, one
of every source in turn, so it may be stopped. ``train`` needs no tblite; it writes ``larger/model.json``, which is what
commands are given, ``model.safetensors`` and ``validation.json``, and may be interrupted: the best model so far is on
disk. Everything is seeded.

The model's energies are all-electron ones: GFN1's, which are of valence electrons, shifted by a constant for each
element, which changes no force.
"""

import argparse
import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed
from ase.spacegroup import crystal
from labelling import evaluated, labelled, pair, rattled, tight_binding, trajectory
from torch.nn.functional import huber_loss
from training import Recipe, add_train_options, train_model

import precision_probe as pp
from precision_probe import models

SEED = 1
METHOD = "GFN1-xTB"  # six times as fast as GFN2 for a box of water

# Of free atoms, exact but for relativity: Chakravorty et al., Phys. Rev. A 47, 3649 (1993), table XI; given in hartree.
ISOLATED_ATOMS = {
    number: units.Hartree * energy
    for number, energy in {
        1: -0.5, 6: -37.8450, 7: -54.5892, 8: -75.0673, 11: -162.2546, 14: -289.359, 17: -460.148
    }.items()
}  # fmt: skip

# Closed-shell molecules of the G2 set.
MOLECULES = (
    "H2 N2 Cl2 HCl NaCl CO CO2 N2O H2O H2O2 NH3 N2H4 HCN NCCN HOCl CH4 C2H2 C2H4 C2H6 C3H8 C6H6 C5H5N H2CO HCOOH CH3OH "
    "CH3CH2OH CH3OCH3 CH3CHO CH3COOH HCOOCH3 CH3COCH3 H2CCO CH3CONH2 CH3NO2 CH3CN H3CNH2 C2H6NH CH3Cl H2CCl2 HCCl3 "
    "CCl4 CH3COCl SiH4 Si2H6 CH3SiH3 SiCl4"
)
PAIRS = ("H2O NH3", "H2O CH3OH", "H2O HCl", "H2O NaCl", "H2O CO2", "H2O SiH4", "NH3 HCl", "CH3OH CH3CN", "CH4 N2")
STRONGEST = 30.0  # eV/Å: forces above say nothing of what dynamics will visit

Source = tuple[str, str, str, Iterator[Atoms]]  # kind, name, split, labelled structures


# ------------------------------------------------------------------------------------------------------------- liquids


def box(counts: dict[str, int], density: float, rng: np.random.Generator) -> Atoms:
    """So many molecules or ions of each formula in a cube at a density (g/cm³), turned and placed at random."""
    parts = [molecule(name) if len(name) > 2 else Atoms(name) for name, n in counts.items() for _ in range(n)]
    mass = sum(part.get_masses().sum() for part in parts)
    edge = (mass / density / 0.602214) ** (1 / 3)
    atoms = Atoms(cell=[edge] * 3, pbc=True)
    nearest, tries = 2.0, 0
    while parts:
        part = parts[-1].copy()
        part.euler_rotate(*rng.uniform(0, 360, 3), center="COM")
        part.positions += rng.uniform(0, edge, 3) - part.get_center_of_mass()
        apart = part.positions[:, None] - atoms.positions
        apart -= edge * np.round(apart / edge)
        if not len(atoms) or np.linalg.norm(apart, axis=-1).min() > nearest:
            atoms += part
            parts.pop()
            tries = 0
        elif (tries := tries + 1) % 200 == 0:
            nearest -= 0.05
    return atoms


def heavy(atoms: Atoms) -> Atoms:
    """The same with hydrogens of 8 u: a step may be twice as long, and where atoms go at a temperature stays."""
    atoms = atoms.copy()
    atoms.set_masses(np.where(atoms.numbers == 1, 8.0, atoms.get_masses()))
    return atoms


def liquid(
    counts: dict[str, int], density: float, temperature: float, count: int, rng: np.random.Generator
) -> Iterator[Atoms]:
    """Structures along dynamics: of the bundled model, if it knows the elements, and on from there of GFN1 itself.

    The bundled model goes further in the same time, and GFN1 to where its own liquid is. Every fifth of GFN1's is
    followed by a copy with atoms displaced strongly.
    """
    start, settle = heavy(box(counts, density, rng)), 25
    if set(start.symbols) <= set("HCO"):
        demo = pp.Policy(()).calculator("demo", "cpu")
        steps = trajectory(start, demo, temperature, count // 2, rng, timestep=1.0, settle=130, every=20)
        for atoms in steps:
            start = atoms
            yield labelled(atoms, METHOD)
        count, settle = count - count // 2, 3
    steps = trajectory(start, tight_binding(METHOD), temperature, count, rng, timestep=2.0, settle=settle, every=3)
    for number, atoms in enumerate(steps):
        yield evaluated(atoms)
        if number % 5 == 2:
            yield labelled(rattled(atoms, rng, rng.uniform(0.03, 0.12)), METHOD)


def water(n: int, density: float, temperature: float, count: int, rng: np.random.Generator) -> Iterator[Atoms]:
    """Liquid water."""
    return liquid({"H2O": n}, density, temperature, count, rng)


def lattice_water(count: int, rng: np.random.Generator) -> Iterator[Atoms]:
    """Molecules turned at random on a lattice, which is where a box may begin, and what it is soon after."""
    edge, sites = 3.104, np.stack(np.meshgrid(*[np.arange(3.0)] * 3), axis=-1).reshape(-1, 3)
    for _ in range(count):
        atoms = Atoms(cell=[3 * edge] * 3, pbc=True)
        for site in sites:
            part = molecule("H2O")
            part.euler_rotate(*rng.uniform(0, 360, 3), center="COM")
            part.positions += edge * site
            atoms += part
        steps = trajectory(atoms, pp.Policy(()).calculator("demo", "cpu"), 300, 2, rng, settle=0, every=20)
        yield labelled(rattled(atoms, rng, 0.02), METHOD)
        yield from (labelled(each, METHOD) for each in steps)


def strained_water(count: int, rng: np.random.Generator) -> Iterator[Atoms]:
    """Single molecules with bonds and angle from much too small to much too large, and pairs too close."""
    for number in range(count):
        if number % 2:
            yield labelled(rattled(pair("H2O H2O", rng, rng.uniform(0.9, 2.6)), rng, 0.05), METHOD)
        else:
            first, second = rng.uniform(0.65, 1.6), rng.normal(0.97, 0.06)
            angle = np.radians(rng.uniform(60, 170))
            turned = [second * np.cos(angle), second * np.sin(angle), 0]
            yield labelled(Atoms("OHH", [(0, 0, 0), (first, 0, 0), turned]), METHOD)


# ---------------------------------------------------------------------------------------------- molecules and crystals


def moving(start: Atoms, temperature: float, count: int, rng: np.random.Generator) -> Iterator[Atoms]:
    """Structures along GFN1's dynamics of a molecule or two, 10 fs apart, each followed by a rattled start."""
    steps = trajectory(heavy(start), tight_binding(METHOD), temperature, count, rng, timestep=1.0, settle=30, every=10)
    for atoms in steps:
        yield evaluated(atoms)
        yield labelled(rattled(start, rng, 0.06), METHOD)


def shaken(start: Atoms, count: int, rng: np.random.Generator) -> Iterator[Atoms]:
    """A strained crystal whose atoms are displaced a little or much."""
    for _ in range(count):
        yield labelled(rattled(start, rng, rng.uniform(0.02, 0.1)), METHOD)


def crystals() -> dict[str, Atoms]:
    """Cells above 8 Å in every direction."""
    dry_ice = crystal(
        "CO", [(0, 0, 0), (0.118, 0.118, 0.118)], spacegroup=205, cellpar=[5.624, 5.624, 5.624, 90, 90, 90]
    )
    quartz = crystal(
        "SiO",
        [(0.4697, 0, 1 / 3), (0.4133, 0.2672, 0.2144 + 1 / 3)],
        spacegroup=152,
        cellpar=[4.916, 4.916, 5.405, 90, 90, 120],
    )
    return {
        "NaCl": bulk("NaCl", "rocksalt", 5.64, cubic=True) * 2,
        "Si": bulk("Si", "diamond", 5.43, cubic=True) * 2,
        "quartz": quartz * 2,
        "dry ice": dry_ice * 2,
    }


# ------------------------------------------------------------------------------------------------------------ all data


def sources() -> list[Source]:
    """Where structures come from, each with random numbers of its own; whole trajectories are for one split."""
    streams = (np.random.default_rng([SEED, number]) for number in itertools.count())
    found: list[Source] = []

    def add(kind: str, name: str, split: str, make: Callable[[np.random.Generator], Iterator[Atoms]]) -> None:
        found.append((kind, name, split, make(next(streams))))

    states = list(itertools.product((0.9, 1.0, 1.0, 1.15), (250, 300, 300, 400, 600)))
    for number, (density, temperature) in enumerate(states):
        n = (18, 20, 22)[number % 3]
        name = f"{n} H2O, {density} g/cm3, {temperature} K"
        add("water", name, "train", partial(water, n, density, temperature, 16))
    for temperature in (300, 350):
        add("water", f"20 H2O, 1.0 g/cm3, {temperature} K", "valid", partial(water, 20, 1.0, temperature, 16))
    for split, count in (("train", 10), ("valid", 1)):
        add("water", "27 H2O, lattice", split, partial(lattice_water, count))
        add("water", "strained", split, partial(strained_water, 10 * count))
    for counts, density in (({"CH3OH": 8}, 0.79), ({"NH3": 14}, 0.68), ({"H2O": 18, "Na": 1, "Cl": 1}, 1.1)):
        name = " ".join(f"{n} {each}" for each, n in counts.items())
        for split, temperature, count in (("train", 300, 10), ("train", 450, 10), ("valid", 350, 4)):
            add("liquids", name, split, partial(liquid, counts, density, temperature, count))
    rng = next(streams)
    starts = {name: molecule(name) for name in MOLECULES.split()} | {names: pair(names, rng) for names in PAIRS}
    for name, start in starts.items():
        for split, temperature, count in (("train", 300, 2), ("train", 600, 3), ("valid", 450, 1)):
            add("molecules", name, split, partial(moving, start, temperature, count))
    for name, start in crystals().items():
        for split, count in (("train", 18), ("valid", 4)):
            add("crystals", name, split, partial(shaken, start, count))
    return found


def in_turn(all_sources: Iterable[Source]) -> Iterator[Atoms]:
    """One structure of each source after the other, until all are exhausted; a failure is told and ends its source."""
    left = list(all_sources)
    while left:
        for source in list(left):
            kind, name, split, structures = source
            try:
                atoms = next(structures, None)
            except CalculationFailed as failure:
                print(f"{name}, {split}, ends early: {failure}", flush=True)
                atoms = None
            if atoms is None:
                left.remove(source)
            elif np.abs(atoms.get_forces()).max() < STRONGEST:
                atoms.info |= {"kind": kind, "name": name, "split": split}
                yield atoms


def make_data(out: Path) -> None:
    """Write all data, each structure as it comes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    for number, atoms in enumerate(in_turn(sources()), start=1):
        ase.io.write(out, atoms, format="extxyz", append=True)
        if number % 50 == 0:
            print(f"{number} structures", flush=True)


# ------------------------------------------------------------------------------------------------------------ training


def robust(energy: torch.Tensor, forces: torch.Tensor) -> torch.Tensor:
    """Huber's losses, so that the strained structures, whose errors are large, do not decide.

    At errors of 2 meV/atom and 30 meV/Å energies are a twentieth of it: forces are what dynamics feels.
    """
    zero = torch.zeros((), dtype=energy.dtype, device=energy.device)
    return 1000 * huber_loss(energy, zero.expand_as(energy), delta=0.01) + 100 * huber_loss(
        forces, zero.expand_as(forces), delta=0.1
    )


# float32 is as good here and faster; the averaged weights, which are kept, are float64
RECIPE = Recipe(robust, batch_size=16, learning_rate=0.01, ema_decay=0.995, dtype=torch.float32, seed=SEED)


def architecture(channels: int) -> dict[str, Any]:
    """As small foundation models are made."""
    return models.default_config() | {
        "atomic_numbers": list(ISOLATED_ATOMS),
        "r_max": 5.0,
        "max_ell": 3,
        "hidden_irreps": f"{channels}x0e + {channels}x1o",
        "radial_MLP": [64, 64, 64],
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("data", help="label the training data")
    command.add_argument("-o", "--out", type=Path, required=True, help="the extended XYZ file to write")
    command = commands.add_parser("train", help="train the model")
    add_train_options(command, epochs=400)
    command.add_argument("--channels", type=int, default=128, help="of the features; fewer to try it (default: 128)")
    arguments = parser.parse_args()
    if arguments.command == "train":
        train_model(arguments, architecture(arguments.channels), RECIPE, ISOLATED_ATOMS)
    else:
        make_data(arguments.out)


if __name__ == "__main__":
    main()
