"""models.py: building, saving and loading MACE models, and refusing everything else."""

import copy
import json
import random
import types
from importlib import resources

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mace.calculators import MACECalculator
from mace.modules import MACE, ScaleShiftMACE
from safetensors.torch import load_file, save_file

from precision_probe.exceptions import InputError
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.building import build, default_config, save_model
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import build_graph
from precision_probe.models.loading import load_model
from precision_probe.precisions import PRECISIONS
from precision_probe.probe.probe import attach
from precision_probe.structures import read_structures
from precision_probe.variants.variant import Variant


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


def test_default_dtype_is_restored_after_an_exception():
    def fail():
        assert torch.get_default_dtype() is torch.float16
        raise ArithmeticError

    before = torch.get_default_dtype()
    with pytest.raises(ArithmeticError), default_dtype(torch.float16):
        fail()
    assert torch.get_default_dtype() is before


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


# weights_sha256


@given(place=st.integers(0, 5), bit=st.integers(0, 63), transposed=st.booleans())
@settings(deadline=None)
def test_hash_changes_with_one_bit(place, bit, transposed):
    first, second = torch.nn.Module(), torch.nn.Module()
    for module in (first, second):
        module.register_buffer("values", torch.arange(6.0, dtype=torch.float64).view(2, 3))
    if transposed:  # other strides, the same numbers
        second.values = second.values.T.contiguous().T
    assert weights_sha256(first) == weights_sha256(second)
    bits = second.values.T.view(torch.int64) if transposed else second.values.view(torch.int64)
    bits[divmod(place, bits.shape[1])] ^= -(2**63) if bit == 63 else 1 << bit
    assert weights_sha256(first) != weights_sha256(second)


def test_hash_sees_name_shape_and_dtype():
    def with_buffer(name, values):
        module = torch.nn.Module()
        module.register_buffer(name, values)
        return weights_sha256(module)

    zeros = torch.zeros(4, dtype=torch.float64)
    others = [zeros.view(2, 2), zeros.float(), torch.zeros(8), zeros.view(torch.int64)]
    hashes = {with_buffer("a", zeros), with_buffer("b", zeros), *(with_buffer("a", other) for other in others)}
    assert len(hashes) == 6


# save and load


def test_round_trip_is_exact(model, config, tmp_path):
    save_model(model, config, tmp_path / "saved")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved.json", "saved.safetensors"]
    loaded, name = load_model(tmp_path / "saved.json")
    assert name == "saved"
    assert not loaded.training
    assert weights_sha256(loaded) == weights_sha256(model)


def test_checkpoint_path(model, model_file):
    for source in (model_file, str(model_file)):
        loaded, name = load_model(source)
        assert (type(loaded), name) == (ScaleShiftMACE, "small")
        assert weights_sha256(loaded) == weights_sha256(model)


def test_module_is_returned_as_it_is(model):
    before = weights_sha256(model)
    loaded, name = load_model(model)
    assert loaded is model
    assert name == "ScaleShiftMACE"
    assert weights_sha256(model) == before


@pytest.fixture
def calculator_of(model):
    """Makes calculators; a MACECalculator sets the default dtype for good."""

    def make(n):
        return MACECalculator(models=[copy.deepcopy(model) for _ in range(n)], device="cpu", default_dtype="float64")

    with default_dtype(torch.float64):
        yield make


def test_calculator_gives_its_own_module(calculator_of):
    calculator = calculator_of(1)
    assert load_model(calculator)[0] is calculator.models[0]


def test_of_a_committee_the_first_member_is_probed_and_said_to_be(calculator_of):
    calculator = calculator_of(3)
    loaded, name = load_model(calculator)
    assert loaded is calculator.models[0]
    assert name == "ScaleShiftMACE-member-0-of-3"
    with attach(calculator, precisions="float32", device="cpu") as probe:
        assert (probe.model, probe.name) == (loaded, name)
        (note,) = probe.notes
        assert "of the calculator's 3 models, the first is probed" in note
        assert "models[i]" in note
    with attach(calculator_of(1), precisions="float32", device="cpu") as probe:
        assert (probe.name, probe.notes) == ("ScaleShiftMACE", [])


