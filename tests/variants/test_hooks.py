"""hooks.py against MACE's forward pass written out by hand, with autograd asked about each tensor separately."""

import copy

import ase
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import data_of

from precision_probe.exceptions import InputError
from precision_probe.models.blocks import Block, default_blocks, select_blocks
from precision_probe.models.building import build
from precision_probe.models.graphs import build_graph
from precision_probe.variants.hooks import Call, capture, gradients, input_gradients, replay

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def moved(atoms, seed):
    atoms = atoms.copy()
    atoms.rattle(0.05, seed=seed)
    return atoms


def by_hand(model, data):
    """A ScaleShiftMACE evaluated submodule by submodule.

    Returns the interaction energy, an own alias of each block's every input, each block's outputs, and the tensors
    that several blocks share.
    """
    aliases, outputs = {}, {}

    def give(block, name, tensor):
        tensor = tensor * 1.0 if tensor.requires_grad else tensor.clone().requires_grad_()
        aliases[block, name] = tensor
        return tensor

    sender, receiver = data["edge_index"]
    positions = data["positions"].clone().requires_grad_()
    head = torch.zeros_like(data["batch"])
    vectors = positions[receiver] - positions[sender] + data["shifts"]
    lengths = torch.linalg.norm(vectors, dim=-1, keepdim=True)
    feats = model.node_embedding(give("node_embedding", "node_attrs", data["node_attrs"]))
    edge_attrs = model.spherical_harmonics(give("spherical_harmonics", "vectors", vectors))
    edge_feats, cutoff = model.radial_embedding(
        give("radial_embedding", "edge_lengths", lengths), data["node_attrs"], data["edge_index"], model.atomic_numbers
    )
    outputs |= {("node_embedding", "output"): feats, ("spherical_harmonics", "edge_attrs"): edge_attrs}
    outputs["radial_embedding", "edge_feats"] = edge_feats
    energies = torch.zeros(len(positions), dtype=torch.float64)
    for i, (interaction, product, readout) in enumerate(
        zip(model.interactions, model.products, model.readouts, strict=True)
    ):
        name = f"interactions.{i}"
        message, skip = interaction(
            node_attrs=data["node_attrs"],
            node_feats=give(name, "node_feats", feats),
            edge_attrs=give(name, "edge_attrs", edge_attrs),
            edge_feats=give(name, "edge_feats", edge_feats),
            edge_index=data["edge_index"],
            cutoff=cutoff,
        )
        outputs[name, "message"] = message
        if skip is not None:
            outputs[name, "skip"] = skip
            skip = give(f"products.{i}", "skip", skip)
        feats = product(give(f"products.{i}", "node_feats", message), skip, data["node_attrs"])
        read = readout(give(f"readouts.{i}", "node_feats", feats), head)
        outputs |= {(f"products.{i}", "output"): feats, (f"readouts.{i}", "output"): read}
        energies = energies + read[:, 0]
    isolated = model.atomic_energies_fn(give("atomic_energies_fn", "node_attrs", data["node_attrs"]))
    scaled = model.scale_shift(give("scale_shift", "node_energies", energies), head)
    outputs |= {("atomic_energies_fn", "output"): isolated, ("scale_shift", "output"): scaled}
    energy = scaled.sum()
    return energy, aliases, outputs, {"positions": positions, "edge_attrs": edge_attrs, "edge_feats": edge_feats}


def captured(model, data, blocks=None):
    """Everything recorded in one call, by block and name: calls, inputs' gradients, outputs, and the energy."""
    with capture(model, default_blocks(model) if blocks is None else blocks) as calls:
        energy = model(data, compute_force=False)["interaction_energy"]
        of_calls = gradients(calls, [(energy, torch.ones_like(energy))])
    grads = {
        (call.block.name, port.name): value
        for call, grad in zip(calls, of_calls, strict=True)
        for port, value in grad.items()
    }
    outputs = {(call.block.name, port.name): value for call in calls for port, value in call.outputs.items()}
    return calls, grads, outputs, energy.detach()


