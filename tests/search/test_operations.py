"""operations.py: counts against closed forms and torch's own counter."""

import pytest
import torch
from torch.profiler import profile

from precision_probe.models.graphs import build_graph
from precision_probe.policy import Policy, Rule
from precision_probe.search.operations import Operations, count, slowdown


def test_a_layer_forward_and_backward():
    layer = torch.nn.Linear(5, 3, bias=False, dtype=torch.float32)
    x = torch.ones(7, 5, requires_grad=True)

    def call():
        layer(x).sum().backward()

    # y = x·W, and of the backward pass both products; the sum of 7·3 numbers
    assert count(call) == Operations(0, 3 * 2 * 7 * 5 * 3 + 7 * 3)


def test_dtypes_are_those_of_the_results():
    x = torch.ones(10, dtype=torch.float64)
    assert count(lambda: x * x + x) == Operations(20, 0)
    assert count(lambda: x.float() * 2) == Operations(0, 10)
    assert count(lambda: x.reshape(2, 5).T.contiguous()) == Operations(0, 0)


@pytest.mark.parametrize("compute", ["float64", "float32", "float16"])
def test_a_model_has_little_more_than_what_torchs_profiler_estimates(demo, water, compute):
    mixed = Policy((Rule("interactions.*", compute), Rule("products.*", compute))).apply(demo)
    data = build_graph(water, demo)

    def call():
        mixed(data.cast(torch.float64), compute_force=True)

    for _ in range(3):
        call()
    with profile(with_flops=True) as profiled:
        call()
    known = sum(event.flops for event in profiled.key_averages())  # of products, and of a few others
    found = count(call)
    assert known < found.in_float64 + found.others < 1.1 * known
    assert (found.others < 100) is (compute == "float64")
    if compute != "float64":
        assert 0 < found.share < 0.5
        assert slowdown(found.share) == pytest.approx(1 + 63 * found.share)
