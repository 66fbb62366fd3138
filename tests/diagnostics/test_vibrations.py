"""Hessians and frequencies: checked against springs, ASE and MACE's own analytic Hessian."""

import ase
import ase.build
import numpy as np
import pytest
import scipy.constants
import torch
from ase.vibrations import VibrationsData
from runs import molecule

import precision_probe as pp
from precision_probe.diagnostics.vibrations import _compared, frequencies, hessian, vibrations
from precision_probe.models.evaluation import ENERGY, FORCES, Prediction
from precision_probe.models.graphs import build_graph
from precision_probe.precisions import PRECISIONS
from precision_probe.variants.variant import Variant

CPU = torch.device("cpu")
# ν̃ = √(k/m) / 2πc, for k in eV/Å² and m in u
UNIT = np.sqrt(scipy.constants.e * 1e20 / scipy.constants.atomic_mass) / (200 * np.pi * scipy.constants.c)


def random_symmetric(n, seed):
    matrix = np.random.default_rng(seed).normal(size=(n, n))
    return matrix + matrix.T


@pytest.fixture
def linear_forces(monkeypatch):
    """Makes every variant predict forces −K·x, K by the name of its precision."""

    def install(**matrices):
        def predict(self, graph):
            matrix = torch.as_tensor(matrices[self.precision.name])
            forces = (-matrix @ graph.data["positions"].flatten()).reshape(-1, 3)
            return Prediction({ENERGY: forces.sum().reshape(1), FORCES: forces}, 0.0)

        monkeypatch.setattr(Variant, "predict", predict)

    return install


# frequencies


def test_two_masses_on_a_spring():
    masses, k = np.array([15.999, 1.008]), 45.0
    found, modes = frequencies(np.kron([[1, -1], [-1, 1]], np.diag([0, k, 0])), masses)
    reduced = masses.prod() / masses.sum()
    assert found[-1] == pytest.approx(np.sqrt(k / reduced) * UNIT, rel=1e-7)  # ASE's constants are of CODATA 2014
    np.testing.assert_allclose(found[:-1], 0, atol=1e-4)
    np.testing.assert_allclose(modes.T @ modes, np.eye(6), atol=1e-14)


def test_frequencies_are_those_that_ase_finds_and_imaginary_ones_negative(water):
    matrix = random_symmetric(9, seed=2)
    expected = VibrationsData.from_2d(water, matrix).get_frequencies()
    assert (expected.imag > 1).sum() > 2
    np.testing.assert_allclose(frequencies(matrix, water.get_masses())[0], expected.real - expected.imag, rtol=1e-10)


def test_an_asymmetric_hessian_is_made_symmetric():
    matrix, skew = random_symmetric(9, seed=3), np.triu(np.ones((9, 9)), 1)
    masses = np.array([1.0, 2.0, 3.0])
    found = frequencies(matrix + skew - skew.T, masses)[0]
    np.testing.assert_allclose(found, frequencies(matrix, masses)[0], rtol=1e-12)


# comparing


def test_atoms_tethered_to_their_places_do_not_translate_freely():
    masses = np.array([100.0, 1.0, 1.0])
    tether = 0.3 * np.kron(np.diag(masses), np.eye(3))  # each mode's square grows by 0.3 alike
    springs = np.kron([[2, -1, -1], [-1, 1, 0], [-1, 0, 1]], np.diag([50.0, 60.0, 70.0]))
    found = _compared(springs, springs + tether, masses)
    assert found["translations"] == pytest.approx(np.sqrt(0.3) * UNIT, rel=1e-6)
    assert found["frequency_max"] == pytest.approx(np.sqrt(0.3) * UNIT, rel=1e-5)
    assert found["hessian"] == pytest.approx(np.linalg.norm(tether) / np.linalg.norm(springs))
    assert _compared(springs, springs, masses)["translations"] < 1e-3
    assert _compared(springs, springs - tether, masses)["n_imaginary"] == 3
    assert _compared(springs, springs, masses)["n_imaginary"] == 0


