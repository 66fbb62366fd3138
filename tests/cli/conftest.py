"""What tests of the command line share: an empty folder, ways to call a verb and to judge its answer, and traces."""

import ase.build
import ase.io
import pytest
import torch
from typer.testing import CliRunner

from precision_probe.cli.main import app
from precision_probe.models.building import build


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in an empty folder, on a CPU, and remember no model beyond the test."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return work


@pytest.fixture(scope="session")
def shallow(config):
    """The small model with one layer: the command line is the same for it, and quicker."""
    return build(config | {"num_interactions": 1}, seed=3)


@pytest.fixture
def model_file(shallow, tmp_path):
    """It as a checkpoint on disk."""
    torch.save(shallow, tmp_path / "small.model")
    return tmp_path / "small.model"


@pytest.fixture
def deep_file(model, tmp_path):
    """The small model with its two layers, for tests that name blocks of both."""
    torch.save(model, tmp_path / "small.model")
    return tmp_path / "small.model"


@pytest.fixture
def water_file(water, tmp_path):
    ase.io.write(tmp_path / "water.xyz", water)
    return tmp_path / "water.xyz"


@pytest.fixture(scope="session")
def run():
    """Call the command line; only when asked to does it show a traceback."""

    def call(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert "Traceback" not in result.output or "--traceback" in arguments
        return result

    return call


@pytest.fixture(scope="session")
def audit(run):
    """A quick one; options among the arguments that are given again win."""

    def call(*arguments, precisions="float32"):
        return run("audit", "--blocks", "readouts.*", "--modes", "propagated", "-p", precisions, *arguments)

    return call


@pytest.fixture(scope="session")
def names():
    """What is in a folder."""
    return lambda folder: sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="session")
def flat():
    """A text without its line breaks."""
    return lambda text: " ".join(text.split())


@pytest.fixture(scope="session")
def refused():
    """One short paragraph at the end of stderr, which says these words; bad input, if nothing else is said."""

    def check(result, *words, code=2):
        assert result.exit_code == code, result.output
        *before, message = result.stderr.strip().splitlines()
        assert message.startswith("Error: ")
        assert not any("rror" in line for line in before)
        assert len(message) < 700
        assert all(word in message for word in words), message
        assert result.stdout == ""

    return check


@pytest.fixture(scope="package")
def explained(config, run, tmp_path_factory):
    """What audit --explain says of a model that is explained in seconds, and its trace."""
    folder = tmp_path_factory.mktemp("explained")
    model_file = tmp_path_factory.mktemp("model") / "layer.model"
    torch.save(build(config | {"num_interactions": 1}, seed=3), model_file)
    ase.io.write(folder / "water.xyz", ase.build.molecule("H2O"))
    path = folder / "trace.h5"
    options = ("--explain", "--device", "cpu", "-o", path, "--modes", "propagated")
    return run("audit", model_file, folder / "water.xyz", "-p", "float16", *options), path


@pytest.fixture(scope="session")
def titles():
    """What stands above each table that explains."""
    return {
        "physics": "In your units",
        "range": "Overflow, underflow, NaN",
        "contributions": "What part makes how much of the squared error (%)",
        "noise": "Noise from run to run",
        "budget": "What the force error comes from (meV/Å)",
        "sweep": "Largest force error with so many stored bits (meV/Å)",
        "prediction": "Errors predicted, and measured",
        "equivariance": "Broken symmetry",
        "finite_differences": "Are forces the gradient of the energy?",
        "displacement": "Steps that rounding makes along a displacement",
        "digits": "Significant digits",
    }
