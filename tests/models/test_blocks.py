"""blocks.py: which modules are blocks, how patterns choose them, and the irreps of what enters and leaves them."""

import fnmatch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_probe.exceptions import InputError
from precision_probe.models.blocks import Block, Port, default_blocks, select_blocks
from precision_probe.models.building import build
from precision_probe.models.evaluation import interaction_energy
from precision_probe.models.graphs import build_graph
from precision_probe.variants.hooks import capture, gradients

EMBEDDINGS = ["node_embedding", "radial_embedding", "spherical_harmonics"]
LAYERS = ["interactions.0", "products.0", "interactions.1", "products.1"]
TWO_LAYERS = [*EMBEDDINGS, *LAYERS, "readouts.0", "readouts.1"]


def names(blocks):
    return [block.name for block in blocks]


def run(model, blocks, atoms):
    """The calls of blocks in one evaluation, and the gradients with respect to their inputs."""
    graph = build_graph(atoms, model)
    with capture(model, blocks) as calls:
        energy = interaction_energy(model({k: v.clone() for k, v in graph.data.items()}, compute_force=False))
        return graph, calls, gradients(calls, [(energy, torch.ones_like(energy))])


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_default_blocks_in_the_order_in_which_they_run(config, water, n_layers):
    model = build(config | {"num_interactions": n_layers})
    blocks = default_blocks(model)
    layered = [f"{family}.{layer}" for layer in range(n_layers) for family in ("interactions", "products")]
    assert names(blocks) == [*EMBEDDINGS, *layered, *(f"readouts.{layer}" for layer in range(n_layers))]
    _, calls, _ = run(model, blocks, water)
    ran = [call.block.name for call in calls]
    order = {name: place for place, name in enumerate(names(blocks))}
    assert sorted(ran, key=order.get) == names(blocks)
    assert [name for name in ran if name not in EMBEDDINGS] == [*layered, *names(blocks)[3 + 2 * n_layers :]]


# every tensor's irreps and rows


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_ell": 3, "hidden_irreps": "3x0e + 3x1o + 3x2e"},
        {"num_interactions": 3, "num_bessel": 5},
        {"interaction_cls_first": "RealAgnosticInteractionBlock", "gate": None},
        {
            "interaction_cls_first": "RealAgnosticResidualNonLinearInteractionBlock",
            "interaction_cls": "RealAgnosticResidualNonLinearInteractionBlock",
            "apply_cutoff": False,
        },
        {"model": "MACE", "interaction_cls": "RealAgnosticDensityInteractionBlock"},
        {
            "heads": ["a", "b"],
            "atomic_energies": [[-1.0, -2.0, -3.0]] * 2,
            "atomic_inter_scale": [1.0, 2.0],
            "atomic_inter_shift": [0.0, 1.0],
        },
    ],
    ids=["small", "l=3", "three layers", "no skip", "nonlinear", "density", "two heads"],
)
def test_irreps_and_rows_fit_what_is_recorded(config, water, options):
    model = build(config | options)
    graph, calls, grads = run(model, default_blocks(model), water)
    rows = {"atom": graph.n_atoms, "edge": graph.n_edges}
    checked = 0
    for call, grad in zip(calls, grads, strict=True):
        assert call.outputs
        assert grad.keys() == call.inputs.keys()
        assert grad
        for port, tensor in [*call.outputs.items(), *grad.items()]:
            where = f"{call.block.name} {port.name}"
            assert port.irreps is not None, where
            assert len(tensor) == rows[port.rows], where
            per_channel = tensor.ndim == 3
            if per_channel:
                (channels,) = {mul for mul, _ in port.irreps}
                assert tensor.shape[1] == channels, where
            assert tensor.shape[-1] == (sum(ir.dim for _, ir in port.irreps) if per_channel else port.irreps.dim), where
            checked += 1
    assert checked > 2 * len(calls)


def test_ports_are_named_as_in_the_trace(model):
    blocks = {block.name: block for block in default_blocks(model)}
    outputs = {name: [port.name for port in block.outputs] for name, block in blocks.items()}
    inputs = {name: [port.name for port in block.inputs.values()] for name, block in blocks.items()}
    assert outputs["interactions.1"] == ["message", "skip"]
    assert outputs["radial_embedding"] == ["edge_feats", "cutoff"]
    assert outputs["spherical_harmonics"] == ["edge_attrs"]
    assert outputs["products.0"] == outputs["readouts.1"] == outputs["node_embedding"] == ["output"]
    assert inputs["interactions.0"][:3] == ["node_feats", "edge_attrs", "edge_feats"]
    assert inputs["products.0"] == ["node_feats", "skip"]
    assert inputs["readouts.0"] == ["node_feats"]


# patterns


