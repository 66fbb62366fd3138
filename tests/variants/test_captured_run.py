"""captured_run.py: one run with hooked blocks, against a hook and autograd by hand, in the variant's arithmetic."""

import pytest
import torch
from runs import data_of, rel_l2

from precision_probe.models.blocks import default_blocks, select_blocks
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import build_graph
from precision_probe.precisions import parse_precision
from precision_probe.variants.captured_run import captured_run
from precision_probe.variants.rounding import round_to
from precision_probe.variants.variant import Variant

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def variants(model):
    return {name: Variant(model, parse_precision(name), CPU) for name in ("float64", "float16", "e8m7", "e8m7sr")}


@pytest.fixture
def graph(model, water):
    return build_graph(water, model)


def by_hand(network, data, name):
    """A block's output, and the gradient of the interaction energy with respect to the output, by hooks of torch's."""
    kept = {}

    def keep(module, args, returned):
        kept["output"] = returned
        returned.retain_grad()

    handle = network.get_submodule(name).register_forward_hook(keep)
    energy = network(data, compute_force=False)["interaction_energy"]
    handle.remove()
    energy.backward(torch.ones_like(energy))
    return kept["output"].detach(), kept["output"].grad


@pytest.mark.parametrize("name", ["float64", "float16"])
def test_calls_and_gradients_are_those_of_hooks_by_hand(variants, graph, name):
    """What leaves products.0 enters interactions.1 and readouts.0: its gradient is the sum of theirs."""
    variant = variants[name]
    for _ in range(3):  # TorchScript rounds otherwise in its first calls
        run = captured_run(variant, graph, default_blocks(variant.model))
    with default_dtype(variant.dtype):
        output, gradient = by_hand(variant.model, graph.cast(variant.dtype), "products.0")
    calls = {call.block.name: call for call in run.calls}
    grads = {call.block.name: grad for call, grad in zip(run.calls, run.grads, strict=True)}
    (recorded,) = calls["products.0"].outputs.values()
    assert torch.equal(recorded, output)
    shares = [
        grad
        for block in ("interactions.1", "readouts.0")
        for port, grad in grads[block].items()
        if port.name == "node_feats"
    ]
    assert len(shares) == 2
    assert all(share.any() for share in shares)
    assert rel_l2(gradient, sum(shares)) < 8 * variant.precision.unit_roundoff


def test_calls_are_those_of_the_blocks_asked_for_in_the_order_in_which_they_end(variants, graph):
    model = variants["float64"].model
    blocks = select_blocks(model, ["readouts.*", "interactions.0", "interactions.0.linear"])
    run = captured_run(variants["float64"], graph, blocks)
    names = [call.block.name for call in run.calls]
    assert names == ["interactions.0.linear", "interactions.0", "readouts.0", "readouts.1"]
    assert [set(grad) for grad in run.grads] == [set(call.inputs) for call in run.calls]
    assert not any("forward" in vars(module) or module._forward_hooks for module in map(model.get_submodule, names))


def test_without_gradients_there_are_none_and_the_calls_are_the_same(variants, graph):
    blocks = default_blocks(variants["float64"].model)
    runs = [captured_run(variants["float64"], graph, blocks, with_gradients=wanted) for wanted in (True, False)]
    assert runs[1].grads == [{} for _ in blocks]
    for ours, theirs in zip(runs[0].calls, runs[1].calls, strict=True):
        assert ours.outputs.keys() == theirs.outputs.keys()
        for port, tensor in ours.outputs.items():
            torch.testing.assert_close(theirs.outputs[port], tensor, rtol=1e-13, atol=1e-13)


def test_shared_inputs_have_the_total_gradient(variants, graph):
    """edge_feats enters both layers: an own share for each, which sum to the one gradient of the shared tensor."""
    variant = variants["float64"]
    blocks = select_blocks(variant.model, "interactions.*")
    own, shared = (captured_run(variant, graph, blocks, shared=shared).grads for shared in (False, True))
    shares = [grad[port] for grad in own for port in grad if port.name == "edge_feats"]
    totals = [grad[port] for grad in shared for port in grad if port.name == "edge_feats"]
    assert len(shares) == len(totals) == 2
    for total in totals:
        torch.testing.assert_close(total, shares[0] + shares[1], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_gradients_are_had_where_the_caller_wants_none_and_nothing_stays_on_the_graph(variants, graph):
    run = captured_run(variants["float64"], graph, default_blocks(variants["float64"].model))
    assert any(grad.any() for grads in run.grads for grad in grads.values())
    for call in run.calls:
        tensors = [value for value in call.arguments.values() if torch.is_tensor(value)]
        assert not any(t.requires_grad for t in (*tensors, *call.inputs.values(), *call.outputs.values()))


@pytest.mark.parametrize("name", ["e8m7", "e8m7sr"])
def test_it_runs_in_the_variants_arithmetic(variants, graph, name):
    nearest = parse_precision("e8m7")  # stochastic rounding lands on the same numbers
    run = captured_run(variants[name], graph, default_blocks(variants[name].model))
    for tensors in (*(call.outputs for call in run.calls), *run.grads):
        for tensor in tensors.values():
            assert torch.equal(round_to(tensor, nearest), tensor)
    assert torch.equal(torch.ones(1, dtype=torch.float64) / 3, torch.tensor([1 / 3], dtype=torch.float64))  # it is off


def test_the_sample_is_left_as_it_is(variants, graph):
    before = data_of(graph)
    captured_run(variants["float16"], graph, default_blocks(variants["float16"].model))
    assert all(torch.equal(graph.data[key], value) for key, value in before.items())
    assert not any(value.requires_grad for value in graph.data.values())