def hooks_of(module):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    eager = [m for m in module.modules() if not isinstance(m, torch.jit.ScriptModule)]
    return [len(getattr(m, kind)) for m in eager for kind in kinds]


@pytest.fixture(scope="module")
def no_skip(config):
    """Its first interaction returns no skip connection."""
    return build(config | {"interaction_cls_first": "RealAgnosticInteractionBlock"})


# against the pass by hand


@given(seed=st.integers(0, 10**6), periodic=st.booleans())
@settings(max_examples=8, deadline=None)
def test_everything_is_as_by_hand(model, no_skip, seed, periodic):
    atoms = ase.Atoms("CO", [(0, 0, 0), (0.1, 0.2, 1.2)], cell=[2.6, 2.9, 3.1], pbc=periodic)
    for network in (model, no_skip):
        graph = build_graph(moved(atoms, seed), network)
        _, grads, outputs, energy = captured(network, data_of(graph))
        expected_energy, aliases, expected, _ = by_hand(network, data_of(graph))
        torch.testing.assert_close(energy[0], expected_energy, **CLOSE)
        assert outputs.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(outputs[key], value), key
        expected_grads = dict(
            zip(aliases, torch.autograd.grad(expected_energy, aliases.values(), materialize_grads=True), strict=True)
        )
        assert grads.keys() == expected_grads.keys()
        for key, value in expected_grads.items():
            torch.testing.assert_close(grads[key], value, **CLOSE, msg=lambda m, key=key: f"{key}: {m}")
            assert value.any() == (key[0] != "atomic_energies_fn"), key  # of which interaction energies have nothing


def test_shared_tensors_gradient_is_the_sum_over_layers(model, crystal):
    data = data_of(build_graph(crystal, model))
    _, grads, _, _ = captured(model, data)
    energy, _, _, shared = by_hand(model, data_of(build_graph(crystal, model)))
    for name in ("edge_attrs", "edge_feats"):
        (total,) = torch.autograd.grad(energy, shared[name], retain_graph=True)
        parts = [grads[f"interactions.{layer}", name] for layer in (0, 1)]
        torch.testing.assert_close(sum(parts), total, **CLOSE)
        assert all(part.abs().max() > 1e-6 for part in parts)
        assert not torch.allclose(*parts)


def test_forces_follow_from_the_gradients_of_the_geometry(model, crystal):
    graph = build_graph(crystal, model)
    forces = model(data_of(graph))["forces"]
    calls, grads, _, _ = captured(model, data_of(graph))
    vectors, lengths = (
        next(iter(call.inputs.values())).detach()
        for name in ("spherical_harmonics", "radial_embedding")
        for call in calls
        if call.block.name == name
    )
    pull = grads["spherical_harmonics", "vectors"] + grads["radial_embedding", "edge_lengths"] * vectors / lengths
    sender, receiver = graph.data["edge_index"]
    total = torch.zeros_like(forces).index_add(0, receiver, pull).index_add(0, sender, -pull)
    torch.testing.assert_close(-total, forces, **CLOSE)


def test_first_layer_has_a_gradient_though_positions_cannot_reach_it(model, water):
    calls, grads, _, _ = captured(model, data_of(build_graph(water, model)))
    for key in (("interactions.0", "node_feats"), ("node_embedding", "node_attrs")):
        assert grads[key].abs().max() > 1e-6
    (first,) = (call for call in calls if call.block.name == "interactions.0")
    assert not first.arguments["node_attrs"].requires_grad


def test_blocks_called_by_keyword_have_their_inputs(model, water):
    calls, *_ = captured(model, data_of(build_graph(water, model)))
    given = {call.block.name: {port.name for port in call.inputs} for call in calls}
    assert given["interactions.1"] == {"node_feats", "edge_attrs", "edge_feats"}
    assert given["products.1"] == {"node_feats", "skip"}
    assert {"edge_index", "node_attrs"} < calls[3].arguments.keys()


