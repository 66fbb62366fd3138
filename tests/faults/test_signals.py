"""SIGINT, SIGTERM and SIGKILL at random moments: nothing that was written is lost, and what is left is gone on with.

A run that nothing disturbs says how long it takes; moments are drawn from that.
"""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from fault_runs import AUDIT, MD, N_STRUCTURES, OFTEN, check_left, n_recorded, names

FINE, FAILED = 0, 3
SIGNALS = {each.name: int(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)}
N = 25  # moments of each kind, in the slow tests


def moments(sample):
    """Names of signals and seeds of moments: the sample, and in the slow tests as many of each as were asked for."""
    slow = [
        pytest.param(name, seed, marks=pytest.mark.slow)
        for name in SIGNALS
        for seed in range(N)
        if (name, seed) not in sample
    ]
    return pytest.mark.parametrize(("name", "seed"), [*sample, *slow])


def moment(name, seed, seconds):
    """When to send a signal of a run that takes so many seconds, and which."""
    generator = np.random.default_rng([SIGNALS[name], seed])
    return [(float(generator.uniform(0, seconds)), SIGNALS[name])]


def check_interrupted(done, name, words=""):
    """One message, and the exit code that says so; whether the run was interrupted before it was complete."""
    assert done.code is not None, "it hung"
    if SIGNALS[name] == signal.SIGKILL:
        assert done.code in (FINE, -signal.SIGKILL), done.err
        return done.code != FINE
    assert done.code in (FINE, FAILED), (done.code, done.err)
    assert "Traceback" not in done.err
    if done.code == FAILED:
        (line,) = done.err.splitlines()
        assert line.startswith("Error: Interrupted"), done.err
        assert words in line
    return done.code == FAILED


# Start-up

VERBS = {
    "audit": ["audit", "demo", "demo"],
    "inspect": ["inspect"],
    "errors": ["errors", "absent.h5"],
    "sweep": ["sweep", "demo", "demo"],
    "recommend": ["recommend", "demo", "demo"],
    "help": ["--help"],
}
STARTED = """
import os, sys
from precision_probe.__main__ import INTERRUPTIONS, main
INTERRUPTIONS.take_over()
os.write(1, b".")
main()
"""
STARTS = [("audit", "SIGTERM", 0.3), ("inspect", "SIGINT", 1.0)]
MORE_STARTS = [
    pytest.param(verb, name, float(seconds), marks=pytest.mark.slow)
    for verb in VERBS
    for name in ("SIGINT", "SIGTERM")
    for seconds in np.random.default_rng(len(verb)).uniform(0, 4, size=8).round(3)
]


@pytest.mark.parametrize(("verb", "name", "seconds"), [*STARTS, *MORE_STARTS])
def test_at_any_moment_of_the_start(tmp_path, state, verb, name, seconds):
    """From the first line of the program on, all imports included: a message, and nothing left."""
    command = [sys.executable, "-c", STARTED, *VERBS[verb]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **state}, **pipes) as process:
        assert process.stdout.read(1) == b"."
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(SIGNALS[name])
        _, err = process.communicate(timeout=60)
    lines = [line for line in err.decode().splitlines() if line.startswith(("Error", "Traceback", "Exception"))]
    if process.returncode == FAILED:
        assert lines == ["Error: Interrupted. Nothing was written."] or "Error: Interrupted" in lines[-1]
        assert len(lines) == 1
    else:
        assert process.returncode == (2 if verb == "errors" else FINE), err
        assert verb in ("errors", "help", "inspect")
    assert {name for name in names(tmp_path) if not name.endswith(".partial")} == set()


# Audits


@moments([("SIGTERM", 0), ("SIGKILL", 2)])
def test_an_audit_loses_nothing_and_goes_on_to_the_same_numbers(folder, server, whole_audit, name, seed):
    whole, seconds = whole_audit
    done = server.cli(folder, *AUDIT, before=OFTEN, signals=moment(name, seed, seconds))
    check_interrupted(done, name)
    n, is_complete = check_left(folder, whole, n_at_least=n_recorded(folder), is_killed=done.code < 0)
    if n and not is_complete and done.code == FAILED:
        assert "out.h5.partial" in done.err
        assert "--resume" in done.err
    if not is_complete:
        if n:
            refused = server.cli(folder, *AUDIT)
            assert refused.code == 2
            assert "--resume" in refused.err
            assert "--force" in refused.err
        progress = folder.parent / f"{folder.name}.progress"
        progress.write_text("")
        again = server.cli(folder, *AUDIT, "--resume", before=OFTEN)
        assert (again.code, again.err) == (FINE, "")
        assert len(progress.read_text().split()) == N_STRUCTURES - n  # none is run again
    assert check_left(folder, whole) == (N_STRUCTURES, True)
    assert names(folder) == ["out.h5"]


