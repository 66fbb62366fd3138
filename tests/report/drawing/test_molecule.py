"""molecule.py: every atom in the picture, bonds between neighbours, the lightest where the error is largest."""

import ase.build
import numpy as np
import pytest
from pages_by_hand import parsed

from precision_probe.report.drawing.molecule import MOST_ATOMS, molecule, nearest
from precision_probe.report.drawing.scales import CIVIDIS


def picture(atoms, errors):
    names = [f"{symbol}{at}" for at, symbol in enumerate(atoms.symbols)]
    return parsed(molecule(atoms.numbers, atoms.positions, np.asarray(errors, float), names, "t"))


def test_ethanol():
    atoms = ase.build.molecule("CH3CH2OH")
    errors = np.linspace(1, 9, len(atoms))
    found = picture(atoms, errors)
    balls = list(found.all("circle"))
    assert len(balls) == 9
    assert len(list(found.all("path"))) == 8  # bonds
    fills = {next(each.all("title")).text: next(each.all("circle")).attributes["fill"] for each in found.all("g")}
    assert fills["H8: 9 meV/Å"] == CIVIDIS[-1]
    assert fills["C0: 1 meV/Å"] == CIVIDIS[0]
    width, height = map(float, next(found.all("svg")).attributes["viewbox"].split()[2:])
    assert all(0 < float(each.attributes["cx"]) < width and 0 < float(each.attributes["cy"]) < height for each in balls)


@pytest.mark.parametrize("errors", [[0, 0, 0], [np.nan, 1, 2], [np.inf, np.nan, 0]])
def test_zeros_and_nan_are_drawn(errors):
    assert len(list(picture(ase.build.molecule("H2O"), errors).all("circle"))) == 3


def test_one_atom_and_atoms_in_one_place():
    assert len(list(picture(ase.Atoms("H", [(1, 2, 3)]), [1]).all("circle"))) == 1
    assert len(list(picture(ase.Atoms("H2", [(0, 0, 0), (0, 0, 0)]), [1, 2]).all("circle"))) == 2


def test_of_a_large_structure_the_atoms_around_one():
    positions = np.arange(3 * 1000.0).reshape(-1, 3)
    chosen = nearest(positions, 500)
    assert len(chosen) == MOST_ATOMS
    assert chosen.tolist() == list(range(300, 700)) or chosen.tolist() == list(range(301, 701))
