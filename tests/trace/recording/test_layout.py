"""layout.py: what stays from one part of a trace to the next; test_recorder.py has how arrays are laid out."""

import numpy as np
import pytest

from precision_probe.exceptions import InputError
from precision_probe.trace.arrays import BlockArray, Sizes
from precision_probe.trace.recording.layout import Collected


def add(collected, n_atoms, width=3):
    arrays = {"name": np.array(["x"], dtype=object), "n_atoms": np.array([n_atoms])}
    output = BlockArray("layer", "output", np.zeros((n_atoms, width), np.float32), "float32", rows="atom")
    collected.add(arrays, Sizes(1, n_atoms, 0), {}, {"isolated/float32": [output]})


def test_atoms_belong_to_structures_counted_from_the_beginning_of_the_trace():
    collected = Collected()
    add(collected, 2)
    add(collected, 1)
    assert (collected.n_structures, collected.n_bytes) == (2, 3 * 3 * 4)
    assert collected.tree(0, {})["structures"]["structure_of_atom"].values.tolist() == [0, 0, 1]
    assert collected.tree(7, {"about": "this"}).attrs == {"about": "this"}
    assert collected.tree(7, {})["structures"]["structure_of_atom"].values.tolist() == [7, 7, 8]
    collected.clear()
    assert (collected.n_structures, collected.n_bytes) == (0, 0)
    add(collected, 1)
    assert collected.tree(9, {})["isolated/float32"]["layer.output"].shape == (1, 3)


def test_rows_of_another_shape_are_refused_after_others_were_written():
    collected = Collected()
    add(collected, 2)
    collected.clear()
    with pytest.raises(InputError, match=r"rows of shape \(4,\) here and had \(3,\) before"):
        add(collected, 2, width=4)
    assert collected.n_structures == 0
