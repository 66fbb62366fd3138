"""What tests of launched models share."""

from functools import partial

import ase.build
import numpy as np
import pytest
import torch
from ase.geometry import complete_cell
from mace.calculators import MACECalculator

from precision_probe.fast import launcher
from precision_probe.fast.launcher import Launcher


@pytest.fixture(scope="session")
def by_mace(demo):
    """Energy, forces and stress of a structure by mace-torch's calculator, without this package."""
    calculator = MACECalculator(models=[demo], device="cpu", default_dtype="float64")

    def compute(atoms):
        atoms = atoms.copy()
        atoms.calc = calculator
        stress = atoms.get_stress(voigt=False) if atoms.pbc.all() else None
        return atoms.get_potential_energy(), atoms.get_forces(), stress

    return compute


@pytest.fixture
def diamond():
    """A small cell of carbon off its equilibrium, whose atoms have many images of one another as neighbours."""
    atoms = ase.build.bulk("C", "diamond", a=3.6, cubic=True)
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.fixture(scope="session")
def geometry():
    """Positions and cells as a launcher takes them."""

    def of(*structures):
        positions = np.concatenate([atoms.positions for atoms in structures])
        cells = np.stack([complete_cell(atoms.cell) for atoms in structures])
        return torch.from_numpy(positions), torch.from_numpy(cells)

    return of


@pytest.fixture
def filled(monkeypatch):
    """Makes launchers that fill up as on a GPU, where a graph is no more than the calls that it would repeat."""
    monkeypatch.setattr(launcher, "Captured", lambda compute, room: compute)
    monkeypatch.setattr(launcher, "Room", lambda device: None)
    return partial(Launcher, captures=True)
