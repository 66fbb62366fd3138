"""The package on a real trained model and real data, against mace-torch run by hand. Skipped where they are absent."""

import ase.io
import mace_by_hand
import numpy as np
import pytest
import torch
from runs import ROOT

import precision_probe as pp
from precision_probe.models.loading import load_model

SHARED = ROOT.parent / "shared"
MODEL = SHARED / "models" / "3bpa-64x0e-64x1o.model"
DATA = SHARED / "data" / "3bpa_train_300K.xyz"

pytestmark = pytest.mark.skipif(not (MODEL.exists() and DATA.exists()), reason="the shared model and data are not here")

# From a bare run of this model on the first 16 structures: force MAE meV/Å, mean total energy error meV/atom.
MEASURED = {"float32": (2.3e-3, 1.9e-2), "float16": (19.9, 459.0), "bfloat16": (162.2, 133.5)}


@pytest.fixture(scope="module")
def trace():
    options = {"modes": "propagated", "gradients": False, "blocks": "readouts.1"}
    with pp.attach(MODEL, precisions=list(MEASURED), device="cpu", **options) as probe:
        probe.run(ase.io.read(DATA, ":16"), progress=False)
    return probe.trace()


def test_whole_model_errors_are_those_measured_by_hand(trace):
    n_atoms = trace.structures["n_atoms"].values
    reference = trace.group("propagated", "float64")
    for precision, (force_mae, energy_mae) in MEASURED.items():
        variant = trace.group("propagated", precision)
        forces = np.abs(variant["forces"].values - reference["forces"].values).mean() * 1e3
        energy = (np.abs(variant["energy"].values - reference["energy"].values) / n_atoms).mean() * 1e3
        assert forces == pytest.approx(force_mae, rel=0.3)
        assert energy == pytest.approx(energy_mae, rel=0.3)


def test_float32_block_errors_are_those_of_mace_run_by_hand():
    structures = ase.io.read(DATA, ":4")
    with pp.attach(MODEL, precisions="float32", device="cpu") as probe:
        probe.run(structures, progress=False)
    table = pp.errors(probe.trace())
    by_hand = mace_by_hand.relative_errors(load_model(MODEL)[0], structures, torch.float32)
    rows = table[table["block"].isin({block for _, block, *_ in by_hand}) & table["resolved"]]
    assert len(rows) == len(by_hand) - 1  # the gradient of Σ Y² is zero, and not resolved
    for row in rows.to_dict("records"):
        expected = by_hand[row["mode"], row["block"], row["tensor"], row["direction"] == "backward"]
        allowed = 0.1 if row["direction"] == "backward" else 5e-4
        assert row["rel_l2"] == pytest.approx(expected, rel=allowed), row
