"""growing_file.py: what was appended to a file is the concatenation, and a failure leaves the file as it was."""

import time

import h5netcdf
import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from full_disk import FullError, failing_at
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from precision_probe.trace import growing_file
from precision_probe.trace.growing_file import append, check_counts, finish, remove_tables
from precision_probe.trace.tables import StoredTable
from precision_probe.trace.transaction import changing_hdf5


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
        append(tree, path, new=not path.exists())
    assert_grown(path, trees)
    path.unlink()


@pytest.mark.parametrize("n_structures", [1, 3, 200])
def test_chunks_are_whole_rows_of_bounded_size(path, n_structures):
    wide = np.random.default_rng(0).normal(size=(n_structures, 5000))
    groups = {"/structures": xr.Dataset({"wide": (("structure", "feature"), wide), "n": ("structure", wide[:, 0])})}
    for new in (True, False):
        append(xr.DataTree.from_dict(groups), path, new=new)
    with h5netcdf.File(path) as file:
        rows, width = file["structures/wide"].chunks
        assert width == 5000
        assert rows == min(n_structures, 2**18 // (8 * 5000))
        assert file["structures/n"].chunks == (n_structures,)
        assert file["structures/wide"].shape == (2 * n_structures, 5000)


@pytest.mark.parametrize(("n_rows", "n_bytes"), [(2000, 2**19), (5000, 2**20)])
def test_chunks_are_larger_where_much_comes_at_once(path, n_rows, n_bytes):
    wide = np.zeros((n_rows, 2**10))
    append(
        xr.DataTree.from_dict({"/structures": xr.Dataset({"wide": (("structure", "feature"), wide)})}), path, new=True
    )
    with h5netcdf.File(path) as file:
        rows, width = file["structures/wide"].chunks
    assert n_bytes / 2 < 8 * rows * width <= n_bytes


def test_a_group_that_a_tree_lacks_grows_with_the_others(path):
    def tree(**more):
        names = xr.Dataset({"name": ("structure", np.array(["x"], dtype=object)), "z": ("atom", np.ones(2))})
        return xr.DataTree.from_dict({"/structures": names, **{f"/{key}": value for key, value in more.items()}})

    loss = xr.Dataset({"a.grad": (("atom", "a.feature"), np.full((2, 3), 7.0))})
    for parts in ({}, {"loss/float32": loss}, {}):
        append(tree(**parts), path, new=not path.exists())
    found = contents(path)["loss/float32"]["a.grad"]
    expected = np.concatenate([np.full((2, 3), value) for value in (np.nan, 7.0, np.nan)])
    np.testing.assert_array_equal(found, expected)


def test_attributes_of_a_file_are_replaced(path):
    append(tree_of(1, 0), path, new=True)
    finish(path, {}, {"complete": "false", "number": 3, "new": "text"}, is_last=False)
    assert {key: contents(path).attrs[key] for key in ("complete", "new")} == {"complete": "false", "new": "text"}
    assert int(contents(path).attrs["number"]) == 3


def test_tables_stand_beside_what_the_file_holds(path):
    append(tree_of(2, 0), path, new=True)
    before = contents(path)
    finish(path, {"noise": StoredTable(pd.DataFrame({"x": [1.5, np.nan]}), "Noise", {"x": "eV"})}, {})
    found = contents(path)
    np.testing.assert_array_equal(found["tables/noise"]["x"], [1.5, np.nan])
    assert (found["tables/noise"].attrs["title"], found["tables/noise"]["x"].attrs["units"]) == ("Noise", "eV")
    for node in before.subtree:
        xr.testing.assert_identical(found[node.path].to_dataset(), node.to_dataset())


def test_tables_can_be_removed(path):
    append(tree_of(2, 0), path, new=True)
    before = contents(path)
    finish(path, {"noise": StoredTable(pd.DataFrame({"x": [1.5, np.nan]}), "Noise", {})}, {}, is_last=False)
    remove_tables(path)
    remove_tables(path)
    xr.testing.assert_identical(contents(path), before)


def test_coordinates_that_come_late_are_kept(path):
    def tree(**more):
        names = {"/structures": xr.Dataset({"name": ("structure", np.array(["x"], dtype=object))})}
        late = {"/isolated/float32": xr.Dataset({"a.output": (("structure", "a.component"), np.ones((1, 2)))})}
        coords = xr.Dataset(coords={"a.component": ["0e", "1o"]})
        return xr.DataTree.from_dict(names | ({"/": coords, **late} if more else {}))

    for more in ({}, {"late": True}, {"late": True}):
        append(tree(**more), path, new=not path.exists())
    found = contents(path)["isolated/float32"]["a.output"]
    assert found.coords["a.component"].values.tolist() == ["0e", "1o"]
    np.testing.assert_array_equal(found, [[np.nan] * 2, [1, 1], [1, 1]])


# Failures


STEPS = [(h5py.Dataset, "__setitem__"), (growing_file, "create"), (growing_file, "_extend")]


@pytest.mark.parametrize(("owner", "name"), STEPS, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("number", [1, 2])
def test_a_failure_leaves_the_file_as_it_was(path, monkeypatch, owner, name, number):
    first, second = tree_of(2, 0), tree_of(3, 1, extra=("late", "later"))
    append(first, path, new=True)
    before = path.read_bytes()
    failing_at(monkeypatch, owner, name, number)
    with pytest.raises(FullError):
        append(second, path)
    assert path.read_bytes() == before
    append(second, path)  # made up for
    assert_grown(path, [first, second])


@pytest.mark.parametrize("number", [1, 2])
def test_a_file_that_cannot_be_made_is_not_half_made(path, monkeypatch, number):
    failing_at(monkeypatch, growing_file, "_extend", number)
    with pytest.raises(FullError):
        append(tree_of(2, 0), path, new=True)
    assert list(path.parent.iterdir()) == []
    append(tree_of(2, 0), path, new=True)
    assert_grown(path, [tree_of(2, 0)])


def test_a_new_file_takes_the_place_of_one_that_is_there(path):
    append(tree_of(2, 0), path, new=True)
    append(tree_of(1, 1), path, new=True)
    assert_grown(path, [tree_of(1, 1)])


# What is checked at the end


def test_counts_are_right(path):
    append(whole_tree(), path, new=True)
    append(whole_tree(), path)
    check_counts(path, 4)
    with pytest.raises(ValueError, match="/structures/n_atoms has 4 rows, and there are 5 structures"):
        check_counts(path, 5)


def whole_tree():
    """Two structures of two atoms each."""
    structures = {"name": ("structure", np.array(["first", "second"], dtype=object)), "n_atoms": ("structure", [2, 2])}
    values = {"x": (("atom", "xyz"), np.ones((4, 3)))}
    return xr.DataTree.from_dict({"/structures": xr.Dataset(structures), "/values": xr.Dataset(values)})


@pytest.mark.parametrize("name", ["values/x", "structures/n_atoms"])
def test_a_variable_that_is_too_short_is_found(path, name):
    append(whole_tree(), path, new=True)
    with changing_hdf5(path) as file:
        file[name].resize(file[name].shape[0] - 1, axis=0)
    with pytest.raises(ValueError, match="rows, and there are"):
        check_counts(path, 2)


def test_a_flipped_bit_is_found_at_the_end(path):
    append(whole_tree(), path, new=True)
    whole = path.read_bytes()
    with h5py.File(path) as file:
        places = [file[name].id.get_chunk_info(0).byte_offset for name in ("values/x", "structures/n_atoms")]
    for place in (*places, whole.index(b"first"), whole.index(b"second")):
        damaged = bytearray(whole)
        damaged[place] ^= 2
        path.write_bytes(damaged)
        with pytest.raises(OSError, match=r"filter returned failure|Fletcher32|/structures/name holds another text"):
            check_counts(path, 2)


def test_rows_that_count_something_else_are_refused_and_change_nothing(path):
    append(tree_of(2, 0), path, new=True)
    before = contents(path)
    other = tree_of(3, 1)
    turned = other["values"].to_dataset().assign(x=(("structure", "xyz"), np.zeros((3, 3))))
    with pytest.raises(ValueError, match="x count structures now, and counted atoms"):
        append(xr.DataTree.from_dict({"/": other.to_dataset(), "/values": turned}), path)
    xr.testing.assert_identical(contents(path), before)
