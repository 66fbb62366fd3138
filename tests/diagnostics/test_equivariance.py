"""Symmetry: what holds exactly in float64, less so in other precisions, and not at all in a model that is broken."""

import copy

import mace_by_hand
import numpy as np
import pytest
import torch
from runs import molecule, rel_l2

from precision_probe.diagnostics.equivariance import _random_rotation, _wigner, equivariance
from precision_probe.models.blocks import default_blocks
from precision_probe.models.building import build
from precision_probe.models.graphs import build_graph
from precision_probe.precisions import PRECISIONS
from precision_probe.structures import read_structures
from precision_probe.variants.variant import Variant

CPU = torch.device("cpu")


def test_random_rotations_are_rotations():
    matrix = _random_rotation(np.random.default_rng(0))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-15)
    assert float(torch.linalg.det(matrix)) == pytest.approx(1.0)


def test_vectors_turn_as_the_rotation_says_and_pseudovectors_are_not_mirrored():
    matrix = _random_rotation(np.random.default_rng(1))
    np.testing.assert_allclose(_wigner("1o", matrix), matrix, atol=1e-14)
    np.testing.assert_allclose(_wigner("1o", -matrix), -matrix, atol=1e-14)
    np.testing.assert_allclose(_wigner("1e", -matrix), matrix, atol=1e-14)
    np.testing.assert_allclose(_wigner("0o", -matrix), [[-1.0]])


@pytest.fixture(scope="module")
def benzene():
    return read_structures("demo")[4]


@pytest.fixture(scope="module")
def table(demo, benzene):
    variants = [Variant(demo, PRECISIONS[name], CPU) for name in ("float64", "float32", "bfloat16")]
    return equivariance(variants, benzene, build_graph(benzene, demo), default_blocks(demo))


def of_forces(table, motion):
    rows = table[(table["motion"] == motion) & (table["block"] == "model") & (table["tensor"] == "forces")]
    return rows.set_index("precision")["rel_l2"]


def test_float64_is_equivariant_and_lower_precisions_less_so(table):
    worst = table.groupby(["motion", "precision"], sort=False)["rel_l2"].max().unstack()
    assert worst.index.tolist() == ["rotation", "inversion", "translation", "permutation", "edge order", "batch"]
    assert worst["float64"].max() < 1e-12
    assert {"0e", "1o", "2e"} <= set(table["irrep"])
    assert worst.loc["inversion"].max() < 1e-15  # only signs change, which costs no digit
    for motion in ("rotation", "translation"):
        assert 1e-8 < worst.loc[motion, "float32"] < 1e-4
        assert worst.loc[motion, "bfloat16"] > 100 * worst.loc[motion, "float32"]


@pytest.mark.parametrize("motion", ["permutation", "edge order"])
def test_another_order_of_sums_is_seen(table, motion):
    errors = of_forces(table, motion)
    assert 0 < errors["float64"] < 1e-14
    assert 1e-8 < errors["float32"] < 1e-5
    assert 3e-3 < errors["bfloat16"] < 5e-2  # a unit roundoff is 4e-3
    rows = table[(table["motion"] == motion) & (table["tensor"] == "edge_attrs")]
    assert (rows["rel_l2"] == 0).all()  # each edge for itself is the same, and is found where it went


def test_a_batch_sums_in_another_shape(table):
    errors = of_forces(table, "batch")
    assert errors["float64"] < 1e-15
    assert errors["float32"] < 1e-5


def test_motions_have_a_spread_over_seeds_but_for_the_one_that_has_no_seed(table):
    is_inversion = table["motion"] == "inversion"
    assert (table.loc[~is_inversion, "n_seeds"] == 3).all()
    assert (table.loc[is_inversion, "n_seeds"] == 1).all()
    assert table.loc[is_inversion, "spread"].isna().all()
    rows = table[(table["motion"] == "rotation") & (table["tensor"] == "forces")].set_index("precision")
    assert (rows["spread"] > 0).all()
    assert (rows["spread"] < 2 * rows["rel_l2"]).all()