def test_default_is_what_no_pattern_selects(model):
    assert select_blocks(model, None) == default_blocks(model)
    assert names(select_blocks(model, TWO_LAYERS)) == TWO_LAYERS


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("interactions.*", ["interactions.0", "interactions.1"]),
        ("*.1", ["interactions.1", "products.1", "readouts.1"]),
        ("interactions.[0]", ["interactions.0"]),
        ("*_embedding", ["node_embedding", "radial_embedding"]),
        (["readouts.1", "node_embedding", "products.*"], ["node_embedding", "products.0", "products.1", "readouts.1"]),
        (["readouts.1", "readouts.*"], ["readouts.0", "readouts.1"]),
        ("interactions.?.conv_tp", ["interactions.0.conv_tp", "interactions.1.conv_tp"]),
        ("readouts.*.linear*", ["readouts.0.linear", "readouts.1.linear_1", "readouts.1.linear_2"]),
        (
            ["interactions.0.linear_up", "interactions.1"],
            ["interactions.1", "interactions.0.linear_up"],
        ),
        ("!readouts.*", TWO_LAYERS[:-2]),
        (["!*.1", "*s.*", "!interactions.0"], ["products.0", "readouts.0"]),
    ],
)
def test_patterns(model, patterns, expected):
    assert names(select_blocks(model, patterns)) == expected


@given(pattern=st.lists(st.sampled_from(["*", "?", "0", "[01]", "i*s", "*s", "skip_tp", "linear*", "*_*"]), max_size=3))
@settings(deadline=None)
def test_a_star_stays_between_two_dots(model, pattern):
    pattern = ".".join(pattern)
    eager = [
        name
        for name, module in model.named_modules()
        if name and not isinstance(module, torch.jit.ScriptModule | torch.nn.ModuleList)
    ]
    expected = {
        name
        for name in eager
        if name.count(".") == pattern.count(".") and all(map(fnmatch.fnmatchcase, name.split("."), pattern.split(".")))
    }
    if expected:
        assert set(names(select_blocks(model, pattern))) == expected
    else:
        with pytest.raises(InputError):
            select_blocks(model, pattern)


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [("interaction.0", "interactions.0"), ("node_embeding", "node_embedding"), ("Products.1", "products.1")],
)
def test_no_match_lists_the_blocks_and_the_nearest(model, pattern, nearest):
    with pytest.raises(InputError) as caught:
        select_blocks(model, ["interactions.0", pattern])
    message = str(caught.value)
    assert f"No block matches {pattern!r}. Did you mean {nearest!r}?" in message
    assert ", ".join(TWO_LAYERS) in message


def test_no_match_and_nothing_near(model):
    with pytest.raises(InputError) as caught:
        select_blocks(model, "zzz")
    assert "Did you mean" not in str(caught.value)
    assert ", ".join(TWO_LAYERS) in str(caught.value)


def test_scripted_children_are_refused_and_their_parent_is_named(model):
    modules = dict(model.named_modules())
    scripted = [name for name, module in modules.items() if isinstance(module, torch.jit.ScriptModule)]
    assert len(scripted) > 10
    for name in scripted:
        with pytest.raises(InputError, match="TorchScript") as caught:
            select_blocks(model, name)
        parent = str(caught.value).rstrip(".").rsplit(" ", 1)[1]
        assert name.startswith(f"{parent}.")
        assert not isinstance(modules[parent], torch.jit.ScriptModule)
        assert names(select_blocks(model, parent)) == [parent]


@pytest.mark.parametrize("name", ["interactions", "products.0.symmetric_contractions.contractions"])
def test_containers_are_refused_and_another_block_is_named(model, name):
    with pytest.raises(InputError) as caught:
        select_blocks(model, name)
    nearest = str(caught.value).rstrip(".").rsplit(" ", 1)[1]
    assert nearest != name
    assert names(select_blocks(model, nearest))


def test_lists_of_parameters_are_refused(model):
    with pytest.raises(InputError):
        select_blocks(model, "products.0.symmetric_contractions.contractions.0.weights")


def test_every_pattern_must_match(model):
    with pytest.raises(InputError, match=r"readouts\.7"):
        select_blocks(model, ["readouts.*", "readouts.7"])
    with pytest.raises(InputError, match=r"No block matches 'readouts\.7'"):
        select_blocks(model, ["readouts.*", "!readouts.7"])
    with pytest.raises(InputError, match="leave no block"):
        select_blocks(model, ["readouts.*", "!readouts.?"])


# blocks that are not MACE's own


def test_outputs_of_any_kind_are_found():
    a, b, whole = torch.zeros(2), torch.ones(3), torch.ones(2, dtype=torch.int64)

    def found(returned, outputs=()):
        block = Block("any", outputs=outputs)
        return {port.name: tensor for port, tensor in block.output_tensors(returned).items()}

    assert found(a) == {"output": a}
    assert found((a,)) == {"output": a}
    assert list(found((a, b))) == ["output0", "output1"]
    assert found((a, None)) == {"output0": a}
    assert found({"x": a, "y": whole, "z": None}) == {"x": a}
    assert found((whole,)) == {}
    assert list(found((a, None), (Port("message"), Port("skip")))) == ["message"]


def test_inputs_of_other_modules_go_by_their_parameters():
    arguments = {"x": torch.zeros(1), "index": torch.zeros(1, dtype=torch.int64), "flag": True, "y": torch.ones(1)}
    assert Block("any").input_ports(arguments) == {"x": Port("x"), "y": Port("y")}
    assert Block("any", {"y": Port("why"), "z": Port("z")}).input_ports(arguments) == {"y": Port("why")}
