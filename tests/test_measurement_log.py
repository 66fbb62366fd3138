"""The log of an interrupted run: what was added is there, whatever happened to the writer or the file."""

import errno
import json
import os
import zlib

import numpy as np
import pytest

from precision_probe.exceptions import InputError
from precision_probe.measurement_log import MeasurementLog

OF = {"log": "sweep", "model": "abc", "device": "cpu"}
VALUES = {"a": {"x": 0.1 + 0.2, "y": 1e-310}, "b å\ud800": [1, None, "\n"], "c": float("inf")}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.partial"


@pytest.fixture
def written(path):
    log = MeasurementLog(path, OF)
    for key, value in VALUES.items():
        log.add(key, value)
    return path.read_bytes()


def read(path, of=OF, **options):
    """The keys that a log has, with their values."""
    log = MeasurementLog(path, of, **options)
    return {key: log[key] for key in VALUES if key in log}


def test_every_value_is_there_bit_for_bit(path, written):
    assert read(path) == VALUES
    assert path.read_bytes() == written
    lines = [line.split(b" ", 1) for line in written.splitlines()]
    assert all(int(checksum, 16) == zlib.crc32(text) for checksum, text in lines)
    assert json.loads(lines[0][1]) == OF
    assert [json.loads(text) for _, text in lines[1:]] == [{"key": key, "value": VALUES[key]} for key in VALUES]


def test_without_a_file_values_are_kept_in_memory():
    log = MeasurementLog(None, OF)
    log.add("a", 1)
    assert "a" in log
    assert "b" not in log
    assert log["a"] == 1


def test_no_file_is_made_before_there_is_something_to_keep(path):
    MeasurementLog(path, OF)
    assert not path.exists()


def test_wherever_a_writer_was_killed_whole_lines_are_kept_and_the_rest_is_added_again(path, written):
    for cut in range(len(written) + 1):
        path.write_bytes(written[:cut])
        log = MeasurementLog(path, OF)
        n_whole = max(0, written[:cut].count(b"\n") - 1)
        assert [key in log for key in VALUES] == [number < n_whole for number in range(len(VALUES))]
        for key in list(VALUES)[n_whole:]:
            log.add(key, VALUES[key])
        assert path.read_bytes() == written


def test_a_flipped_bit_costs_its_line_or_is_refused(path, written):
    header = len(written.splitlines(keepends=True)[0])
    for position in np.random.default_rng(0).integers(len(written), size=30):
        for bit in range(8):
            damaged = bytearray(written)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            if position < header:
                with pytest.raises(InputError, match="no log of such a run, or damaged"):
                    read(path)
                continue
            found = read(path)
            assert found.items() <= VALUES.items()
            assert len(found) >= len(VALUES) - 2  # a line break that is gone joins two


def test_a_log_of_something_else_is_refused_and_begun_anew_with_force(path, written):
    for other, words in (
        (OF | {"model": "abd"}, "of another model"),
        (OF | {"model": "abd", "device": "cuda"}, "of another model and another device"),
        (OF | {"backend": "e3nn"}, "of another backend"),
        (OF | {"log": "recommend"}, "no log of such a run"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            read(path, other)
        assert str(path) in str(caught.value)
        assert "--force" in str(caught.value)
        assert path.read_bytes() == written
    assert read(path, force=True) == VALUES  # of the same: it goes on
    log = MeasurementLog(path, OF | {"model": "abd"}, force=True)
    assert "a" not in log
    assert path.read_bytes() == written  # until something is measured
    log.add("a", 1)
    assert MeasurementLog(path, OF | {"model": "abd"})["a"] == 1


@pytest.mark.parametrize("content", [b"\x89HDF\r\n\x1a\n\xff", b"[]\n{}\n", b"not JSON", b"\n", b"0" * 5000 + b"\n"])
def test_a_file_that_is_no_log_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError, match="no log"):
        read(path)
    assert path.read_bytes() == content


def test_what_cannot_be_read_is_refused(path):
    path.mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        read(path)


def test_a_disk_that_is_full_ends_the_log_not_the_run(path, written, monkeypatch):
    """It takes a part of a line, which is taken back, and then nothing more."""
    works, n_calls = os.write, []

    def write(handle, data):
        n_calls.append(1)
        if len(n_calls) == 1:
            return works(handle, bytes(data)[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    log = MeasurementLog(path, OF)
    monkeypatch.setattr(os, "write", write)
    with pytest.warns(
        RuntimeWarning, match=r"out\.partial cannot be written \(No space left on device\). The run goes on"
    ):
        log.add("d", 4)
    log.add("e", 5)
    assert (log["d"], log["e"]) == (4, 5)
    assert len(n_calls) == 2
    assert path.read_bytes() == written


def test_a_log_that_was_deleted_is_written_again(path, written):
    log = MeasurementLog(path, OF)
    path.unlink()
    log.add("d", 4)
    assert read(path) == VALUES
    assert MeasurementLog(path, OF)["d"] == 4
