"""transaction.py and journal.py: a file is what it was before or what it is after, whatever fails or is killed when."""

import contextlib
import errno
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import h5netcdf
import h5py
import netCDF4
import numpy as np
import pytest
from full_disk import WRITING, Killed, broken_disk, killed_at
from h5py import h5f

from precision_probe.trace.digest import check_trailer, write_trailer
from precision_probe.trace.journal import Journal, Patch, pending_changes, read_journal
from precision_probe.trace.recording import write_behind
from precision_probe.trace.transaction import Transaction, changing, changing_hdf5, making, settle

N_OLD, N_NEW = 1000, 3000  # numbers; the file then changes by bytes before and beyond its old end


@pytest.fixture
def path(tmp_path):
    """A file with rows that can grow, an attribute and text."""
    path = tmp_path / "some.h5"
    with making(path) as file:
        file.dimensions["x"] = None
        file.resize_dimension("x", N_OLD)
        options = {"chunks": (700,), "fletcher32": True}
        file.create_variable("a", ("x",), dtype="f8", **options)[:] = np.arange(N_OLD)
        file.create_variable("b", ("x",), dtype="f4", compression="gzip", **options)[:] = np.arange(N_OLD)
        file.create_variable("text", ("x",), dtype=h5py.string_dtype(), chunks=(700,))[:] = ["Å"] * N_OLD
        file.attrs["number"] = 1
    return path


def change(path):
    """Let it grow, with a new group and another attribute."""
    with changing(path) as file:
        file.resize_dimension("x", N_NEW)
        for name in ("a", "b"):
            file[name][N_OLD:] = np.arange(N_OLD, N_NEW)
        file["text"][N_OLD:] = ["β"] * (N_NEW - N_OLD)
        file.attrs["number"] = 2
        file.create_group("new").create_variable("c", ("x",), data=np.ones(N_NEW), chunks=(500,), fletcher32=True)


def contents(path):
    """Which of the two states a file is in, all of it read and compared."""
    with h5py.File(pending_changes(path) or path, "r") as file:
        number = int(np.ravel(file.attrs["number"])[0])
        n = {1: N_OLD, 2: N_NEW}[number]
        np.testing.assert_array_equal(file["a"], np.arange(n))
        np.testing.assert_array_equal(file["b"], np.arange(n))
        assert file["text"].asstr()[()].tolist() == ["Å"] * N_OLD + ["β"] * (n - N_OLD)
        assert ("new" in file) == (number == 2)
        if number == 2:
            np.testing.assert_array_equal(file["new/c"], np.ones(N_NEW))
    return number


def n_calls(path, work, **options):
    """How many calls that change the disk some work makes."""
    copy = path.with_name("counted.h5")
    if path.exists():
        shutil.copy(path, copy)
    with pytest.MonkeyPatch.context() as patch:
        made = broken_disk(patch, None, **options)
        work(copy)
    copy.unlink()
    return len(made)


def names(path):
    return sorted(item.name for item in path.parent.iterdir())


# What it is for


def test_a_change_is_what_hdf5_alone_would_have_made(path, tmp_path):
    alone = shutil.copy(path, tmp_path / "alone.h5")
    change(path)
    assert contents(path) == 2
    assert names(path) == ["alone.h5", "some.h5"]
    with h5netcdf.File(alone, "r+", libver=("v110", "v110")) as file:
        file.resize_dimension("x", N_NEW)
        for name in ("a", "b"):
            file[name][N_OLD:] = np.arange(N_OLD, N_NEW)
        file["text"][N_OLD:] = ["β"] * (N_NEW - N_OLD)
        file.attrs["number"] = 2
        file.create_group("new").create_variable("c", ("x",), data=np.ones(N_NEW), chunks=(500,), fletcher32=True)
    assert contents(alone) == 2


def test_others_read_it(path):
    change(path)
    write_trailer(path)
    with netCDF4.Dataset(path) as file:
        np.testing.assert_array_equal(file["a"][:], np.arange(N_NEW))
        assert file["text"][0] == "Å"
        assert file["new"]["c"].dimensions == ("x",)


