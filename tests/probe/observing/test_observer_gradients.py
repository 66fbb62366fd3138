"""observer.py: gradients per block and shared; the shared ones leave the model's own bits alone."""

import copy
from functools import partial

import ase
import numpy as np
import pytest
import torch
from runs import trace_of

import precision_probe as pp
from precision_probe.models.blocks import select_blocks
from precision_probe.models.building import build
from precision_probe.models.graphs import build_graph
from precision_probe.variants.hooks import capture, gradients

CLOSE = {"rtol": 1e-12, "atol": 1e-14}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
CRYSTAL = ase.Atoms("CO", [(0, 0, 0), (0.1, 0.2, 1.2)], cell=[2.6, 2.9, 3.1], pbc=True)
RESIDUAL, PLAIN = "RealAgnosticResidualInteractionBlock", "RealAgnosticInteractionBlock"
WITHOUT_PATH = {  # to the positions, in a model whose first interaction is residual
    "node_embedding.node_attrs.grad",
    "interactions.0.node_feats.grad",
    "products.0.skip.grad",
}
OF_ALL_BLOCKS = WITHOUT_PATH | {"atomic_energies_fn.node_attrs.grad"}


def headline(model, graph, dtype):
    out = model(graph.cast(dtype), compute_virials=True)
    return {name: out[name].detach() for name in ("energy", "interaction_energy", "forces", "virials")}


def warm(model, graph, dtype):
    """What the bare model gives once TorchScript has compiled it."""
    return [headline(model, graph, dtype) for _ in range(3)][-1]


def blocks_gradients(model, graph, *, shared):
    """The recorded inputs and their gradients, by block and name."""
    with capture(model, select_blocks(model, None), shared=shared) as calls:
        energy = model(graph.cast(torch.float64), compute_force=False)["interaction_energy"]
        found = gradients(calls, [(energy, torch.ones_like(energy))])
    inputs = {(call.block.name, port.name): tensor for call in calls for port, tensor in call.inputs.items()}
    grads = {
        (call.block.name, port.name): tensor
        for call, grad in zip(calls, found, strict=True)
        for port, tensor in grad.items()
    }
    return inputs, grads


crystal_trace = partial(trace_of, structures=CRYSTAL, modes="propagated")


def gradient_names(group):
    return {str(name) for name, array in group.data_vars.items() if array.attrs.get("direction") == "backward"}


@pytest.fixture(scope="module")
def graph(model):
    return build_graph(CRYSTAL, model)


@pytest.fixture(scope="module")
def traces(model):
    halves = {"precisions": "float32,bfloat16,float16"}
    return {
        "per_block": crystal_trace(model, **halves),
        "shared": crystal_trace(model, **halves, gradients="shared"),
        "none": crystal_trace(model, precisions="float16", gradients=False),
        "true": crystal_trace(model, precisions="float16", gradients=True, blocks="readouts.*"),
    }


# the model is not disturbed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("patterns", [None, ["interactions.0.conv_tp_weights", "interactions.*.*"]])
def test_shared_hooks_change_no_bit_of_energies_and_forces(model, graph, dtype, patterns):
    network = copy.deepcopy(model).to(dtype)
    bare = warm(network, graph, dtype)
    chosen = select_blocks(network, patterns)
    with capture(network, chosen, shared=True) as calls:
        hooked = headline(network, graph, dtype)
    assert {call.block.name for call in calls} == {block.name for block in chosen}
    assert hooked["forces"].any()
    for name, value in bare.items():
        assert value.isfinite().all()
        assert torch.equal(hooked[name], value), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gradients", ["per_block", "shared"])
def test_headline_of_a_trace_is_the_bare_models(model, graph, traces, dtype, gradients):
    bare = warm(copy.deepcopy(model).to(dtype).requires_grad_(False), graph, dtype)
    group = traces[gradients].group("propagated", str(dtype).removeprefix("torch."))
    for name in ("energy", "interaction_energy", "forces"):
        np.testing.assert_array_equal(group[name], bare[name].double())
    volume = abs(np.linalg.det(CRYSTAL.cell.array))
    np.testing.assert_allclose(group["stress"], -bare["virials"].double() / volume, rtol=1e-14)


# what shared gradients are


