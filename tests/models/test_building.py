"""building.py: models from their architecture, and kept as JSON and safetensors."""

import json
import random

import numpy as np
import pytest
import torch
from mace.modules import MACE, ScaleShiftMACE
from safetensors.torch import load_file, save_file

from precision_probe.exceptions import InputError
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.building import build, default_config, save_model
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.loading import load_model


def floats_of(model):
    return [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]


@pytest.fixture(scope="module")
def one_layer(config):
    return config | {"num_interactions": 1}


# build


def test_default_config_is_json_and_fresh_each_time():
    first = default_config()
    assert json.loads(json.dumps(first)) == first
    first["atomic_numbers"].append(92)
    first["r_max"] = 1.0
    assert default_config() != first
    assert default_config()["atomic_numbers"] == [1, 6, 8]


def test_built_model_has_the_architecture_asked_for(model, config):
    assert type(model) is ScaleShiftMACE
    assert not model.training
    assert {t.dtype for t in floats_of(model)} == {torch.float64}
    assert {t.device.type for t in floats_of(model)} == {"cpu"}
    assert model.atomic_numbers.tolist() == config["atomic_numbers"]
    assert float(model.r_max) == config["r_max"]
    assert len(model.interactions) == len(model.products) == len(model.readouts) == config["num_interactions"]
    assert {type(block).__name__ for block in model.interactions} == {config["interaction_cls"]}
    assert model.atomic_energies_fn.atomic_energies.flatten().tolist() == config["atomic_energies"]
    assert float(model.scale_shift.scale) == config["atomic_inter_scale"]
    assert float(model.scale_shift.shift) == config["atomic_inter_shift"]
    assert str(model.products[0].linear.irreps_out) == "4x0e+4x1o"
    assert model.radial_embedding.out_dim == config["num_bessel"]


def test_build_plain_mace_without_scale_and_shift(one_layer):
    plain = build(one_layer | {"model": "MACE"})
    assert type(plain) is MACE
    assert len(plain.interactions) == 1


def test_seed_decides_the_weights(one_layer):
    first, again, other = (weights_sha256(build(one_layer, seed=seed)) for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_build_leaves_random_state_and_default_dtype(one_layer, dtype):
    def state():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before = state()
    with default_dtype(dtype):
        built = build(one_layer)
        assert torch.get_default_dtype() is dtype
    assert state() == before
    assert {t.dtype for t in floats_of(built)} == {torch.float64}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("interaction_cls", "NoSuchBlock", ["NoSuchBlock", "RealAgnosticResidualInteractionBlock"]),
        ("interaction_cls_first", "NoSuchBlock", ["NoSuchBlock"]),
        ("gate", "sine", ["sine"]),
        ("model", "NoSuchMACE", ["NoSuchMACE", "ScaleShiftMACE"]),
    ],
)
def test_unknown_architecture_is_refused(config, key, value, words):
    with pytest.raises(InputError) as caught:
        build(config | {key: value})
    assert all(word in str(caught.value) for word in words)


def test_missing_architecture_value_is_named(config):
    with pytest.raises(InputError, match="hidden_irreps"):
        build({key: value for key, value in config.items() if key != "hidden_irreps"})


# save and load


def test_round_trip_is_exact(model, config, tmp_path):
    save_model(model, config, tmp_path / "saved")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved.json", "saved.safetensors"]
    loaded, name = load_model(tmp_path / "saved.json")
    assert name == "saved"
    assert not loaded.training
    assert weights_sha256(loaded) == weights_sha256(model)


def change(pair, **values):
    """Write other values into the architecture; ``None`` takes a value out."""
    changed = json.loads(pair.read_text()) | values
    pair.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))


def add_a_tensor(pair):
    weights = pair.with_suffix(".safetensors")
    save_file(load_file(weights) | {"other": torch.ones(1)}, weights)


def cut(pair):
    weights = pair.with_suffix(".safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])


@pytest.fixture(scope="module")
def one_layer_model(one_layer):
    return build(one_layer)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda pair: pair.with_suffix(".safetensors").unlink(), "cannot be read as a model"),
        (cut, "cannot be read as a model"),
        (add_a_tensor, "extra.*other"),
        (lambda pair: pair.write_text("{"), "cannot be read as a model"),
        (lambda pair: pair.write_text("[1]"), "cannot be read as a model"),
        (lambda pair: change(pair, r_max=None), "r_max"),
        (lambda pair: change(pair, interaction_cls="NoSuchBlock"), "NoSuchBlock"),
        (lambda pair: change(pair, num_interactions=2), "cannot be read as a model|do not fit"),
        (lambda pair: change(pair, num_bessel=5), "cannot be read as a model"),
    ],
    ids=["no weights", "cut", "extra", "not JSON", "list", "missing value", "unknown class", "more layers", "sizes"],
)
def test_damaged_pair_is_refused(one_layer_model, one_layer, tmp_path, damage, words):
    pair = tmp_path / "small.json"
    save_model(one_layer_model, one_layer, pair)
    damage(pair)
    with pytest.raises(InputError, match=words):
        load_model(pair)
