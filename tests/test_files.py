"""files.py: what may be written is known before the work, and a file is there whole or not at all."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

import pytest

from precision_probe.exceptions import InputError
from precision_probe.files import check_writable, remove_temporary, replacing, unfinished


def names(folder):
    return sorted(item.name for item in folder.iterdir())


@contextlib.contextmanager
def as_ordinary_user():
    """File permissions do not bind root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# What is refused


def test_check_writable_leaves_no_file(tmp_path):
    assert check_writable(tmp_path / "trace.h5") == tmp_path / "trace.h5"
    assert check_writable(str(tmp_path / "trace.h5")) == tmp_path / "trace.h5"
    assert names(tmp_path) == []


def test_a_file_that_is_there_is_replaced_only_with_force(tmp_path):
    there = tmp_path / "trace.h5"
    there.write_bytes(b"precious")
    with pytest.raises(InputError, match=r"trace\.h5 exists.*--force"):
        check_writable(there)
    assert check_writable(there, force=True) == there
    assert there.read_bytes() == b"precious"
    assert names(tmp_path) == ["trace.h5"]


def test_what_another_run_left_unfinished_is_replaced_only_with_force(tmp_path):
    path = tmp_path / "trace.h5"
    assert unfinished(path) == tmp_path / "trace.h5.partial"
    unfinished(path).write_bytes(b"precious")
    with pytest.raises(InputError, match=r"trace\.h5\.partial exists.*--force"):
        check_writable(path)
    assert check_writable(path, force=True) == path
    assert unfinished(path).read_bytes() == b"precious"


@pytest.mark.parametrize("mode", [0o555, 0o000])
@pytest.mark.parametrize("force", [False, True])
def test_unwritable_folder(mode, force):
    folder = Path(tempfile.mkdtemp())  # not in tmp_path, which only its owner may enter
    folder.chmod(mode)
    try:
        with as_ordinary_user(), pytest.raises(InputError, match="cannot be written"):
            check_writable(folder / "trace.h5", force=force)
    finally:
        folder.chmod(0o700)
    assert names(folder) == []
    folder.rmdir()


@pytest.mark.parametrize("force", [False, True])
def test_missing_folder_and_folder_as_path(tmp_path, force):
    with pytest.raises(InputError, match="cannot be written"):
        check_writable(tmp_path / "missing" / "trace.h5", force=force)
    with pytest.raises(InputError, match="is a folder"):
        check_writable(tmp_path, force=force)
    assert names(tmp_path) == []


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError, match="cannot be written"):
        check_writable(tmp_path / "file" / "trace.h5")


# Written whole or not at all


@pytest.mark.parametrize("is_there", [False, True])
def test_the_file_is_replaced_at_the_end(tmp_path, is_there):
    path = tmp_path / "trace.h5"
    if is_there:
        path.write_bytes(b"old")
    with replacing(path) as temporary:
        assert temporary.parent == tmp_path  # of the same file system, or it could not be moved in one step
        temporary.write_bytes(b"new")
        assert (path.read_bytes() == b"old") if is_there else not path.exists()
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["trace.h5"]


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_failure_leaves_everything_as_it_was(tmp_path, is_there, error):
    path = tmp_path / "trace.h5"
    if is_there:
        path.write_bytes(b"precious")

    def write():
        with replacing(path) as temporary:
            temporary.write_bytes(b"half of a tr")
            raise error

    with pytest.raises(type(error)):
        write()
    assert names(tmp_path) == (["trace.h5"] if is_there else [])
    assert not is_there or path.read_bytes() == b"precious"


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    left = replacing(tmp_path / "trace[1].h5")
    left.__enter__()  # as one that is killed in between
    others = {"trace1.h5.abcdefgh.new", "trace[1].h5", "trace[1].h5.new", "trace[1].h5.partial"}
    for name in others:
        (tmp_path / name).touch()
    assert len(names(tmp_path)) == 5
    remove_temporary(tmp_path / "trace[1].h5")
    assert set(names(tmp_path)) == others


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_honour_the_umask(tmp_path, umask):
    path = tmp_path / "trace.h5"
    before = os.umask(umask)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(b"new")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
