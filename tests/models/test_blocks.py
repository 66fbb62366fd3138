"""blocks.py: which modules are blocks, how patterns choose them, and what enters and leaves them, in which layout."""

import fnmatch

import ase
import numpy as np
import pytest
import torch
from e3nn import o3
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import rel_l2, trace_of

import precision_probe as pp
from precision_probe.exceptions import InputError
from precision_probe.models.blocks import Block, Port, default_blocks, select_blocks
from precision_probe.models.building import build
from precision_probe.models.evaluation import interaction_energy
from precision_probe.models.graphs import build_graph
from precision_probe.variants.hooks import capture, gradients

EMBEDDINGS = ["node_embedding", "radial_embedding", "spherical_harmonics"]
LAYERS = ["interactions.0", "products.0", "interactions.1", "products.1"]
SUMMING = ["scale_shift", "atomic_energies_fn"]
TWO_LAYERS = [*EMBEDDINGS, *LAYERS, "readouts.0", "readouts.1", *SUMMING]


def names(blocks):
    return [block.name for block in blocks]


def run(model, blocks, atoms):
    """The calls of blocks in one evaluation, and the gradients with respect to their inputs."""
    graph = build_graph(atoms, model)
    with capture(model, blocks) as calls:
        energy = interaction_energy(model({k: v.clone() for k, v in graph.data.items()}, compute_force=False))
        return graph, calls, gradients(calls, [(energy, torch.ones_like(energy))])


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_default_blocks_in_the_order_in_which_they_run(model, config, water, n_layers):
    if n_layers != config["num_interactions"]:
        model = build(config | {"num_interactions": n_layers})
    blocks = default_blocks(model)
    layered = [f"{family}.{layer}" for layer in range(n_layers) for family in ("interactions", "products")]
    readouts = [f"readouts.{layer}" for layer in range(n_layers)]
    assert names(blocks) == [*EMBEDDINGS, *layered, *readouts, *SUMMING]
    _, calls, _ = run(model, blocks, water)
    ran = [call.block.name for call in calls]
    order = {name: place for place, name in enumerate(names(blocks))}
    assert sorted(ran, key=order.get) == names(blocks)
    assert ran[0] == "atomic_energies_fn"  # MACE asks for them first, and adds them last
    assert [name for name in ran[1:] if name not in EMBEDDINGS] == [*layered, *readouts, "scale_shift"]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"pair_repulsion": True}, {"pair_repulsion_fn"}),
        ({"model": "MACE"}, set()),
        ({"model": "PolarMACE"}, {"lr_source_maps.0", "field_dependent_charges_maps.0", "local_electron_energy"}),
    ],
)
def test_every_part_that_computes_is_a_block_or_belongs_to_one(config, options, parts):
    if options.get("model") == "PolarMACE":
        pytest.importorskip("graph_longrange")
    model = build(config | options)
    blocks = names(default_blocks(model))
    assert parts <= set(blocks)
    parts_of_none = {"layer_feature_mixer", "coulomb_energy", "electric_potential_descriptor"}  # no hook can follow
    with_weights = {name.rpartition(".")[0] for name, _ in (*model.named_parameters(), *model.named_buffers())} - {""}
    left = {each for each in with_weights if not any(f"{each}.".startswith(f"{block}.") for block in blocks)}
    assert {each.split(".")[0] for each in left} <= parts_of_none


def shell(n_layers, attributes):
    """A module with the attributes of a MACE, in any order, and nothing in them; and more that are no blocks."""
    module = torch.nn.Module()
    for name in attributes:
        is_list = name in ("interactions", "products", "readouts")
        part = torch.nn.ModuleList(torch.nn.Identity() for _ in range(n_layers)) if is_list else torch.nn.Identity()
        module.add_module(name, part)
    for layer in range(n_layers):
        module.interactions[layer].add_module("node_embedding", torch.nn.Identity())
        module.products[layer].add_module("readouts", torch.nn.ModuleList([torch.nn.Identity()]))
    return module


@given(
    n_layers=st.integers(0, 12),
    attributes=st.permutations([*EMBEDDINGS, "interactions", "products", "readouts", "scale_shift", "field"]),
)
@settings(deadline=None)
def test_default_order_is_that_of_stages_and_layers_whatever_the_models_own_is(n_layers, attributes):
    expected = ["node_embedding", "radial_embedding", "spherical_harmonics"]
    for layer in range(n_layers):
        expected += [f"interactions.{layer}", f"products.{layer}"]
    expected += [*(f"readouts.{layer}" for layer in range(n_layers)), "field", "scale_shift"]
    assert names(default_blocks(shell(n_layers, attributes))) == expected


def test_what_a_model_lacks_is_left_out():
    attributes = ["products", "spherical_harmonics", "interactions"]
    assert names(default_blocks(shell(2, attributes))) == ["spherical_harmonics", *LAYERS]
    assert default_blocks(torch.nn.Linear(1, 1)) == []


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
def test_irreps_and_rows_fit_what_is_recorded(model, config, water, options):
    model = build(config | options) if options else model
    graph, calls, grads = run(model, default_blocks(model), water)
    rows = {"atom": graph.n_atoms, "edge": graph.n_edges}
    checked = 0
    for call, grad in zip(calls, grads, strict=True):
        assert call.outputs
        assert grad.keys() == call.inputs.keys()
        assert grad
        for port, tensor in [*call.outputs.items(), *grad.items()]:
            where = f"{call.block.name} {port.name}"
            assert len(tensor) == rows[port.rows], where
            if tensor.ndim == 1:  # a number for each atom
                assert port.irreps is None, where
                continue
            assert port.irreps is not None, where
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
        ("!readouts.*", [*EMBEDDINGS, *LAYERS, *SUMMING]),
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

    def named(returned, outputs=()):
        block = Block("any", outputs=outputs)
        return {port.name: tensor for port, tensor in block.output_tensors(returned).items()}

    assert named(a) == {"output": a}
    assert named((a,)) == {"output": a}
    assert list(named((a, b))) == ["output0", "output1"]
    assert named((a, None)) == {"output0": a}
    assert named({"x": a, "y": whole, "z": None}) == {"x": a}
    assert named((whole,)) == {}
    assert list(named((a, None), (Port("message"), Port("skip")))) == ["message"]


