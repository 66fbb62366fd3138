"""structures.py: reading structures from every kind of source, and refusing those that cannot be run."""

import ase
import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from precision_probe.exceptions import InputError
from precision_probe.structures import read_structures

CELL = np.array([[4.0, 0.2, 0.0], [0.0, 3.5, 0.3], [0.1, 0.0, 4.4]])


@pytest.fixture
def file(water, crystal, tmp_path):
    path = tmp_path / "three.xyz"
    ase.io.write(path, [water, crystal, ase.build.molecule("CH4")])
    return path


def formulas(source):
    return [str(atoms.symbols) for atoms in read_structures(source)]


# What is read


def test_every_kind_of_source(water, crystal, file):
    assert formulas(water) == ["OH2"]
    assert formulas([water, crystal]) == formulas((water, crystal)) == ["OH2", "C8"]
    assert formulas(atoms for atoms in [water, crystal]) == ["OH2", "C8"]
    assert formulas(file) == formulas(str(file)) == ["OH2", "C8", "CH4"]
    assert formulas(f"{file}@0:2") == ["OH2", "C8"]
    assert formulas(f"{file}@1") == ["C8"]
    assert formulas(f"{file}@-1") == ["CH4"]


def test_demo_structures_have_names_and_labels():
    structures = read_structures("demo")
    assert len({atoms.info["name"] for atoms in structures}) == len(structures) > 3
    assert any(atoms.pbc.all() for atoms in structures)
    assert any(not atoms.pbc.any() for atoms in structures)
    for atoms in structures:
        assert np.isfinite(atoms.get_potential_energy())
        assert atoms.get_forces().shape == (len(atoms), 3)


def test_names(water, crystal, file):
    assert [atoms.info["name"] for atoms in read_structures([water, crystal])] == ["H2O", "C8"]
    assert [atoms.info["name"] for atoms in read_structures(file)] == [f"three[{index}]" for index in range(3)]
    water.info["name"] = "mine"
    assert read_structures(water)[0].info["name"] == "mine"


def test_what_is_given_is_not_changed(crystal):
    before = crystal.copy()
    (copy,) = read_structures(crystal)
    copy.positions += 1
    copy.info["name"] = "another"
    assert crystal == before
    assert crystal.info == before.info == {}


def test_labels_of_a_calculator_are_kept(water):
    forces = np.arange(9.0).reshape(3, 3)
    water.calc = SinglePointCalculator(water, energy=-7.0, forces=forces)
    (copy,) = read_structures(water)
    assert copy.get_potential_energy() == -7.0
    np.testing.assert_array_equal(copy.get_forces(), forces)


@pytest.mark.parametrize("pbc", [(True, False, False), (True, True, False), (False, True, False), (False, True, True)])
def test_cell_need_not_span_where_it_is_not_periodic(pbc):
    atoms = ase.Atoms("C2", [(0, 0, 0), (1.2, 0, 0)], cell=[2.5 * periodic for periodic in pbc], pbc=pbc)
    (read,) = read_structures(atoms)
    assert read == atoms


def test_a_molecule_may_have_any_cell():
    for cell in (np.zeros((3, 3)), CELL[[1, 0, 2]], [[4, 0, 0], [0, 4, 0], [4, 4, 0]]):
        atoms = ase.Atoms("CO", [(0, 0, 0), (0, 0, 1.1)], cell=cell)
        np.testing.assert_array_equal(read_structures(atoms)[0].cell, cell)


# What is refused


def put(atoms, value):
    atoms.positions[1, 2] = value


BROKEN = {
    "NaN position": (lambda atoms: put(atoms, np.nan), r"atoms \[1\] are NaN"),
    "infinite position": (lambda atoms: put(atoms, np.inf), r"atoms \[1\] are NaN or infinite"),
    "no atoms": (lambda atoms: atoms.__delitem__([0, 1]), "no atoms"),
    "no cell": (lambda atoms: atoms.set_cell(np.zeros((3, 3))), "zero volume"),
    "one zero vector": (lambda atoms: atoms.set_cell([4, 0, 4]), "zero volume"),
    "flat cell": (lambda atoms: atoms.set_cell([[4, 0, 0], [0, 4, 0], [4, 4, 0]]), "zero volume"),
    "left-handed cell": (lambda atoms: atoms.set_cell(CELL[[1, 0, 2]]), "negative volume"),
    "NaN cell": (lambda atoms: atoms.set_cell(CELL * np.nan), "cell is NaN"),
}


@pytest.mark.parametrize(("change", "words"), BROKEN.values(), ids=BROKEN)
def test_broken_structure_is_named(water, change, words):
    atoms = ase.Atoms("CO", [(0, 0, 0), (0, 0, 1.1)], cell=CELL, pbc=True, info={"name": "the broken one"})
    assert read_structures([water, atoms])[1] == atoms
    change(atoms)
    with pytest.raises(InputError, match=f"Structure the broken one.*{words}"):
        read_structures([water, atoms])


def test_a_flat_cell_is_told_by_its_volume_whatever_rounding_leaves_of_it():
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = rng.uniform(-100, 100, (2, 3))
        flat = np.array([a, b, rng.uniform(-1, 1) * a + rng.uniform(-1, 1) * b])
        with pytest.raises(InputError, match="zero volume"):
            read_structures(ase.Atoms("C", cell=flat, pbc=True))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ([], "holds no structures"),
        (5, "got int"),
        (None, "got NoneType"),
        ([ase.Atoms("H"), "H2O"], "Structure 1 is a str"),
        ("no_such_file.xyz", "no_such_file.xyz does not exist"),
        (".", "is a folder"),
    ],
)
def test_no_structures(source, words):
    with pytest.raises(InputError, match=words):
        read_structures(source)


@pytest.mark.parametrize("name", ["garbage.xyz", "garbage.cif", "garbage.unknown"])
def test_unreadable_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x00\x93not a structure\n\xff")
    with pytest.raises(InputError, match=name):
        read_structures(tmp_path / name)


def test_file_without_structures(tmp_path):
    (tmp_path / "empty.xyz").write_text("")
    with pytest.raises(InputError, match="empty"):
        read_structures(tmp_path / "empty.xyz")


def test_selection_outside_the_file(file):
    with pytest.raises(InputError, match="three"):
        read_structures(f"{file}@7")
