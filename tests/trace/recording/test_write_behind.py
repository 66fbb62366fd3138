"""write_behind.py: all bytes come to their places, whoever needs them waits, and no error is lost."""

import os
import threading

import pytest

from precision_probe.trace.recording.write_behind import WriteBehind


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "some"
    path.touch()
    return path


@pytest.fixture
def behind(path):
    fd = os.open(path, os.O_RDWR)
    behind = WriteBehind(fd)
    yield behind
    behind.close()
    os.close(fd)


def test_pieces_come_to_their_places(path, behind):
    for number in range(1000):
        behind.begin(3 * number, 3, lambda number=number: map(memoryview, (b"%d" % (number % 10), b"ab")))
    behind.wait()
    assert path.read_bytes() == b"".join(b"%dab" % (number % 10) for number in range(1000))


@pytest.mark.parametrize(("first", "size", "waits"), [(0, 10, False), (20, 5, False), (9, 2, True), (19, 1, True)])
def test_who_needs_bytes_that_are_being_written_waits_and_nobody_else(path, behind, first, size, waits):
    may_go_on = threading.Event()

    def make():
        assert may_go_on.wait(10)
        return [memoryview(b"0123456789")]

    behind.begin(10, 10, make)
    threading.Timer(0.05, may_go_on.set).start() if waits else None
    behind.wait_for(first, size)
    assert (path.read_bytes() == bytes(10) + b"0123456789") == waits
    may_go_on.set()


def test_an_error_is_raised_once_all_is_done(path, behind):
    behind.begin(0, 1, lambda: [1 // 0])
    for number in range(1, behind.threads.n_ahead):
        behind.begin(number, 1, lambda: [memoryview(b"x")])
    with pytest.raises(ZeroDivisionError):
        behind.wait()
    assert path.read_bytes() == b"\0".ljust(behind.threads.n_ahead, b"x")
    behind.wait()  # it was told


def test_an_error_is_raised_before_much_more_is_begun(behind):
    def begin_many():
        for number in range(1000):
            behind.begin(number, 1, lambda: [1 // 0])

    with pytest.raises(ZeroDivisionError):
        begin_many()
    assert len(behind._pieces) < 1000
    with pytest.raises(ZeroDivisionError):
        behind.wait()


def test_closing_waits(path, behind):
    for number in range(50):
        behind.begin(number, 1, lambda: [memoryview(b"x")])
    behind.close()
    assert path.read_bytes() == 50 * b"x"
