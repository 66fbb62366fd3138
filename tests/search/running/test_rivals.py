"""What people run otherwise, against MACECalculator made by hand."""

import copy

import ase
import numpy as np
import pytest
import torch
from mace.calculators import MACECalculator
from runs import molecule

from precision_probe.diagnostics.reference import Reference
from precision_probe.search.running.rivals import rivals


def cell():
    return ase.Atoms("CO", [(0, 0, 0), (0.1, 0.2, 1.2)], cell=[2.6, 2.9, 3.1], pbc=True)


def test_errors_are_those_of_a_calculator_made_by_hand(model):
    structures = [molecule(1), cell()]
    found = dict(rivals(model, Reference(model, structures, device="cpu")))
    assert list(found) == ["MACECalculator, float64", "MACECalculator, float32"]  # on a CPU
    exact, single = (
        MACECalculator(models=[copy.deepcopy(model).to(getattr(torch, name))], device="cpu", default_dtype=name)
        for name in ("float64", "float32")
    )
    expected = [
        np.abs(single.get_property("forces", atoms) - exact.get_property("forces", atoms)).max() for atoms in structures
    ]
    np.testing.assert_allclose(found["MACECalculator, float32"].errors()["forces"], expected, rtol=0.3)
    assert found["MACECalculator, float64"].errors()["forces"].max() < 1e-12
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


def test_a_call_calculates_anew_each_time(model):
    reference = Reference(model, [cell()], device="cpu")
    rival = dict(rivals(model, reference))["MACECalculator, float64"]
    call = rival.call(reference.graphs[0])
    call()
    results = rival._calculator.results
    assert results["energy"] == pytest.approx(float(reference.exact[0]["energy"]), rel=1e-14)
    assert "stress" in results
    results.clear()
    call()
    assert "forces" in rival._calculator.results
