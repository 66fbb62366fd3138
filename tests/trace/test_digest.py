"""digest.py: the last line of a file is contradicted by any changed bit before it, and nobody stumbles over it."""

import errno
import hashlib
import os
import subprocess

import h5netcdf
import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr

from precision_probe.trace import digest
from precision_probe.trace.digest import check_trailer, write_trailer


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "some.h5"
    with h5netcdf.File(path, "w") as file:
        file.dimensions["x"] = 3
        file.create_variable("a", ("x",), data=np.arange(3.0))
    return path


def test_the_line_is_the_digest_that_other_programs_compute(path):
    before = path.read_bytes()
    write_trailer(path)
    assert path.read_bytes() == before + b"\nprecision-probe sha256 %s\n" % hashlib.sha256(before).hexdigest().encode()
    head = subprocess.run(["head", "-c", str(len(before)), path], capture_output=True, check=True).stdout
    found = subprocess.run(["sha256sum"], input=head, capture_output=True, check=True).stdout.split()[0]
    assert found in path.read_bytes()[-66:]
    assert check_trailer(path) is True


@pytest.mark.parametrize("n_bytes", [100, 2**20, 2**20 + 1, 2**21 * 17 + 5])
def test_of_a_large_file_it_is_of_the_digests_of_its_pieces(tmp_path, monkeypatch, n_bytes):
    path, content = tmp_path / "large", np.random.default_rng(0).bytes(n_bytes)
    path.write_bytes(content)
    monkeypatch.setattr(digest, "_LARGE", 100)
    write_trailer(path)
    pieces = [content[first : first + 2**20] for first in range(0, n_bytes, 2**20)]
    root = hashlib.sha256(b"".join(hashlib.sha256(piece).digest() for piece in pieces)).hexdigest()
    assert path.read_bytes()[n_bytes:] == b"\nprecision-probe merkle %s\n" % root.encode()
    monkeypatch.undo()
    assert check_trailer(path) is True  # by what the line says
    for at in (0, n_bytes // 2, n_bytes - 1):
        damaged = bytearray(path.read_bytes())
        damaged[at] ^= 1
        (tmp_path / "damaged").write_bytes(damaged)
        assert check_trailer(tmp_path / "damaged") is False


def test_no_line(path):
    assert check_trailer(path) is None
    path.write_bytes(b"")
    assert check_trailer(path) is None
    write_trailer(path)
    assert check_trailer(path) is True


def test_a_second_line_takes_the_place_of_the_first(path):
    write_trailer(path)
    written = path.read_bytes()
    write_trailer(path)
    assert path.read_bytes() == written


def test_every_flipped_bit_is_found(path):
    path.write_bytes(os.urandom(20))
    write_trailer(path)
    good = path.read_bytes()
    for index in range(8 * len(good)):
        bad = bytearray(good)
        bad[index // 8] ^= 1 << index % 8
        path.write_bytes(bad)
        assert not check_trailer(path), index
    path.write_bytes(good[:-1])
    assert check_trailer(path) is None
    path.write_bytes(good + b"\0")
    assert check_trailer(path) is None


def test_a_file_with_the_line_is_read_by_everyone(path):
    write_trailer(path)
    with h5py.File(path) as file:
        assert file["a"][()].tolist() == [0, 1, 2]
    with h5netcdf.File(path) as file:
        assert file["a"][...].tolist() == [0, 1, 2]
    with netCDF4.Dataset(path) as file:
        assert file["a"][:].tolist() == [0, 1, 2]
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        assert tree["a"].values.tolist() == [0, 1, 2]
    assert check_trailer(path) is True


def test_a_change_through_hdf5_makes_it_no_longer_true(path):
    write_trailer(path)
    with h5py.File(path, "r+") as file:
        file["a"][1] = 7.0
    assert not check_trailer(path)


@pytest.mark.parametrize("name", ["fsync"])
def test_without_space_the_line_is_left_out(path, monkeypatch, name):
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, name, full)
    with pytest.raises(OSError, match="No space"):
        write_trailer(path)
    assert path.read_bytes() == before
