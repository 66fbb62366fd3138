"""comparison.py: what two correct runs may differ by, and that what rounding does not explain is found where it is."""

import copy
import json
import re
from functools import partial

import ase
import numpy as np
import pytest
import torch
from mace.tools.scripts_utils import remove_pt_head
from runs import rel_l2 as distance
from runs import trace_of

import precision_probe as pp
from precision_probe.analysis import comparison
from precision_probe.analysis.comparison import first_difference, provenance_differences
from precision_probe.analysis.metrics import rel_l2
from precision_probe.models import targets
from precision_probe.models.building import build
from precision_probe.models.dtypes import default_dtype
from precision_probe.trace.trace import Trace

STRUCTURES = [
    ase.Atoms("OHH", [(0.02, 0.0, 0.11), (0.0, 0.78, -0.48), (0.05, -0.75, -0.45)], info={"name": "water"}),
    ase.Atoms("CO", [(0, 0, 0), (0.1, 0.2, 1.2)], cell=[2.6, 2.9, 3.1], pbc=True, info={"name": "crystal"}),
]
EDGE_TENSORS = ("edge_attrs", "edge_feats", "edge_lengths", "vectors")
WITHIN = 1e4 * 2.0**-53  # what the README calls equivalent in float64


record = partial(trace_of, structures=STRUCTURES)


def edited(trace, group, **changes):
    """A copy of a trace with variables of one group changed: ``name=function``, dots in names as double underscores."""
    tree = trace.tree.copy(deep=True)
    for name, change in changes.items():
        name = name.replace("__", ".")
        variables = tree[group].to_dataset(inherit=False)
        variables[name] = variables[name].copy(data=change(variables[name].values.copy()))
        tree[group].dataset = variables
    return Trace(tree)


def with_attributes(trace, **changes):
    """A copy of a trace whose root says something else."""
    tree = trace.tree.copy(deep=True)
    for name, value in changes.items():
        tree.attrs[name] = value if isinstance(value, str) else json.dumps(value)
    return Trace(tree)


def different(table):
    return table[~table["equivalent"]]


def permuting(build_graph, seed=0):
    """The same, with the edges in another order."""

    def build_permuted(*args):
        graph = build_graph(*args)
        order = torch.randperm(graph.n_edges, generator=torch.Generator().manual_seed(seed))
        graph.data["edge_index"] = graph.data["edge_index"][:, order]
        for name in ("shifts", "unit_shifts"):
            graph.data[name] = graph.data[name][order]
        return graph

    return build_permuted


@pytest.fixture(scope="module")
def base(model):
    return record(model, precisions="float32,float16")


@pytest.fixture(scope="module")
def few(model):
    """A trace of few blocks, to be edited."""
    return record(model, precisions="float16", blocks=["spherical_harmonics", "products.0"])


@pytest.fixture(scope="module")
def permuted(model):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "build_graph", permuting(targets.build_graph))
        return record(model, precisions="float32,float16")


@pytest.fixture(scope="module")
def broken_model(model):
    """The model with one weight of its second interaction changed by 1 %."""
    network = copy.deepcopy(model)
    with torch.no_grad():
        network.interactions[1].linear.weight.mul_(1.01)
    return network


@pytest.fixture(scope="module")
def broken(broken_model):
    return record(broken_model, precisions="float64", modes="propagated")


# what is the same


def test_identical_traces_are_equivalent_without_any_difference(base):
    table = pp.compare_traces(base, base)
    assert table["equivalent"].all()
    judged = table[table["allowed"].notna()]
    assert (judged["difference"] == 0).all()
    assert (judged["max_abs"] == 0).all()
    assert first_difference(table) is None
    assert table.attrs["left_out"] == {}
    errors = pp.errors(base)
    assert len(table) == len(errors) // 2 * 3  # float64 too
    assert set(table["precision"]) == {"float64", "float32", "float16"}
    assert table["precision"].unique().tolist() == ["float64", "float32", "float16"]


