"""Errors in physical terms: each number from the arrays of the trace, by hand."""

import ase.build
import ase.units
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from runs import molecule, trace_of

import precision_probe as pp
from precision_probe.analysis.physical_errors import ALL, by_structure


@pytest.fixture(scope="module")
def trace(model):
    labelled = molecule()
    forces = np.arange(9.0).reshape(3, 3)
    labelled.calc = SinglePointCalculator(labelled, energy=-2071.0, forces=forces)
    cell = ase.build.bulk("C", cubic=True)
    cell.rattle(0.05, seed=1)
    return trace_of(model, [labelled, cell], precisions="float32,bfloat16")


def test_errors_in_the_users_units(trace):
    table = by_structure(trace).set_index(["precision", "structure"])
    exact, reduced = (trace.group("propagated", name) for name in ("float64", "bfloat16"))
    delta = reduced["forces"].values[:3].astype(float) - exact["forces"].values[:3]
    row = table.loc[("bfloat16", "H2O")]
    assert row["forces_mae"] == pytest.approx(1000 * np.abs(delta).mean())
    assert row["forces_rmse"] == pytest.approx(1000 * np.sqrt((delta**2).mean()))
    assert row["forces_max"] == pytest.approx(1000 * np.abs(delta).max())
    worst = int(np.linalg.norm(delta, axis=1).argmax())
    assert row["worst_atom"] == f"{'OHH'[worst]}{worst}"
    energies = [group["energy"].values.astype(float) for group in (exact, reduced)]
    assert row["energy"] == pytest.approx(1000 * abs(energies[1][0] - energies[0][0]) / 3)
    stress = np.abs(reduced["stress"].values[1].astype(float) - exact["stress"].values[1]).max()
    assert table.loc[("bfloat16", "C8"), "stress"] == pytest.approx(stress / ase.units.GPa)
    assert np.isnan(row["stress"])


def test_isolated_molecules_feel_no_net_force_or_torque_in_float64(trace):
    table = by_structure(trace).set_index(["precision", "structure"])
    assert table.loc[("float64", "H2O"), ["net_force", "net_torque"]].max() < 1e-9
    forces = trace.group("propagated", "bfloat16")["forces"].values[:3].astype(float)
    row = table.loc[("bfloat16", "H2O")]
    assert row["net_force"] == pytest.approx(1000 * np.linalg.norm(forces.sum(axis=0)))
    positions = molecule().positions
    arm = positions - positions.mean(axis=0)
    assert row["net_torque"] == pytest.approx(1000 * np.linalg.norm(np.cross(arm, forces).sum(axis=0)))
    assert np.isnan(table.loc[("bfloat16", "C8"), "net_force"])


def test_errors_beside_the_models_own(trace):
    table = by_structure(trace).set_index(["precision", "structure"])
    own = np.abs(trace.group("propagated", "float64")["forces"].values[:3] - np.arange(9.0).reshape(3, 3)).mean()
    row = table.loc[("bfloat16", "H2O")]
    assert row["model_forces_mae"] == pytest.approx(1000 * own)
    assert row["forces_share"] == pytest.approx(row["forces_mae"] / (1000 * own))
    assert table.loc[("float64", ALL), "forces_share"] == 0
    assert np.isnan(table.loc[("bfloat16", "C8"), "model_forces_mae"])


def test_a_module_without_forces_has_no_physics():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pp.attach(network, call=lambda m, x: m(x), blocks="*", device="cpu") as probe:
        probe.run(torch.ones(3, 2), progress=False)
    with pytest.raises(pp.InputError, match="no energies and forces"):
        by_structure(probe.trace())
