"""What benchmarks run on: the default model's architecture, SiC, and structures by their place."""

import numpy as np
import pytest
import systems

from precision_probe.exceptions import InputError
from precision_probe.structures import read_structures


@pytest.mark.parametrize(("sizes", "n_atoms"), [([8], [8]), ([60, 8, 66], [8, 64]), ([4096], [4096]), ([1], [8])])
def test_supercells_have_about_as_many_atoms_as_asked_for(sizes, n_atoms):
    cells = systems.supercells(sizes, seed=0)
    assert [len(atoms) for atoms in cells] == n_atoms
    for atoms in cells:
        numbers, counts = np.unique(atoms.numbers, return_counts=True)
        assert numbers.tolist() == [6, 14]
        assert counts[0] == counts[1]
        assert atoms.get_volume() / len(atoms) == pytest.approx(4.36**3 / 8)


def test_displacements_are_those_of_the_seed():
    (one,), (again,), (other,) = (systems.supercells([512], seed) for seed in (0, 0, 1))
    assert np.array_equal(one.positions, again.positions)
    apart = one.positions - other.positions
    assert apart.std() == pytest.approx(0.05 * np.sqrt(2), rel=0.05)  # of two independent displacements of 0.05 Å


def test_sizes():
    assert systems.parse_sizes(" 64, 512 ") == [64, 512]


@pytest.mark.parametrize("text", ["", "many", "64,", "0", "-8", "8.5"])
def test_sizes_that_are_none(text):
    with pytest.raises(InputError, match="--atoms"):
        systems.parse_sizes(text, "--atoms")


def test_smoke_architecture_differs_from_the_default_in_width_only():
    small, large = (systems.architecture(0, smoke) for smoke in (True, False))
    assert {key for key in large if small[key] != large[key]} == {"hidden_irreps", "max_ell", "radial_MLP"}
    assert large["hidden_irreps"] == "128x0e + 128x1o"
    assert len(large["atomic_energies"]) == len(large["atomic_numbers"]) == 89
    assert -10 <= min(large["atomic_energies"]) <= max(large["atomic_energies"]) <= -1


def test_structure_at_a_place():
    assert systems.structure_at("demo@4").info["name"] == read_structures("demo")[4].info["name"] == "benzene"


@pytest.mark.parametrize("place", ["demo", "demo@", "demo@-1", "demo@0:2", "demo@99", "@0"])
def test_no_structure_at_a_place(place):
    with pytest.raises(InputError):
        systems.structure_at(place)
