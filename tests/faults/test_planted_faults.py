"""Faults planted in one block, as small as they come, are found in that block: 100 of 100 of each kind."""

import copy

import ase
import numpy as np
import pytest
import torch
from e3nn import o3
from runs import data_of, molecule, trace_of

import precision_probe as pp
from precision_probe.analysis.comparison import first_difference
from precision_probe.models.dtypes import default_dtype

N, N_SAMPLE = 100, 2
KINDS = ["ulp", "bits", "sign"]
BITS = 10
FAULTS = [pytest.param(kind, seed, marks=[pytest.mark.slow][: seed >= N_SAMPLE]) for kind in KINDS for seed in range(N)]
BLOCKS = ("node_embedding", "interactions.0", "interactions.1", "products.0", "products.1", "readouts.0", "readouts.1")

ORDER = [BLOCKS[index] for index in (0, 1, 3, 5, 2, 4, 6)]  # in which they run


@pytest.fixture(scope="module")
def structures():
    return [
        molecule(1),
        ase.Atoms("CO", [(0, 0, 0), (0.1, 0.2, 1.2)], cell=[2.6, 2.9, 3.1], pbc=True, info={"name": "crystal"}),
    ]


@pytest.fixture(scope="module")
def base(model, structures):
    return recorded(model, structures)


def recorded(network, structures):
    return trace_of(network, structures, precisions="float64", blocks=list(BLOCKS))


class Rounded(torch.autograd.Function):
    """Numbers with ten bits after the first, by NumPy, with the exact gradient."""

    @staticmethod
    def forward(ctx, x):
        mantissa, exponent = np.frexp(x.detach().numpy())
        return torch.from_numpy(np.ldexp(np.rint(mantissa * 2 ** (BITS + 1)), exponent - BITS - 1))

    @staticmethod
    def backward(ctx, grad):
        return grad


class WrongSign(torch.autograd.Function):
    """The same numbers; the gradient of one column has the wrong sign."""

    @staticmethod
    def forward(ctx, x, column):
        ctx.column = column
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        wrong = grad.clone()
        wrong[:, ctx.column] *= -1
        return wrong, None


class Wrapped(torch.nn.Module):
    """A linear layer whose output is changed."""

    def __init__(self, inner, kind, column):
        super().__init__()
        self.inner, self.kind, self.column = inner, kind, column
        self.irreps_in, self.irreps_out = inner.irreps_in, inner.irreps_out

    def forward(self, x):
        y = self.inner(x)
        return Rounded.apply(y) if self.kind == "bits" else WrongSign.apply(y, self.column)


def with_other_weight(model, block, generator):
    """A copy with one weight of a block changed to the next number."""
    network = copy.deepcopy(model)
    parameters = [each for each in network.get_submodule(block).parameters() if each.numel()]
    values = parameters[generator.integers(len(parameters))].detach().view(-1)
    index = generator.integers(len(values))
    values[index] = float(np.nextafter(float(values[index]), generator.choice([-np.inf, np.inf])))
    return network


def with_other_layer(model, block, kind, generator):
    """A copy with one linear layer of a block wrapped; none where nothing flows back through it."""
    network = copy.deepcopy(model)
    part = network.get_submodule(block)
    names = [name for name, each in part.named_modules() if isinstance(each, o3.Linear)]
    name = names[generator.integers(len(names))]
    layer = part.get_submodule(name)
    parent, _, attribute = name.rpartition(".")
    setattr(part.get_submodule(parent), attribute, Wrapped(layer, kind, int(generator.integers(layer.irreps_out.dim))))
    return network


def by_hand(network, structures):
    """What each block gives, and the forces, in bytes: of mace-torch called as it is, with hooks of our own."""
    found = dict.fromkeys(BLOCKS, b"")

    def noting(block):
        def note(module, arguments, returned):
            for tensor in returned if isinstance(returned, tuple) else (returned,):
                found[block] += b"" if tensor is None else tensor.detach().numpy().tobytes()

        return note

    handles = [network.get_submodule(block).register_forward_hook(noting(block)) for block in BLOCKS]
    with default_dtype(torch.float64):
        forces = [network(data_of(atoms, network))["forces"].detach().numpy().tobytes() for atoms in structures]
    for handle in handles:
        handle.remove()
    return found, b"".join(forces)


def planted(model, structures, kind, seed):
    """A block, and a model with a fault in it, of which mace-torch run by hand says that it changes something."""
    generator = np.random.default_rng([KINDS.index(kind), seed])
    exact, forces = by_hand(model, structures)
    while True:
        block = str(generator.choice(BLOCKS[kind == "sign" :]))  # nothing flows back to what is embedded
        if kind == "ulp":
            network = with_other_weight(model, block, generator)
        else:
            network = with_other_layer(model, block, kind, generator)
        found, others = by_hand(network, structures)
        changed = [each for each in ORDER if found[each] != exact[each]]
        if kind == "sign":
            assert not changed
            if others != forces:
                return block, network
        elif changed:
            assert changed[0] == block
            return block, network


@pytest.mark.parametrize(("kind", "seed"), FAULTS)
def test_a_fault_is_found_in_its_block(model, structures, base, kind, seed):
    block, network = planted(model, structures, kind, seed)
    table = pp.compare_traces(base, recorded(network, structures))
    if kind == "ulp":  # less than what two correct programs differ by, so that any difference counts
        table["equivalent"] = table["difference"] == 0
    first = first_difference(table)
    assert first["block"] == block
    assert first["direction"] == ("backward" if kind == "sign" else "forward")
    if kind == "bits":
        assert 1e-7 < first["difference"] < 2.0 ** (-BITS - 1)


def test_a_model_without_a_fault_is_the_same(model, structures, base):
    table = pp.compare_traces(base, recorded(copy.deepcopy(model), structures))
    assert (table["difference"] == 0).all()
