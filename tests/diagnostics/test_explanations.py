"""Symmetry, noise, prediction, dynamics, and errors in physical terms: checked against closed forms and by hand."""

import ase
import ase.build
import ase.units
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator

import precision_probe as pp
from precision_probe.analysis.physical_errors import ALL, by_structure
from precision_probe.diagnostics.dynamics import VariantCalculator, _summary, energy_drift
from precision_probe.diagnostics.equivariance import _random_rotation, equivariance
from precision_probe.diagnostics.reference import Reference
from precision_probe.diagnostics.repeatability import noise_floor
from precision_probe.diagnostics.sensitivity import predicted_errors, sensitivities
from precision_probe.models.blocks import default_blocks
from precision_probe.models.building import build
from precision_probe.models.graphs import build_graph
from precision_probe.precisions import PRECISIONS, parse_precision
from precision_probe.variants.variant import Variant

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def molecule():
    return ase.Atoms("OHH", [(0.02, 0.0, 0.11), (0.0, 0.78, -0.48), (0.05, -0.75, -0.45)])


@pytest.fixture(scope="module")
def trace(model, molecule):
    labelled = molecule.copy()
    forces = np.arange(9.0).reshape(3, 3)
    labelled.calc = SinglePointCalculator(labelled, energy=-2071.0, forces=forces)
    cell = ase.build.bulk("C", cubic=True)
    cell.rattle(0.05, seed=1)
    with pp.attach(model, precisions="float32,bfloat16", device="cpu") as probe:
        probe.run([labelled, cell], progress=False)
    return probe.trace()


# symmetry


def test_random_rotations_are_rotations():
    matrix = _random_rotation(np.random.default_rng(0))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-15)
    assert float(torch.linalg.det(matrix)) == pytest.approx(1.0)


def test_float64_is_equivariant_and_lower_precisions_less_so(model, molecule):
    variants = [Variant(model, PRECISIONS[name], CPU) for name in ("float64", "float32", "bfloat16")]
    table = equivariance(variants, build_graph(molecule, model), default_blocks(model))
    worst = table.groupby("precision")["rel_l2"].max()
    assert worst["float64"] < 1e-13
    assert 1e-8 < worst["float32"] < 1e-4
    assert worst["bfloat16"] > 100 * worst["float32"]
    assert set(table["motion"]) == {"rotation", "inversion", "translation", "permutation"}
    assert {"0e", "1o", "2e"} <= set(table["irrep"])
    inversion = table[(table["motion"] == "inversion") & (table["precision"] == "bfloat16")]
    assert inversion["rel_l2"].max() < 1e-15  # only signs change, which costs no digit


def test_a_model_that_is_not_equivariant_is_found_out(config, molecule):
    broken = build(config, seed=3)
    with torch.no_grad():
        broken.spherical_harmonics.register_buffer("tilt", torch.tensor([1.0, 1.01, 1.0], dtype=torch.float64))
    plain = broken.spherical_harmonics.forward
    broken.spherical_harmonics.forward = lambda x: plain(x * broken.spherical_harmonics.tilt)
    table = equivariance([Variant(broken, PRECISIONS["float64"], CPU)], build_graph(molecule, broken), [])
    worst = table.groupby("motion")["rel_l2"].max()
    assert worst["rotation"] > 1e-5
    assert worst["translation"] < 1e-13


# noise


