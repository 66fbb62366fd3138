"""growing_file.py: what was appended to a file is the concatenation, and a failure leaves the file as it was."""

import time

import h5netcdf
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from full_disk import FullError, failing_at
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from precision_probe.trace import growing_file
from precision_probe.trace.growing_file import add_tables, append, set_attributes
from precision_probe.trace.tables import StoredTable


@pytest.fixture
def path(tmp_path):
    return tmp_path / "grows.h5"


def contents(path):
    """Everything in a file."""
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        return tree.load()


def tree_of(n_structures, seed, n_atoms=4, n_edges=5, extra=()):
    """A small tree of random numbers, and NaN among them."""
    rng = np.random.default_rng(seed)
    values = {
        "x": (("atom", "xyz"), rng.normal(size=(n_atoms, 3))),
        "e": (("structure",), rng.normal(size=n_structures).astype(np.float32)),
        **{name: (("edge", "feature"), rng.normal(size=(n_edges, 2)).astype(np.float32)) for name in extra},
    }
    about = {
        "name": (("structure",), np.array([f"s{seed}.{index} Å" for index in range(n_structures)], dtype=object)),
        "number": (("atom",), rng.integers(-5, 5, n_atoms)),
        "sender": (("edge",), rng.integers(0, 9, n_edges).astype(np.int32)),
        "pbc": (("structure", "xyz"), rng.random((n_structures, 3)) > 0.5),
    }
    datasets = {"/values": xr.Dataset(values), "/about": xr.Dataset(about)}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs={"last": f"tree {seed}"}), **datasets})


def joined(trees, group, name):
    """One variable of all trees along its rows: NaN for those that lack it, by NumPy."""
    like = next(tree[group][name] for tree in trees if name in tree[group].data_vars)
    rows = like.dims[0]
    parts = []
    for tree in trees:
        node = tree[group]
        if name in node.data_vars:
            parts.append(node[name].values)
        elif rows in node.sizes:
            parts.append(np.full((node.sizes[rows], *like.shape[1:]), np.nan, like.dtype))
    return like.dims, np.concatenate(parts)


def assert_grown(path, trees):
    found = contents(path)
    assert found.attrs["last"] == trees[-1].attrs["last"]
    for group in ("/values", "/about"):
        expected = {str(name) for tree in trees for name in tree[group].data_vars}
        assert {str(name) for name in found[group].data_vars} == expected
        for name in expected:
            dims, values = joined(trees, group, name)
            variable = found[group][name]
            assert variable.dims == dims, name
            assert variable.dtype == values.dtype or values.dtype == object, name
            np.testing.assert_array_equal(variable.values, values, err_msg=name)


# What is in the file


parts = st.tuples(
    st.integers(1, 3), st.integers(1, 4), st.integers(0, 5), st.sets(st.sampled_from(["late", "later", "latest"]))
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(parts, min_size=1, max_size=4))
def test_what_was_appended_is_the_concatenation(tmp_path, sizes):
    path = tmp_path / f"{time.monotonic_ns()}.h5"
    trees = [
        tree_of(n_structures, seed, n_atoms, n_edges, sorted(extra))
        for seed, (n_structures, n_atoms, n_edges, extra) in enumerate(sizes)
    ]
    for tree in trees:
        append(tree, path)
    assert_grown(path, trees)
    path.unlink()


