"""trace.py: what a trace holds, in memory and on disk, and how it is written and opened."""

import json
import shutil
import subprocess

import ase.build
import h5py
import ml_dtypes
import numpy as np
import pytest
import torch
import xarray as xr
from ase.calculators.singlepoint import SinglePointCalculator
from e3nn import o3
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import trace_of

import precision_probe as pp
from precision_probe.trace.trace import SCHEMA_VERSION, Trace
from precision_probe.trace.variables import write_tree

HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
DATA_GROUPS = [f"{mode}/{name}" for mode in ("propagated", "isolated") for name in ("float64", "float32", *HALVES)]


def methanol(labelled=False):
    atoms = ase.build.molecule("CH3OH")
    if labelled:
        labels = {"energy": -3.5, "forces": np.arange(18.0).reshape(6, 3)}
        atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def diamond(pbc=True):
    atoms = ase.build.bulk("C")
    atoms.rattle(0.05, seed=1)
    atoms.pbc = pbc
    return atoms


@pytest.fixture(scope="module")
def trace(model):
    return trace_of(model, [methanol(labelled=True), diamond()], precisions=["float32", *HALVES])


@pytest.fixture(scope="module")
def path(trace, tmp_path_factory):
    return trace.save(tmp_path_factory.mktemp("trace") / "trace.h5")


@pytest.fixture(scope="module")
def opened(path):
    with pp.open_trace(path) as found:
        yield found


@pytest.fixture
def small_trace():
    """Just enough of a trace to be written and opened."""
    attributes = {"precisions": '["float64"]', "modes": '["propagated"]', "blocks": "[]"}
    name = ("structure", ["a"], {"units": "1", "long_name": "name"})
    output = ("output.row", np.arange(1e5), {"units": "1", "long_name": "output"})
    groups = {
        "/": xr.Dataset(attrs={"schema_version": SCHEMA_VERSION, **attributes}),
        "/structures": xr.Dataset({"name": name}),
        "/propagated/float64": xr.Dataset({"output": output}),
    }
    return Trace(xr.DataTree.from_dict(groups))


def variables(tree):
    """Every variable with the path of its group, coordinates where they are defined."""
    for node in tree.subtree:
        for name, variable in node.to_dataset(inherit=False).variables.items():
            variable.attrs.pop("text_crc32", None)  # of the file, which other programs give with its attributes
            yield node.path, name, variable


def assert_same(found, expected):
    """Identical groups, variables, values, attributes and dtypes; text only has to stay text."""
    left, right = ({(group, name): variable for group, name, variable in variables(tree)} for tree in (found, expected))
    assert left.keys() == right.keys()
    for key, variable in right.items():
        kinds = (left[key].dtype.kind, variable.dtype.kind)
        assert left[key].dtype == variable.dtype or set(kinds) <= set("OUT"), key
        assert left[key].dims == variable.dims
        assert left[key].attrs == variable.attrs
        np.testing.assert_array_equal(left[key].values, variable.values, strict="f" in kinds)
    assert dict(found.attrs) == dict(expected.attrs)


def left_behind(folder):
    return sorted(item.name for item in folder.iterdir())


# What is in it


def test_holds_the_documented_groups_and_model_results(trace):
    assert set(DATA_GROUPS) <= {node.path.lstrip("/") for node in trace.tree.subtree}
    for name in ("float64", "float32", *HALVES):
        group = trace.group("propagated", name)
        assert {"energy", "interaction_energy", "forces", "stress"} <= set(group.data_vars)
        assert not {"energy", "forces"} & set(trace.group("isolated", name).data_vars)
        assert (group["forces"].dims, group["forces"].attrs["units"]) == (("atom", "xyz"), "eV/Å")
    assert trace.attributes["schema_version"] == SCHEMA_VERSION == 1


def test_every_variable_has_units_and_a_long_name(trace):
    found = list(variables(trace.tree))
    assert len(found) > 200
    assert [(group, name) for group, name, v in found if not v.attrs.get("units") or not v.attrs.get("long_name")] == []


