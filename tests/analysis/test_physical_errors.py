"""Errors in physical terms: each number from the arrays of the trace, by hand."""

import ase
import ase.build
import ase.units
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from ase.calculators.singlepoint import SinglePointCalculator
from errors_run import tiled
from runs import molecule, trace_of

import precision_probe as pp
from precision_probe.analysis.physical_errors import ALL, by_element, by_structure
from precision_probe.trace.trace import Trace


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


def rows_of(frame, quantity="forces"):
    """Errors and reference of one quantity in meV/Å, component by component."""
    exact, reduced = (group[quantity].values.astype(float) for group in frame)
    return 1000 * (reduced - exact).ravel(), 1000 * exact.ravel()


def test_percentiles_are_of_components(trace):
    delta, _ = rows_of([trace.group("propagated", name) for name in ("float64", "bfloat16")])
    row = by_structure(trace).set_index(["precision", "structure"]).loc[("bfloat16", ALL)]
    ordered = np.sort(np.abs(delta))
    for percent in (50, 95, 99):  # between neighbours, in proportion
        place = percent / 100 * (len(ordered) - 1)
        low = int(place)
        expected = ordered[low] + (place - low) * (ordered[low + 1] - ordered[low])
        assert row[f"forces_p{percent}"] == pytest.approx(expected, rel=1e-12)
    assert row["forces_p50"] < row["forces_p95"] <= row["forces_p99"] <= row["forces_max"] == ordered[-1]


def changed(trace, change):
    """A copy of the trace with other bfloat16 forces, made of float64's."""
    tree = trace.tree.copy(deep=True)
    exact = trace.group("propagated", "float64")["forces"].values
    group = tree["/propagated/bfloat16"].to_dataset(inherit=False)
    group["forces"] = group["forces"].copy(data=change(exact))
    tree["/propagated/bfloat16"].dataset = group
    return Trace(tree)


def test_forces_that_are_too_large_are_told_from_scatter(trace):
    """Four per cent too large with noise; the slope and its standard error by NumPy's least squares."""
    rng = np.random.default_rng(0)
    noisy = changed(trace, lambda y: 1.04 * y + 0.02 * np.sqrt((y**2).mean()) * rng.normal(size=y.shape))
    delta, y = rows_of([noisy.group("propagated", name) for name in ("float64", "bfloat16")])
    (slope,), (rest,), *_ = np.linalg.lstsq(y[:, None], y + delta, rcond=None)
    row = by_structure(noisy).set_index(["precision", "structure"]).loc[("bfloat16", ALL)]
    assert row["forces_slope"] == pytest.approx(100 * (slope - 1), rel=1e-9)
    error = np.sqrt(rest / (len(y) - 1) * np.linalg.inv(y[None] @ y[:, None]).item())
    assert row["forces_slope_error"] == pytest.approx(100 * error, rel=1e-9)
    assert abs(row["forces_slope"] - 4) < 4 * row["forces_slope_error"] < 2
    exactly = by_structure(changed(trace, lambda y: 0.75 * y)).set_index(["precision", "structure"])
    assert exactly.loc[("bfloat16", "C8"), "forces_slope"] == pytest.approx(-25, rel=1e-12)
    assert exactly.loc[("bfloat16", "C8"), "forces_slope_error"] == pytest.approx(0, abs=1e-12)
    assert exactly.loc[("float64", ALL), "forces_slope"] == 0


def test_forces_of_each_element(trace):
    table = by_element(trace).set_index(["precision", "element"])
    assert table.index.tolist() == [(p, e) for p in ("float64", "float32", "bfloat16") for e in ("H", "C", "O")]
    assert table["n_atoms"].tolist() == [2, 8, 1] * 3
    groups = [trace.group("propagated", name) for name in ("float64", "bfloat16")]
    symbols = np.repeat(list("OHHCCCCCCCC"), 3)
    delta, y = rows_of(groups)
    row = table.loc[("bfloat16", "H")]
    own, of_own = delta[symbols == "H"], y[symbols == "H"]
    assert row["forces_mae"] == pytest.approx(np.abs(own).mean())
    assert row["forces_rmse"] == pytest.approx(np.sqrt((own**2).mean()))
    assert row["forces_max"] == np.abs(own).max()
    assert row["forces_p95"] == pytest.approx(np.quantile(np.abs(own), 0.95))
    assert row["forces_slope"] == pytest.approx(100 * (own * of_own).sum() / (of_own**2).sum())
    structures = by_structure(trace).set_index(["precision", "structure"])  # carbon is in the crystal alone
    shared = [name for name in table.columns if name.startswith("forces_") and name != "forces_share"]
    assert len(shared) == 9
    of_crystal = structures.loc[("bfloat16", "C8"), shared].astype(float)
    np.testing.assert_allclose(table.loc[("bfloat16", "C"), shared].astype(float), of_crystal, rtol=1e-12)
    label = np.arange(9.0)[3:]
    model_own = np.abs(of_own - 1000 * label).mean()
    assert row["model_forces_mae"] == pytest.approx(model_own)
    assert row["forces_share"] == pytest.approx(row["forces_mae"] / model_own)
    assert np.isnan(table.loc[("bfloat16", "C"), "model_forces_mae"])


def test_a_lone_atom_has_no_slope(model):
    row = by_structure(trace_of(model, ase.Atoms("O", info={"name": "oxygen"}))).iloc[-1]
    assert np.isnan(row["forces_slope"])
    assert row["forces_p99"] == 0


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
    with pytest.raises(pp.InputError, match="no energies and forces"):
        by_element(probe.trace())


def test_arrays_are_looked_up_once_however_many_structures(trace, monkeypatch):
    """Of a large trace xarray's lookups took most of the time."""
    n_lookups = []
    found = xr.Dataset.__getitem__

    def counted(dataset, key):
        n_lookups[-1] += 1
        return found(dataset, key)

    many = Trace(tiled(trace, 50))
    monkeypatch.setattr(xr.Dataset, "__getitem__", counted)
    tables = []
    for each in (trace, many):
        n_lookups.append(0)
        tables.append(by_structure(each))
    assert n_lookups[0] == n_lookups[1] < 100
    one, fifty = (table[(table["structure"] != ALL)].drop(columns="structure") for table in tables)
    repeated = pd.concat([rows.iloc[[0, 1] * 50] for _, rows in one.groupby("precision", sort=False)])
    pd.testing.assert_frame_equal(fifty.reset_index(drop=True), repeated.reset_index(drop=True))
