"""partial_model.py: one part at a time in a precision, against mace-torch with that part changed by hand."""

import copy

import mace.modules.utils
import numpy as np
import pytest
import torch
from runs import molecule

from precision_probe.models.building import build
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import build_graph
from precision_probe.precisions import PRECISIONS
from precision_probe.structures import read_structures
from precision_probe.variants.partial_model import GEOMETRY, SUMS, PartialModel
from precision_probe.variants.variant import Variant

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
precisions = pytest.mark.parametrize("name", list(DTYPES))


@pytest.fixture(scope="module")
def zbl(config):
    """A model that has every part that energies are made of."""
    return build(config | {"pair_repulsion": True, "atomic_energies": [-13.6, -102.5, -204.0]}, seed=3)


@pytest.fixture(scope="module")
def graph(zbl):
    (structure,) = read_structures(molecule())
    return build_graph(structure, zbl)


def forces_by_hand(model, graph):
    """Of the model as mace-torch runs it, in float64 but for what was changed in it."""
    with default_dtype(torch.float64):  # in which ZBL makes its constants
        return model(graph.cast(torch.float64))["forces"].detach().double().numpy()


def partial_forces(model, name, graph, parts):
    return PartialModel(model, PRECISIONS[name], CPU).predict(graph, parts)["forces"].numpy()


@precisions
def test_nothing_in_the_precision_is_the_model_itself(zbl, graph, name):
    assert np.array_equal(partial_forces(zbl, name, graph, ()), forces_by_hand(zbl, graph))


@precisions
def test_geometry_alone_is_that_of_mace_with_its_own_function_in_the_dtype(zbl, graph, name, monkeypatch):
    exact = mace.modules.utils.get_edge_vectors_and_lengths
    mine = partial_forces(zbl, name, graph, [GEOMETRY])

    def rounded(positions, edge_index, shifts):
        vectors, lengths = exact(positions.to(DTYPES[name]), edge_index, shifts.to(DTYPES[name]))
        return vectors.double(), lengths.double()

    monkeypatch.setattr(mace.modules.utils, "get_edge_vectors_and_lengths", rounded)
    by_hand = forces_by_hand(zbl, graph)
    assert np.array_equal(mine, by_hand)
    monkeypatch.undo()
    assert not np.array_equal(by_hand, forces_by_hand(zbl, graph))


@precisions
def test_one_block_alone_is_that_block_cast_by_hand(zbl, graph, name):
    by_hand = copy.deepcopy(zbl)
    block = by_hand.pair_repulsion_fn.to(DTYPES[name])
    forward = block.forward

    def cast(lengths, node_attrs, *rest):
        with default_dtype(DTYPES[name]):
            return forward(lengths.to(DTYPES[name]), node_attrs.to(DTYPES[name]), *rest).double()

    block.forward = cast
    assert np.array_equal(partial_forces(zbl, name, graph, ["pair_repulsion_fn"]), forces_by_hand(by_hand, graph))


@precisions
def test_sums_are_of_rounded_summands(zbl, graph, name):
    """No more than a few roundings of a number as large as the energy; forces are not made of sums of energies."""
    precision, model = PRECISIONS[name], PartialModel(zbl, PRECISIONS[name], CPU)
    exact, summed = model.predict(graph, ()), model.predict(graph, ["atomic_energies_fn", SUMS])
    before, all_parts = (model.predict(graph, model.parts[:n])["forces"] for n in (-1, None))
    assert torch.equal(before, all_parts)
    error = abs(float(summed["energy"] - exact["energy"]))
    assert 0 < error < 4 * precision.unit_roundoff * graph.n_atoms * abs(float(exact["energy"]))
    assert float(summed["energy"]) == float(summed["energy"].to(DTYPES[name]).double())  # a number of the format


@precisions
def test_all_parts_together_are_the_variant(zbl, graph, name):
    """But for the order in which gradients are added up where blocks meet: well below the error itself."""
    model, variant = PartialModel(zbl, PRECISIONS[name], CPU), Variant(zbl, PRECISIONS[name], CPU)
    exact, all_parts = model.predict(graph, ()), model.predict(graph, model.parts)
    real = variant.predict(graph)
    assert float(all_parts["energy"]) == float(real["energy"])
    error = (real["forces"].double() - exact["forces"]).norm()
    assert (all_parts["forces"] - real["forces"].double()).norm() <= 0.3 * error


def test_nothing_is_left_on_the_model(zbl, graph):
    before = copy.deepcopy(zbl.state_dict())
    model = PartialModel(zbl, PRECISIONS["float16"], CPU)
    model.predict(graph, model.parts)
    assert all(torch.equal(before[name], tensor) for name, tensor in zbl.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in zbl.modules())
    first, second = (model.predict(graph, ())["forces"] for _ in range(2))
    assert torch.equal(first, second)