def test_dimensions_are_named_as_documented(trace):
    for group in DATA_GROUPS:
        arrays = trace.tree[group].to_dataset().data_vars
        blocks = {array.attrs["block"] for array in arrays.values() if "block" in array.attrs}
        assert blocks == set(trace.blocks)
        for array in arrays.values():
            first, *rest = array.dims
            assert first in ("atom", "edge", "structure")
            if "block" in array.attrs:
                assert array.name.startswith(array.attrs["block"] + ".")
                assert array.name.endswith(".grad") == (array.attrs["direction"] == "backward")
                if not rest:
                    assert array.attrs["block"] in ("scale_shift", "atomic_energies_fn")  # one number for each atom
                    continue
                owners, axes = zip(*(dim.rsplit(".", 1) for dim in rest), strict=True)
                assert set(axes) in ({"feature"}, {"channel", "component"})
                assert all(owner.startswith(array.attrs["block"]) for owner in owners)


def test_sizes_of_the_first_dimensions_are_those_of_the_structures(trace):
    structures = trace.structures
    sizes = {"structure": 2, "atom": int(structures["n_atoms"].sum()), "edge": int(structures["n_edges"].sum())}
    assert sizes["atom"] == 8
    assert len(set(sizes.values())) == 3
    for group in DATA_GROUPS:
        found = trace.tree[group].to_dataset(inherit=False).sizes
        assert {dim: size for dim, size in found.items() if dim in sizes} == {
            dim: size for dim, size in sizes.items() if dim in found
        }
        assert {"atom", "edge"} <= set(found)
    np.testing.assert_array_equal(structures["structure_of_atom"], [0] * 6 + [1] * 2)


def test_irreps_coordinates_are_the_irreps_of_each_entry(trace):
    expected = {
        "spherical_harmonics.edge_attrs": ["0e", *["1o"] * 3, *["2e"] * 5],
        "interactions.0.message": ["0e", *["1o"] * 3, *["2e"] * 5],
        "interactions.0.skip": ["0e"] * 4 + ["1o"] * 12,
        "products.0.output": ["0e"] * 4 + ["1o"] * 12,
        "spherical_harmonics.vectors.grad": ["1o"] * 3,
    }
    for group in DATA_GROUPS:
        for name, labels in expected.items():
            array = trace.tree[group][name]
            assert array.coords[array.dims[-1]].values.tolist() == labels


def as_irreps(labels):
    """Irreps of consecutive entries, each label repeated 2l + 1 times for one irrep."""
    irreps = []
    while len(labels):
        irrep = o3.Irrep(str(labels[0]))
        assert set(labels[: irrep.dim]) == {str(irrep)}
        irreps.append((1, irrep))
        labels = labels[irrep.dim :]
    return o3.Irreps(irreps)


def test_entries_rotate_and_invert_as_their_irreps_say(model):
    """Independent of how the labels were made: everything of atoms is equivariant under them, in e3nn's order."""
    angles = torch.tensor([0.7, 1.1], dtype=torch.float64)
    rotation = -o3.matrix_x(angles[0]) @ o3.matrix_y(angles[1])
    moved = methanol()
    moved.positions = moved.positions @ rotation.numpy().T
    before, after = (trace_of(model, atoms).group("propagated", "float64") for atoms in (methanol(), moved))
    checked = set()
    for name, array in before.data_vars.items():
        if "irreps" in array.attrs and array.dims[0] == "atom":
            irreps = as_irreps(array.coords[array.dims[-1]].values)
            turn = irreps.D_from_matrix(rotation).numpy()
            scale = np.abs(array.values).max()
            np.testing.assert_allclose(after[name].values, array.values @ turn.T, atol=1e-9 * scale, rtol=0)
            checked |= {array.attrs["tensor"]} if irreps.lmax > 0 else set()
    assert {"message", "skip", "node_feats", "output"} <= checked


@pytest.mark.parametrize(("name", "dtype"), HALVES.items())
def test_widened_halves_are_exactly_representable_in_their_native_dtype(trace, name, dtype):
    for mode in ("propagated", "isolated"):
        captured = [a for a in trace.group(mode, name).data_vars.values() if "block" in a.attrs]
        assert {array.attrs["native_dtype"] for array in captured} == {name}
        assert sum(bool(array.values.any()) for array in captured) > 20
        for array in captured:
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array.values.astype(dtype).astype(np.float32), array.values)
    forces = trace.group("propagated", name)["forces"].values
    np.testing.assert_array_equal(forces.astype(dtype).astype(np.float32), forces)