def test_all_metadata_have_checksums(path):
    """Format 3 of the superblock, 2 of object headers: in both every byte is covered."""
    with h5py.File(path) as file:
        assert file.id.get_create_plist().get_version()[0] == 3
    whole, found = path.read_bytes(), []
    with h5py.File(path) as file:
        places = [h5py.h5o.get_info(file[name].id).addr for name in ("/", "a", "b")]
    for place in places:
        for bit in range(0, 8 * 20, 7):
            damaged = bytearray(whole)
            damaged[place + bit // 8] ^= 1 << bit % 8
            (path.parent / "damaged.h5").write_bytes(damaged)
            with (
                pytest.raises((OSError, KeyError, RuntimeError, ValueError)),
                h5py.File(path.parent / "damaged.h5") as f,
            ):
                found.append(f["a"][()].sum() + f["b"][()].sum())
    assert not found


def test_a_flipped_bit_in_an_array_is_refused(path):
    whole = path.read_bytes()
    with h5py.File(path) as file:
        chunk = file["a"].id.get_chunk_info(0)
    for bit in range(0, 8 * 700, 61):
        damaged = bytearray(whole)
        damaged[chunk.byte_offset + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with h5py.File(path) as file, pytest.raises(OSError, match=r"filter returned failure|Fletcher32"):
            file["a"][()]


def test_bytes_left_behind_by_a_killed_writer_are_no_part_of_the_file(path):
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"x" * 100_000)
    assert contents(path) == 1
    with changing(path) as file:
        file.attrs["number"] = 1
    assert path.stat().st_size < size + 5000
    assert contents(path) == 1


def test_a_part_of_a_file_can_be_removed(path):
    change(path)
    with changing_hdf5(path) as file:
        del file["new"]
        file.attrs.modify("number", np.array([1]))
    with h5py.File(path) as file:
        assert sorted(file) == ["a", "b", "text", "x"]


def test_an_exception_in_the_block_undoes_everything(path):
    before = path.read_bytes()

    def fail():
        with changing(path) as file:
            file["a"][:] = 7
            file.attrs["number"] = 2
            raise KeyError("a mistake")

    with pytest.raises(KeyError, match="a mistake"):
        fail()
    assert path.read_bytes() == before


def test_what_is_not_there_or_not_hdf5(tmp_path):
    with pytest.raises(FileNotFoundError), changing(tmp_path / "missing.h5"):
        pass
    (tmp_path / "text.h5").write_text("text " * 100)
    with pytest.raises(OSError, match="signature"), changing(tmp_path / "text.h5"):
        pass
    assert (tmp_path / "text.h5").read_text() == "text " * 100
    assert names(tmp_path / "text.h5") == ["text.h5"]


# A disk that fails


@pytest.mark.parametrize(
    ("code", "for_ever"),
    [
        (errno.ENOSPC, True),
        (errno.EIO, False),
        pytest.param(errno.ENOSPC, False, marks=pytest.mark.slow),
        pytest.param(errno.EIO, True, marks=pytest.mark.slow),
        pytest.param(errno.EDQUOT, True, marks=pytest.mark.slow),
    ],
)
def test_every_failing_call_leaves_the_state_before_or_after(path, code, for_ever):
    whole, states = path.read_bytes(), []
    calls = (*WRITING, "close")  # some file systems say only at the end what they could not do
    for number in range(1, n_calls(path, change, names=calls) + 1):
        with pytest.MonkeyPatch.context() as patch:
            broken_disk(patch, number, code, for_ever=for_ever, names=calls)
            try:
                change(path)
            except OSError as error:
                assert error.errno == code  # noqa: PT017
                state = 1
            else:
                state = 2
        assert contents(path) == state
        states.append(state)
        if state == 1 and not for_ever:
            assert path.read_bytes() == whole
            assert names(path) == ["some.h5"]
        change(path) if state == 1 else None  # made up for
        with changing(path) as file:
            assert file.attrs["number"] == 2
        assert contents(path) == 2
        assert names(path) == ["some.h5"]
        path.write_bytes(whole)
    assert states.count(1) > 10
    assert states == sorted(states)  # before the journal is whole nothing is changed, and after it everything


@pytest.mark.parametrize("for_ever", [True, False], ids=["for ever", "once"])
def test_a_new_file_that_cannot_be_written(path, for_ever):
    def make(path):
        with making(path) as file:
            file.create_variable("a", ("x",), data=np.arange(5000.0), chunks=(100,))

    new = path.with_name("new.h5")
    for number in range(1, n_calls(new, make) + 1):
        with pytest.MonkeyPatch.context() as patch:
            broken_disk(patch, number, for_ever=for_ever)
            try:
                make(new)
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017
                continue
        with h5py.File(new) as file:
            np.testing.assert_array_equal(file["a"], np.arange(5000))


def test_a_file_that_cannot_be_read(path, monkeypatch):
    before = path.read_bytes()
    for number in range(1, n_calls(path, change, names=("preadv",)) + 1, 3):
        with monkeypatch.context() as patch:
            broken_disk(patch, number, errno.EIO, names=("preadv",))
            with pytest.raises(OSError, match="Input/output error"):
                change(path)
        assert path.read_bytes() == before
        # what HDF5 had open, it would close as the process ends, and crash
        assert not [file for file in h5f.get_obj_ids(h5f.OBJ_ALL, h5f.OBJ_FILE) if b"Transaction" in file.name]
    assert contents(path) == 1


def test_memory_is_not_needed_for_what_is_new(path):
    with Transaction(path) as transaction:
        transaction.seek(0, os.SEEK_END)
        end = transaction.tell()
        transaction.write(b"x" * 10_000_000)
        assert path.stat().st_size == end + 10_000_000
        assert not transaction._pages
    assert path.stat().st_size == end


# A process that is killed


@pytest.mark.parametrize("half_done", [False, True])
def test_killed_at_every_step(path, half_done):
    whole, states = path.read_bytes(), []
    for number in range(1, n_calls(path, change) + 1):
        with pytest.MonkeyPatch.context() as patch:
            killed_at(patch, number, half_done=half_done)
            with pytest.raises(Killed):
                change(path)
        states.append(contents(path))
        if states[-1] == 1:
            with h5py.File(path) as file:  # nothing but the file is needed to read it
                assert file["a"].shape == (N_OLD,)
            change(path)
        else:
            with changing(path):
                pass
        assert contents(path) == 2
        assert names(path) == ["some.h5"]
        path.write_bytes(whole)
    assert states == sorted(states)
    assert set(states) == {1, 2}


def killed_before_the_file_was_changed(path):
    """A file with a whole journal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "apply", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            change(path)
    assert names(path) == ["some.h5", "some.h5.journal"]


def test_a_whole_journal_stands_for_the_change(path):
    killed_before_the_file_was_changed(path)
    assert contents(path) == 2
    with changing(path) as file:
        assert file.attrs["number"] == 2
    assert pending_changes(path) is None
    assert contents(path) == 2


@pytest.mark.parametrize("bit", range(0, 40000, 3989))
def test_a_damaged_journal_counts_as_none(path, bit):
    killed_before_the_file_was_changed(path)
    journal = path.with_name("some.h5.journal")
    damaged = bytearray(journal.read_bytes())
    damaged[bit // 8 % len(damaged)] ^= 1 << bit % 8
    journal.write_bytes(damaged)
    assert pending_changes(path) is None
    assert contents(path) == 1
    change(path)
    assert contents(path) == 2


def test_a_journal_cut_off_anywhere_counts_as_none(path):
    killed_before_the_file_was_changed(path)
    journal = path.with_name("some.h5.journal")
    whole = journal.read_bytes()
    for size in (*range(200), *range(200, len(whole), 977), len(whole) - 1):
        journal.write_bytes(whole[:size])
        assert read_journal(path) is None


def test_a_journal_of_another_file_counts_as_none(path, tmp_path):
    killed_before_the_file_was_changed(path)
    with making(tmp_path / "other.h5") as file:
        file.create_variable("a", ("x",), data=np.ones(500_00))
    (tmp_path / "some.h5.journal").rename(tmp_path / "other.h5.journal")
    before = (tmp_path / "other.h5").read_bytes()
    assert read_journal(tmp_path / "other.h5") is None
    with changing(tmp_path / "other.h5"):
        pass
    assert (tmp_path / "other.h5").read_bytes() == before
    assert not (tmp_path / "other.h5.journal").exists()


def test_the_file_object_of_pending_changes_is_the_file_to_be(path, tmp_path):
    killed_before_the_file_was_changed(path)
    seen = pending_changes(path)
    assert seen.seek(0, os.SEEK_END) == seen.tell()
    seen.seek(0)
    with seen:
        shown = seen.read()
    with changing(path):
        pass
    assert shown == path.read_bytes()


def test_pages_are_joined_and_cut_to_the_file():
    pages = {0: bytearray(b"a" * 4), 1: bytearray(b"b" * 4), 3: bytearray(b"c" * 4), 5: bytearray(b"d" * 4)}
    assert Journal.of_pages(pages, 4, 15, 100).parts == [Patch(0, b"aaaabbbb"), Patch(12, b"ccc")]
    assert Journal.of_pages(pages, 4, 100, 13).parts == [Patch(0, b"aaaabbbb"), Patch(12, b"c")]


# The line at the end


def test_a_finished_file_gets_its_last_line_with_the_last_change(path):
    whole = path.read_bytes()

    def last(path):
        with changing(path, is_last=True) as file:
            file.attrs["number"] = 1

    n = n_calls(path, last)
    for number in range(1, n + 1):
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(OSError):
            broken_disk(patch, number)
            last(path)
        settle(path)
        assert check_trailer(path) in (None, True)
        assert contents(path) == 1
        path.write_bytes(whole)
    last(path)
    assert check_trailer(path) is True


def test_a_change_that_fails_leaves_the_last_line(path):
    write_trailer(path)
    whole = path.read_bytes()
    for number in range(1, n_calls(path, change) + 1):
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(OSError):
            broken_disk(patch, number, for_ever=False)
            change(path)
        assert check_trailer(path) is (True if contents(path) == 1 else None)
        path.write_bytes(whole)
        path.with_name("some.h5.journal").unlink(missing_ok=True)


def test_a_new_file_with_its_last_line(tmp_path):
    with making(tmp_path / "new.h5", is_last=True) as file:
        file.create_variable("a", ("x",), data=np.arange(500_000.0))
    assert check_trailer(tmp_path / "new.h5") is True


# The disk takes new bytes while more are made


def test_a_disk_that_fails_meanwhile_leaves_the_file_as_it_was(path, monkeypatch):
    """The system tells of bytes that it could not write once only: here to the thread that syncs them."""
    fsync, main, n_failed = os.fsync, threading.current_thread(), 0

    def failing_in_a_thread(fd):
        nonlocal n_failed
        if threading.current_thread() is not main:
            n_failed += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(fd)

    monkeypatch.setattr(write_behind, "_MANY", 1000)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing_in_a_thread)
        with pytest.raises(OSError, match="Input/output error"):
            change(path)
    assert n_failed > 0
    assert contents(path) == 1
    change(path)
    assert contents(path) == 2


def test_as_python_ends_and_starts_no_threads_the_disk_is_waited_for_at_the_end(path, monkeypatch):
    def ending(*_):
        raise RuntimeError("cannot schedule new futures after shutdown")

    monkeypatch.setattr(write_behind, "_MANY", 1000)
    monkeypatch.setattr(ThreadPoolExecutor, "submit", ending)
    change(path)
    assert contents(path) == 2


# What threads write


def bytes_of(transaction, first, size):
    transaction.seek(first)
    into = bytearray(size)
    transaction.readinto(into)
    return bytes(into)


@pytest.mark.parametrize("first", [0, 4090, 4995, 5000, 9000])
def test_what_is_written_later_is_there_for_who_reads_it(tmp_path, first):
    """In the place of old bytes, too, which stay what they are until it is committed."""
    path, new = tmp_path / "some", bytes(range(256)) * 20
    path.write_bytes(b"x" * 5000)
    with contextlib.closing(Transaction(path)) as changed:

        def write(room):
            changed.seek(first)
            assert changed.write(room) == len(room)

        changed.write_later(len(new), write, lambda: map(memoryview, (new[:1000], new[1000:])))
        assert bytes_of(changed, first, len(new)) == new
        assert bytes_of(changed, 0, min(first, 5000)) == b"x" * min(first, 5000)
        assert path.read_bytes()[:5000] == b"x" * 5000
        changed.commit()
    expected = bytearray(b"x" * 5000).ljust(first, b"\0")
    expected[first : first + len(new)] = new
    assert path.read_bytes() == expected


def test_what_is_written_twice_is_what_came_last(tmp_path):
    with contextlib.closing(Transaction(tmp_path / "some", new=True)) as changed:
        for number in range(50):
            changed.write_later(
                10, lambda room: (changed.seek(0), changed.write(room)), lambda n=number: [memoryview(b"%010d" % n)]
            )
            changed.seek(3)
            changed.write(b"y")
        changed.commit()
    assert (tmp_path / "some").read_bytes() == b"000y000049"


def test_hdf5_that_makes_no_room_is_noticed(tmp_path):
    changed = Transaction(tmp_path / "some", new=True)
    with contextlib.closing(changed), pytest.raises(RuntimeError, match="made no room"):
        changed.write_later(10, lambda room: changed.write(bytes(room)), lambda: [memoryview(bytes(10))])
