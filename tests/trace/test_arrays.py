"""arrays.py: what an array of a run is called, and what its rows may count."""

import numpy as np
import pytest

from precision_probe.trace.arrays import BlockArray, Sizes


def block_array(n_rows=3, **about):
    return BlockArray("readouts.0", "node_feats", np.zeros((n_rows, 2)), "float32", **about)


@pytest.mark.parametrize(
    ("computed_in", "is_gradient", "name"),
    [
        ("forward", False, "readouts.0.node_feats"),
        ("backward", True, "readouts.0.node_feats.grad"),
        ("double_backward", True, "readouts.0.node_feats.grad"),
    ],
)
def test_names(computed_in, is_gradient, name):
    array = block_array(computed_in=computed_in)
    assert (array.gradient, array.name) == (is_gradient, name)


@pytest.mark.parametrize(
    ("n_rows", "sizes", "fitting"),
    [
        (3, Sizes(1, 3, 6), {"atom"}),
        (6, Sizes(1, 3, 6), {"edge"}),
        (1, Sizes(1, 3, 6), {"structure"}),
        (4, Sizes(1, 3, 6), set()),
        (2, Sizes(1, 2, 2), {"atom", "edge"}),
        (1, Sizes(1, 1, 0), {"structure", "atom"}),
        (0, Sizes(1, 1, 0), {"edge"}),
        (3, Sizes(3), set()),  # of a module whose inputs have no atoms: rows are not its structures
    ],
)
def test_rows_count_whatever_there_are_as_many_of(n_rows, sizes, fitting):
    assert sizes.fitting(block_array(n_rows)) == fitting


@pytest.mark.parametrize("rows", ["atom", "edge", "structure"])
@pytest.mark.parametrize("sizes", [Sizes(1, 3, 6), Sizes(3, 9, 3), Sizes(1)], ids=str)
def test_rows_count_what_they_are_said_to(rows, sizes):
    assert sizes.fitting(block_array(3, rows=rows)) == {rows}