def test_results_of_a_half_precision_carry_their_native_dtype(trace):
    for name in HALVES:
        group = trace.group("propagated", name)
        for variable in ("energy", "interaction_energy", "forces"):
            assert group[variable].attrs["native_dtype"] == name


def test_labels_are_kept_and_missing_ones_are_nan(trace, model):
    structures = trace.structures
    np.testing.assert_array_equal(structures["energy"], [-3.5, np.nan])
    np.testing.assert_array_equal(
        structures["forces"], np.vstack([np.arange(18.0).reshape(6, 3), np.full((2, 3), np.nan)])
    )
    assert "stress" not in structures
    np.testing.assert_array_equal(structures["pbc"], [[False] * 3, [True] * 3])
    np.testing.assert_array_equal(structures["positions"], np.vstack([methanol().positions, diamond().positions]))
    assert not {"energy", "forces", "stress"} & set(trace_of(model, methanol()).structures)


def test_stress_is_nan_only_where_not_periodic(trace):
    for name in ("float64", "float32", *HALVES):
        stress = trace.group("propagated", name)["stress"].values
        assert np.isnan(stress[0]).all()
        assert np.isfinite(stress[1]).all()
        assert stress[1].any()


@pytest.mark.parametrize("pbc", [False, (True, True, False)])
def test_stress_is_absent_where_nothing_is_periodic(model, pbc):
    atoms = diamond(pbc)
    atoms.center(vacuum=4.0, axis=2)
    assert "stress" not in trace_of(model, [methanol(), atoms]).group("propagated", "float32")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def attribute_after_layout(value):
    from precision_probe.trace.recorder import Recorder

    recorder = Recorder()
    recorder.attributes = {"value": value}
    return recorder.trace().attributes["value"]


@settings(deadline=None)
@given(json_values.filter(lambda value: not isinstance(value, str)))
def test_attributes_decode_to_what_was_given(value):
    found = attribute_after_layout(value)
    assert (found, type(found)) == (value, type(value))


@settings(deadline=None)
@given(st.text() | st.sampled_from(["null", "true", "[1]", "{}", "[best]", "{", '"', '"x"', "1"]))
def test_text_attributes_stay_text(value):
    assert attribute_after_layout(value) == value


def test_provenance_survives_the_file_as_python_values(trace, opened):
    about = opened.attributes
    assert about == trace.attributes
    assert repr(opened) == repr(trace)
    assert about["seed"] is None
    assert about["precisions"] == ["float64", "float32", *HALVES]
    assert about["settings"]["deterministic_algorithms"] is False
    assert {"precision-probe", "mace-torch", "torch", "e3nn"} <= set(about["versions"])
    assert len(about["model_sha256"]) == 64


# On disk


def test_round_trip_is_exact(trace, opened):
    assert_same(opened.tree, trace.tree)
    assert (opened.blocks, opened.modes, opened.precisions) == (trace.blocks, trace.modes, trace.precisions)


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_xarray_opens_the_file(trace, path, engine):
    pytest.importorskip("netCDF4" if engine == "netcdf4" else "h5netcdf")
    with xr.open_datatree(path, engine=engine) as tree:
        assert_same(tree, trace.tree)


def test_h5py_reads_every_variable(trace, path):
    with h5py.File(path) as file:
        assert int(file.attrs["schema_version"][0]) == SCHEMA_VERSION
        assert json.loads(file.attrs["precisions"]) == trace.attributes["precisions"]
        for group, name, variable in variables(trace.tree):
            stored = file[f"{group}/{name}"]
            assert (stored.attrs["units"], stored.shape) == (variable.attrs["units"], variable.shape)
            if variable.dtype.kind == "f":
                assert stored.dtype == variable.dtype
                np.testing.assert_array_equal(stored[()], variable.values)


def test_netcdf4_reads_every_variable(trace, path):
    netcdf = pytest.importorskip("netCDF4")
    with netcdf.Dataset(path) as file:
        file.set_auto_mask(False)
        for group, name, variable in variables(trace.tree):
            stored = (file if group == "/" else file[group])[name]
            assert stored.dimensions == variable.dims
            assert stored.long_name == variable.attrs["long_name"]
            np.testing.assert_array_equal(stored[...], variable.values)


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump is not installed")
def test_h5dump_reads_the_header(path):
    header = subprocess.run(["h5dump", "-H", path], capture_output=True, text=True, check=True).stdout
    assert 'DATASET "products.0.output"' in header


