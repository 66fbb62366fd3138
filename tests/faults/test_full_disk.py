"""A disk that fails at any operation: the run ends as it should, and what was complete can be read."""

import os
import shutil
import subprocess
from functools import partial

import numpy as np
import pytest
from fault_runs import AUDIT, MD, N_STRUCTURES, OFTEN, check_left, environment, n_recorded, names

ERRORS = {"ENOSPC": 28, "EIO": 5, "EDQUOT": 122}
FINE, BAD_INPUT, FAILED, REFUSED = 0, 2, 3, 1
# Which operation fails, as a share of all of a run: the lock, the file as it is made, as it grows, as it is finished.
SAMPLE = [("ENOSPC", True, 0.005), ("ENOSPC", True, 0.4), ("EIO", False, 0.9), ("EDQUOT", True, 0.97)]
KINDS = [("ENOSPC", True), ("EIO", False), ("EDQUOT", True)]  # and whether all that follows fails too
EVERY = [pytest.param(error, stays, None, marks=pytest.mark.slow) for error, stays in KINDS]


@pytest.fixture(scope="module")
def counted(files, failing_server):
    """How many operations each run does that may fail."""

    def count(kind):
        folder = files / f"counted-{kind}"
        folder.mkdir()
        done = run(failing_server, folder, kind, FAIL_UNDER=f"{folder}/", FAIL_COUNT=f"{folder}.count")
        assert done.code == FINE, done.err
        return len((folder.parent / f"{folder.name}.count").read_bytes())

    return {kind: count(kind) for kind in ("audit", "md")}


def run(server, folder, kind, **failing):
    """An audit or a dynamics, on a disk that fails so."""
    if kind == "md":
        return server.run(folder, environment(**failing) + MD)
    return server.cli(folder, *AUDIT, before=environment(**failing) + OFTEN)


def operations(counted, kind, share):
    """Which operations are to fail: each, or one in about this place."""
    n = counted[kind]
    assert n > 20
    return range(1, n + 1) if share is None else [int(np.ceil(share * n))]


def failed_at(files, server, kind, error, number, stays):
    """The folder and the end of a run whose disk fails at one operation."""
    folder = files / f"{kind}-{error}-{number}-{'stays' if stays else 'once'}"
    if folder.exists():  # another test had this operation fail
        shutil.rmtree(folder)
    folder.mkdir()
    failing = {"FAIL_UNDER": f"{folder}/", "FAIL_AT": str(number), "FAIL_WITH": str(ERRORS[error])}
    done = run(server, folder, kind, **failing, FAIL_ON=str(int(stays)))
    assert done.code is not None, f"{folder.name} hung"
    assert done.code >= 0, f"{folder.name} ended by signal {-done.code}: {done.err}"
    assert "Traceback" not in done.err, f"{folder.name}: {done.err}"
    return folder, done


def check_dynamics(folder, done, error, whole, printed):
    """It went on, and says what there is of the trace."""
    if done.code == REFUSED:  # before the first step, as not even the lock could be written
        assert done.err.startswith("refused: The output out.h5 cannot be written"), done.err
        assert names(folder) == []
        return
    assert (done.code, done.out) == (FINE, printed), done.err
    n, is_complete = check_left(folder, whole)
    assert "out.h5.lock" not in names(folder)
    assert is_complete or "precision_probe: out.h5" in done.err, done.err
    assert n == N_STRUCTURES or os.strerror(ERRORS[error]) in done.err, done.err


def check_audit(folder, done, error, whole, go_on):
    """It says what there is, and the same command with --resume goes on from there."""
    n, is_complete = check_left(folder, whole)
    assert "out.h5.lock" not in names(folder)
    if is_complete:
        assert done.code == FINE, done.err
        return
    assert done.code in (FAILED, BAD_INPUT), (done.code, done.err)
    assert done.err.strip().splitlines()[-1].startswith("Error: "), done.err
    assert os.strerror(ERRORS[error]) in done.err, done.err
    if done.code == BAD_INPUT:
        assert names(folder) == []
    if n and go_on is not None:
        again = go_on()
        assert again.code == FINE, again.err
        assert check_left(folder, whole) == (N_STRUCTURES, True)


def problems(numbers, check):
    """What is wrong, by the number of the operation that failed: all of it, not the first alone."""
    found = {}
    for number in numbers:
        try:
            check(number)
        except Exception as error:
            found[number] = str(error)[:1000]
    return found


@pytest.mark.parametrize(("error", "stays", "share"), [*SAMPLE, *EVERY])
def test_a_dynamics_goes_on_whatever_the_disk_does(files, failing_server, counted, whole_md, error, stays, share):
    whole, printed, _ = whole_md

    def check(number):
        check_dynamics(*failed_at(files, failing_server, "md", error, number, stays), error, whole, printed)

    assert problems(operations(counted, "md", share), check) == {}


@pytest.mark.parametrize(("error", "stays", "share"), [*SAMPLE[2:3], *EVERY])
def test_an_audit_says_what_there_is_and_goes_on_later(
    files, failing_server, counted, whole_audit, error, stays, share
):
    whole, _ = whole_audit

    def check(number):
        folder, done = failed_at(files, failing_server, "audit", error, number, stays)
        is_one_of_few = share is not None or number % 10 == 0
        again = partial(failing_server.cli, folder, *AUDIT, "--resume", before=OFTEN)
        check_audit(folder, done, error, whole, again if is_one_of_few else None)

    assert problems(operations(counted, "audit", share), check) == {}


@pytest.fixture
def tiny(folder):
    """A file system of 256 KiB, where we may make one."""
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("only root can make a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kib", [60, *(pytest.param(kib, marks=pytest.mark.slow) for kib in (0, 4, 90, 120))])
def test_a_file_system_that_is_full(tiny, server, whole_md, kib):
    """So many KiB are left when the run begins."""
    whole, printed, _ = whole_md
    with (tiny / "ballast").open("wb") as file:
        file.write(b"x" * 1024 * (256 - kib - 4))
    done = server.run(tiny, MD)
    (tiny / "ballast").unlink()
    assert (done.code, done.out) == (FINE, printed), done.err
    n, is_complete = check_left(tiny, whole)
    assert not is_complete
    assert n < len(whole["/structures/name"])
    assert "No space left on device" in done.err


@pytest.mark.slow  # which write is the last that works depends on how fast the machine is
def test_what_was_written_before_the_disk_became_full_is_there(files, failing_server, counted, whole_md):
    """The run says how many structures it had recorded; of those before the failure none is lost."""
    whole, _, _ = whole_md
    number = int(0.8 * counted["md"])  # the last tenth finishes the file
    folder, done = failed_at(files, failing_server, "md", "ENOSPC", number, True)
    n, _ = check_left(folder, whole, n_at_least=1)
    assert n < n_recorded(folder)
    assert f"{n} structure(s) are in out.h5.partial" in done.err