def test_columns_are_what_they_say(base, permuted):
    table = pp.compare_traces(base, permuted).set_index(["precision", "mode", "block", "tensor", "direction"])
    row = table.loc["float32", "propagated", "products.1", "output", "forward"]
    exact, ours = (base.group("propagated", p)["products.1.output"].values for p in ("float64", "float32"))
    theirs = permuted.group("propagated", "float32")["products.1.output"].values

    def norm_of(y, y_hat):
        return np.linalg.norm(y_hat.astype(float) - y) / np.linalg.norm(y.astype(float))

    np.testing.assert_allclose(row["difference"], norm_of(ours, theirs), rtol=1e-10)
    np.testing.assert_allclose(row["error_a"], norm_of(exact, ours), rtol=1e-10)
    np.testing.assert_allclose(row["error_b"], norm_of(exact, theirs), rtol=1e-10)
    np.testing.assert_allclose(row["max_abs"], np.abs(theirs.astype(float) - ours).max(), rtol=1e-10)
    judged = table[table["allowed"].notna()]
    usual = judged.xs(("float32", "propagated"), level=["precision", "mode"])["error_a"].median()
    np.testing.assert_allclose(row["allowed"], 10 * max(norm_of(exact, ours), usual), rtol=1e-10)
    assert (judged["allowed"] >= 10 * judged["error_a"]).all()
    assert row["n"] == exact.size
    assert table.loc["float64", "propagated", "products.1", "output", "forward"]["allowed"] == WITHIN


def test_what_is_allowed_is_what_is_said(base, permuted):
    table = pp.compare_traces(base, permuted)
    roundoffs, times = map(float, re.findall(r"\d+(?:e\d+)?", re.sub("float64", "", table.attrs["allowance"])))
    judged = table[table["allowed"].notna()]
    for (precision, _), rows in judged.groupby(["precision", "mode"]):
        own = 0 if precision == "float64" else times * rows["error_a"].clip(lower=rows["error_a"].median())
        np.testing.assert_allclose(rows["allowed"], np.maximum(own, roundoffs * 2.0**-53), rtol=1e-12)
    assert set(judged["precision"]) == {"float64", "float32", "float16"}
    assert roundoffs * 2.0**-53 == WITHIN


def test_edges_in_another_order_are_brought_into_the_same(base, permuted):
    vectors = [
        trace.group("propagated", "float64")["spherical_harmonics.edge_attrs"].values for trace in (base, permuted)
    ]
    assert rel_l2(*vectors) > 0.1
    table = pp.compare_traces(base, permuted)
    assert different(table).empty
    edges = table[table["tensor"].isin(EDGE_TENSORS) & (table["precision"] == "float64")]
    assert set(edges["tensor"]) == set(EDGE_TENSORS)
    assert edges[edges["allowed"].notna()]["difference"].max() < 1e-13


def test_without_that_they_would_differ(base, permuted, monkeypatch):
    n_edges = base.structures.sizes["edge"]
    monkeypatch.setattr(comparison, "_edge_order", lambda *_: np.arange(n_edges))
    table = pp.compare_traces(base, permuted)
    assert set(different(table)["tensor"]) == set(EDGE_TENSORS)


def test_energies_are_compared_per_atom(base, broken):
    table = pp.compare_traces(base, broken).set_index(["precision", "mode", "tensor"])
    row = table.loc["float64", "propagated", "interaction_energy"]
    ours, theirs = (t.group("propagated", "float64")["interaction_energy"].values for t in (base, broken))
    np.testing.assert_allclose(row["max_abs"], np.abs((theirs - ours) / [3, 2]).max(), rtol=1e-12)
    assert row["units"] == "eV/atom"


# what is not


@pytest.mark.parametrize(
    ("weight", "block"),
    [("node_embedding.linear.weight", "node_embedding"), ("readouts.1.linear_1.weight", "readouts.1")],
)
def test_a_changed_weight_is_found_in_its_block(model, base, weight, block):
    network = copy.deepcopy(model)
    with torch.no_grad():
        network.get_parameter(weight).mul_(1.01)
    table = pp.compare_traces(base, record(network, precisions="float64", modes="propagated"))
    first = first_difference(table)
    assert (first["precision"], first["mode"], first["block"]) == ("float64", "propagated", block)
    assert first["direction"] == "forward"
    assert 1e-3 < first["difference"] < 0.1