def test_the_table_of_linear_forces(model, water, linear_forces):
    exact = random_symmetric(9, seed=4)
    skew = np.triu(np.random.default_rng(5).normal(size=(9, 9)), 1)
    skew = 0.1 * (skew - skew.T)
    linear_forces(float64=exact, float32=exact + skew, bfloat16=1.21 * exact, float16=exact * np.inf)
    table = vibrations(model, water, "float32,bfloat16,float16")
    assert table.index.tolist() == ["float64", "float32", "bfloat16", "float16"]
    sizes = np.linalg.norm(skew), np.linalg.norm(exact)
    assert table.loc["float32", "asymmetry"] == pytest.approx(sizes[0] / sizes[1])
    assert table.loc["float32", "hessian"] == pytest.approx(sizes[0] / sizes[1])
    assert table.loc["float32", "frequency_max"] == pytest.approx(0, abs=1e-6)
    nu = np.abs(VibrationsData.from_2d(water, exact).get_frequencies())
    assert table.loc["bfloat16", "frequency_mae"] == pytest.approx(0.1 * nu.mean())
    assert table.loc["bfloat16", "frequency_max"] == pytest.approx(0.1 * nu.max())
    assert table.loc["bfloat16", "hessian"] == pytest.approx(0.21)
    assert table.loc["float64", "n_imaginary"] == (np.linalg.eigvalsh(exact) < 0).sum()
    assert table.loc["float16"].isna().all()


def test_the_hessian_has_forces_in_rows_and_displacements_in_columns(model, water, linear_forces):
    matrix = np.random.default_rng(6).normal(size=(9, 9))
    linear_forces(float64=matrix)
    found = hessian(Variant(model, PRECISIONS["float64"], CPU), build_graph(water, model), 0.01)
    np.testing.assert_allclose(found, matrix, atol=1e-12)


# models


def strained_diamond():
    """Two atoms, which have each other's images and their own as neighbours."""
    atoms = ase.build.bulk("C")
    atoms.rattle(0.05, seed=1)
    atoms.set_cell(atoms.cell.array @ np.array([[1.02, 0.01, 0], [0, 0.99, 0.02], [0, 0, 1.0]]), scale_atoms=True)
    return atoms


@pytest.mark.parametrize("atoms", [molecule(), strained_diamond()], ids=["water", "crystal"])
def test_differences_give_the_analytic_hessian(model, atoms):
    graph = build_graph(atoms, model)
    analytic = model(graph.cast(torch.float64), compute_hessian=True)["hessian"].reshape(2 * (3 * graph.n_atoms,))
    found = hessian(Variant(model, PRECISIONS["float64"], CPU), graph, 1e-3)
    assert np.linalg.norm(found - analytic.numpy()) < 1e-5 * np.linalg.norm(analytic)


def test_fewer_digits_change_frequencies_more_and_the_model_not(model, water):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table = vibrations(model, water, "float32,bfloat16")
    assert table.loc["float64", ["hessian", "frequency_mae", "frequency_max"]].eq(0).all()
    assert table.loc["float64", "asymmetry"] < 1e-3
    assert 1e-8 < table.loc["float32", "hessian"] < 1e-3
    for name in ("asymmetry", "hessian", "frequency_mae", "frequency_max", "translations"):
        assert table.loc["bfloat16", name] > 10 * table.loc["float32", name]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_cannot_be_done_is_refused(model, water):
    with pytest.raises(pp.InputError, match="above zero"):
        vibrations(model, water, "float32", displacement=0.0)
    with pytest.raises(pp.InputError, match="Unknown precision"):
        vibrations(model, water, "float23")
    with pytest.raises(pp.InputError, match="needs --device cuda"):
        vibrations(model, water, "tf32")
    with pytest.raises(pp.InputError, match="does not know"):
        vibrations(model, ase.Atoms("Xe"), "float32")