# Dynamics of a user's own


@moments([("SIGINT", 0)])
def test_a_dynamics_loses_nothing_and_is_not_kept_from_ending(folder, server, whole_md, name, seed):
    whole, printed, seconds = whole_md
    done = server.run(folder, MD, signals=moment(name, seed, seconds))
    assert done.code is not None, "it hung"
    assert done.code in (FINE, -SIGNALS[name], 1), (done.code, done.err)
    if done.code == 1:  # as Python begins to end
        assert "KeyboardInterrupt" in done.err
    assert printed.startswith(done.out)
    n, is_complete = check_left(folder, whole, n_at_least=n_recorded(folder), is_killed=done.code < 0)
    if SIGNALS[name] != signal.SIGKILL and done.code != FINE and "end" in done.out:
        assert n == N_STRUCTURES
    if done.code != FINE and not is_complete and SIGNALS[name] == signal.SIGINT and n:
        assert "out.h5.partial" in done.err


# Searches

SWEEP = ("sweep", "../small.model", "../structures.xyz", "--bits", "8,12", "--blocks", "readouts.*", "-o", "x.h5")
SWEEP += ("--device", "cpu", "-q", "--format", "json")
RECOMMEND = """
import torch
torch.set_num_threads(1)
import precision_probe as pp
found = pp.recommend("../small.model", "../structures.xyz", {"forces": 1e-2}, allow="float16", device="cpu", log="log")
"""


@pytest.fixture(scope="module")
def whole_sweep(files, server):
    """What a sweep that nothing disturbs prints, and how long it takes, s."""
    (files / "whole-sweep").mkdir()
    done = server.cli(files / "whole-sweep", *SWEEP)
    assert done.code == FINE, done.err
    return done.out, done.seconds


@moments([("SIGKILL", 3)])
def test_a_sweep_goes_on_to_the_same_numbers(folder, server, whole_sweep, name, seed):
    printed, seconds = whole_sweep
    done = server.cli(folder, *SWEEP, signals=moment(name, seed, seconds))
    if check_interrupted(done, name):
        left = names(folder)
        temporary = [each for each in left if done.code < 0 and each.endswith(".new")]  # of one that was killed
        assert set(left) <= {"x.h5", "x.h5.partial", "x.h5.lock", *temporary}, left
        if "x.h5" in left:  # interrupted as it printed
            assert done.code != FAILED or "The trace is complete: x.h5." in done.err
            return
        if "x.h5.partial" in left and done.code == FAILED:
            assert "goes on from there" in done.err
        done = server.cli(folder, *SWEEP)
    assert (done.code, done.out, done.err) == (FINE, printed, "")
    assert names(folder) == ["x.h5"]


@pytest.fixture(scope="module")
def whole_search(files, server):
    """The errors that a search which nothing disturbs measures, by key, and how long it takes, s."""
    (files / "whole-search").mkdir()
    done = server.run(files / "whole-search", RECOMMEND)
    assert done.code == FINE, done.err
    return entries((files / "whole-search" / "log").read_bytes()), done.seconds


def entries(log):
    """What a log has, by key, as text, so that each digit counts."""
    lines = [json.loads(line[9:]) for line in log.splitlines()[1:]]  # after their checksums
    return {line["key"]: json.dumps(line["value"]) for line in lines}


@moments([pytest.param("SIGKILL", 0, marks=pytest.mark.slow)])
def test_a_search_measures_nothing_twice_and_the_same_errors(folder, server, whole_search, name, seed):
    expected, seconds = whole_search
    done = server.run(folder, RECOMMEND, signals=moment(name, seed, seconds))
    assert done.code is not None, "it hung"
    log = folder / "log"
    left = log.read_bytes() if log.exists() else b""
    whole_lines = left[: left.rfind(b"\n") + 1]
    if done.code != FINE:
        again = server.run(folder, RECOMMEND)
        assert again.code == FINE, again.err
    assert names(folder) == ["log"]
    found = log.read_bytes()
    assert found.startswith(whole_lines)
    assert len(found.splitlines()) - 1 == len(entries(found))  # each key once
    common = entries(found).keys() & expected.keys()
    assert len(common) > 10  # what else is measured depends on times
    assert {key: entries(found)[key] for key in common} == {key: expected[key] for key in common}
