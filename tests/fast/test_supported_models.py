"""Every kind of MACE that predicts energies gives, filled up and with edges of its own, what it gives when called."""

import model_rows
import numpy as np
import pytest
import torch
from ase.calculators.calculator import Calculator

from precision_probe.fast.calculator import GraphCalculator
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.evaluation import mace_evaluation
from precision_probe.models.graphs import build_graph

ROWS = [
    row
    for row in model_rows.model_classes() + model_rows.features()
    if "energy" in row.quantities and not row.refusal and not row.needs_cuda
]


def called(model, atoms, head):
    """Energy, forces and stress by a call of the model in float64, TorchScript's second."""
    graph = build_graph(atoms, model, head)
    with default_dtype(torch.float64):  # which some of its constants are made in
        values = [mace_evaluation(model).predict(model, graph.cast(torch.float64), graph) for _ in range(2)][-1]
    return {quantity.name: tensor.detach().numpy() for quantity, tensor in values.items()}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_is_launched_is_what_is_called(row, filled):
    if missing := row.missing("cpu"):
        pytest.skip(missing)
    model = row.build()
    calculator: Calculator = GraphCalculator(filled(model, row.head))
    energies = set()
    for atoms in row.structures():
        expected = called(model, atoms, row.head)
        atoms.calc = calculator
        energies.add(atoms.get_potential_energy())
        assert atoms.get_potential_energy() == pytest.approx(float(expected["energy"][0]), rel=1e-13)
        size = np.abs(expected["forces"]).max()
        np.testing.assert_allclose(atoms.get_forces(), expected["forces"], rtol=0, atol=1e-11 * size)
        if atoms.pbc.all():
            stress = atoms.get_stress(voigt=False)
            np.testing.assert_allclose(stress, expected["stress"][0], rtol=0, atol=1e-11 * np.abs(stress).max())
    assert not row.tells_charge_and_spin or len(energies) == len(row.structures())
