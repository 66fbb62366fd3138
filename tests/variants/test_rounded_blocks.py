"""rounded_blocks.py: blocks in emulated formats, against rounding by hand with NumPy and ml_dtypes."""

from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
import torch

from precision_probe.models.attributes import weights_sha256
from precision_probe.models.blocks import default_blocks
from precision_probe.models.graphs import build_graph
from precision_probe.precisions import PRECISIONS, parse_precision
from precision_probe.variants.rounded_blocks import PARTS, rounded_blocks, rounded_weights
from precision_probe.variants.rounding import round_to
from precision_probe.variants.variant import Variant

BFLOAT16 = parse_precision("e8m7")
STOCHASTIC = parse_precision("m7sr")


def rounded(x):
    """bfloat16 by ml_dtypes: of float32 numbers, since it rounds others twice."""
    return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


def float32s(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(np.float64)


class Twice(torch.nn.Module):
    """A block between two operations that stay exact."""

    def __init__(self):
        super().__init__()
        self.block = torch.nn.Linear(3, 2, dtype=torch.float64)
        with torch.no_grad():
            self.block.weight.copy_(torch.as_tensor(float32s(2, 3, seed=0)))
            self.block.bias.copy_(torch.as_tensor(float32s(2, seed=1)))

    def forward(self, x):
        return 3 * self.block(x / 2)


@pytest.fixture
def network():
    return Twice()


def run(network, formats, parts, x, cotangent, **options):
    """The output of a network with rounded blocks, and its gradient with respect to x, both float64 arrays."""
    x = torch.as_tensor(x).requires_grad_()
    with rounded_blocks(network, formats, parts, **options):
        y = network(x)
        (grad,) = torch.autograd.grad(y, x, torch.as_tensor(cotangent))
    return y.detach().numpy(), grad.numpy()


@pytest.mark.parametrize("parts", [("inputs",), ("weights",), ("inputs", "weights"), ()])
def test_inputs_and_weights_are_rounded_as_ml_dtypes_rounds_them_forward_and_backward(network, parts):
    x, cotangent = float32s(5, 3, seed=2), float32s(5, 2, seed=3)
    of_inputs = rounded if "inputs" in parts else np.asarray
    of_weights = rounded if "weights" in parts else np.asarray
    weight, bias = (of_weights(p.detach().numpy()) for p in (network.block.weight, network.block.bias))
    y, grad = run(network, {"block": BFLOAT16}, parts, x, cotangent)
    np.testing.assert_allclose(y, 3 * (of_inputs(x / 2) @ weight.T + bias), rtol=1e-14, atol=1e-14)
    entering = of_inputs((3 * cotangent).astype(np.float32)) if "inputs" in parts else 3 * cotangent
    np.testing.assert_allclose(grad, entering @ weight / 2, rtol=1e-14, atol=1e-14)


def test_arithmetic_is_rounded_after_every_operation_forward_and_backward():
    """z = a·b + c elementwise, whose products ml_dtypes rounds once and whose sums once more."""

    class Fused(torch.nn.Module):
        def forward(self, a, b, c):
            return a * b + c

    network = torch.nn.Sequential()
    network.block = Fused()
    a, b, c, cotangent = (rounded(float32s(50, seed=seed)) for seed in range(4))
    tensors = [torch.as_tensor(value).requires_grad_() for value in (a, b, c)]
    with rounded_blocks(network, {"block": BFLOAT16}, ["arithmetic"]):
        y = network.block(*tensors)
        grads = torch.autograd.grad(y, tensors, torch.as_tensor(cotangent))
    product = rounded((a * b).astype(np.float32))
    np.testing.assert_array_equal(y.detach().numpy(), rounded((product + c).astype(np.float32)))
    for grad, expected in zip(grads, (cotangent * b, cotangent * a, cotangent), strict=True):
        np.testing.assert_array_equal(grad.numpy(), rounded(expected.astype(np.float32)))
    assert np.abs(a * b + c - y.detach().numpy()).max() > 1e-3


class Named(NamedTuple):
    first: torch.Tensor
    other: object


class Returning(torch.nn.Module):
    """Gives and takes tensors in any nest, with things in it that are none; integers as they are."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, nested, *, index):
        x = nested["x"][0] * 3
        picked = x[index]
        return {
            "tensor": picked,
            "tuple": (picked, None, index),
            "list": [x, [picked]],
            "dict": {"b": picked, "a": (x,)},
            "namedtuple": Named(picked, "text"),
        }[self.kind]


@pytest.mark.parametrize("kind", ["tensor", "tuple", "list", "dict", "namedtuple"])
def test_what_a_block_returns_has_the_structure_and_the_gradient_that_it_had(kind):
    network = torch.nn.Sequential()
    network.block = Returning(kind)
    x, index = torch.as_tensor(rounded(float32s(4, seed=0))).requires_grad_(), torch.tensor([2, 0])
    expected = network.block({"x": [x]}, index=index)
    with rounded_blocks(network, {"block": parse_precision("m52")}):
        returned = network.block({"x": [x]}, index=index)
    assert type(returned) is type(expected)
    leaves, others = (torch.utils._pytree.tree_leaves(each) for each in (returned, expected))
    assert list(map(type, leaves)) == list(map(type, others))
    for ours, theirs in zip(leaves, others, strict=True):
        assert torch.equal(ours, theirs) if torch.is_tensor(theirs) else ours is theirs
    if isinstance(expected, dict):
        assert list(returned) == list(expected)
    floating = [
        [leaf for leaf in each if torch.is_tensor(leaf) and leaf.is_floating_point()] for each in (leaves, others)
    ]
    grads = [torch.autograd.grad(sum(leaf.square().sum() for leaf in each), x)[0] for each in floating]
    torch.testing.assert_close(*grads, rtol=1e-14, atol=0)
    assert grads[0].any()


def test_inputs_that_need_no_gradient_have_none_and_the_call_has_no_graph(network):
    with rounded_blocks(network.requires_grad_(False), {"block": BFLOAT16}):
        y = network(torch.ones(1, 3, dtype=torch.float64))
    assert not y.requires_grad


def test_everything_is_as_it_was_afterwards(network):
    before, x = {name: value.clone() for name, value in network.state_dict().items()}, torch.ones(1, 3).double()
    exact = network(x)
    with rounded_blocks(network, {"block": BFLOAT16}):
        assert not torch.equal(network.block.weight, before["block.weight"])
    with pytest.raises(ArithmeticError), rounded_blocks(network, {"block": BFLOAT16}):
        raise ArithmeticError
    with rounded_weights(network, BFLOAT16):
        assert torch.equal(network.block.weight, round_to(before["block.weight"], BFLOAT16))
        assert torch.is_grad_enabled()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert "forward" not in vars(network.block)
    assert torch.equal(network(x), exact)


# blocks of a MACE


@pytest.fixture(scope="module")
def exact(model):
    return Variant(model, PRECISIONS["float64"], torch.device("cpu"))


@pytest.fixture(scope="module")
def names(exact):
    return [block.name for block in default_blocks(exact.model)]


@pytest.fixture
def forces(exact, water):
    """Computes the forces; TorchScript rounds otherwise in its first calls."""
    graph = build_graph(water, exact.model)
    for _ in range(2):
        exact.predict(graph)
    return lambda: exact.predict(graph)["forces"]


def test_blocks_in_all_of_float64s_bits_change_nothing_but_rounding(exact, names, forces):
    unrounded = forces()
    with rounded_blocks(exact.model, dict.fromkeys(names, parse_precision("m52"))):
        rounded = forces()
    np.testing.assert_allclose(rounded, unrounded, rtol=0, atol=1e-14 * float(unrounded.abs().max()))


def test_a_rounded_readout_is_the_readout_rounded_by_hand(exact):
    """The readout alone: its output is that of a copy whose weights, inputs and operations are rounded by hand."""
    readout = exact.model.readouts[0]
    x = torch.randn(5, readout.linear.irreps_in.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = round_to(readout.linear.weight.detach(), BFLOAT16)
    mul = readout.linear.irreps_in[0].mul
    scalars = round_to(x, BFLOAT16)[:, :mul]
    expected = round_to(round_to(scalars @ weight[:mul].view(mul, 1), BFLOAT16) / np.sqrt(mul), BFLOAT16)
    with rounded_blocks(exact.model, {"readouts.0": BFLOAT16}):
        y = readout(x)
    np.testing.assert_allclose(y.detach(), expected, rtol=2 * BFLOAT16.unit_roundoff)
    assert torch.equal(round_to(y.detach(), BFLOAT16), y.detach())


def test_the_model_is_as_it_was_afterwards(exact, names, forces):
    before, unrounded = weights_sha256(exact.model), forces()
    with rounded_blocks(exact.model, dict.fromkeys(names, parse_precision("m4"))):
        assert weights_sha256(exact.model) != before
    with pytest.raises(RuntimeError, match="stop"), rounded_blocks(exact.model, {names[0]: parse_precision("m4")}):
        raise RuntimeError("stop")
    with rounded_weights(exact.model, parse_precision("m4")):
        pass
    assert weights_sha256(exact.model) == before
    assert torch.equal(forces(), unrounded)
    assert not any("forward" in vars(exact.model.get_submodule(name)) for name in names)


# stochastic formats


@pytest.mark.parametrize("parts", [PARTS, ("inputs",), ("weights",), ("arithmetic",)])
def test_stochastic_rounding_has_a_seed_and_leaves_torchs_random_state_alone(network, parts):
    x, cotangent = float32s(5, 3, seed=2), float32s(5, 2, seed=3)
    state = torch.random.get_rng_state()
    first, again, other = (run(network, {"block": STOCHASTIC}, parts, x, cotangent, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(torch.random.get_rng_state(), state)
    for one, same, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one, same)
        assert not np.array_equal(one, different)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # which makes no difference
        np.testing.assert_array_equal(run(network, {"block": STOCHASTIC}, parts, x, cotangent, seed=4)[0], first[0])


def test_stochastic_weights_have_a_seed_and_leave_torchs_random_state_alone(network):
    state, exact, weights = torch.random.get_rng_state(), network.block.weight.detach().clone(), []
    for seed in (*range(64), 0):
        with rounded_weights(network, STOCHASTIC, seed=seed):
            weights.append(network.block.weight.detach().clone())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(weights[0], weights[-1])
    assert all(len(set(column)) == 2 for column in torch.stack(weights).flatten(1).T.tolist())  # up or down
    spacing = torch.stack(weights).amax(dim=0) - torch.stack(weights).amin(dim=0)
    mean = torch.stack(weights[:-1]).mean(dim=0)
    assert ((mean - exact).abs() < 5 * spacing / 2 / np.sqrt(64)).all()  # five standard errors at most


def test_blocks_are_rounded_independently():
    """Of two blocks with the same weights, as many are rounded the same way as chance has it."""
    network = torch.nn.Sequential(*(torch.nn.Linear(40, 25, dtype=torch.float64) for _ in range(2)))
    with torch.no_grad():
        for block in network:
            block.weight.copy_(torch.as_tensor(float32s(25, 40, seed=0)))
    with rounded_blocks(network, dict.fromkeys("01", STOCHASTIC), ["weights"]):
        n_equal = int((network[0].weight == network[1].weight).sum())
    assert abs(n_equal - 1000 * 2 / 3) < 5 * np.sqrt(1000 * 2 / 9)  # p² + (1 − p)² is ⅔ on average; five deviations
    assert torch.equal(network[0].weight, network[1].weight)