# the model is not disturbed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_forward_is_bit_for_bit_the_unhooked_one(model, crystal, dtype):
    network = copy.deepcopy(model).to(dtype)
    data = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in data_of(build_graph(crystal, model)).items()
    }
    bare = [network(dict(data), compute_force=False)["interaction_energy"] for _ in range(3)][-1]
    everything = select_blocks(network, ["*_embedding", "spherical_harmonics", "*.*", "*.*.*"])
    assert len(everything) > 20
    _, _, outputs, energy = captured(network, dict(data), everything)
    assert torch.equal(energy, bare)
    assert {value.dtype for value in outputs.values()} == {dtype}


def test_hooks_are_gone_afterwards(model, water):
    before = hooks_of(model)
    with capture(model, default_blocks(model)) as calls:
        assert sum(hooks_of(model)) == sum(before) + 2 * len(default_blocks(model))
        model(data_of(build_graph(water, model)), compute_force=False)
    assert hooks_of(model) == before
    assert len(calls) == len(default_blocks(model))


def test_hooks_are_gone_after_an_exception(model, water):
    before = hooks_of(model)
    data = data_of(build_graph(water, model))
    data["edge_index"] += 100
    with pytest.raises(IndexError), capture(model, default_blocks(model)):
        model(data)
    with pytest.raises(AttributeError), capture(model, [*default_blocks(model), Block("no.such.module")]):
        pass
    assert hooks_of(model) == before


class InPlace(torch.nn.Module):
    """Changes in place what its block returned, as MACE does with node_feats and a joint embedding."""

    def __init__(self):
        super().__init__()
        self.block = torch.nn.Linear(2, 2)

    def forward(self, x):
        y = self.block(x)
        y += 1
        return y


def test_output_is_recorded_before_it_is_changed_in_place():
    module = InPlace()
    x = torch.tensor([[1.0, 2.0]])
    with capture(module, [Block("block")]) as calls:
        y = module(x)
        total = y.sum(dim=-1)
        (grad,) = gradients(calls, [(total, torch.ones_like(total))])
    (output,) = calls[0].outputs.values()
    assert torch.equal(output, module.block(x))
    assert torch.equal(output + 1, y)
    torch.testing.assert_close(next(iter(grad.values())), module.block.weight.sum(dim=0, keepdim=True))


def test_a_block_that_runs_twice_has_two_calls():
    block = torch.nn.Linear(2, 2)
    module = torch.nn.Sequential(block, block)
    x = torch.ones(1, 2)
    with capture(module, [Block("0")]) as calls:
        module(x)
    first, second = (next(iter(call.outputs.values())) for call in calls)
    assert torch.equal(first, block(x))
    assert torch.equal(second, block(block(x)))
    assert [call.number for call in calls] == [0, 1]


def test_missing_skip_is_not_recorded(no_skip, water):
    calls, grads, outputs, _ = captured(no_skip, data_of(build_graph(water, no_skip)))
    assert ("interactions.0", "skip") not in outputs
    assert ("products.0", "skip") not in grads
    assert {("interactions.1", "skip"), ("interactions.0", "message")} < outputs.keys()
    assert all(call.outputs for call in calls)


def test_structure_without_edges(model):
    graph = build_graph(ase.Atoms("CO", [(0, 0, 0), (0, 0, 9)]), model)
    calls, grads, outputs, energy = captured(model, data_of(graph))
    assert len(calls) == len(default_blocks(model))
    assert outputs["spherical_harmonics", "edge_attrs"].shape == (0, 9)
    assert grads["interactions.0", "edge_attrs"].shape == (0, 9)
    assert torch.isfinite(energy).all()
    assert torch.isfinite(outputs["products.1", "output"]).all()


# blocks alone