def test_demo_is_small():
    folder = resources.files("precision_probe") / "demo"
    assert sum(len(path.read_bytes()) for path in folder.iterdir() if path.is_file()) < 1_000_000


def test_demo_forces_follow_their_reference():
    demo, name = load_model("demo")
    assert (type(demo), name, demo.atomic_numbers.tolist()) == (ScaleShiftMACE, "demo", [1, 6, 8])
    assert {t.dtype for t in floats_of(demo)} == {torch.float64}
    predict = Variant(demo, PRECISIONS["float64"], torch.device("cpu")).predict
    graphs = [build_graph(atoms, demo) for atoms in read_structures("demo")]
    reference = np.concatenate([graph.labels["forces"] for graph in graphs])
    forces = np.concatenate([predict(graph)["forces"].numpy() for graph in graphs])
    assert np.abs(forces - reference).mean() < min(0.3, 0.2 * np.abs(reference).mean())
    assert np.corrcoef(forces.ravel(), reference.ravel())[0, 1] > 0.95


# what cannot be loaded


class Tiny(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def write_bad(path, kind, model):
    """A file, or nothing, that is no MACE model."""
    if kind == "folder":
        path.mkdir()
    elif kind.startswith("truncated"):
        torch.save(model, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // int(kind.split("/")[1])])
    elif kind == "random bytes":
        path.write_bytes(bytes(random.Random(0).choices(range(256), k=4096)))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "state dict":
        torch.save(model.state_dict(), path)
    elif kind == "TorchScript":
        torch.jit.script(Tiny()).save(str(path))
    elif kind == "other module":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "number":
        torch.save(42, path)


BAD = {
    "missing": "does not exist.*Give a MACE checkpoint",
    "folder": "is a folder, not a file",
    "truncated to 1/2": "cannot be read.*truncated",
    "truncated to 1/50": "cannot be read.*truncated",
    "random bytes": "cannot be read",
    "empty": "cannot be read",
    "state dict": "state dict.*whole MACE model",
    "TorchScript": "TorchScript.*eager",
    "other module": "is a Linear, not a MACE model",
    "number": "is a int, not a MACE model",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_file_is_explained(model, tmp_path, kind):
    path = tmp_path / "bad.model"
    write_bad(path, kind, model)
    with pytest.raises(InputError, match=BAD[kind]) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (torch.nn.Linear(2, 2), "Linear, not a MACE model"),
        (42, "int, not a MACE model"),
        (None, "NoneType, not a MACE model"),
        ({"a": 1}, "dictionary with the keys 'a'"),
        (torch.jit.script(Tiny()), "TorchScript.*eager"),
    ],
    ids=["module", "int", "None", "dict", "scripted"],
)
def test_bad_object_is_explained(thing, words):
    with pytest.raises(InputError, match=words):
        load_model(thing)


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
        (lambda pair: change(pair, num_interactions=2), "cannot be read as a model"),
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


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("cueq_config", r"cuEquivariance cannot be built anew in torch\.float64.*e3nn model"),
        ("oeq_config", r"OpenEquivariance, which computes on CUDA only; the device is cpu"),
    ],
)
def test_converted_models_are_not_cast_but_refused_where_they_cannot_be_built_anew(config, key, words):
    """A cast does not reach their arithmetic; test_variants.py has one that is built anew."""
    converted = build(config)
    setattr(converted.interactions[0], key, types.SimpleNamespace(enabled=True))  # of no layout that could be built
    assert load_model(converted)[0] is converted
    with pytest.raises(InputError, match=words):
        attach(converted, precisions="float32", device="cpu")
    assert not converted._forward_hooks
    assert not converted._forward_pre_hooks


def test_compiled_models_are_refused(model):
    with pytest.raises(InputError, match=r"compiled.*eager"):
        load_model(torch.compile(model))
