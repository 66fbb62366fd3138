"""Outputs that somebody else writes, deletes, replaces or forbids: said in a sentence, and nothing lost in silence."""

import os
import shutil
import subprocess

import pytest
from fault_runs import AUDIT, MD, N_STRUCTURES, OFTEN, arrays, check_left, environment, names

FINE, BAD_INPUT = 0, 2
DEFAULT_NAME = tuple(each for each in AUDIT if each not in ("-o", "out.h5"))
# Several processes that begin at once, of which each prints its exit code.
AT_ONCE = """
import os, sys
from precision_probe.__main__ import main
children = []
for number in range({n}):
    pid = os.fork()
    if pid == 0:
        sys.argv = ["precision-probe", *{arguments!r}]
        main()
    children.append(pid)
print(sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
"""


def md(between):
    """The dynamics, with Python that runs after each step, whose number is ``step``."""
    return MD.replace("        print(float(", f"        if step == 1:\n            {between}\n        print(float(")


# Several writers

WRITERS = [2, pytest.param(4, marks=pytest.mark.slow)]


@pytest.mark.parametrize("n", WRITERS)
def test_one_of_several_writers_writes_and_the_others_are_refused(folder, server, whole_audit, n):
    done = server.run(folder, OFTEN + AT_ONCE.format(n=n, arguments=AUDIT))
    assert done.out.strip() == str([FINE] + [BAD_INPUT] * (n - 1)), done.err
    lines = done.err.splitlines()
    assert len(lines) == n - 1
    assert all(line.startswith("Error: ") and "out.h5" in line for line in lines), lines
    assert check_left(folder, whole_audit[0]) == (N_STRUCTURES, True)
    assert names(folder) == ["out.h5"]


@pytest.mark.parametrize("n", WRITERS)
def test_several_writers_take_names_of_their_own(folder, server, whole_audit, n):
    done = server.run(folder, OFTEN + AT_ONCE.format(n=n, arguments=DEFAULT_NAME))
    assert done.out.strip() == str([FINE] * n), done.err
    assert names(folder) == [f"small-structures-{number}.h5" for number in range(1, n + 1)]
    for name in names(folder):
        found, attributes = arrays(folder / name)
        assert len(found["/structures/name"]) == N_STRUCTURES
        assert attributes["complete"] is True


# What is deleted, replaced and forbidden on the way


def test_a_file_that_is_deleted_takes_what_it_had_with_it_and_that_is_said(folder, server, whole_md):
    whole, printed, _ = whole_md
    done = server.run(folder, md('os.unlink("out.h5.partial")'))
    assert (done.code, done.out) == (FINE, printed), done.err
    assert "out.h5.partial was deleted while it was being written, and 3 structure(s) with it" in done.err
    assert names(folder) == ["out.h5.partial"]
    found, attributes = arrays(folder / "out.h5.partial")
    assert found["/structures/name"].tolist() == whole["/structures/name"].tolist()[3:]
    assert attributes["complete"] is False


def test_a_file_that_is_replaced_is_left_alone(folder, server, whole_md):
    done = server.run(folder, md('open("other", "w").write("of others"); os.replace("other", "out.h5.partial")'))
    assert (done.code, done.out) == (FINE, whole_md[1]), done.err
    assert "out.h5.partial was replaced by another file" in done.err
    assert names(folder) == ["out.h5.partial"]
    assert (folder / "out.h5.partial").read_bytes() == b"of others"


@pytest.mark.slow
def test_an_output_that_somebody_else_makes_meanwhile_is_left_alone(folder, server, whole_md):
    done = server.run(folder, md('open("out.h5", "w").write("of others")'))
    assert (done.code, done.out) == (FINE, whole_md[1]), done.err
    assert "out.h5" in done.err
    assert (folder / "out.h5").read_bytes() == b"of others"
    (folder / "out.h5").unlink()
    n, is_complete = check_left(folder, whole_md[0])
    assert (n, is_complete) == (N_STRUCTURES, False)


def test_a_folder_that_vanishes_does_not_end_the_run(folder, server, whole_md):
    aside = folder.with_name(f"{folder.name}-moved")
    done = server.run(folder, md(f'os.rename("{folder}", "{aside}")'))
    assert (done.code, done.out) == (FINE, whole_md[1]), done.err
    if folder.exists():
        assert names(folder) == []
    n, is_complete = check_left(aside, whole_md[0])
    assert is_complete or "precision_probe: " in done.err  # a relative name goes with the folder
    assert n >= 3