def test_only_what_was_widened_is_compressed(trace, path):
    halves = 0
    with h5py.File(path) as file:
        for group, name, variable in variables(trace.tree):
            stored = file[f"{group}/{name}"]
            widened = variable.attrs.get("native_dtype") in HALVES
            assert (stored.compression, stored.shuffle) == (("gzip", True) if widened else (None, False)), name
            halves += widened
    assert halves > 80


def test_arrays_are_read_when_used(small_trace, tmp_path):
    with pp.open_trace(small_trace.save(tmp_path / "trace.h5")) as found:
        array = found.group("propagated", "float64")["output"]
        assert not array.variable._in_memory
        assert array.values.sum() == np.arange(1e5).sum()


# Opening what is no trace


def test_open_trace_names_a_missing_file(tmp_path):
    with pytest.raises(pp.InputError, match=r"nowhere\.h5 does not exist"):
        pp.open_trace(tmp_path / "nowhere.h5")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not an HDF5 file"), (b"not HDF5 at all", "not an HDF5 file"), (b"\x89HDF\r\n\x1a\n", "is damaged")],
)
def test_open_trace_refuses_other_files(tmp_path, content, message):
    other = tmp_path / "other.h5"
    other.write_bytes(content)
    with pytest.raises(pp.InputError, match=message):
        pp.open_trace(other)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_open_trace_refuses_a_truncated_file(path, tmp_path, kept):
    whole = path.read_bytes()
    cut = tmp_path / "cut.h5"
    cut.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(pp.InputError, match="damaged"):
        pp.open_trace(cut)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (None, "no schema_version"),
        (SCHEMA_VERSION + 1, "schema version 2"),
        ("new", "schema version new"),
    ],
)
def test_open_trace_refuses_other_schemas(tmp_path, version, message):
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        if version is not None:
            file.attrs["schema_version"] = version
    with pytest.raises(pp.InputError, match=message):
        pp.open_trace(other)


# Writing


def test_save_replaces_only_with_force(small_trace, tmp_path):
    there = tmp_path / "trace.h5"
    there.write_bytes(b"precious")
    with pytest.raises(pp.InputError, match=r"exists.*force"):
        small_trace.save(there)
    assert there.read_bytes() == b"precious"
    assert small_trace.save(str(there), force=True) == there
    with pp.open_trace(there) as found:
        assert_same(found.tree, small_trace.tree)
    assert left_behind(tmp_path) == ["trace.h5"]


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_everything_as_it_was(small_trace, tmp_path, monkeypatch, error):
    there = tmp_path / "trace.h5"
    there.write_bytes(b"precious")
    written = []

    def fail(file, tree):
        write_tree(file, xr.DataTree(tree["structures"].to_dataset()))  # a part
        written.append(file)
        raise error

    monkeypatch.setattr("precision_probe.trace.trace.write_tree", fail)
    for target, force in ((there, True), (tmp_path / "new.h5", False)):
        with pytest.raises(type(error)):
            small_trace.save(target, force=force)
    assert len(written) == 2
    assert there.read_bytes() == b"precious"
    assert left_behind(tmp_path) == ["trace.h5"]


def test_missing_folder_and_folder_as_path(small_trace, tmp_path):
    with pytest.raises(pp.InputError, match="cannot be written"):
        small_trace.save(tmp_path / "missing" / "trace.h5")
    with pytest.raises(pp.InputError, match="is a folder"):
        small_trace.save(tmp_path, force=True)
    assert left_behind(tmp_path) == []


def test_saving_over_the_file_that_the_trace_was_opened_from(small_trace, tmp_path):
    saved = small_trace.save(tmp_path / "trace.h5")
    with pp.open_trace(saved) as found:
        found.save(saved, force=True)
        assert_same(found.tree, small_trace.tree)
    with pp.open_trace(saved) as found:
        assert_same(found.tree, small_trace.tree)
    assert left_behind(tmp_path) == ["trace.h5"]
