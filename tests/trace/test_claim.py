"""claim.py: of several who want one output, one gets it, and nobody waits for the dead."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from full_disk import broken_disk

from precision_probe.exceptions import InputError
from precision_probe.trace import claim as module
from precision_probe.trace.claim import claim_free_name, claim_output


def names(folder):
    return sorted(item.name for item in folder.iterdir())


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.h5"


@pytest.fixture
def lock(output):
    return output.with_name("out.h5.lock")


HOLD = """
import sys, time
from precision_probe.trace.claim import claim_output
claim = claim_output(sys.argv[1])
print("claimed", flush=True)
time.sleep(100)
"""


@pytest.fixture
def elsewhere(output):
    """Another process that has claimed the output."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(output)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "claimed\n"
    yield process
    process.kill()
    process.communicate()


# One writer


def test_a_claim_is_a_file_while_it_lasts(output, tmp_path, lock):
    with claim_output(output) as claim:
        assert os.fspath(claim) == str(claim) == str(output)
        assert claim.path == output
        assert names(tmp_path) == ["out.h5.lock"]
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert names(tmp_path) == []
    claim.release()
    with claim_output(str(output)):
        pass


@pytest.mark.parametrize("options", [{}, {"force": True}, {"resume": True}])
def test_a_second_claim_is_refused(output, options):
    with (
        claim_output(output),
        pytest.raises(InputError, match=rf"out\.h5 is being written by process {os.getpid()} on .* since 20"),
    ):
        claim_output(output, **options)
    claim_output(output).release()


def test_a_claim_of_another_process_is_refused_until_it_is_killed(output, elsewhere, lock):
    with pytest.raises(InputError, match=rf"process {elsewhere.pid} on .*delete .*out\.h5\.lock"):
        claim_output(output, force=True)
    elsewhere.send_signal(signal.SIGKILL)
    time.sleep(0.2)  # it is a zombie, as nobody has waited for it
    with claim_output(output):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
        elsewhere.wait()
    assert not lock.exists()


def changed(lock, **more):
    lock.write_text(json.dumps(json.loads(lock.read_text()) | more))


@pytest.mark.parametrize(
    ("more", "is_stale"),
    [
        ({"start": "1"}, True),  # the number was given to another process
        ({"pid": 2**22 + 1}, True),  # more than any
        ({"host": "another", "pid": 2**22 + 1}, False),
        ({"boot": "another", "pid": 2**22 + 1}, False),  # the machine may be another of the same name
        ({"namespace": "pid:[1]", "pid": 2**22 + 1}, False),  # of a container
        ({"something": "new"}, False),
    ],
    ids=str,
)
def test_a_lock_is_stale_where_its_owner_is_known_to_be_gone(output, lock, more, is_stale):
    claim_output(output)._owner = None
    changed(lock, **more)
    if is_stale:
        claim_output(output).release()
        assert not lock.exists()
    else:
        with pytest.raises(InputError, match="is being written by"):
            claim_output(output)


@pytest.mark.parametrize("content", [b"", b'{"host": "h'], ids=str)
def test_a_lock_that_was_never_written_is_stale_after_a_moment(output, lock, content, monkeypatch):
    lock.write_bytes(content)
    monkeypatch.setattr(module, "_MOMENT", 0.02)
    monkeypatch.setattr(module, "_TRIES", 2000)
    claim_output(output).release()
    assert not lock.exists()


def test_what_somebody_else_has_put_in_its_place_is_not_removed(output, lock):
    claim = claim_output(output)
    changed(lock, token="another")
    claim.release()
    assert lock.exists()


def test_a_forked_child_releases_nothing(output, lock):
    with claim_output(output) as claim:
        child = os.fork()
        if not child:
            claim.release()
            os._exit(0)
        os.waitpid(child, 0)
        assert lock.exists()
    assert not lock.exists()


def _claim_and_hold(stem, names, barrier):
    barrier.wait()
    names.put(str(claim_free_name(stem)))
    barrier.wait()  # so that all hold theirs at once


@pytest.mark.parametrize("n", [2, 4])
def test_default_names_are_claimed_by_one_each(tmp_path, n):
    context = multiprocessing.get_context("fork")
    taken, barrier = context.Queue(), context.Barrier(n)
    (tmp_path / "out-1.h5").touch()
    (tmp_path / "out-3.h5.partial").touch()
    many = [context.Process(target=_claim_and_hold, args=(tmp_path / "out", taken, barrier)) for _ in range(n)]
    for each in many:
        each.start()
    found = sorted(taken.get(timeout=20) for _ in many)
    for each in many:
        each.join()
    assert found == [str(tmp_path / f"out-{number}.h5") for number in (2, 4, 5, 6)[:n]]


def test_a_stale_lock_is_taken_over_by_one_of_many_threads(output, lock):
    for _ in range(20):
        claim_output(output)._owner = None
        changed(lock, start="1")
        claims, refused = [], []
        barrier = threading.Barrier(6)

        def take(claims=claims, refused=refused, barrier=barrier):
            barrier.wait()
            try:
                claims.append(claim_output(output))
            except InputError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=take) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(claims), len(refused)) == (1, 5), refused
        claims[0].release()
        assert names(output.parent) == []


# What is there already


def test_what_is_there_is_neither_replaced_nor_continued_unasked(output):
    output.touch()
    with pytest.raises(InputError, match=r"out\.h5 exists"):
        claim_output(output)
    with pytest.raises(InputError, match=r"out\.h5 exists"):
        claim_output(output, resume=True)
    assert not claim_output(output, force=True).is_resumed
    assert names(output.parent) == ["out.h5", "out.h5.lock"]


def test_what_a_run_left_is_offered(output, lock):
    output.with_name("out.h5.partial").touch()
    with pytest.raises(InputError, match=r"out\.h5\.partial exists.*--resume.*--force"):
        claim_output(output)
    assert not lock.exists()
    with claim_output(output, resume=True) as claim:
        assert claim.is_resumed
    with claim_output(output, force=True) as claim:
        assert not claim.is_resumed
    output.touch()
    with pytest.raises(InputError, match=r"beside .*out\.h5\.partial.*--resume with --force"):
        claim_output(output, resume=True)
    with claim_output(output, resume=True, force=True) as claim:
        assert claim.is_resumed


def test_nothing_to_resume(output):
    with claim_output(output, resume=True) as claim:
        assert not claim.is_resumed


# Where nothing can be written


@pytest.mark.parametrize(
    "path", ["missing/out.h5", "file/out.h5", "x" * 250 + ".h5", "nul\0.h5", "\ud800.h5"], ids=ascii
)
def test_an_output_that_cannot_be(tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        claim_output(tmp_path / path)
    assert names(tmp_path) == ["file"]


def test_a_full_disk_is_noticed_before_the_run(output, monkeypatch):
    with monkeypatch.context() as patch:
        broken_disk(patch, 1, names=("fsync",))
        with pytest.raises(InputError, match=r"cannot be written \(No space left"):
            claim_output(output)
    assert names(output.parent) == []


def test_a_folder_that_vanishes_does_not_hinder_the_release(output):
    claim = claim_output(output)
    output.with_name("out.h5.lock").unlink()
    output.parent.rename(output.parent.with_name("elsewhere"))
    claim.release()
