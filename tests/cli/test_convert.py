"""convert.py: from a checkpoint to a file that runs no code, and back into every verb."""

import pytest
import torch

from precision_probe.models.attributes import weights_sha256
from precision_probe.models.building import build
from precision_probe.models.loading import load_model

NOTICE = "loading it runs code from the file"


def small(config, path):
    model = build(config | {"num_interactions": 1}, seed=3)
    torch.save(model, path)
    return model


def test_a_checkpoint_is_converted_and_used(run, config, tmp_path, folder, names, flat, water_file):
    model = small(config, tmp_path / "my.model")
    result = run("convert", tmp_path / "my.model", "-o", "my.safetensors")
    assert result.exit_code == 0, result.output
    assert weights_sha256(model) in flat(result.stderr)
    assert NOTICE in flat(result.stderr)
    assert result.stdout == ""
    assert names(folder) == ["my.safetensors"]
    assert weights_sha256(load_model("my.safetensors")[0]) == weights_sha256(model)
    inspected = run("inspect", "my.safetensors", water_file, "--safe")
    assert inspected.exit_code == 0
    assert weights_sha256(model) in inspected.stdout
    assert NOTICE not in flat(inspected.stderr)


@pytest.mark.slow
def test_quiet(run, config, tmp_path):
    small(config, tmp_path / "my.model")
    result = run("convert", tmp_path / "my.model", "-o", "my.safetensors", "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_what_is_refused(run, refused, folder, names, tmp_path):
    refused(run("convert", "demo", "-o", "demo.model"), "must end in .safetensors")
    refused(run("convert", tmp_path / "absent.model", "-o", "it.safetensors"), "does not exist")
    (folder / "it.safetensors").write_text("mine")
    refused(run("convert", "demo", "-o", "it.safetensors"), "exists")
    refused(run("inspect", "it.safetensors"), "it.safetensors cannot be read as a model")
    assert names(folder) == ["it.safetensors"]
    assert (folder / "it.safetensors").read_text() == "mine"
