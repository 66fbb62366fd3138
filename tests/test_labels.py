"""labels.py: reference labels read from every place, and notes of those that cannot be."""

import re

import ase
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from precision_probe.exceptions import InputError
from precision_probe.labels import LabelKeys, UnreadableError, grouped, numbers, read_labels
from precision_probe.structures import read_structures

FORCES = np.arange(9.0).reshape(3, 3)
VOIGT = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
FULL = [[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]]


# one value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "is None, where a number"),
        ("abc", "is text, where a number"),
        (np.array(["a"]), "is text"),
        (np.array(["a", "b"], dtype=object), "is text"),
        ([1.0, 2.0], r"has the shape \(2,\), where a number"),
        (np.nan, "NaN or infinite"),
        (-np.inf, "NaN or infinite"),
        ({"a": 1}, "no array of numbers"),
        ([[1.0], [1.0, 2.0]], "no array of numbers"),
    ],
)
def test_what_is_no_number_is_said(value, words):
    with pytest.raises(UnreadableError, match=words):
        numbers(value, ())


@pytest.mark.parametrize("value", [-7, -7.0, np.float32(-7), [-7], np.array([[-7.0]]), "-7.0"])
def test_one_number_however_it_is_wrapped(value):
    assert numbers(value, ()) == -7.0
    assert numbers(value, ()).shape == ()


# labels that cannot be read


BAD = {
    "energy None": ("info", "REF_energy", None, "'REF_energy' is None"),
    "energy of text": ("info", "REF_energy", "None", "'REF_energy' is text"),
    "two energies": ("info", "REF_energy", np.array([-1.0, -2.0]), r"'REF_energy' has the shape \(2,\)"),
    "forces of text": ("arrays", "REF_forces", np.array(["a", "b", "c"]), "'REF_forces' is text"),
    "forces in two dimensions": ("arrays", "REF_forces", np.ones((3, 2)), r"'REF_forces' has the shape \(3, 2\)"),
    "stress of three": ("info", "REF_stress", np.ones(3), r"'REF_stress' has the shape \(3,\)"),
    "infinite stress": ("info", "REF_stress", np.full(6, np.inf), "'REF_stress' is NaN or infinite"),
}


@pytest.mark.parametrize(("place", "key", "value", "words"), BAD.values(), ids=BAD)
def test_what_cannot_be_read_is_left_out_and_the_rest_is_kept(water, place, key, value, words):
    water.info |= {"REF_energy": -7.0, "REF_stress": VOIGT}
    water.arrays["REF_forces"] = FORCES
    getattr(water, place)[key] = value
    labels = read_labels(water)
    (note,) = labels.notes
    assert re.match(words, note)
    assert note.endswith("and is left out.")
    expected = {"energy": [-7.0], "forces": FORCES.tolist(), "stress": [FULL]}
    del expected[key.removeprefix("REF_")]
    assert {name: value.tolist() for name, value in labels.values.items()} == expected


def test_results_of_a_calculator_that_cannot_be_read_give_way_to_the_next(water):
    water.info["REF_energy"] = -3.0
    water.calc = SinglePointCalculator(water, energy="None", forces=FORCES)
    labels = read_labels(water)
    assert labels.values["energy"].tolist() == [-3.0]
    np.testing.assert_array_equal(labels.values["forces"], FORCES)
    assert [note.split(" is ")[0] for note in labels.notes] == ["'energy'"]


def test_some_atoms_without_forces_are_no_fault(water):
    water.arrays["REF_forces"] = np.array([[1.0, 2.0, 3.0], [np.nan] * 3, [4.0, 5.0, 6.0]])
    labels = read_labels(water)
    np.testing.assert_array_equal(labels.values["forces"], water.arrays["REF_forces"])
    assert labels.notes == ()


# labels under other keys


def labelled(water, factor=1.0):
    water = water.copy()
    water.info |= {"dft_energy": -7.0 * factor, "dft_stress": VOIGT, "REF_energy": 55.0}
    water.arrays["dft_forces"] = FORCES * factor
    water.calc = SinglePointCalculator(water, energy=-99.0, forces=-FORCES)
    return water


def test_keys_asked_for_come_before_all_others(water):
    keys = LabelKeys(energy="dft_energy", forces="dft_forces", stress="dft_stress")
    for factor, atoms in zip(
        [1.0, 2.0], read_structures([labelled(water), labelled(water, 2.0)], keys=keys), strict=True
    ):
        labels = read_labels(atoms)
        assert labels.values["energy"].tolist() == [-7.0 * factor]
        np.testing.assert_array_equal(labels.values["forces"], FORCES * factor)
        np.testing.assert_array_equal(labels.values["stress"], [FULL])
        assert labels.notes == ()
    assert read_labels(labelled(water)).values["energy"].tolist() == [-99.0]


def test_keys_survive_reading_again_and_leave_what_was_given_as_it_was(water):
    given = labelled(water)
    before = given.copy()
    once = read_structures(given, keys=LabelKeys(energy="dft_energy"))
    (twice,) = read_structures(once)
    assert read_labels(twice).values["energy"].tolist() == [-7.0]
    np.testing.assert_array_equal(read_labels(twice).values["forces"], -FORCES)  # the others are where they were
    assert given.info == before.info


def test_a_key_that_ase_reads_itself_may_be_asked_for(water):
    (atoms,) = read_structures(labelled(water), keys=LabelKeys(energy="energy"))
    assert read_labels(atoms).values["energy"].tolist() == [-99.0]


def test_a_structure_without_the_key_has_no_label_and_a_note(water):
    with_key, without = read_structures([labelled(water), water], keys=LabelKeys(energy="dft_energy"))
    assert read_labels(with_key).values["energy"].tolist() == [-7.0]
    labels = read_labels(without)
    assert "energy" not in labels.values
    assert labels.notes == ("has no 'dft_energy', which was given as the key of energy.",)


def test_a_key_that_no_structure_has_is_refused_with_those_there_are(water):
    with pytest.raises(InputError, match=r"'dft_enrgy'.*energy.*dft_energy"):
        read_structures([labelled(water), water], keys=LabelKeys(energy="dft_enrgy"))


def test_what_looks_like_a_label_and_stands_unused_is_said(water):
    water.info |= {"dft_energy": -7.0, "config_energy_weight": 2.0, "energy_comment": "text", "dft_stress": [1.0, 2.0]}
    water.arrays["dft_forces"] = FORCES
    (note,) = read_labels(water).notes
    assert note.startswith("'dft_energy' and 'dft_forces' may be reference labels, and are not used.")
    assert "--energy-key dft_energy --forces-key dft_forces" in note
    assert "LabelKeys(energy='dft_energy', forces='dft_forces')" in note
    water.info["REF_energy"], water.arrays["REF_forces"] = -6.0, FORCES
    assert read_labels(water).notes == ()


# notes of many structures


def test_notes_are_said_once_with_the_structures_they_are_of():
    notes = [(f"s{index}", "lacks a label.") for index in range(5)] + [("t", "is odd.")]
    assert grouped(notes) == ["s0, s1, s2 and 2 more: lacks a label.", "t: is odd."]
    assert grouped([]) == []


def test_a_lone_atom_is_no_special_case():
    atom = ase.Atoms("O", info={"REF_energy": [-1.0]})
    atom.arrays["REF_forces"] = np.zeros((1, 3))
    labels = read_labels(atom)
    assert (labels.values["energy"].shape, labels.values["forces"].shape) == ((1,), (1, 3))
