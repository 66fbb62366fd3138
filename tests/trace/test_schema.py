"""Whether a trace is as the schema says: what is missing or otherwise is named."""

import json

import numpy as np
import pytest
import xarray as xr
from traces_by_hand import trace_by_hand, variable

import precision_probe as pp
from precision_probe.trace.schema import BrokenError, check_schema
from precision_probe.trace.trace import Trace


def problem(groups=None, changed=None, **attributes):
    """What is said of the trace with other groups (None: without one), or one changed by a function."""
    trace = trace_by_hand(**attributes)
    tree = {node.path: node.to_dataset(inherit=False) for node in trace.tree.subtree}
    for path, dataset in (groups or {}).items():
        tree.pop(path)
        tree |= {} if dataset is None else {path: dataset}
    for path, change in (changed or {}).items():
        tree[path] = change(tree[path])
    trace = Trace(xr.DataTree.from_dict(tree))
    with pytest.raises(BrokenError) as said:
        check_schema(trace.tree, trace.attributes)
    return str(said.value)


def with_attribute(name, key, value):
    def change(dataset):
        dataset = dataset.copy()
        dataset[name].attrs[key] = value
        return dataset

    return change


def test_a_trace_passes():
    trace = trace_by_hand()
    check_schema(trace.tree, trace.attributes)


def test_a_trace_of_nothing_passes():
    attributes = {"precisions": ["float64"], "modes": ["propagated"], "blocks": []}
    check_schema(xr.DataTree.from_dict({"/": xr.Dataset(), "/structures": xr.Dataset()}), attributes)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/structures", "n_atoms"),
        ("/structures", "positions"),
        ("/structures", "name"),
        ("/propagated/float16", "forces"),
        ("/propagated/float64", "energy"),
        ("/isolated/float16", "products.0.output"),
        ("/tables/digits", "precision"),
    ],
)
def test_a_missing_variable_is_named(path, name):
    assert problem(changed={path: lambda dataset: dataset.drop_vars(name)}) == f"{path}/{name} is missing"


@pytest.mark.parametrize("group", ["propagated/float16", "isolated/float64", "isolated/float16", "structures"])
def test_a_missing_group_is_named(group):
    assert problem({f"/{group}": None}) == f"the group {group} is missing"


def test_missing_irreps_are_named():
    said = problem(changed={"/": lambda dataset: dataset.drop_vars("products.0.feature")})
    assert said.startswith("/products.0.feature, the irreps of /propagated/float64/products.0.output, is missing")


def test_groups_that_would_be_passed_over_are_refused():
    def extended(path):
        tree = {node.path: node.to_dataset(inherit=False) for node in trace_by_hand().tree.subtree}
        tree[path] = xr.Dataset({"x": variable("x.row", np.zeros(2))})
        trace = Trace(xr.DataTree.from_dict(tree))
        with pytest.raises(BrokenError) as said:
            check_schema(trace.tree, trace.attributes)
        return str(said.value)

    for path in ("/propagated/bfloat16", "/propagated/float64/more", "/structures/more", "/tables/digits/more"):
        assert extended(path) == f"the group {path} is not one of a precision that the trace names"
    assert extended("/propogated") == "the group propogated is none that a trace has"
    assert problem(modes='["propagated"]') == "the attribute modes leaves the group isolated out"


def rows(n):
    """Forces of so many atoms."""
    return lambda dataset: (
        dataset.drop_vars("forces").drop_dims("atom").assign(forces=variable(("atom", "xyz"), np.zeros((n, 3)), "eV/Å"))
    )


def test_rows_are_as_many_as_there_are_atoms():
    changed = {f"/propagated/{name}": rows(2) for name in ("float64", "float16")}
    assert problem(changed=changed) == "/propagated/float64/forces has 2 rows, and there are 3 atoms"


def test_counts_agree():
    def change(dataset):
        return dataset.assign(n_atoms=variable("structure", np.array([2, 2])))

    assert problem(changed={"/structures": change}) == "/structures/n_atoms counts 4 atoms, and there are 3"


def test_shapes_agree_with_the_reference():
    def change(dataset):
        return dataset.drop_vars("products.0.skip.grad").assign(
            {"products.0.skip.grad": variable(("atom", "products.0.skip.feature.x"), np.zeros((3, 2)))}
        )

    said = problem(changed={"/isolated/float16": change})
    assert said.startswith("/isolated/float16/products.0.skip.grad has the shape (3, 2) along ")


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("forces", "units", "meV/Å", "the attribute units of /propagated/float16/forces is another than float64's"),
        ("forces", "units", 3, "/propagated/float16/forces has no attribute units"),
        ("forces", "scale_factor", 2.0, "/propagated/float16/forces has an attribute that changes its numbers"),
        (
            "products.0.output",
            "direction",
            "sideways",
            "the attribute direction of /propagated/float16/products.0.output",
        ),
        ("products.0.output", "tensor", "skip", "the attribute tensor of /propagated/float16/products.0.output"),
    ],
)
def test_attributes_of_variables(name, key, value, words):
    assert problem(changed={"/propagated/float16": with_attribute(name, key, value)}).startswith(words)


def test_a_variable_is_what_its_name_says():
    change = with_attribute("products.0.output", "tensor", "skip")
    changed = {f"/{mode}/{name}": change for mode in ("propagated", "isolated") for name in ("float64", "float16")}
    said = problem(changed=changed)
    assert said == "/propagated/float64/products.0.output says that it is skip of products.0, forward"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("precisions", '["float16"]'),
        ("precisions", "float64"),
        ("precisions", "[]"),
        ("precisions", "null"),
        ("precisions", '["float64", 1]'),
        ("precisions", '["float64", "float16", "float16"]'),
        ("modes", '["sideways"]'),
        ("blocks", '[["products.0"]]'),
        ("complete", "1"),
        ("complete", '"true"'),
        ("versions", "[]"),
        ("model_name", 3),
        ("n_parameters", 0.5),
    ],
)
def test_attributes_of_the_root(name, value):
    assert problem(**{name: value}).startswith(f"the attribute {name} ")


def test_a_block_that_is_not_named():
    assert problem(blocks="[]").endswith("is of the block products.0, which the trace does not name")


def test_what_is_shown_of_a_file_is_escaped():
    said = problem(modes=json.dumps(["\x1b[2J\n"]))
    assert said.isprintable()
    assert "\\x1b[2J\\n" in said


def test_open_trace_names_the_file_and_the_variable(tmp_path):
    path = trace_by_hand(blocks="[]").save(tmp_path / "t.h5")
    with pytest.raises(pp.InputError, match=r"t\.h5 is damaged: /propagated/float64/products.0.output is of the block"):
        pp.open_trace(path)