def test_a_changed_weight_spares_what_comes_before(base, broken):
    table = pp.compare_traces(base, broken)
    first = first_difference(table)
    assert (first["block"], first["tensor"], first["direction"]) == ("interactions.1", "message", "forward")
    assert first["precision"] == "float64"
    np.testing.assert_allclose(first["difference"], 0.01, rtol=1e-6)  # the message is linear in this weight
    forward = different(table).query("direction == 'forward' and mode == 'propagated' and precision == 'float64'")
    assert set(forward["block"]) == {"interactions.1", "products.1", "readouts.1", "scale_shift", "model"}
    assert not forward["tensor"].eq("skip").any()


class WrongGradient(torch.autograd.Function):
    """The same numbers, 2 % too much gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.02


class Wrapped(torch.nn.Module):
    """A linear layer whose output is changed."""

    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change = inner, change
        self.irreps_in, self.irreps_out = inner.irreps_in, inner.irreps_out

    def forward(self, x):
        return self.change(self.inner(x))


def wrong_in_float32(y):
    return y * 1.01 if y.dtype is torch.float32 else y


def noisy(model, change):
    network = copy.deepcopy(model)
    network.products[0].linear = Wrapped(network.products[0].linear, change)
    return network


@pytest.fixture(scope="module")
def wrong_backward(model, base):
    return pp.compare_traces(base, record(noisy(model, WrongGradient.apply)))


def test_a_wrong_backward_is_found_backward_only(wrong_backward):
    wrong = different(wrong_backward)
    assert set(wrong["direction"]) == {"backward"}
    forward = wrong_backward.query("direction == 'forward' and precision == 'float64'")
    assert forward["difference"].max() == 0
    model_rows = wrong.query("block == 'model' and precision == 'float64'")
    assert set(model_rows["tensor"]) == {"forces", "stress"}


def test_a_wrong_backward_is_found_in_its_block(wrong_backward):
    wrong = different(wrong_backward).query("precision == 'float64'")
    alone = wrong[wrong["mode"] == "isolated"]
    assert set(zip(alone["block"], alone["tensor"], strict=True)) == {("products.0", "node_feats")}
    np.testing.assert_allclose(alone["difference"], 0.02, rtol=1e-6)
    within = set(wrong.loc[wrong["mode"] == "propagated", "block"])
    assert within == {
        "node_embedding",
        "radial_embedding",
        "spherical_harmonics",
        "interactions.0",
        "products.0",
        "model",
    }


def test_the_first_wrong_gradient_is_the_last_blocks(wrong_backward):
    assert first_difference(wrong_backward)["block"] == "products.0"


def test_a_break_in_one_precision_is_found_in_that_one(model, base):
    table = pp.compare_traces(base, record(noisy(model, wrong_in_float32), precisions="float32,float16"))
    assert set(different(table)["precision"]) == {"float32"}
    first = first_difference(table)
    assert (first["block"], first["direction"], first["mode"]) == ("products.0", "forward", "propagated")
    assert first["error_b"] > 1e-3 > first["allowed"] > 10 * first["error_a"] * 0.99


# what is not judged


def test_gradients_that_are_zero_are_not_judged(few):
    name = "spherical_harmonics__vectors__grad"
    noise = edited(few, "/isolated/float64", **{name: lambda y: -7 * y})
    table = pp.compare_traces(few, noise)
    row = table.query("mode == 'isolated' and tensor == 'vectors' and precision == 'float64'").iloc[0]
    assert row["difference"] > 1
    assert np.isnan(row["allowed"])
    assert row["equivalent"]
    assert different(table).empty
    wrong = edited(few, "/propagated/float64", **{name: lambda y: -7 * y})
    assert set(different(pp.compare_traces(few, wrong))["mode"]) == {"propagated"}


def test_gradients_that_are_zero_are_not_judged_in_float64_alone(model):
    options = {"precisions": "float64", "modes": "isolated", "blocks": "spherical_harmonics"}
    only, noise = record(model, **options), record(model, **options)
    noise = edited(noise, "/isolated/float64", spherical_harmonics__vectors__grad=lambda y: -7 * y)
    assert different(pp.compare_traces(only, noise)).empty


def test_an_overflow_in_both_is_no_difference(few):
    name = "products__0__output"

    def overflow(y):
        y[0, 0], y[1, 1] = np.inf, np.nan
        return y

    both = edited(few, "/propagated/float16", **{name: overflow})
    assert different(pp.compare_traces(both, both)).empty
    (row,) = different(pp.compare_traces(few, both)).to_dict("records")
    assert (row["precision"], row["block"], row["tensor"]) == ("float16", "products.0", "output")


def test_an_overflow_in_float64_is_a_difference(few):
    def overflow(y):
        y[0] = np.nan
        return y

    other = edited(few, "/propagated/float64", forces=overflow)
    for a, b in ((few, other), (other, few)):
        table = different(pp.compare_traces(a, b))
        assert set(table.query("precision == 'float64'")["tensor"]) == {"forces"}


def test_other_neighbour_lists_leave_edges_out(config, base):
    wider = build(config | {"r_max": 3.2}, seed=3)
    blocks = ["radial_embedding", "spherical_harmonics", "interactions.0"]
    other = record(wider, precisions="float64", modes="propagated", blocks=blocks)
    assert other.structures.sizes["edge"] != base.structures.sizes["edge"]
    table = pp.compare_traces(base, other)
    assert not set(table["tensor"]) & set(EDGE_TENSORS)
    assert {"forces", "message", "node_feats"} <= set(table["tensor"])


def test_as_many_edges_to_other_images_leave_edges_out(few):
    def elsewhere(image):
        image[-1, 0] += 1
        return image

    table = pp.compare_traces(few, edited(few, "/structures", image=elsewhere))
    assert not set(table["tensor"]) & set(EDGE_TENSORS)
    assert different(table).empty


def test_only_what_both_have_is_compared(model, base):
    less = record(model, precisions="bfloat16,float16", modes="isolated", blocks=["readouts.*", "products.1"])
    for a, b in ((base, less), (less, base)):
        table = pp.compare_traces(a, b)
        assert different(table).empty
        assert table["precision"].unique().tolist() == ["float64", "float16"]
        assert set(table["block"]) == {"model", "products.1", "readouts.0", "readouts.1"}
        assert set(table.query("block != 'model'")["mode"]) == {"isolated"}
        assert set(table.query("block == 'model'")["mode"]) == {"propagated"}


def test_other_ways_to_record_gradients_compare_where_they_are_the_same(model, base):
    table = pp.compare_traces(base, record(model, precisions="float64", modes="propagated", gradients=False))
    assert different(table).empty
    assert set(table.query("direction == 'backward'")["block"]) == {"model"}


# one head of two, and other dtypes to store weights in


@pytest.fixture(scope="module")
def heads(config):
    """A model of two heads, and mace-torch's own copy of it that has the second alone, the same function in float64."""
    energies = [[-1.0, -2.0, -3.0], [-10.0, -20.0, -30.0]]
    scales = {"atomic_inter_scale": [1.0, 2.0], "atomic_inter_shift": [0.0, 0.1]}
    two = build(config | {"heads": ["pt_head", "Default"], "atomic_energies": energies} | scales, seed=1)
    with default_dtype(torch.float64):
        return two, remove_pt_head(two, "Default")