def test_mean_and_spread_are_those_of_graphs_built_by_hand(model, benzene):
    """Of three orders of atoms, with mace-torch's own neighbour list and forces put back in their places."""
    atoms = benzene
    variant = Variant(model, PRECISIONS["bfloat16"], CPU)
    still = by_hand(model, atoms)
    errors = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        rng.normal(size=4), rng.uniform(size=3)  # what turns and moves are made of
        order = rng.permutation(12)
        errors.append(rel_l2(still[order], by_hand(model, atoms[order])))
    rows = equivariance([variant], atoms, build_graph(atoms, model), []).query("motion == 'permutation'")
    (row,) = rows[rows["tensor"] == "forces"].to_dict("records")
    assert row["rel_l2"] == pytest.approx(np.mean(errors), rel=1e-12)
    assert row["spread"] == pytest.approx(np.std(errors, ddof=1), rel=1e-12)
    assert row["rel_l2"] > 1e-3


def by_hand(model, atoms):
    """Forces in bfloat16, (n_atoms, 3), with mace-torch alone."""
    data = mace_by_hand.graph(atoms, model)
    data = {k: v.bfloat16() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in data.items()}
    return copy.deepcopy(model).bfloat16()(data)["forces"].detach().double().numpy()


def test_periodic_structures_of_a_head_are_renumbered_with_their_images(config, crystal):
    heads = {"heads": ["first", "second"], "atomic_energies": [[-1.0] * 3, [-2.0] * 3]}
    scales = {"atomic_inter_scale": [1.0, 0.5], "atomic_inter_shift": [0.0, 0.1]}
    model = build(config | heads | scales, seed=3)
    variant = Variant(model, PRECISIONS["float64"], CPU)
    table = equivariance([variant], crystal, build_graph(crystal, model, "first"), default_blocks(model))
    assert table["rel_l2"].max() < 1e-12


def test_large_structures_are_not_put_into_batches(model, monkeypatch):
    atoms = molecule()
    graph = build_graph(atoms, model)
    monkeypatch.setattr("precision_probe.diagnostics.equivariance._MOST_EDGES", 8 * graph.n_edges - 1)
    table = equivariance([Variant(model, PRECISIONS["float64"], CPU)], atoms, graph, [], n_seeds=1)
    assert "edge order" in set(table["motion"])
    assert "batch" not in set(table["motion"])


def test_an_overflow_of_one_seed_is_not_hidden(model, monkeypatch):
    atoms = molecule()
    plain, calls = Variant.predict, []

    def predict(self, sample):
        calls.append(sample)
        prediction = plain(self, sample)
        if len(calls) == 3:  # at rest, turned, and inverted
            prediction["forces"][0, 0] = torch.nan
        return prediction

    monkeypatch.setattr(Variant, "predict", predict)
    variant = Variant(model, PRECISIONS["float64"], CPU)
    table = equivariance([variant], atoms, build_graph(atoms, model), [], n_seeds=2)
    assert of_forces(table, "inversion").isna().all()
    assert of_forces(table, "rotation").notna().all()


def test_a_model_that_is_not_equivariant_is_found_out(mine):
    mine.spherical_harmonics.register_buffer("tilt", torch.tensor([1.0, 1.01, 1.0], dtype=torch.float64))
    plain = mine.spherical_harmonics.forward
    mine.spherical_harmonics.forward = lambda x: plain(x * mine.spherical_harmonics.tilt)
    atoms = molecule()
    table = equivariance([Variant(mine, PRECISIONS["float64"], CPU)], atoms, build_graph(atoms, mine), [])
    worst = table.groupby("motion")["rel_l2"].max()
    assert worst["rotation"] > 1e-5
    assert worst["translation"] < 1e-13
