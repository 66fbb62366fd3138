"""How a trace is read: whatever is wrong, when it is opened or later, is an InputError that says what."""

import fcntl
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from traces_by_hand import trace_by_hand

import precision_probe as pp
from precision_probe.trace.digest import write_trailer
from precision_probe.trace.trace import Trace

TRAILER = 89  # bytes


@pytest.fixture
def saved(tmp_path):
    return trace_by_hand().save(tmp_path / "trace.h5")


def chunk(path, name):
    """Where the data of a variable lie in a file."""
    with h5py.File(path) as file:
        return file[name].id.get_chunk_info(0).byte_offset


def changed(path, at, *, sealed):
    """Flip a bit of a file, and have its checksum say that this is right."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    if sealed:
        write_trailer(path)
    return path


def test_what_is_read_is_what_was_saved(saved):
    expected = trace_by_hand()
    with pp.open_trace(saved) as found:
        for mode in ("propagated", "isolated"):
            for name, array in expected.group(mode, "float16").variables.items():
                np.testing.assert_array_equal(found.group(mode, "float16")[name].values, array.values)
                assert found.group(mode, "float16")[name].attrs == array.attrs
        assert found.structures["pbc"].dtype == bool


def test_a_flipped_bit_is_found_at_once_in_a_small_file(saved):
    changed(saved, saved.stat().st_size // 2, sealed=False)
    with pytest.raises(pp.InputError, match="is damaged: it is not what was written, as the checksum at its end says"):
        pp.open_trace(saved)


@pytest.mark.parametrize("name", ["/propagated/float16/forces", "/structures/n_atoms", "/tables/digits/digits"])
def test_a_flipped_bit_of_an_array_is_found_when_it_is_read(saved, name):
    """Where the file is too large to be read whole, or its checksum was made anew."""
    changed(saved, chunk(saved, name), sealed=True)
    with pytest.raises(pp.InputError) as said, pp.open_trace(saved) as trace:
        trace.table("digits"), trace.group("propagated", "float16")["forces"].load()
    assert re.search(rf"trace\.h5 is damaged: .*{re.escape(name)} cannot be read", str(said.value))


def test_an_array_that_is_not_read_does_not_stop_others(saved):
    changed(saved, chunk(saved, "/propagated/float16/forces"), sealed=True)
    with pp.open_trace(saved) as trace:
        group = trace.group("propagated", "float16")
        np.testing.assert_array_equal(group["energy"], trace_by_hand().group("propagated", "float16")["energy"])
        assert group["forces"].shape == (3, 3)
        for read in (lambda: group["forces"][1:2].values, lambda: group["forces"].load(), lambda: pp.errors(trace)):
            with pytest.raises(pp.InputError, match="/propagated/float16/forces cannot be read"):
                read()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("sender", [0, 5, 0]),
        ("receiver", [0, -1, 0]),
        ("structure_of_atom", [0, 0, 2]),
        ("atomic_numbers", [1, 8, 900]),
    ],
)
def test_values_that_would_lead_elsewhere_are_refused(tmp_path, name, values):
    trace = trace_by_hand()
    trace.tree["structures"][name].values[:] = values
    with pp.open_trace(trace.save(tmp_path / "trace.h5")) as found:
        assert found.structures["n_atoms"].values.tolist() == [2, 1]
        with pytest.raises(pp.InputError, match=f"/structures/{name} has values that cannot be"):
            _ = found.structures[name].values


def test_dimensions_do_not_lend_a_variable_rows(saved):
    """A variable that was made shorter, whose dimension is not: h5netcdf would fill it up."""
    data = saved.read_bytes()
    saved.write_bytes(data[:-TRAILER])
    with h5py.File(saved, "r+") as file:
        old = file["/propagated/float16/forces"]
        attributes = {key: old.attrs[key] for key in ("units", "long_name", "native_dtype")}
        ties, values = old.attrs["DIMENSION_LIST"], old[:2]
        del file["/propagated/float16/forces"]
        new = file.create_dataset("/propagated/float16/forces", data=values, chunks=(2, 3), maxshape=(None, 3))
        new.attrs.update(attributes)
        new.attrs.create("DIMENSION_LIST", ties, dtype=h5py.vlen_dtype(h5py.ref_dtype))
    with pytest.raises(pp.InputError, match="/propagated/float16/forces"):
        pp.open_trace(saved)


def test_a_file_that_is_held_by_a_lock_is_read(saved):
    """HDF5 would refuse it, and any file where the file system has no locks."""
    with saved.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        command = [sys.executable, "-c", f"import precision_probe as pp; print(pp.open_trace({str(saved)!r}))"]
        environment = os.environ | {"HDF5_USE_FILE_LOCKING": "TRUE"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.startswith("<Trace of by hand: 2 structures"), done.stderr


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "x.h5"
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(pp.InputError, match="is not a file but a pipe or a device"):
        pp.open_trace("/dev/zero" if kind == "device" else path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_must_not_be_read(saved):
    saved.chmod(0)
    with pytest.raises(pp.InputError, match=r"cannot be read \(Permission denied\)"):
        pp.open_trace(saved)


def test_errors_of_the_system_are_told_apart_from_damage(saved, monkeypatch):
    def fail(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("precision_probe.trace.reading.os.open", fail)
    with pytest.raises(pp.InputError, match=r"The trace .*trace\.h5 cannot be read \(Permission denied\)"):
        pp.open_trace(saved)


def test_a_name_is_shown_as_data(tmp_path):
    with pytest.raises(pp.InputError, match=r"x\\x1b\[2J\.h5 does not exist") as said:
        pp.open_trace(tmp_path / "x\x1b[2J.h5")
    assert str(said.value).isprintable()
    with pytest.raises(pp.InputError, match="cannot be read"):
        pp.open_trace("nul\0.h5")


def test_a_closed_trace_says_so(saved):
    with pp.open_trace(saved) as trace:
        group = trace.group("propagated", "float64")
    with pytest.raises(pp.InputError, match=r"trace\.h5 is closed"):
        _ = group["forces"].values


def n_open():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_file_stays_open(saved):
    before = n_open()
    for _ in range(3):
        pp.open_trace(saved).close()
        with pytest.raises(pp.InputError):
            pp.open_trace(changed(trace_by_hand(blocks="[]").save(saved, force=True), 100, sealed=False))
        trace_by_hand().save(saved, force=True)
    assert n_open() == before


def test_a_file_without_its_checksum_is_noticed(saved):
    saved.write_bytes(saved.read_bytes()[:-TRAILER])
    with pytest.warns(UserWarning, match="was changed since it was finished"):
        pp.open_trace(saved).close()
    unfinished = trace_by_hand(complete="false").save(saved, force=True)
    unfinished.write_bytes(unfinished.read_bytes()[:-TRAILER])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pp.open_trace(unfinished).close()


@pytest.mark.parametrize("value", ["[1, 2", "[" * 20_000, "9" * 5000, '{"a"'])
def test_attributes_that_are_no_json(tmp_path, value):
    saved = trace_by_hand(versions=value).save(tmp_path / "trace.h5")
    with pytest.raises(pp.InputError, match=r"trace\.h5 is damaged"):
        pp.open_trace(saved)


def test_a_precision_that_is_none(tmp_path):
    tree = trace_by_hand(precisions='["float64", "float12"]').tree
    groups = {node.path.replace("float16", "float12"): node.to_dataset(inherit=False) for node in tree.subtree}
    with pytest.raises(pp.InputError, match=r"trace\.h5 is damaged: the attribute precisions is .*float12"):
        pp.open_trace(Trace(xr.DataTree.from_dict(groups)).save(tmp_path / "trace.h5"))


def test_a_file_that_grows_meanwhile_is_read_again(saved, monkeypatch):
    """What a run writes while a trace is opened is no damage."""
    from precision_probe.trace import reading

    works, calls = reading.list_objects, []

    def grow_once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            os.utime(saved)
            raise OSError("half of it is new")
        return works(*arguments)

    monkeypatch.setattr(reading, "list_objects", grow_once)
    pp.open_trace(saved).close()
    assert len(calls) == 2


@pytest.mark.parametrize("kept", ["trace", "trace.tree", "trace.group('propagated', 'float64')"])
def test_a_trace_that_is_open_as_python_ends_does_not_crash_it(saved, kept):
    """HDF5 closes its files when the process ends, and calls the file object then, if it still has it."""
    code = f"""
import ctypes, precision_probe as pp
trace = pp.open_trace({str(saved)!r})
kept = {kept}
ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))  # as caches and frames of a debugger do, it outlives all
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_closing_closes_it_for_hdf5_too(saved):
    before = h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE)
    with pp.open_trace(saved) as trace:
        assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) == before + 1
        kept = trace.group("propagated", "float64")
    assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) == before
    assert "forces" in kept
