"""structures.py: reading structures from every kind of source, and refusing those that cannot be run."""

import time

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


def test_a_left_handed_cell_is_read(water):
    atoms = ase.Atoms("CO", [(0, 0, 0), (0, 0, 1.1)], cell=CELL[[1, 0, 2]], pbc=True)
    assert np.linalg.det(atoms.cell) < -1
    assert read_structures(atoms) == [atoms]


def test_the_demo_can_be_selected_from():
    names = [atoms.info["name"] for atoms in read_structures("demo")]
    for selection, expected in (("demo@:3", names[:3]), ("demo@1", names[1:2]), ("demo@-1", names[-1:])):
        assert [atoms.info["name"] for atoms in read_structures(selection)] == expected
    for selection in ("demo@99", "demo@x"):
        with pytest.raises(InputError, match=f"cannot read structures from {selection}"):
            read_structures(selection)


# Formats that a file does not tell

LAMMPS_DATA = """by hand

3 atoms
2 atom types

0.0 10.0 xlo xhi
0.0 11.0 ylo yhi
0.0 12.0 zlo zhi

Masses

1 15.999
2 1.008

Atoms # atomic

1 1 0.0 0.0 0.0
2 2 0.96 0.0 0.0
3 2 -0.24 0.93 0.0
"""
LAMMPS_DUMP = """ITEM: TIMESTEP
0
ITEM: NUMBER OF ATOMS
2
ITEM: BOX BOUNDS pp pp pp
0.0 10.0
0.0 10.0
0.0 10.0
ITEM: ATOMS id type element x y z
1 1 O 0.0 0.0 0.0
2 2 H 0.96 0.0 0.0
"""


def test_a_lammps_data_file_is_read_once_its_format_is_named(tmp_path):
    path = tmp_path / "water.data"
    path.write_text(LAMMPS_DATA)
    with pytest.raises(
        InputError, match=r"looks like a LAMMPS data file.*--structures-format lammps-data.*water.data:lammps-data"
    ):
        read_structures(path)
    for (atoms,) in (read_structures(path, format="lammps-data"), read_structures(f"{path}:lammps-data")):
        assert (str(atoms.symbols), atoms.cell.lengths().tolist()) == ("OH2", [10.0, 11.0, 12.0])
        assert atoms.positions[2].tolist() == [-0.24, 0.93, 0.0]
        assert atoms.info["name"] == "water[0]"


def test_a_lammps_dump_is_read_whatever_it_is_called(tmp_path):
    path = tmp_path / "run.cif"
    path.write_text(LAMMPS_DUMP)
    assert formulas(path) == formulas(f"{path}:lammps-dump-text@0") == ["OH"]


def test_a_format_that_does_not_fit_is_named(file):
    with pytest.raises(InputError, match=r"read as 'vasp'.*ase info --formats"):
        read_structures(file, format="vasp")
    with pytest.raises(InputError, match=r"read as 'no-such-format'"):
        read_structures(file, format="no-such-format")


# Sites that are not one whole atom

CIF = """data_test
_cell_length_a 5.1
_cell_length_b 5.2
_cell_length_c 5.3
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Si1 Si 0.1 0.2 0.3 {}
Ge1 Ge {} {}
O1 O 0.5 0.5 0.5 1
"""


@pytest.mark.parametrize(
    ("occupancies", "words"),
    [
        (("0.25", "0.7 0.7 0.7", "1"), r"test\[0\]: site 0 is occupied by Si \(0.25\)"),
        (("1.0", "0.7 0.7 0.7", "0.5(1)"), r"site 1 is occupied by Ge \(0.5\)"),
        (("0.6", "0.1 0.2 0.3", "0.4"), r"site 0 is occupied by Si \(0.6\) and Ge \(0.4\)"),
        (("1", "0.1 0.2 0.3", "1"), r"site 0 is occupied by Si \(1\) and Ge \(1\)"),
        (("0", "0.7 0.7 0.7", "1"), r"site 0 is occupied by Si \(0\)"),
    ],
    ids=["partly", "partly, with its uncertainty", "mixed", "doubly", "empty"],
)
def test_a_site_that_is_not_one_whole_atom_is_refused(tmp_path, occupancies, words):
    path = tmp_path / "test.cif"
    path.write_text(CIF.format(*occupancies))
    with pytest.raises(InputError, match=words):
        read_structures(path)
    with pytest.raises(InputError, match="occupied by"):  # of a supercell too, and in memory
        read_structures(ase.io.read(path) * (1, 2, 1))


@pytest.mark.parametrize("place", ["0.1 0.2 0.3", "1.1 0.2 -0.7", "0.1002 0.2 0.3"])
def test_two_elements_at_one_place_are_refused_where_no_shares_are_given_too(tmp_path, place):
    path = tmp_path / "test.cif"
    without = CIF.replace("_atom_site_occupancy\n", "")
    path.write_text(without.format("", place, "").replace("0.5 0.5 0.5 1", "0.5 0.5 0.5"))
    with pytest.raises(InputError, match=r"test.cif, data_\w+: sites 0 and 1 are Si and Ge at one place"):
        read_structures(path)
    path.write_text(path.read_text().replace("Ge1 Ge", "Si2 Si"))  # the same atom, given twice
    assert formulas(path) == ["SiO"]


@pytest.mark.parametrize("occupancy", ["1", "1.000", "0.9999", "?", "."])
def test_whole_atoms_are_read(tmp_path, occupancy):
    path = tmp_path / "whole.cif"
    path.write_text(CIF.format(occupancy, "0.7 0.7 0.7", 1))
    assert formulas(path) == ["SiGeO"]


def test_occupancies_of_atoms_are_judged_too(water):
    """As ASE has them of a PDB file, where 0 says that there is none."""
    water.arrays["occupancy"] = np.array([1.0, 0.0, 1.0])
    assert len(read_structures(water)) == 1
    water.arrays["occupancy"][2] = 0.4
    with pytest.raises(InputError, match=r"site 2 is occupied by H \(0.4\)"):
        read_structures(water)


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
    "flat left-handed cell": (lambda atoms: atoms.set_cell([[0, 4, 0], [4, 0, 0], [4, 4, 0]]), "zero volume"),
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


@pytest.mark.parametrize("count", [10**12, "1" * 30, "1" * 5000])
@pytest.mark.parametrize("before", ["", "1\ncomment\nO 0 0 0\n"])
def test_a_number_of_atoms_that_the_file_cannot_hold_is_refused_at_once(tmp_path, count, before):
    """ASE would look for every one of them."""
    path = tmp_path / "damaged.xyz"
    path.write_text(f"{before}{count}\n\nO 0 0 0\n")
    start = time.monotonic()
    with pytest.raises(InputError, match=rf"damaged\.xyz says that its structure {int(bool(before))} has 1.* atoms"):
        read_structures(path)
    assert time.monotonic() - start < 1.0


def test_a_comment_that_is_a_large_number_is_no_number_of_atoms(tmp_path):
    path = tmp_path / "times.xyz"
    path.write_text("1\n20240101120000\nO 0 0 0\n1\n20240101120001\nO 0 0 1\n")
    assert [len(atoms) for atoms in read_structures(path)] == [1, 1]


def test_selection_outside_the_file(file):
    with pytest.raises(InputError, match="three"):
        read_structures(f"{file}@7")
