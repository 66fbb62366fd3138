"""raw_reading.py: rows are those that h5py reads, and whatever is not whole is left to HDF5."""

import h5py
import numpy as np
import pytest

from precision_probe.trace.stored.raw_reading import RawArray, RawError

VALUES = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
PLAIN = {"chunks": (64, 3), "fletcher32": True}
DEFLATED = {**PLAIN, "compression": "gzip", "shuffle": True}


def written(path, **options):
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=VALUES, **options)
    return path


@pytest.mark.parametrize("options", [PLAIN, DEFLATED])
@pytest.mark.parametrize("rows", [(0, 1000), (0, 64), (64, 192), (3, 5), (50, 999), (990, 1000)])
def test_rows_are_those_of_the_file(tmp_path, options, rows):
    with h5py.File(written(tmp_path / "a.h5", **options)) as file, (tmp_path / "a.h5").open("rb") as raw:
        read = RawArray(file["a"]).read(raw.fileno(), *rows)
        np.testing.assert_array_equal(read, VALUES[slice(*rows)])
        assert read.dtype == file["a"].dtype


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (64, 3)},
        {**PLAIN, "chunks": (64, 2)},
        {**PLAIN, "compression": "gzip"},
    ],
)
def test_what_is_stored_in_another_way_is_left_to_hdf5(tmp_path, options):
    with h5py.File(written(tmp_path / "a.h5", **options)) as file, pytest.raises(RawError):
        RawArray(file["a"])


@pytest.mark.parametrize("options", [PLAIN, DEFLATED])
def test_a_bit_that_changed_is_found(tmp_path, options):
    path = written(tmp_path / "a.h5", **options)
    with h5py.File(path) as file:
        array = RawArray(file["a"])
        place = file["a"].id.get_chunk_info(3).byte_offset
    data = bytearray(path.read_bytes())
    data[place + 7] ^= 1
    path.write_bytes(data)
    with path.open("rb") as raw:
        np.testing.assert_array_equal(array.read(raw.fileno(), 0, 192), VALUES[:192])
        with pytest.raises(RawError, match="checksum"):
            array.read(raw.fileno(), 0, 193)


def test_chunks_that_were_never_written_are_left_to_hdf5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", shape=(1000, 3), dtype="f4", **PLAIN)[:64] = VALUES[:64]
    with h5py.File(tmp_path / "a.h5") as file, (tmp_path / "a.h5").open("rb") as raw:
        array = RawArray(file["a"])
        np.testing.assert_array_equal(array.read(raw.fileno(), 0, 64), VALUES[:64])
        with pytest.raises(RawError):
            array.read(raw.fileno(), 0, 65)