ONE_OF_TWO = {
    **{f"{block}.output": "shapes differ" for block in ("readouts.0", "readouts.1", "atomic_energies_fn")},
    "readouts.0.node_feats, isolated gradient": "gradients of outputs that differ in shape",
    "readouts.1.node_feats, isolated gradient": "gradients of outputs that differ in shape",
    "atomic_energies_fn.node_attrs, isolated gradient": "gradients of outputs that differ in shape",
}


def test_a_head_alone_is_the_same_function_but_for_what_counts_heads(heads):
    """The squares of both heads' outputs are no other way to compute those of one."""
    two, one = map(record, heads)
    table = pp.compare_traces(two, one)
    assert different(table).empty
    assert table.attrs["left_out"] == ONE_OF_TWO
    kept = set(zip(table["mode"], table["block"], table["tensor"], strict=True))
    assert ("propagated", "readouts.0", "node_feats") in kept
    assert ("isolated", "readouts.0", "node_feats") not in kept
    exact = table.query("precision == 'float64' and allowed == allowed")
    assert set(exact["allowed"]) == {WITHIN}


def test_a_wrong_gradient_in_the_other_head_is_still_found(heads):
    two, one = heads
    assert (
        different(pp.compare_traces(record(two), record(noisy(one, WrongGradient.apply))))
        .query("mode == 'isolated' and block == 'products.0'")["tensor"]
        .tolist()
        == ["node_feats"] * 2
    )


