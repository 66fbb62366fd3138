"""What tests of the safe format share: a model in it, and files that say something else than they did."""

import hashlib
import json
import shutil

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from precision_probe.models.attributes import state_sha256
from precision_probe.models.building import build
from precision_probe.safe_models.conversion import convert

KEY = "precision_probe_model"


def metadata_of(text):
    """What stands beside the tensors: a description and its checksum, made anew as one who means harm would."""
    return {KEY: f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}"}


@pytest.fixture(scope="session")
def one_layer(config):
    """A smaller model still; tests must not change it."""
    return build(config | {"num_interactions": 1}, seed=3)


@pytest.fixture(scope="session")
def written(one_layer, tmp_path_factory):
    """The small model in the safe format; tests must not change it."""
    path = tmp_path_factory.mktemp("safe") / "small.safetensors"
    convert(one_layer, path)
    return path


@pytest.fixture
def safe_file(written, tmp_path):
    """The same, to be changed."""
    return shutil.copy(written, tmp_path / "small.safetensors")


@pytest.fixture(scope="session")
def described():
    """What a file says of its model."""

    def read(path):
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()[KEY].splitlines()[0])

    return read


@pytest.fixture(scope="session")
def rewrite(described):
    """Change what a file says, or its tensors."""

    def change(path, say=lambda content: None, tensors=lambda state: None, *, tensors_fit=True):
        content, state = described(path), load_file(path)
        say(content)
        tensors(state)
        if tensors_fit and "sha256" in content and content["sha256"] == state_sha256(load_file(path)):
            content["sha256"] = state_sha256(state)
        save_file(state, path, metadata=metadata_of(json.dumps(content)))

    return change


@pytest.fixture(scope="session")
def with_text():
    """The metadata for a description."""
    return metadata_of