@pytest.mark.slow
def test_a_folder_that_is_deleted_does_not_end_the_run(folder, server, whole_md):
    done = server.run(folder, md(f'import shutil; shutil.rmtree("{folder}")'))
    assert (done.code, done.out) == (FINE, whole_md[1]), done.err
    assert "precision_probe: " in done.err
    assert not folder.exists()


@pytest.fixture
def read_only(folder):
    """A file system that becomes read-only by the command that is returned, where we may make one."""
    made = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("only root can make a file system")
    yield f"mount -o remount,ro {folder}"
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_file_system_that_becomes_read_only(folder, read_only, server, whole_md):
    done = server.run(folder, md(f'os.system("{read_only}")'))
    assert (done.code, done.out) == (FINE, whole_md[1]), done.err
    assert "Read-only file system" in done.err
    n, is_complete = check_left(folder, whole_md[0])
    assert (n, is_complete) == (3, False)
    refused = server.cli(folder, *(each.replace("out.h5", "new.h5") for each in AUDIT))
    assert refused.code == BAD_INPUT
    assert "The output new.h5 cannot be written" in refused.err


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(folder, server):
    folder.chmod(0o500)
    refused = server.cli(folder, *AUDIT)
    folder.chmod(0o700)
    assert refused.code == BAD_INPUT
    assert "The output out.h5 cannot be written (Permission denied)" in refused.err


# No locks


@pytest.mark.parametrize("error", [37, pytest.param(38, marks=pytest.mark.slow)])
def test_file_systems_without_locks_do(folder, failing_server, whole_md, error):
    without = environment(FAIL_LOCKS=str(error))
    done = failing_server.run(folder, without + MD)
    assert (done.code, done.out, done.err) == (FINE, whole_md[1], "")
    assert check_left(folder, whole_md[0]) == (N_STRUCTURES, True)
    shown = failing_server.cli(folder, "errors", "out.h5", before=without)
    assert shown.code == FINE, shown.err
    assert "readouts.0" in shown.out


# A process that forks


@pytest.mark.parametrize("end", ["sys.exit(0)", pytest.param("os._exit(0)", marks=pytest.mark.slow)])
def test_a_child_leaves_its_parent_s_file_alone(folder, server, whole_md, end):
    done = server.run(folder, md(f"pid = os.fork(); {end} if pid == 0 else os.waitpid(pid, 0)"))
    assert (done.code, done.out, done.err) == (FINE, whole_md[1], "")
    assert check_left(folder, whole_md[0]) == (N_STRUCTURES, True)
    assert names(folder) == ["out.h5"]


@pytest.mark.slow
def test_a_child_that_goes_on_writes_nothing(folder, server, whole_md):
    """Both go on with the dynamics, and print."""
    done = server.run(folder, md("pid = os.fork()") + "\nif pid:\n    os.waitpid(pid, 0)\n")
    assert done.code == FINE, done.err
    assert sorted(done.out.splitlines())[-2:] == ["end", "end"]
    assert check_left(folder, whole_md[0]) == (N_STRUCTURES, True)
    assert names(folder) == ["out.h5"]


def test_a_lock_of_a_process_that_was_killed_is_taken_over(folder, server, whole_audit):
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    killed = server.run(folder, f'import precision_probe.trace.claim as c\nc.claim_output("out.h5")\n{kill}')
    assert killed.code < 0
    assert names(folder) == ["out.h5.lock"]
    done = server.cli(folder, *AUDIT, before=OFTEN)
    assert (done.code, done.err) == (FINE, "")
    assert check_left(folder, whole_audit[0]) == (N_STRUCTURES, True)


@pytest.mark.slow
def test_a_run_that_is_to_replace_and_is_killed_leaves_what_was_complete(folder, files, server, whole_audit):
    shutil.copy(files / "whole-audit" / "out.h5", folder / "out.h5")
    before = (folder / "out.h5").read_bytes()
    for seconds in (0.5, 1.0, 1.5):
        killed = server.cli(folder, *AUDIT, "--force", before=OFTEN, signals=[(seconds, 9)])
        if killed.code != FINE:
            assert (folder / "out.h5").read_bytes() == before
