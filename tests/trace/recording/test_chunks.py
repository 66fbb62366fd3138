"""chunks.py: chunks that were made here are those that HDF5 makes, reads and verifies."""

import contextlib
import zlib
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
from full_disk import broken_disk

from precision_probe.trace.recording import chunks
from precision_probe.trace.recording.chunks import begin_to_check_chunks, write_whole_chunks
from precision_probe.trace.recording.threads import Threads
from precision_probe.trace.transaction import Transaction, changing_hdf5, transaction_of

N_ROWS, WIDTH, STEP = 1003, 700, 23  # rows of the array, numbers in each, rows of a chunk


def numbers(kind):
    """Random numbers of a precision, with what is not finite among them, as a trace holds them."""
    values = np.random.default_rng(0).normal(size=(N_ROWS, WIDTH))
    values[5, :4] = np.nan, np.inf, -np.inf, -0.0
    if kind == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    return values.astype(kind).astype(np.float32 if kind == "float16" else kind)


@contextlib.contextmanager
def made(path, kind):
    """An empty array of a file that is changed by a transaction, which is committed."""
    options = {"compression": "gzip", "shuffle": True} if kind in ("float16", "bfloat16") else {}
    shape = {"shape": (0, WIDTH), "maxshape": (None, WIDTH), "chunks": (STEP, WIDTH)}
    with contextlib.closing(Transaction(path, new=True)) as transaction:
        with h5py.File(transaction, "w") as file:
            dtype = numbers(kind).dtype
            array = file.create_dataset("x", dtype=dtype, fletcher32=True, fillvalue=np.nan, **shape, **options)
            yield array, transaction
        transaction.commit()


def check(path):
    with path.open("rb") as opened, h5py.File(opened) as file, Threads() as threads:
        for begun in begin_to_check_chunks(file["x"], opened.fileno(), threads):
            begun.result()


KINDS = ["float64", "float32", "bfloat16", "float16"]


@pytest.mark.parametrize("first", [0, 1, STEP, 30])
@pytest.mark.parametrize("kind", KINDS)
def test_hdf5_reads_what_was_written_bit_for_bit(tmp_path, kind, first):
    values = numbers(kind)
    with made(tmp_path / "a.h5", kind) as (array, writer):
        array.resize(first + N_ROWS, 0)
        rows = write_whole_chunks(array, values, first, writer)
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
    with made(tmp_path / "a.h5", kind) as (array, _):
        array.resize(STEP, 0)
        array[:] = values
        theirs = array.id.read_direct_chunk((0, 0))[1]
    assert b"".join(chunks._plain_chunk(values)) == theirs


@pytest.mark.parametrize(("kind", "most"), [("bfloat16", 0.40), ("float16", 0.45)])
def test_widened_numbers_become_small(kind, most):
    values = numbers(kind)[6:60]
    chunk = chunks._deflated_chunk(values)
    assert len(chunk) < most * values.nbytes
    assert zlib.decompress(chunk[:-4]) == values.view(np.uint8).reshape(-1, 4).T.tobytes()


def test_few_rows_other_filters_and_other_dtypes_are_left_to_hdf5(tmp_path):
    values = numbers("float32")
    with contextlib.closing(Transaction(tmp_path / "a.h5", new=True)) as writer, h5py.File(writer, "w") as file:
        shape = {"shape": values.shape, "dtype": "f4"}
        arrays = [
            file.create_dataset("bare", chunks=(STEP, WIDTH), **shape),
            file.create_dataset("thin", chunks=(1, 5), fletcher32=True, **shape),
            file.create_dataset("gzip", chunks=(STEP, WIDTH), fletcher32=True, compression="gzip", **shape),
            file.create_dataset("lzf", chunks=(STEP, WIDTH), fletcher32=True, shuffle=True, compression="lzf", **shape),
        ]
        assert all(write_whole_chunks(array, values, 0, writer) == slice(0, 0) for array in arrays)
    with made(tmp_path / "b.h5", "float64") as (array, writer):
        array.resize(N_ROWS, 0)
        assert write_whole_chunks(array, values, 0, writer) == slice(0, 0)
        assert write_whole_chunks(array, values[:30].astype(np.float64), 0, writer) == slice(0, 0)


def test_a_disk_that_fails_at_any_moment_leaves_the_file_as_it_was(tmp_path):
    """Whoever writes then, HDF5 or a thread: the file has nothing of it, and may be changed again."""
    path = tmp_path / "a.h5"
    with made(path, "float32") as (array, _):
        array.resize(5, 0)  # so that the new chunks begin within a page of old bytes
        array[:] = numbers("float32")[:5]
    before = path.read_bytes()

    def grow():
        with changing_hdf5(path) as file:
            file["x"].resize(N_ROWS, 0)
            rows = write_whole_chunks(file["x"], numbers("float32")[5:], 5, transaction_of(file["x"]))
            assert rows.stop - rows.start > 900

    with pytest.MonkeyPatch.context() as patch:
        calls = broken_disk(patch, None)
        grow()
        n_calls = len(calls)
    after = path.read_bytes()
    for number in (1, 2, 3, n_calls // 2, n_calls - 12):
        path.write_bytes(before)
        with pytest.MonkeyPatch.context() as patch:
            broken_disk(patch, number)
            with pytest.raises(OSError, match="No space"):
                grow()
        assert path.read_bytes()[: len(before)] == before
        with h5py.File(path) as file:
            assert file["x"].shape == (5, WIDTH)
    grow()
    assert path.read_bytes() == after


def test_without_threads_it_is_the_same(tmp_path, monkeypatch):
    """As Python ends, it starts none."""

    def ending(*_):
        raise RuntimeError("cannot schedule new futures after shutdown")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", ending)
    test_hdf5_reads_what_was_written_bit_for_bit(tmp_path, "float16", 30)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_an_error_in_a_thread_is_raised(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(chunks, "fletcher32", lambda _: 1 // 0)

    def write():
        with made(tmp_path / "a.h5", kind) as (array, writer):
            array.resize(N_ROWS, 0)
            write_whole_chunks(array, numbers(kind), 0, writer)

    with pytest.raises(ZeroDivisionError):
        write()
    assert (tmp_path / "a.h5").stat().st_size == 0


@pytest.mark.parametrize("kind", ["float64", "bfloat16"])
def test_any_flipped_bit_of_a_chunk_is_found(tmp_path, kind):
    path = tmp_path / "a.h5"
    with made(path, kind) as (array, _):
        array.resize(N_ROWS, 0)
        array[:] = numbers(kind)  # by HDF5 itself
        places = [array.id.get_chunk_info(index) for index in (0, 7, array.id.get_num_chunks() - 1)]
    whole = path.read_bytes()
    for place in places:
        for at in (0, place.size // 2, place.size - 5, place.size - 1):
            damaged = bytearray(whole)
            damaged[place.byte_offset + at] ^= 4
            path.write_bytes(damaged)
            with pytest.raises(OSError, match="x has not the"):
                check(path)
    path.write_bytes(whole)
    check(path)