def test_inputs_of_other_modules_go_by_their_parameters():
    arguments = {"x": torch.zeros(1), "index": torch.zeros(1, dtype=torch.int64), "flag": True, "y": torch.ones(1)}
    assert Block("any").input_ports(arguments) == {"x": Port("x"), "y": Port("y")}
    assert Block("any", {"y": Port("why"), "z": Port("z")}).input_ports(arguments) == {"y": Port("why")}


# the layout


IRREPS = st.lists(
    st.tuples(st.integers(1, 5), st.integers(0, 3), st.sampled_from([-1, 1])), min_size=1, max_size=5
).map(lambda parts: o3.Irreps([(mul, (order, parity)) for mul, order, parity in parts]))


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def ir_mul(values, irreps):
    """e3nn's layout, channels before components, turned round irrep by irrep."""
    turned = np.empty_like(values)
    for (mul, ir), at in zip(irreps, irreps.slices(), strict=True):
        for channel in range(mul):
            for component in range(ir.dim):
                turned[:, at.start + component * mul + channel] = values[:, at.start + channel * ir.dim + component]
    return turned


@given(irreps=IRREPS, seed=st.integers(0, 10**6), rows=st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_flat_features_are_turned_round(irreps, seed, rows):
    values = numbers(seed, rows, irreps.dim)
    turned_back = Port("x", irreps=irreps, layout="ir_mul").to_mul_ir(torch.from_numpy(ir_mul(values, irreps)))
    np.testing.assert_array_equal(turned_back, values)
    given_in_e3nn = torch.from_numpy(values)
    assert Port("x", irreps=irreps).to_mul_ir(given_in_e3nn) is given_in_e3nn


@given(irreps=IRREPS, seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_flat_features_are_turned_round_as_cuequivariance_does(irreps, seed):
    cuet = pytest.importorskip("cuequivariance_torch")
    import cuequivariance as cue
    from mace.tools.cg import O3_e3nn

    transpose = cuet.TransposeIrrepsLayout(
        cue.Irreps(O3_e3nn, str(irreps)), source=cue.ir_mul, target=cue.mul_ir, use_fallback=True
    )
    x = torch.from_numpy(numbers(seed, 3, irreps.dim))
    assert torch.equal(Port("x", irreps=irreps, layout="ir_mul").to_mul_ir(x), transpose(x))


@given(mul=st.integers(1, 5), lmax=st.integers(0, 3), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_channels_and_components_are_turned_round(mul, lmax, seed):
    irreps = o3.Irreps.spherical_harmonics(lmax) * mul
    values = numbers(seed, 4, mul, (lmax + 1) ** 2)
    turned = torch.from_numpy(np.moveaxis(values, 1, 2).copy())
    np.testing.assert_array_equal(Port("x", irreps=irreps, layout="ir_mul").to_mul_ir(turned), values)


def test_what_the_irreps_do_not_describe_is_left_alone():
    x = torch.ones(2, 5)
    assert Port("x", irreps=o3.Irreps("2x1o"), layout="ir_mul").to_mul_ir(x) is x
    assert Port("x", layout="ir_mul").to_mul_ir(x) is x


# blocks inside those of MACE, of a model in each layout


CRYSTAL = ase.Atoms("CO", [(0, 0, 0), (0.1, 0.2, 1.2)], cell=[2.6, 2.9, 3.1], pbc=True)
DEEP = ["interactions.1.linear_up", "interactions.1.skip_tp", "interactions.1.reshape", "products.0.linear"]
CONTRACTION = "products.0.symmetric_contractions"


@pytest.fixture(scope="module")
def deep(model, converted):
    return [
        trace_of(network, CRYSTAL, precisions="float32", modes="propagated", blocks=[*DEEP, CONTRACTION])
        for network in (model, converted)
    ]


def recorded(traces, block, direction):
    """The first array of a block in one direction, of each trace."""
    return [
        next(
            array
            for array in trace.group("propagated", "float64").values()
            if (array.attrs.get("block"), array.attrs.get("direction")) == (block, direction)
        )
        for trace in traces
    ]


@pytest.mark.parametrize("block", [DEEP[0], DEEP[1], DEEP[3], CONTRACTION])
def test_outputs_of_deeper_blocks_are_in_the_same_layout(deep, block):
    a, b = recorded(deep, block, "forward")
    assert a.attrs.get("irreps") == b.attrs.get("irreps")
    assert rel_l2(a, b) < 1e-12


def test_deeper_inputs_in_another_layout_are_left_out_and_named(deep):
    table = pp.compare_traces(*deep)
    assert table["equivalent"].all()
    in_both = [array.name.removesuffix(".grad") for array in recorded(deep, DEEP[2], "backward")]
    assert in_both[0] == in_both[1]
    assert in_both[0] in table.attrs["left_out"]
    assert not any(name.startswith(DEEP[3]) and name.endswith(".output") for name in table.attrs["left_out"])