@pytest.fixture
def one_thread():
    """Several threads may add numbers in any order, on a CPU too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_cpu_has_no_noise_and_a_noisy_model_has_its_own(config, molecule):
    noisy = build(config, seed=3)
    plain = noisy.readouts[1].forward
    noisy.readouts[1].forward = lambda *args: plain(*args) * (1 + 1e-6 * torch.randn(()))
    graph = build_graph(molecule, noisy)
    quiet = noise_floor([Variant(build(config, seed=3), PRECISIONS["float32"], CPU)], graph, default_blocks(noisy))
    assert quiet["spread"].fillna(0).max() == 0
    variant = Variant(noisy, PRECISIONS["float64"], CPU)
    variant.arithmetic = _not_forked
    found = noise_floor([variant], graph, default_blocks(noisy), n_runs=20).set_index(["block", "direction"])["spread"]
    assert 3e-7 < found["readouts.1", "forward"] < 3e-6
    assert found["products.1", "forward"] == 0


def _not_forked():
    import contextlib

    return contextlib.nullcontext()


# prediction


def test_sensitivity_of_the_energy_is_the_gradient_times_the_input(model, molecule):
    """Of the last readout, ∂E/∂x·x by finite differences of the energy in a scale of all its inputs."""
    trials = Reference(model, molecule, device="cpu")
    table = sensitivities(trials, n_probes=2).set_index(["block", "input"])
    readout = trials.variant.model.readouts[1]
    plain = readout.forward

    def energy(scales):
        readout.forward = lambda x, heads: plain(x * scales, heads)
        try:
            return float(trials.variant.predict(trials.graphs[0])["interaction_energy"])
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


def test_predictions_scale_with_the_roundoff_and_are_of_the_right_size(model, molecule):
    trials = Reference(model, molecule, device="cpu")
    table = sensitivities(trials)
    coarse, fine = (predicted_errors(table, name) for name in ("m10", "m14"))
    np.testing.assert_allclose(coarse / fine, 16)
    assert coarse["energy_expected"] < coarse["energy_bound"]
    measured = trials.errors(Variant(model, parse_precision("m14"), CPU).predict)
    assert 1 / 30 < fine["forces_expected"] / measured["forces_mae"] < 3  # inputs alone: a part of all rounding


# dynamics


def test_a_straight_line_is_drift_and_what_is_about_it_fluctuation():
    time = np.arange(100) * 0.0005
    wiggle = 0.1 * (-1.0) ** np.arange(100)
    found = _summary(np.asarray([3 * time + wiggle, 5 * time + wiggle]), 0.0005)
    assert found["drift"] == pytest.approx(4, abs=0.2)
    assert found["confidence"] == pytest.approx(12.7062 * 1.0, rel=0.01)  # t(0.975, 1) × standard error
    assert found["fluctuation"] == pytest.approx(0.1, rel=0.01)


def test_the_calculator_gives_the_variants_results(model, molecule):
    atoms = molecule.copy()
    variant = Variant(model, PRECISIONS["float64"], CPU)
    atoms.calc = VariantCalculator(variant)
    expected = variant.predict(build_graph(molecule, model))
    assert atoms.get_potential_energy() == float(expected["interaction_energy"])
    np.testing.assert_array_equal(atoms.get_forces(), expected["forces"])


def test_float64_keeps_its_energy_and_runs_start_alike(model, molecule):
    found = energy_drift(model, molecule, "float32", steps=20, timestep=0.1, n_runs=2)
    assert found.index.tolist() == ["float64", "float32"]
    assert found.loc["float32", "drift"] == pytest.approx(found.loc["float64", "drift"], abs=1.0)
    again = energy_drift(model, molecule, "float32", steps=20, timestep=0.1, n_runs=2)
    assert found.equals(again)


# physics


def test_errors_in_the_users_units(trace):
    table = by_structure(trace).set_index(["precision", "structure"])
    exact, found = (trace.group("propagated", name) for name in ("float64", "bfloat16"))
    delta = found["forces"].values[:3].astype(float) - exact["forces"].values[:3]
    row = table.loc[("bfloat16", "H2O")]
    assert row["forces_mae"] == pytest.approx(1000 * np.abs(delta).mean())
    assert row["forces_rmse"] == pytest.approx(1000 * np.sqrt((delta**2).mean()))
    assert row["forces_max"] == pytest.approx(1000 * np.abs(delta).max())
    worst = int(np.linalg.norm(delta, axis=1).argmax())
    assert row["worst_atom"] == f"{'OHH'[worst]}{worst}"
    energies = [group["energy"].values.astype(float) for group in (exact, found)]
    assert row["energy"] == pytest.approx(1000 * abs(energies[1][0] - energies[0][0]) / 3)
    stress = np.abs(found["stress"].values[1].astype(float) - exact["stress"].values[1]).max()
    assert table.loc[("bfloat16", "C8"), "stress"] == pytest.approx(stress / ase.units.GPa)
    assert np.isnan(row["stress"])


def test_isolated_molecules_feel_no_net_force_or_torque_in_float64(trace, molecule):
    table = by_structure(trace).set_index(["precision", "structure"])
    assert table.loc[("float64", "H2O"), ["net_force", "net_torque"]].max() < 1e-9
    forces = trace.group("propagated", "bfloat16")["forces"].values[:3].astype(float)
    row = table.loc[("bfloat16", "H2O")]
    assert row["net_force"] == pytest.approx(1000 * np.linalg.norm(forces.sum(axis=0)))
    arm = molecule.positions - molecule.positions.mean(axis=0)
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


# resolved errors


@pytest.mark.parametrize("by", ["irrep", "element"])
def test_resolved_errors_add_up_to_the_whole(trace, by):
    whole = pp.errors(trace).set_index(["precision", "mode", "block", "tensor", "direction"])
    parts = pp.errors(trace, by=by)
    keys = ["precision", "mode", "block", "tensor", "direction"]
    squares = (parts["rms"] ** 2 * parts["n"]).groupby([parts[key] for key in keys]).sum()
    numbers = parts["n"].groupby([parts[key] for key in keys]).sum()
    complete = numbers[numbers == whole["n"].reindex(numbers.index)].index
    assert len(complete) > 40
    total = (whole["rms"] ** 2 * whole["n"]).reindex(complete)
    np.testing.assert_allclose(squares[complete], total, rtol=1e-9, atol=1e-300)


def test_errors_of_an_irrep_and_of_an_element_are_those_of_their_entries(trace):
    exact, found = (trace.group("propagated", name) for name in ("float64", "bfloat16"))
    y, y_hat = exact["interactions.0.message"], found["interactions.0.message"]
    vectors = y.coords["interactions.0.component"].values == "1o"
    table = pp.errors(trace, by="irrep").set_index(["precision", "mode", "block", "tensor", "irrep"])
    row = table.loc[("bfloat16", "propagated", "interactions.0", "message", "1o")]
    delta = (y_hat.values.astype(float) - y.values)[..., vectors]
    assert row["rel_l2"] == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(y.values[..., vectors]))
    hydrogen = trace.structures["atomic_numbers"].values == 1
    table = pp.errors(trace, by="element").set_index(["precision", "mode", "block", "tensor", "element"])
    row = table.loc[("bfloat16", "propagated", "model", "forces", "H")]
    delta = found["forces"].values[hydrogen].astype(float) - exact["forces"].values[hydrogen]
    assert row["max_abs"] == pytest.approx(np.abs(delta).max())
    receivers = np.concatenate(np.split(trace.structures["receiver"].values, [6])[:1])
    elements = trace.structures["atomic_numbers"].values[receivers]
    lengths = exact["radial_embedding.edge_feats"].values[:6][elements == 1]
    hats = found["radial_embedding.edge_feats"].values[:6][elements == 1].astype(float)
    row = table.loc[("bfloat16", "propagated", "radial_embedding", "edge_feats", "H")]
    assert row["max_abs"] == pytest.approx(np.abs(hats - lengths).max())
