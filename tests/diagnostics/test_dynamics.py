"""Dynamics: the calculator against the variant, and drift against straight lines and float64."""

import numpy as np
import pytest
import torch
from runs import molecule

from precision_probe.diagnostics.dynamics import VariantCalculator, _summary, energy_drift
from precision_probe.models.graphs import build_graph
from precision_probe.precisions import PRECISIONS
from precision_probe.variants.variant import Variant

CPU = torch.device("cpu")


def test_a_straight_line_is_drift_and_what_is_about_it_fluctuation():
    time = np.arange(100) * 0.0005
    wiggle = 0.1 * (-1.0) ** np.arange(100)
    found = _summary(np.asarray([3 * time + wiggle, 5 * time + wiggle]), 0.0005)
    assert found["drift"] == pytest.approx(4, abs=0.2)
    assert found["confidence"] == pytest.approx(12.7062 * 1.0, rel=0.01)  # t(0.975, 1) × standard error
    assert found["fluctuation"] == pytest.approx(0.1, rel=0.01)
    assert np.isnan(_summary(np.asarray([3 * time]), 0.0005)["confidence"])  # one run says nothing of others


def test_the_calculator_gives_the_variants_results(model):
    atoms = molecule()
    variant = Variant(model, PRECISIONS["float64"], CPU)
    atoms.calc = VariantCalculator(variant)
    expected = variant.predict(build_graph(atoms, model))
    assert atoms.get_potential_energy() == float(expected["interaction_energy"])
    np.testing.assert_array_equal(atoms.get_forces(), expected["forces"])
    atoms.calc.calculate()  # of the atoms that it knows
    np.testing.assert_allclose(atoms.calc.results["forces"], expected["forces"], rtol=0, atol=1e-13)


def test_float64_keeps_its_energy_and_runs_start_alike(model):
    found = energy_drift(model, molecule(), "float32", steps=20, timestep=0.1, n_runs=2)
    assert found.index.tolist() == ["float64", "float32"]
    assert found.loc["float32", "drift"] == pytest.approx(found.loc["float64", "drift"], abs=1.0)
    again = energy_drift(model, molecule(), "float32", steps=20, timestep=0.1, n_runs=2)
    assert found.equals(again)