@pytest.mark.parametrize("n_structures", [1, 3, 200])
def test_chunks_are_whole_rows_of_bounded_size(path, n_structures):
    wide = np.random.default_rng(0).normal(size=(n_structures, 5000))
    groups = {"/structures": xr.Dataset({"wide": (("structure", "feature"), wide), "n": ("structure", wide[:, 0])})}
    for _ in range(2):
        append(xr.DataTree.from_dict(groups), path)
    with h5netcdf.File(path) as file:
        rows, width = file["structures/wide"].chunks
        assert width == 5000
        assert rows == min(n_structures, 2**18 // (8 * 5000))
        assert file["structures/n"].chunks == (n_structures,)
        assert file["structures/wide"].shape == (2 * n_structures, 5000)


def test_a_group_that_a_tree_lacks_grows_with_the_others(path):
    def tree(**more):
        names = xr.Dataset({"name": ("structure", np.array(["x"], dtype=object)), "z": ("atom", np.ones(2))})
        return xr.DataTree.from_dict({"/structures": names, **{f"/{key}": value for key, value in more.items()}})

    loss = xr.Dataset({"a.grad": (("atom", "a.feature"), np.full((2, 3), 7.0))})
    for parts in ({}, {"loss/float32": loss}, {}):
        append(tree(**parts), path)
    found = contents(path)["loss/float32"]["a.grad"]
    expected = np.concatenate([np.full((2, 3), value) for value in (np.nan, 7.0, np.nan)])
    np.testing.assert_array_equal(found, expected)


def test_attributes_of_a_file_are_replaced(path):
    append(tree_of(1, 0), path)
    set_attributes(path, {"complete": "false", "number": 3, "new": "text"})
    assert {key: contents(path).attrs[key] for key in ("complete", "new")} == {"complete": "false", "new": "text"}
    assert int(contents(path).attrs["number"]) == 3


def test_tables_stand_beside_what_the_file_holds(path):
    append(tree_of(2, 0), path)
    before = contents(path)
    add_tables({"noise": StoredTable(pd.DataFrame({"x": [1.5, np.nan]}), "Noise", {"x": "eV"})}, path)
    found = contents(path)
    np.testing.assert_array_equal(found["tables/noise"]["x"], [1.5, np.nan])
    assert (found["tables/noise"].attrs["title"], found["tables/noise"]["x"].attrs["units"]) == ("Noise", "eV")
    for node in before.subtree:
        xr.testing.assert_identical(found[node.path].to_dataset(), node.to_dataset())


# Failures


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8])
def test_a_write_that_fails_leaves_the_file_and_is_made_up_for(path, monkeypatch, number):
    first, second = tree_of(2, 0), tree_of(3, 1)
    append(first, path)
    before = contents(path)
    failing_at(monkeypatch, h5netcdf.Variable, "__setitem__", number)
    try:
        append(second, path)
    except FullError:
        xr.testing.assert_identical(contents(path), before)
        append(second, path)
    assert_grown(path, [first, second])


@pytest.mark.parametrize(
    ("name", "number"),
    [("_create_variable", 1), ("_create_variable", 2), ("_chunks", 1), ("_extend", 2)],
)
def test_a_failure_with_new_variables_leaves_the_file_as_it_was(path, monkeypatch, name, number):
    first, second = tree_of(2, 0), tree_of(3, 1, extra=("late", "later"))
    append(first, path)
    before = contents(path)
    failing_at(monkeypatch, growing_file, name, number)
    with pytest.raises(FullError):
        append(second, path)
    found = contents(path)
    for node in before.subtree:  # a variable new to the file may stay, with no row that is not NaN
        new = [name for name in found[node.path].data_vars if name not in node.data_vars]
        assert all(np.isnan(found[node.path][name].values).all() for name in new)
        xr.testing.assert_identical(found[node.path].to_dataset().drop_vars(new), node.to_dataset())


@pytest.mark.parametrize("number", [1, 2])
def test_a_retry_after_new_variables_could_not_be_made(path, monkeypatch, number):
    first, second = tree_of(2, 0), tree_of(3, 1, extra=("late", "later"))
    append(first, path)
    failing_at(monkeypatch, growing_file, "_create_variable", number)
    with pytest.raises(FullError):
        append(second, path)
    append(second, path)
    assert_grown(path, [first, second])


def test_a_file_that_cannot_be_made_is_not_half_made(path, monkeypatch):
    failing_at(monkeypatch, xr.DataTree, "to_netcdf", 1)
    with pytest.raises(FullError):
        append(tree_of(2, 0), path)
    assert list(path.parent.iterdir()) == []
    append(tree_of(2, 0), path)
    assert_grown(path, [tree_of(2, 0)])


def test_rows_that_count_something_else_are_refused_and_change_nothing(path):
    append(tree_of(2, 0), path)
    before = contents(path)
    other = tree_of(3, 1)
    turned = other["values"].to_dataset().assign(x=(("structure", "xyz"), np.zeros((3, 3))))
    with pytest.raises(ValueError, match="x count structures now, and counted atoms"):
        append(xr.DataTree.from_dict({"/": other.to_dataset(), "/values": turned}), path)
    xr.testing.assert_identical(contents(path), before)
