"""Symmetry: what holds exactly in float64, less so in other precisions, and not at all in a model that is broken."""

import numpy as np
import pytest
import torch
from runs import molecule

from precision_probe.diagnostics.equivariance import _random_rotation, _wigner, equivariance
from precision_probe.models.blocks import default_blocks
from precision_probe.models.graphs import build_graph
from precision_probe.precisions import PRECISIONS
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


def test_float64_is_equivariant_and_lower_precisions_less_so(model):
    variants = [Variant(model, PRECISIONS[name], CPU) for name in ("float64", "float32", "bfloat16")]
    table = equivariance(variants, build_graph(molecule(), model), default_blocks(model))
    worst = table.groupby("precision")["rel_l2"].max()
    assert worst["float64"] < 1e-13
    assert 1e-8 < worst["float32"] < 1e-4
    assert worst["bfloat16"] > 100 * worst["float32"]
    assert set(table["motion"]) == {"rotation", "inversion", "translation", "permutation"}
    assert {"0e", "1o", "2e"} <= set(table["irrep"])
    inversion = table[(table["motion"] == "inversion") & (table["precision"] == "bfloat16")]
    assert inversion["rel_l2"].max() < 1e-15  # only signs change, which costs no digit


def test_a_model_that_is_not_equivariant_is_found_out(mine):
    mine.spherical_harmonics.register_buffer("tilt", torch.tensor([1.0, 1.01, 1.0], dtype=torch.float64))
    plain = mine.spherical_harmonics.forward
    mine.spherical_harmonics.forward = lambda x: plain(x * mine.spherical_harmonics.tilt)
    table = equivariance([Variant(mine, PRECISIONS["float64"], CPU)], build_graph(molecule(), mine), [])
    worst = table.groupby("motion")["rel_l2"].max()
    assert worst["rotation"] > 1e-5
    assert worst["translation"] < 1e-13
