"""What a file may hold: what leads out of it, or is more than it can hold, is refused before it is followed."""

import os
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5pl
from traces_by_hand import trace_by_hand

import precision_probe as pp
from precision_probe.trace.hdf5_check import RefusedError, check_heaps, list_objects, without_plugins

FORCES = "/propagated/float16/forces"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return trace_by_hand().save(tmp_path_factory.mktemp("saved") / "trace.h5")


@pytest.fixture
def file(saved, tmp_path):
    """A copy, to be changed."""
    copy = tmp_path / "trace.h5"
    copy.write_bytes(saved.read_bytes())
    with h5py.File(copy, "r+") as opened:
        yield opened


def refusal(file):
    """What is said of a file; it must be said of the trace too, and quickly."""
    file.flush()
    with pytest.raises(RefusedError) as refused:
        list_objects(file, Path(file.filename).stat().st_size)
    path = file.filename
    file.close()
    with pytest.raises(pp.InputError) as said:
        pp.open_trace(path)
    assert str(refused.value) in str(said.value)
    return str(refused.value)


def replaced(file, **options):
    """Forces made anew in another way."""
    values = file[FORCES][()]
    del file[FORCES]
    return file.create_dataset(FORCES, **({"data": values} | options))


def test_a_trace_is_listed_with_its_shapes(saved):
    with h5py.File(saved) as opened:
        found = list_objects(opened, saved.stat().st_size)
    assert found["/propagated/float16"] is None
    assert found[FORCES].shape == (3, 3)
    assert found[FORCES].has_checksum
    assert found["/structures/name"].is_text
    assert found["/structures/atom"].is_dimension


@pytest.mark.parametrize(
    ("link", "words"),
    [
        (h5py.SoftLink("/structures/positions"), "a soft link"),
        (h5py.ExternalLink("/etc/passwd", "/x"), "a link to another file"),
    ],
)
def test_links_are_not_followed(file, link, words):
    del file[FORCES]
    file[FORCES] = link
    assert refusal(file) == f"{FORCES} is {words}"


