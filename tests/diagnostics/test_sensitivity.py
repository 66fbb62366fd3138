"""Errors predicted to first order: against finite differences, and against what is measured."""

import numpy as np
import pytest
import torch
from runs import molecule

from precision_probe.diagnostics.reference import Reference
from precision_probe.diagnostics.sensitivity import predicted_errors, sensitivities
from precision_probe.precisions import parse_precision
from precision_probe.variants.variant import Variant


@pytest.fixture(scope="module")
def reference(model):
    return Reference(model, molecule(), device="cpu")


def test_sensitivity_of_the_energy_is_the_gradient_times_the_input(reference):
    """Of the last readout, ∂E/∂x·x by finite differences of the energy in a scale of all its inputs."""
    table = sensitivities(reference, n_probes=2).set_index(["block", "input"])
    readout = reference.variant.model.readouts[1]
    plain = readout.forward

    def energy(scales):
        readout.forward = lambda x, heads: plain(x * scales, heads)
        try:
            return float(reference.variant.predict(reference.graphs[0])["interaction_energy"])
        finally:
            del readout.forward

    shape = (3, readout.linear_1.irreps_in.dim)
    step, found = 1e-5, []
    for index in np.ndindex(*shape):
        scales = torch.ones(shape, dtype=torch.float64)
        scales[index] += step
        up = energy(scales)
        scales[index] -= 2 * step
        found.append((up - energy(scales)) / (2 * step))
    assert table.loc[("readouts.1", "node_feats"), "energy_bound"] == pytest.approx(np.abs(found).sum() / 3, rel=1e-5)
    expected = np.sqrt(np.square(found).sum()) / 3 / np.sqrt(3)
    assert table.loc[("readouts.1", "node_feats"), "energy_expected"] == pytest.approx(expected, rel=1e-5)


def test_predictions_scale_with_the_roundoff_and_are_of_the_right_size(reference):
    table = sensitivities(reference)
    coarse, fine = (predicted_errors(table, name) for name in ("m10", "m14"))
    np.testing.assert_allclose(coarse / fine, 16)
    assert coarse["energy_expected"] < coarse["energy_bound"]
    measured = reference.errors(Variant(reference.model, parse_precision("m14"), reference.device).predict)
    assert 1 / 30 < fine["forces_expected"] / measured["forces_mae"] < 3  # inputs alone: a part of all rounding
