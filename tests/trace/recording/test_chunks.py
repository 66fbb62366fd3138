"""chunks.py: chunks that were made here are those that HDF5 makes, reads and verifies."""

import zlib
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from precision_probe.trace.recording import chunks
from precision_probe.trace.recording.chunks import check_chunks, fletcher32, write_whole_chunks

N_ROWS, WIDTH, STEP = 1003, 700, 23  # rows of the array, numbers in each, rows of a chunk


def numbers(kind):
    """Random numbers of a precision, with what is not finite among them, as a trace holds them."""
    values = np.random.default_rng(0).normal(size=(N_ROWS, WIDTH))
    values[5, :4] = np.nan, np.inf, -np.inf, -0.0
    if kind == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    return values.astype(kind).astype(np.float32 if kind == "float16" else kind)


def made(path, kind):
    """An empty array of a file."""
    file = h5py.File(path, "w")
    options = {"compression": "gzip", "shuffle": True} if kind in ("float16", "bfloat16") else {}
    dtype = numbers(kind).dtype
    shape = {"shape": (0, WIDTH), "maxshape": (None, WIDTH), "chunks": (STEP, WIDTH)}
    return file, file.create_dataset("x", dtype=dtype, fletcher32=True, fillvalue=np.nan, **shape, **options)


KINDS = ["float64", "float32", "bfloat16", "float16"]


@pytest.mark.parametrize("first", [0, 1, STEP, 30])
@pytest.mark.parametrize("kind", KINDS)
def test_hdf5_reads_what_was_written_bit_for_bit(tmp_path, kind, first):
    values = numbers(kind)
    file, array = made(tmp_path / "a.h5", kind)
    with file:
        array.resize(first + N_ROWS, 0)
        rows = write_whole_chunks(array, values, first)
        assert (first + rows.start) % STEP == (first + rows.stop) % STEP == 0
        assert rows.start < STEP
        assert N_ROWS - rows.stop < STEP
    with h5py.File(tmp_path / "a.h5") as file:
        found = file["x"][first + rows.start : first + rows.stop]
        assert found.tobytes() == values[rows].tobytes()
        assert np.isnan(file["x"][: first + rows.start]).all()


@pytest.mark.parametrize("kind", ["float64", "float32"])
def test_a_chunk_is_byte_for_byte_hdf5_s(tmp_path, kind):
    values = numbers(kind)[:STEP]
    file, array = made(tmp_path / "a.h5", kind)
    with file:
        array.resize(STEP, 0)
        array[:] = values
        theirs = array.id.read_direct_chunk((0, 0))[1]
    assert chunks._plain_chunk(values) == theirs


@pytest.mark.parametrize(("kind", "most"), [("bfloat16", 0.40), ("float16", 0.45)])
def test_widened_numbers_become_small(kind, most):
    values = numbers(kind)[6:60]
    chunk = chunks._deflated_chunk(values)
    assert len(chunk) < most * values.nbytes
    assert zlib.decompress(chunk[:-4]) == values.view(np.uint8).reshape(-1, 4).T.tobytes()


def test_few_rows_other_filters_and_other_dtypes_are_left_to_hdf5(tmp_path):
    values = numbers("float32")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        shape = {"shape": values.shape, "dtype": "f4"}
        arrays = [
            file.create_dataset("bare", chunks=(STEP, WIDTH), **shape),
            file.create_dataset("thin", chunks=(1, 5), fletcher32=True, **shape),
            file.create_dataset("gzip", chunks=(STEP, WIDTH), fletcher32=True, compression="gzip", **shape),
            file.create_dataset("lzf", chunks=(STEP, WIDTH), fletcher32=True, shuffle=True, compression="lzf", **shape),
        ]
        assert all(write_whole_chunks(array, values, 0) == slice(0, 0) for array in arrays)
    file, array = made(tmp_path / "b.h5", "float64")
    with file:
        array.resize(N_ROWS, 0)
        assert write_whole_chunks(array, values, 0) == slice(0, 0)
        assert write_whole_chunks(array, values[:30].astype(np.float64), 0) == slice(0, 0)


def test_without_threads_it_is_the_same(tmp_path, monkeypatch):
    """As Python ends, it starts none."""

    def ending(*_):
        raise RuntimeError("cannot schedule new futures after shutdown")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", ending)
    test_hdf5_reads_what_was_written_bit_for_bit(tmp_path, "float16", 30)


def test_an_error_in_a_thread_is_raised(tmp_path, monkeypatch):
    file, array = made(tmp_path / "a.h5", "float32")
    monkeypatch.setattr(chunks, "fletcher32", lambda _: 1 // 0)
    array.resize(N_ROWS, 0)
    with file, pytest.raises(ZeroDivisionError):
        write_whole_chunks(array, numbers("float32"), 0)


# Checksums


def by_definition(content):
    """Fletcher-32 of big-endian words, number by number: 65535 stands for a sum that is a multiple of it."""
    total = of_totals = 0
    for word in np.frombuffer(content + bytes(len(content) % 2), ">u2").tolist():
        total += word
        of_totals += total
    return ((of_totals - 1) % 65535 + 1 if of_totals else 0) << 16 | ((total - 1) % 65535 + 1 if total else 0)


@given(st.binary(max_size=300))
@example(b"")
@example(bytes(7))
@example(b"\xff" * 64)
@example(b"\xff\xff")
def test_fletcher32_by_definition(content):
    assert fletcher32(content) == by_definition(content)


@pytest.mark.parametrize("n_bytes", [2**18 - 1, 2**18, 2**19 + 3])
def test_fletcher32_of_many_bytes(n_bytes):
    assert fletcher32(b"\xff" * n_bytes) == by_definition(b"\xff" * n_bytes)


@pytest.mark.parametrize("kind", ["float64", "bfloat16"])
def test_any_flipped_bit_of_a_chunk_is_found(tmp_path, kind):
    path = tmp_path / "a.h5"
    file, array = made(path, kind)
    with file:
        array.resize(N_ROWS, 0)
        array[:] = numbers(kind)  # by HDF5 itself
        places = [array.id.get_chunk_info(index) for index in (0, 7, array.id.get_num_chunks() - 1)]
    whole = path.read_bytes()
    for place in places:
        for at in (0, place.size // 2, place.size - 5, place.size - 1):
            damaged = bytearray(whole)
            damaged[place.byte_offset + at] ^= 4
            path.write_bytes(damaged)
            with path.open("rb") as opened, h5py.File(opened) as file, pytest.raises(OSError, match="x has not the"):
                check_chunks(file["x"], opened.fileno())
    path.write_bytes(whole)
    with path.open("rb") as opened, h5py.File(opened) as file:
        check_chunks(file["x"], opened.fileno())