@pytest.mark.parametrize(
    ("layers", "first", "later"),
    [(2, RESIDUAL, RESIDUAL), (3, PLAIN, RESIDUAL), (2, PLAIN, PLAIN), (3, RESIDUAL, PLAIN)],
)
def test_shared_gradients_are_the_sums_of_the_blocks_own(config, layers, first, later):
    options = {"num_interactions": layers, "interaction_cls_first": first, "interaction_cls": later}
    network = build(config | options, seed=4)
    graph = build_graph(CRYSTAL, network)
    _, own = blocks_gradients(network, graph, shared=False)
    inputs, total = blocks_gradients(network, graph, shared=True)
    consumers = {}
    for key, tensor in inputs.items():
        consumers.setdefault(id(tensor), []).append(key)
    groups = {frozenset(keys) for keys in consumers.values()}
    for name in ("edge_attrs", "edge_feats"):
        assert frozenset((f"interactions.{layer}", name) for layer in range(layers)) in groups
    for layer in range(layers - 1):
        assert frozenset({(f"interactions.{layer + 1}", "node_feats"), (f"readouts.{layer}", "node_feats")}) in groups
    for keys in groups - {frozenset({("spherical_harmonics", "vectors")})}:
        expected = sum(own[key] for key in keys)
        for key in keys:
            torch.testing.assert_close(total[key], expected, **CLOSE, msg=lambda m, key=key: f"{key}: {m}")
            assert total[key].any()


def test_vectors_are_shared_with_the_lengths_made_of_them(model, graph):
    _, own = blocks_gradients(model, graph, shared=False)
    inputs, total = blocks_gradients(model, graph, shared=True)
    vectors, lengths = inputs["spherical_harmonics", "vectors"], inputs["radial_embedding", "edge_lengths"]
    expected = own["spherical_harmonics", "vectors"] + own["radial_embedding", "edge_lengths"] * vectors / lengths
    torch.testing.assert_close(total["spherical_harmonics", "vectors"], expected, **CLOSE)


def test_what_one_block_alone_is_given_has_the_same_gradient_in_both_modes(traces):
    own, total = (traces[mode].group("propagated", "float64") for mode in ("per_block", "shared"))
    for name in ("products.0.node_feats.grad", "products.1.skip.grad", "readouts.1.node_feats.grad"):
        np.testing.assert_allclose(total[name], own[name], rtol=1e-12, atol=1e-14)
        assert np.abs(own[name]).max() > 1e-6
    shared = "interactions.0.edge_attrs.grad"
    assert not np.allclose(total[shared], own[shared])
    np.testing.assert_array_equal(total[shared], total["interactions.1.edge_attrs.grad"])


# traces


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16", "float16"])
def test_only_shared_inputs_without_a_path_have_no_gradient(traces, precision):
    names = {mode: gradient_names(traces[mode].group("propagated", precision)) for mode in ("per_block", "shared")}
    assert names["per_block"] - names["shared"] == OF_ALL_BLOCKS
    assert names["shared"] < names["per_block"]


def test_a_block_alone_has_all_its_gradients_in_shared_mode_too(model):
    blocks = ["node_embedding", "interactions.0", "products.0"]
    trace = trace_of(model, CRYSTAL, gradients="shared", precisions="float64", blocks=blocks)
    assert gradient_names(trace.group("isolated", "float64")) > WITHOUT_PATH
    assert not gradient_names(trace.group("propagated", "float64")) & WITHOUT_PATH


def test_no_gradients(traces):
    for precision in ("float64", "float16"):
        group = traces["none"].group("propagated", precision)
        assert not gradient_names(group)
        assert "interactions.0.message" in group
    assert set(pp.errors(traces["none"]).query("direction == 'backward'")["block"]) == {"model"}


def test_outputs_are_the_same_to_the_last_bit_in_every_mode(traces):
    for precision in ("float64", "float16"):
        groups = [traces[mode].group("propagated", precision) for mode in ("per_block", "shared", "none")]
        outputs = [name for name, array in groups[0].items() if array.attrs.get("direction") == "forward"]
        assert len(outputs) > 8
        for name in outputs:
            for other in groups[1:]:
                np.testing.assert_array_equal(other[name], groups[0][name])


def test_the_trace_says_which(traces):
    assert {name: trace.attributes["gradients"] for name, trace in traces.items()} == {
        "per_block": "per_block",
        "shared": "shared",
        "none": "none",
        "true": "per_block",
    }