def test_an_external_link_to_a_pipe_does_not_block(file, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    del file[FORCES]
    file[FORCES] = h5py.ExternalLink(tmp_path / "pipe", "/x")
    assert "another file" in refusal(file)


@pytest.mark.parametrize("target", ["/structures/positions", "/propagated", "/"])
def test_an_object_has_one_name(file, target):
    file["/propagated/again"] = file[target]
    assert "is a second link to an object" in refusal(file)


def test_data_in_other_files_are_not_read(file):
    replaced(file, shape=(3, 3), dtype="f4", external=[("/etc/passwd", 0, 36)], data=None)
    assert refusal(file) == f"the data of {FORCES} are kept in other files"


def test_virtual_data_are_not_read(file, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    layout = h5py.VirtualLayout((3, 3), "f4", maxshape=(None, 3))
    layout[...] = h5py.VirtualSource(tmp_path / "pipe", "x", (3, 3), maxshape=(None, 3))
    del file[FORCES]
    file.create_virtual_dataset(FORCES, layout)
    assert refusal(file) == f"the data of {FORCES} are kept in other files"


@pytest.mark.parametrize("options", [{"compression": "lzf"}, {"scaleoffset": 3}])
def test_filters_of_other_libraries_are_refused(file, options):
    replaced(file, chunks=(3, 3), **options)
    assert "has the filter" in refusal(file)


def test_the_filters_of_a_trace_are_read(file):
    made = replaced(file, chunks=(3, 3), compression="gzip", shuffle=True, fletcher32=True)
    assert list_objects(file, 10**5)[FORCES].shape == made.shape


def test_no_plugin_is_found_meanwhile():
    def folders():
        return [h5pl.get(index) for index in range(h5pl.size())]

    before = folders()
    with without_plugins():
        assert folders() == []
    assert folders() == before


def test_nesting_is_bounded(file):
    file.create_group("/a" * 500)
    assert "lies deeper than 8 groups" in refusal(file)


@pytest.mark.parametrize("size", [2**62, 2**40, 2**34])
def test_sizes_are_those_that_the_file_can_hold(file, size):
    replaced(file, data=None, shape=(size // 4,), dtype="f4", chunks=(1024,))
    assert refusal(file).startswith(f"{FORCES} is said to have {size:,} bytes, in a file of ")


def test_data_that_were_never_written_are_missed(file):
    replaced(file, data=None, shape=(3, 3), dtype="f4")
    assert refusal(file) == f"a part of the data of {FORCES} is missing, or all of it"


def test_rows_that_are_nan_need_not_be_written(file):
    replaced(file, data=None, shape=(3, 3), dtype="f4", chunks=(1, 3), fillvalue=np.nan)
    assert list_objects(file, 10**5)[FORCES].shape == (3, 3)


@pytest.mark.parametrize("kind", ["c16", h5py.ref_dtype, np.dtype([("a", "f4")]), h5py.vlen_dtype("f4"), "?"])
def test_types_that_no_trace_has_are_refused(file, kind):
    replaced(file, data=None, shape=(3, 3), dtype=kind)
    assert refusal(file) == f"{FORCES} holds neither text nor numbers of 8 to 64 bits"


def test_attributes_are_bounded(file):
    file[FORCES].attrs["odd"] = np.zeros(2, [("a", "f4")])
    assert refusal(file).startswith(f"the attribute odd of {FORCES} is neither")


def test_there_are_not_too_many_attributes(file):
    for number in range(300):
        file[FORCES].attrs[f"a{number}"] = 1
    assert refusal(file) == f"{FORCES} has more than 256 attributes"


def test_names_are_shown_as_data(file):
    file["/structures/\x1b[31m\nred"] = h5py.SoftLink("/x")
    assert refusal(file) == "/structures/\\x1b[31m\\nred is a soft link"


def heap(*objects, length=4096):
    """A global heap of HDF5 with objects of given index and length."""
    data = b"GCOL\1\0\0\0" + struct.pack("<Q", length)
    for index, size in objects:
        data += struct.pack("<H6xQ", index, size) + bytes((size + 7) // 8 * 8 if index and size < length else 0)
    return b"before.." + data.ljust(length, b"\0") + b"behind"


def test_heaps_of_a_trace_pass(saved):
    assert b"GCOL\1\0\0\0" in saved.read_bytes()
    check_heaps(saved.read_bytes())
    check_heaps(heap((1, 5), (2, 16), (0, 4096 - 16 - 24 - 32)))


@pytest.mark.parametrize("objects", [[(0, 0)], [(1, 5), (0, 0)], [(1, 2**64 - 16)], [(1, 5000)], [(0, 8)]])
def test_a_heap_in_which_hdf5_would_go_in_circles_is_refused(objects):
    with pytest.raises(RefusedError, match="the heap at byte 8 is damaged"):
        check_heaps(heap(*objects))


def test_texts_are_not_longer_than_the_file(file):
    """Many texts that point to one and the same: a few bytes each, and any length when they are read."""
    name = file["/structures/name"]
    attributes = dict(name.attrs)
    del file["/structures/name"]
    made = file.create_dataset("/structures/name", (4000,), h5py.string_dtype(), chunks=(4000,))
    made[0] = "x" * 5000
    for key in ("units", "long_name"):
        made.attrs[key] = attributes[key]
    offset = made.id.get_chunk_info(0).byte_offset
    path = file.filename
    file.close()
    with Path(path).open("r+b") as raw:
        raw.seek(offset)
        pointer = raw.read(16)
        raw.seek(offset)
        raw.write(pointer * 4000)
    with pytest.raises(pp.InputError, match="texts up to /structures/name are longer than the file"):
        pp.open_trace(path)


def test_text_has_a_checksum(saved, tmp_path):
    path = tmp_path / "trace.h5"
    data = saved.read_bytes()[:-89]  # without the checksum of the whole
    assert data.count(b"pair") == 1
    path.write_bytes(data.replace(b"pair", b"pain"))
    with pytest.raises(pp.InputError, match="text of /structures/name is damaged"):
        pp.open_trace(path)
