"""What tests of faults share: a process that forks runs, folders with a small model, and runs that nothing disturbs."""

import shutil
import signal
import subprocess
from pathlib import Path

import ase.io
import pytest
import torch
from fault_runs import AUDIT, MD, OFTEN, arrays
from fork_server import ForkServer
from runs import molecule

from precision_probe.models.building import build

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(scope="package")
def files(config, tmp_path_factory):
    """A folder with a model that runs in milliseconds and a few structures; runs work in folders of their own in it."""
    folder = tmp_path_factory.mktemp("faults")
    torch.save(build(config | {"num_interactions": 1}, seed=3), folder / "small.model")
    ase.io.write(folder / "structures.xyz", [molecule(seed) for seed in range(4)])
    return folder


@pytest.fixture
def folder(files, request):
    """An empty folder to run in."""
    path = files / "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    path.mkdir()
    return path


@pytest.fixture(scope="package")
def failing_disk(tmp_path_factory):
    """A library whose disk fails where the environment says so, or why there is none."""
    if shutil.which("cc") is None:
        return None, "needs a C compiler"
    library = tmp_path_factory.mktemp("library") / "failing_disk.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(HELPERS / "failing_disk.c"), "-ldl"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    return library, f"the failing disk cannot be built here: {built.stderr[-200:]}" if built.returncode else ""


@pytest.fixture(scope="package")
def server(state, failing_disk):
    """Runs that start at once."""
    library, problem = failing_disk
    server = ForkServer(state | ({} if problem else {"LD_PRELOAD": str(library)}))
    yield server
    server.close()


@pytest.fixture(scope="package")
def state(tmp_path_factory):
    """Environment variables: what the command line remembers between runs, is remembered here."""
    return {"XDG_STATE_HOME": str(tmp_path_factory.mktemp("state"))}


@pytest.fixture(scope="package")
def failing_server(server, failing_disk):
    """The same, where the disk fails when it is told to."""
    if problem := failing_disk[1]:
        pytest.skip(problem)
    return server


@pytest.fixture(scope="package")
def whole_audit(files, server):
    """What an audit that nothing disturbs records, and how long it takes, s."""
    folder = files / "whole-audit"
    folder.mkdir()
    done = server.cli(folder, *AUDIT, before=OFTEN)
    assert done.code == 0, done.err
    return arrays(folder / "out.h5")[0], done.seconds


@pytest.fixture(scope="package")
def whole_md(files, server):
    """What a dynamics that nothing disturbs records, what it prints, and how long it takes, s."""
    folder = files / "whole-md"
    folder.mkdir()
    done = server.run(folder, MD)
    assert done.code == 0, done.err
    return arrays(folder / "out.h5")[0], done.out, done.seconds


@pytest.fixture(autouse=True)
def as_a_shell_does():
    """Let processes that are started be interrupted, even if this one is not to be."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
