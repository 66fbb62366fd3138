"""Structures as calculators are given them."""

import numpy as np
from runs import molecule

from precision_probe.diagnostics.reference import Reference
from precision_probe.search.running.calculators import atoms_of


def test_charge_and_spin_reach_the_calculator(model):
    """Under the keys that it reads, whatever those of the structures are called."""
    atoms = molecule(1)
    atoms.info |= {"total_charge": -1, "total_spin": 2}
    (graph,) = Reference(model, [atoms], device="cpu").graphs
    made = atoms_of(graph)
    assert (made.info["charge"], made.info["spin"]) == (-1, 2)
    np.testing.assert_array_equal(made.positions, atoms.positions)
    np.testing.assert_array_equal(made.numbers, atoms.numbers)
    assert not made.pbc.any()