def test_weights_stored_in_float32_are_allowed_their_rounding(model):
    """How far that moves forces is told by NumPy; a weight that is one in a thousand off is seen all the same."""
    narrow = copy.deepcopy(model).float()
    a, b = record(model), record(narrow)
    for table in (pp.compare_traces(a, b), pp.compare_traces(b, a)):
        assert different(table).empty
        assert "1000 unit roundoffs of float32, which one model's weights are stored in" in table.attrs["allowance"]
        judged = table.query("precision == 'float64' and allowed == allowed")
        assert set(judged["allowed"]) == {1e3 * 2.0**-24}
        (row,) = judged.query("tensor == 'forces'").to_dict("records")
        forces = [trace.group("propagated", "float64")["forces"].values for trace in (a, b)]
        assert row["difference"] == pytest.approx(distance(*forces), rel=1e-6)
        assert WITHIN < row["difference"] < row["allowed"]
    with torch.no_grad():
        narrow.node_embedding.linear.weight.mul_(1.001)
    assert first_difference(pp.compare_traces(a, record(narrow)))["block"] == "node_embedding"


def test_the_same_weights_stored_alike_are_allowed_no_more(model):
    traces = [record(copy.deepcopy(model).float(), precisions="float64", modes="propagated") for _ in range(2)]
    table = pp.compare_traces(*traces)
    assert set(table["allowed"].dropna()) == {WITHIN}
    assert "stored" not in table.attrs["allowance"]


# what cannot be compared


def test_other_structures_are_refused(few):
    moved = edited(few, "/structures", positions=lambda x: x + 1e-3)
    with pytest.raises(pp.InputError, match="different structures"):
        pp.compare_traces(few, moved)
    nearly = edited(few, "/structures", positions=lambda x: x + 1e-7)
    assert not different(pp.compare_traces(few, nearly)).size
    swapped = edited(few, "/structures", atomic_numbers=lambda z: z[::-1])
    with pytest.raises(pp.InputError, match="different structures"):
        pp.compare_traces(few, swapped)


def test_fewer_structures_are_refused(model, few):
    fewer = record(model, structures=STRUCTURES[:1], modes="isolated", blocks="readouts.*")
    with pytest.raises(pp.InputError, match="are of 2 and 1 structures"):
        pp.compare_traces(few, fewer)
    again = record(model, structures=[STRUCTURES[0], STRUCTURES[0]], modes="isolated", blocks="readouts.*")
    with pytest.raises(pp.InputError, match="different structures"):
        pp.compare_traces(few, again)


def test_a_modules_inputs_are_not_atoms(few):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    inputs = [torch.ones(3, 2), torch.zeros(1, 2)]
    of_module = trace_of(module, inputs, call=lambda m, x: m(x), blocks="*")
    assert pp.compare_traces(of_module, of_module)["equivalent"].all()
    for a, b in ((few, of_module), (of_module, few)):
        with pytest.raises(pp.InputError, match="module's inputs"):
            pp.compare_traces(a, b)


# provenance


def test_only_what_differs_is_listed(few):
    assert provenance_differences(few, few).empty
    versions = few.attributes["versions"] | {"torch": "0.0.1"}
    other = with_attributes(few, versions=versions, created="yesterday")
    table = provenance_differences(few, other)
    assert table.index.tolist() == ["versions.torch"]
    assert table.loc["versions.torch"].tolist() == [str(torch.__version__), "0.0.1"]


def test_a_package_that_one_lacks_and_other_blocks_are_listed(few):
    versions = {name: version for name, version in few.attributes["versions"].items() if name != "ase"}
    table = provenance_differences(few, with_attributes(few, versions=versions, blocks=["readouts.0"]))
    assert table.index.tolist() == ["versions.ase", "blocks"]
    assert table.loc["versions.ase", "b"] == ""
    assert table.loc["blocks", "b"] == "readouts.0"


def test_other_weights_have_another_hash(base, broken):
    table = provenance_differences(base, broken)
    assert "model_sha256" in table.index
    assert set(table.index) <= {"model_sha256", "precisions", "math_dtypes.float32", "math_dtypes.float16", "modes"}
