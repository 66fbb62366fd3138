"""molecule.py: every atom in the picture, bonds between neighbours, the lightest where the error is largest."""

import re

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
    atoms = (each for each in found.all("g") if "data-at" in each.attributes)
    fills = {next(each.all("title")).text: next(each.all("circle")).attributes["fill"] for each in atoms}
    assert fills["H8: 9 meV/Å"] == CIVIDIS[-1]
    assert fills["C0: 1 meV/Å"] == CIVIDIS[0]
    width, height = map(float, next(found.all("svg")).attributes["viewbox"].split()[2:])
    places = [
        re.findall(r"[\d.]+", each.attributes["transform"]) for each in found.all("g") if "data-at" in each.attributes
    ]
    assert len(places) == 9
    assert all(0 < float(x) < width and 0 < float(y) < height for x, y in places)


@pytest.mark.parametrize("errors", [[0, 0, 0], [np.nan, 1, 2], [np.inf, np.nan, 0]])
def test_zeros_and_nan_are_drawn(errors):
    assert len(list(picture(ase.build.molecule("H2O"), errors).all("circle"))) == 3


def test_one_atom_and_atoms_in_one_place():
    assert len(list(picture(ase.Atoms("H", [(1, 2, 3)]), [1]).all("circle"))) == 1
    assert len(list(picture(ase.Atoms("H2", [(0, 0, 0), (0, 0, 0)]), [1, 2]).all("circle"))) == 2


def test_a_cell_is_a_box_of_twelve_edges():
    atoms = ase.build.bulk("Cu", cubic=True)
    names = ["Cu"] * 4
    found = parsed(molecule(atoms.numbers, atoms.positions, np.ones(4), names, "t", atoms.cell.array))
    assert len([each for each in found.all("path") if each.attributes["class"] == "cell"]) == 12


def test_of_a_large_structure_the_atoms_around_one():
    positions = np.arange(3 * 1000.0).reshape(-1, 3)
    chosen = nearest(positions, 500)
    assert len(chosen) == MOST_ATOMS
    assert chosen.tolist() == list(range(300, 700)) or chosen.tolist() == list(range(301, 701))
