"""Geometries, and what a tight-binding method of tblite says of them: what the training examples make data with."""

from collections.abc import Iterator
from importlib.metadata import version

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

__all__ = ["evaluated", "labelled", "pair", "rattled", "tight_binding", "trajectory"]


def pair(names: str, rng: np.random.Generator, gap: float = 2.0) -> Atoms:
    """Two molecules, turned at random, so far apart (Å) where they come closest."""
    first, second = (molecule(name) for name in names.split())
    second.euler_rotate(*rng.uniform(0, 360, 3), center="COM")
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    closest = 0.0
    while closest < gap:
        second.positions += 0.05 * direction
        closest = np.linalg.norm(first.positions[:, None] - second.positions, axis=-1).min()
    return first + second


def rattled(atoms: Atoms, rng: np.random.Generator, amplitude: float = 0.03, strain: float = 0.02) -> Atoms:
    """A copy with every atom displaced (by Å) and, if periodic, the cell strained."""
    atoms = atoms.copy()
    if atoms.pbc.any():
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(0, strain, (3, 3))), scale_atoms=True)
    atoms.positions += rng.normal(0, amplitude, atoms.positions.shape)
    return atoms


def tight_binding(method: str) -> Calculator:
    """A fresh calculator of GFN1-xTB or GFN2-xTB, which raises where the self-consistent field does not converge.

    Periodic structures are seen at the Γ point alone, so their cells must be large.
    """
    from tblite.ase import TBLite  # here, because training has no need of it

    calculator: Calculator = TBLite(method=method, verbosity=0)
    return calculator


def evaluated(atoms: Atoms, **info: object) -> Atoms:
    """A bare copy with the energy, forces and, if periodic, stress that the atoms' own calculator gives."""
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if atoms.pbc.any():
        results["stress"] = atoms.get_stress()
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    bare.info = {**info, "method": f"{atoms.calc.parameters['method']}, tblite {version('tblite')}"}
    bare.calc = SinglePointCalculator(bare, **results)
    return bare


def labelled(atoms: Atoms, method: str, **info: object) -> Atoms:
    """The same, by a fresh calculator of a method."""
    atoms = atoms.copy()
    atoms.calc = tight_binding(method)
    return evaluated(atoms, **info)


def trajectory(
    start: Atoms,
    calculator: Calculator,
    temperature: float,
    count: int,
    rng: np.random.Generator,
    *,
    timestep: float = 0.5,
    settle: int = 200,
    every: int = 20,
) -> Iterator[Atoms]:
    """Langevin dynamics: ``count`` times the same moving atoms, so many steps apart.

    Args:
        start: Is left as it is; its masses count.
        calculator: Of the forces.
        temperature: K.
        count: Geometries.
        rng: Of velocities and noise.
        timestep: fs.
        settle: Steps before the first geometry's own.
        every: Steps to each geometry.
    """
    atoms = start.copy()
    atoms.calc = calculator
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    dynamics = Langevin(
        atoms, timestep * units.fs, temperature_K=temperature, friction=0.02 / units.fs, fixcm=False, rng=rng
    )
    dynamics.run(settle)
    for _ in range(count):
        dynamics.run(every)
        yield atoms
