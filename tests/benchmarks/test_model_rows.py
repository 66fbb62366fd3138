"""The rows of the model support matrix: which there are, and what is refused for want of a package."""

import importlib.util
from itertools import product

import pytest
from model_rows import CLASSES, ROWS, latin_square

import precision_probe as pp

OPTIONAL = [row for row in ROWS if row.packages and row.given is None]


@pytest.mark.parametrize("row", OPTIONAL, ids=lambda row: row.name)
def test_a_model_class_whose_package_is_absent_is_refused_by_name(row):
    if all(importlib.util.find_spec(name) for name in row.packages):
        pytest.skip("its package is installed")
    with pytest.raises(pp.InputError, match=f"needs a package that is not installed.*{row.packages[0]}"):
        row.build()


def test_interaction_classes_are_all_of_mace_torch():
    assert len(CLASSES) == 6
    assert all(name.endswith("InteractionBlock") for name in CLASSES)


def test_latin_square_meets_every_pair():
    square = latin_square()
    assert len(square) == len(set(square)) == 18
    numbers = {1, 2, 3}
    for name in CLASSES:
        rows = [row for row in square if row[0] == name]
        assert all({row[axis] for row in rows} == numbers for axis in (1, 2, 3))
    for one, other in ((1, 2), (1, 3), (2, 3)):
        assert {(row[one], row[other]) for row in square} == set(product(numbers, numbers))


def test_names_are_unique():
    assert len({row.name for row in ROWS}) == len(ROWS)