def test_replay_in_float64_gives_the_same_outputs(model, crystal):
    calls, *_ = captured(model, data_of(build_graph(crystal, model)))
    for call in (call.detach() for call in calls):
        again = replay(model.get_submodule(call.block.name), call, torch.float64)
        assert again.outputs.keys() == call.outputs.keys()
        assert call.outputs
        for port, value in call.outputs.items():
            assert torch.equal(again.outputs[port], value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_input_gradients_are_those_of_the_summed_squares(model, crystal, dtype):
    calls, *_ = captured(model, data_of(build_graph(crystal, model)))
    network = copy.deepcopy(model).to(dtype)
    for recorded in (call.detach() for call in calls):
        module = network.get_submodule(recorded.block.name)
        call = replay(module, recorded, dtype)
        grads = input_gradients(call)
        total = sum(value.square().sum() for value in replay_outputs(module, call))
        expected = torch.autograd.grad(total, call.inputs.values(), allow_unused=True, materialize_grads=True)
        for (port, value), reference in zip(grads.items(), expected, strict=True):
            assert value.dtype is dtype
            torch.testing.assert_close(value, reference, **(CLOSE if dtype is torch.float64 else {}))
            assert value.any(), (call.block.name, port.name)


def replay_outputs(module, call):
    """The block run once more on the same attached inputs."""
    returned = module(**call.arguments)
    returned = returned if isinstance(returned, tuple) else (returned,)
    return [value for value in returned if value is not None]


def test_input_gradients_do_not_overflow_in_float16():
    linear = torch.nn.Linear(1, 1, bias=False).half()
    torch.nn.init.ones_(linear.weight)
    x = torch.full((1, 1), 300.0, dtype=torch.float64)  # its square is 90,000
    call = replay(linear, Call(Block("0"), {"input": x}, {}, {}), torch.float16)
    (grad,) = input_gradients(call).values()
    assert grad.tolist() == [[600.0]]


def test_detached_call_keeps_numbers_and_drops_the_graph(model, water):
    for call in captured(model, data_of(build_graph(water, model)))[0]:
        free = call.detach()
        for key, value in free.arguments.items():
            if torch.is_tensor(value):
                assert torch.equal(value, call.arguments[key])
                assert not value.requires_grad
        assert not any(tensor.requires_grad for tensor in (*free.inputs.values(), *free.outputs.values()))


# blocks that overwrite what they are given


class Residual(torch.nn.Module):
    """Reads a tensor again that a block may have overwritten."""

    def __init__(self, activation):
        super().__init__()
        self.linear, self.activation = torch.nn.Linear(3, 4).double(), activation

    def forward(self, x):
        hidden = self.linear(x)
        activated = self.activation(hidden)
        return activated * 3 + hidden


def net(inplace, first=False):
    """Layers with an activation in place, or not: the same weights each time."""
    torch.manual_seed(3)
    linear = torch.nn.Linear(3, 8).double(), torch.nn.Linear(8, 3).double()
    layers = (torch.nn.ReLU(inplace=inplace), linear[0], torch.nn.LeakyReLU(0.1, inplace=inplace), linear[1])
    return torch.nn.Sequential(*layers[0 if first else 1 :]).requires_grad_(False)


def run(network, x, *, shared=False):
    """Outputs, inputs and gradients of every block, by name, of the sum of the squared outputs."""
    with capture(network, [Block(name) for name, _ in network.named_children()], shared=shared) as calls:
        y = network(x)
        grads = gradients(calls, [(y, 2 * y.detach())])
    recorded = {}
    for call, grad in zip(calls, grads, strict=True):
        (key,) = (port.name for port in call.inputs)
        recorded[call.block.name] = (
            call.arguments[key].detach().numpy(),
            call.outputs[next(iter(call.outputs))].numpy(),
            next(iter(grad.values())).numpy(),
        )
    return y.detach().numpy(), recorded, calls


@pytest.mark.parametrize("first", [False, True])
def test_blocks_in_place_have_their_own_inputs_and_gradients(first):
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    numbers, kept = x.numpy().copy(), x.clone().requires_grad_().clone()
    y, recorded, calls = run(net(True, first), kept)
    # in NumPy, forward and backward
    network = net(False, first)
    weights = [(m.weight.numpy(), m.bias.numpy()) for m in network if isinstance(m, torch.nn.Linear)]
    value, steps = numbers, []
    for module in network:
        inputs = value
        if isinstance(module, torch.nn.Linear):
            weight, bias = weights[0 if module is network[int(first)] else 1]
            value = inputs @ weight.T + bias
            steps.append((inputs, value, lambda g, _, w=weight: g @ w))
        else:
            slope = getattr(module, "negative_slope", 0.0)
            value = np.where(inputs > 0, inputs, slope * inputs)
            steps.append((inputs, value, lambda g, x, s=slope: g * np.where(x > 0, 1.0, s)))
    np.testing.assert_allclose(y, value, rtol=1e-13)
    grad = 2 * value
    for name, (inputs, output, backward) in reversed(list(zip(recorded, steps, strict=True))):
        grad = backward(grad, inputs)
        np.testing.assert_allclose(recorded[name][0], inputs, rtol=1e-12, atol=1e-15, err_msg=name)
        np.testing.assert_allclose(recorded[name][1], output, rtol=1e-12, atol=1e-15, err_msg=name)
        np.testing.assert_allclose(recorded[name][2], grad, rtol=1e-12, atol=1e-15, err_msg=name)
    # each alone
    for call, (inputs, output, backward) in zip(calls, steps, strict=True):
        alone = replay(net(True, first).get_submodule(call.block.name), call.detach(), torch.float64)
        (grad,) = input_gradients(alone).values()
        np.testing.assert_allclose(grad, backward(2 * output, inputs), rtol=1e-12, atol=1e-15)


def test_what_reads_an_overwritten_tensor_later_reads_what_was_written():
    x = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    torch.manual_seed(0)
    network = Residual(torch.nn.ReLU(inplace=True)).requires_grad_(False)
    bare = network(x.clone())
    y, recorded, _ = run(network, x.clone().requires_grad_().clone())
    np.testing.assert_array_equal(y, bare)
    hidden = x.numpy() @ network.linear.weight.numpy().T + network.linear.bias.numpy()
    np.testing.assert_allclose(recorded["activation"][0], hidden, rtol=1e-14)
    positive = (hidden > 0).astype(float)  # y = 4 relu(hidden), both times of the activation's output
    np.testing.assert_allclose(recorded["activation"][2], 2 * 4 * hidden * positive * 4, rtol=1e-13)


class Hidden(torch.nn.Module):
    """Overwrites, and does not say so."""

    def forward(self, x):
        return x.relu_()


def with_gradients(network, x, blocks):
    with capture(network, blocks) as calls:
        y = network(x)
        return gradients(calls, [(y, 2 * y.detach())])


def test_a_block_that_overwrites_without_saying_so_is_refused_by_name():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    linear = torch.nn.Linear(3, 3).double()
    for network, what in (
        (torch.nn.Sequential(linear, Hidden()), "1"),  # on the graph: found out by autograd's count
        (torch.nn.Sequential(linear.requires_grad_(False), Hidden()), "1"),  # off it: torch refuses
        (torch.nn.Sequential(linear, torch.nn.Identity(), Hidden()), "1"),  # what a block before it was given
    ):
        blocks = [Block(name) for name, _ in network.named_children()][:2]
        with pytest.raises(InputError, match=rf"^Block {what} cannot be recorded: its input.*overwritten.*'!{what}'"):
            with_gradients(network, x, blocks)
        with pytest.raises(InputError, match=rf"^Block {what} cannot be recorded"), capture(network, blocks):
            network(x)  # no gradients, but its input would be wrong


def test_shared_inputs_cannot_be_overwritten():
    x = torch.ones(2, 3, dtype=torch.float64).requires_grad_()
    with pytest.raises(InputError, match=r"Block 1 cannot be recorded: its input input .*gradients='per_block'"):
        run(net(True), x, shared=True)
