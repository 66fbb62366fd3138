"""variables.py: what netCDF lacks is put in its terms, every number has a checksum, and so has every text."""

import zlib

import h5netcdf
import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr

from precision_probe.trace.transaction import making
from precision_probe.trace.variables import pop_text_checksums, storable, text_crc32, write_tree


@pytest.fixture
def tree():
    rng = np.random.default_rng(0)
    half = rng.normal(size=4).astype(np.float16).astype(np.float32)
    groups = {
        "/": xr.Dataset(coords={"layer.component": ["0e", "1o", "1o"]}, attrs={"version": 1, "about": "a\0b"}),
        "/some/values": xr.Dataset(
            {
                "x": (("atom", "layer.component"), rng.normal(size=(4, 3)), {"units": "eV"}),
                "half": (("atom",), half, {"native_dtype": "float16"}),
                "nan": (("atom",), np.array([1.0, np.nan, 2.0, np.inf])),
                "pbc": (("atom",), np.array([True, False, True, True])),
                "count": (("atom",), np.arange(4, dtype=np.int16)),
                "name": (("atom",), np.array(["Å", "", "b", "x" * 1000], dtype=object)),
                "empty": (("edge", "layer.component"), np.zeros((0, 3))),
                "alone": ((), 2.5),
            }
        ),
    }
    return xr.DataTree.from_dict(groups)


@pytest.fixture
def path(tree, tmp_path):
    with making(tmp_path / "some.h5") as file:
        write_tree(file, tree)
    return tmp_path / "some.h5"


def test_what_is_written_is_read(tree, path):
    with xr.open_datatree(path, engine="h5netcdf") as found:
        found.load()
    assert sorted(pop_text_checksums(found)) == ["/layer.component", "/some/values/name"]
    assert found.attrs["about"] == "a\\x00b"
    for node in tree.subtree:
        xr.testing.assert_equal(found[node.path].to_dataset(), node.to_dataset())
        for name, variable in node.data_vars.items():
            assert found[node.path][name].attrs == variable.attrs
            assert found[node.path][name].dtype == variable.dtype or variable.dtype == object


def test_it_is_what_xarray_itself_would_have_written(tree, path, tmp_path):
    tree["some/values"].attrs, tree.attrs = {}, {}
    tree.to_netcdf(tmp_path / "theirs.h5", engine="h5netcdf")
    with h5netcdf.File(path) as ours, h5netcdf.File(tmp_path / "theirs.h5") as theirs:
        for name, variable in theirs["some/values"].variables.items():
            mine = ours["some/values"].variables[name]
            assert (mine.dimensions, mine.dtype, mine.shape) == (variable.dimensions, variable.dtype, variable.shape)
            assert set(variable.attrs) <= set(mine.attrs)


def test_netcdf4_reads_it(path):
    with netCDF4.Dataset(path) as file:
        assert file["some/values/name"][:2].tolist() == ["Å", ""]
        assert file["some/values/x"].dimensions == ("atom", "layer.component")
        assert file["layer.component"][:].tolist() == ["0e", "1o", "1o"]


def test_every_number_has_a_checksum_and_every_text(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item.fletcher32} if hasattr(item, "fletcher32") else {}))
    bare = {name for name, has in found.items() if not has}
    assert bare == {"layer.component", "some/values/name", "some/values/alone", "some/values/atom", "some/values/edge"}
    with h5netcdf.File(path) as file:
        expected = zlib.crc32("Å\0\0b\0".encode() + b"x" * 1000 + b"\0")
        assert file["some/values/name"].attrs["text_crc32"] == expected


def test_checksums_of_text_go_on(tree):
    values = tree["some/values/name"].values
    assert text_crc32(values) == text_crc32(values[2:], text_crc32(values[:2]))
    assert text_crc32(np.array(["ab", ""])) != text_crc32(np.array(["a", "b"]))


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a\0", "a\\x00"), ("\ud800x", "\\ud800x"), ("Å\n😀", "Å\n😀"), (3, 3), ("a\\x00", "a\\x00")],
    ids=ascii,
)
def test_text_that_hdf5_cannot_hold_is_escaped(value, expected):
    assert storable(value) == expected
    assert storable(storable(value)) == expected
