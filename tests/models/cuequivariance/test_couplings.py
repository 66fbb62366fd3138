"""couplings.py: a model converted in float64 is exact, whatever was converted before it in the same process."""

import copy

import pytest
import torch

from precision_probe.models.backends import clone, to_cuequivariance
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import build_graph

cue = pytest.importorskip("cuequivariance")
CPU = torch.device("cpu")


def converted_by_somebody_in_float32(model):
    """As MACECalculator with enable_cueq does it."""
    from mace.cli.convert_e3nn_cueq import run

    with default_dtype(torch.float32):
        return run(copy.deepcopy(model).to(torch.float32), device="cpu")


def difference(model, exact, graph):
    forces = model(graph.cast(torch.float64))["forces"].detach()
    return float((forces - exact).norm() / exact.norm())


def test_what_others_converted_in_float32_costs_no_digits(model, water):
    graph = build_graph(water, model)
    exact = model(graph.cast(torch.float64))["forces"].detach()
    converted_by_somebody_in_float32(model)
    ours = to_cuequivariance(model, CPU)
    assert difference(ours, exact, graph) < 1e-13
    assert difference(clone(ours, torch.float64, CPU), exact, graph) < 1e-13


def test_a_model_converted_in_float32_is_rounded_once(model, water):
    """Its coefficients are those of float64, rounded: as those of one that is converted in float64 and cast."""
    in_float32 = to_cuequivariance(copy.deepcopy(model).to(torch.float32), CPU)
    cast = clone(to_cuequivariance(model, CPU), torch.float32, CPU)
    graph = build_graph(water, model)
    first, second = (each(graph.cast(torch.float32))["forces"].detach() for each in (in_float32, cast))
    assert torch.equal(first, second)
