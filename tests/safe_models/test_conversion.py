"""conversion.py: a model in the safe format is that model, bit for bit, or nothing is written."""

import copy
import pickle
from types import SimpleNamespace

import model_rows
import pytest
import runs
import torch
from mace.modules import ScaleShiftMACE
from mace.modules.lora import inject_LoRAs

import precision_probe as pp
from precision_probe.exceptions import InputError
from precision_probe.models.attributes import heads, weights_sha256
from precision_probe.models.backends import backend, irreps_layout
from precision_probe.models.building import build
from precision_probe.models.graphs import build_graph
from precision_probe.models.loading import load_model
from precision_probe.safe_models import conversion
from precision_probe.safe_models.conversion import convert
from precision_probe.variants.mixed import MixedModel


def outputs(model, structures):
    """Every tensor that a model returns for structures with each head, in the second of two calls, which repeats."""
    dtype = next(model.parameters()).dtype
    found = {}
    for number, atoms in enumerate(structures):
        for head in heads(model):
            graph = build_graph(atoms, model, head)
            for _ in range(2):
                options = {"compute_stress": True} if hasattr(model, "atomic_energies_fn") else {}
                returned = model(graph.cast(dtype), **options)
            found |= {(number, head, name): tensor for name, tensor in returned.items() if torch.is_tensor(tensor)}
    return found


def check_same(original, loaded, structures):
    """The class, the tensors and all that is computed are the same, bit for bit."""
    assert type(loaded) is type(original)
    assert weights_sha256(loaded) == weights_sha256(original)
    assert list(loaded.state_dict()) == list(original.state_dict())
    expected, got = outputs(original, structures), outputs(loaded, structures)
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == got[name].dtype
        assert torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(got[name])), name
    frozen = [
        [name for name, each in model.named_parameters() if not each.requires_grad] for model in (original, loaded)
    ]
    assert frozen[0] == frozen[1]


def there_and_back(original, tmp_path):
    """Through a checkpoint and the safe format."""
    torch.save(original, tmp_path / "it.model")
    written = convert(tmp_path / "it.model", tmp_path / "it.safetensors")
    assert written.path == tmp_path / "it.safetensors"
    assert {f"{head}: forces" for head in heads(original)} < set(written.compared)
    assert written.sha256 == weights_sha256(original)
    loaded, name = load_model(tmp_path / "it.safetensors")
    assert name == "it"
    return loaded


def test_the_same_model_makes_the_same_file_and_is_not_changed(one_layer, written, tmp_path):
    twin = copy.deepcopy(one_layer).train()
    convert(twin, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == written.read_bytes()
    assert twin.training
    assert weights_sha256(twin) == weights_sha256(one_layer)
    assert {each.requires_grad for each in twin.parameters() if each.numel()} == {True}


def test_no_pickle_is_loaded(written, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was loaded")

    for module, names in ((torch, ("load",)), (torch.jit, ("load",)), (pickle, ("load", "loads", "Unpickler"))):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    assert type(load_model(written)[0]) is ScaleShiftMACE


def test_everything_that_can_be_combined(config, tmp_path, crystal):
    heads_of = {"heads": ["pbe", "r2scan"], "atomic_energies": [[-13.6, -1029.5, -2042.0], [-13.5, -1028.0, -2040.0]]}
    scales = {"atomic_inter_scale": [0.8, 1.1], "atomic_inter_shift": [0.1, 0.0]}
    others = {"pair_repulsion": True, "distance_transform": "Agnesi", "radial_type": "gaussian", "r_max": 3.1}
    classes = {"interaction_cls_first": "RealAgnosticDensityInteractionBlock", "correlation": [1, 2], "gate": "tanh"}
    model = build(config | heads_of | scales | others | classes, seed=3).float()
    for number, interaction in enumerate(model.interactions):
        interaction.avg_num_neighbors = 4.3 + number  # no part of the state, and one for each layer
    for parameter in model.products.parameters():
        parameter.requires_grad_(False)
    loaded = there_and_back(model, tmp_path)
    assert [each.avg_num_neighbors for each in loaded.interactions] == [4.3, 5.3]
    assert not loaded.training
    check_same(model, loaded, [crystal])


def test_a_checkpoint_of_2022(one_layer, tmp_path, crystal):
    """Its cutoff is a float and its elements a list, and it lacks what was thought of later."""
    mine = copy.deepcopy(one_layer)
    for name, value in (("r_max", float(mine.r_max)), ("atomic_numbers", mine.atomic_numbers.tolist())):
        delattr(mine, name)
        setattr(mine, name, value)
    del mine.heads, mine.apply_cutoff
    for module in mine.modules():
        if type(module).__name__ == "Contraction":
            for name in [name for name in module._buffers if name.endswith("_zeroed")]:
                del module._buffers[name]
    mine.radial_embedding.cutoff_fn.p = mine.radial_embedding.cutoff_fn.p.double()
    loaded = there_and_back(mine, tmp_path)
    assert (type(loaded.r_max), type(loaded.atomic_numbers)) == (float, list)
    check_same(mine, loaded, [crystal])


@pytest.mark.parametrize(
    ("compute", "interface"), [("bfloat16", "float32"), pytest.param("float32", "float64", marks=pytest.mark.slow)]
)
def test_a_model_in_mixed_precision(one_layer, tmp_path, crystal, compute, interface):
    policy = pp.Policy((pp.Rule("interactions.*.linear", "float64"), pp.Rule("interactions.*", compute)))
    mixed = policy.apply(one_layer, interface=interface)
    loaded = there_and_back(mixed, tmp_path)
    assert type(loaded) is MixedModel
    assert loaded.policy == policy
    assert str(loaded.interface.dtype) == f"torch.{interface}"
    check_same(mixed, loaded, [crystal])


@pytest.mark.parametrize(("layout", "dtype"), [("ir_mul", torch.float64), ("mul_ir", torch.float32)])
def test_a_model_computed_by_cuequivariance(one_layer, tmp_path, crystal, layout, dtype):
    pytest.importorskip("cuequivariance_torch")
    model = runs.convert(copy.deepcopy(one_layer).to(dtype), layout)
    loaded = there_and_back(model, tmp_path)
    assert (backend(loaded), irreps_layout(loaded)) == ("cuEquivariance", layout)
    check_same(model, loaded, [crystal])


def test_a_model_computed_by_cuequivariance_in_mixed_precision(one_layer, tmp_path, crystal):
    pytest.importorskip("cuequivariance_torch")
    mixed = pp.Policy((pp.Rule("interactions.*", "float32"),)).apply(runs.convert(one_layer))
    check_same(mixed, there_and_back(mixed, tmp_path), [crystal])


def test_without_cuequivariance_it_is_not_another_model(config, monkeypatch):
    monkeypatch.setattr("mace.modules.wrapper_ops.CUET_AVAILABLE", False)
    with pytest.raises(InputError, match="pip install cuequivariance-torch"):
        build(config | {"cueq_layout": "ir_mul"})


@pytest.mark.slow
def test_lora(one_layer, tmp_path, water):
    model = inject_LoRAs(copy.deepcopy(one_layer), rank=3, alpha=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    check_same(model, there_and_back(model, tmp_path), [water])


# what is refused


def refusal(model, tmp_path, words):
    """It is refused in one sentence that names the model, and nothing is written."""
    with pytest.raises(InputError, match=words) as caught:
        convert(model, tmp_path / "out.safetensors")
    assert "cannot be converted" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library", ["cueq_config", "oeq_config"])
def test_kernels_for_a_gpu_are_refused_with_what_to_do(one_layer, tmp_path, library):
    model = copy.deepcopy(one_layer)
    setattr(model.interactions[0], library, SimpleNamespace(enabled=True, conv_fusion=True))
    refusal(model, tmp_path, "Equivariance and kernels for a GPU.*Convert the e3nn model that it came from")


def test_a_model_prepared_for_compile_is_refused_with_what_to_do(tmp_path):
    refusal(model_rows.prepared(), tmp_path, "Convert the model that it was prepared from")


class Sine(torch.nn.Module):
    def forward(self, x):
        return torch.sin(x)


class OtherMACE(ScaleShiftMACE):
    pass


def other_class(model):
    model.__class__ = OtherMACE


def other_activation(model):
    model.readouts[-1].non_linearity.acts[0].f = torch.sin


def other_part(model):
    model.readouts[-1].non_linearity = Sine()


def more_tensors(model):
    model.register_buffer("mine", torch.ones(1))


def other_layer(model):
    model.interactions[0].__class__ = type("Mine", (type(model.interactions[0]),), {})


def other_constant(model):
    model.interactions[0].conv_tp_weights.layer0.act._is_id = True


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_class, "OtherMACE"),
        (other_activation, "cannot be read"),
        pytest.param(other_part, r"differs in|do not fit", marks=pytest.mark.slow),
        pytest.param(more_tensors, "mine", marks=pytest.mark.slow),
        (other_layer, "Mine"),
        (other_constant, r"layer0\.act\._is_id"),
    ],
)
def test_what_mace_torch_does_not_build_is_refused(one_layer, mine, tmp_path, change, words):
    mine = mine if change is other_activation else copy.deepcopy(one_layer)
    change(mine)
    refusal(mine, tmp_path, words)


def test_what_is_written_is_read_back_and_compared(one_layer, tmp_path, monkeypatch):
    write = conversion.write

    def write_wrongly(description, state, path):
        changed = {name: tensor.clone() for name, tensor in state.items()}
        weight = changed["readouts.0.linear.weight"]
        weight[0] = torch.nextafter(weight[0], weight[0] + 1)
        write(description, changed, path)

    monkeypatch.setattr(conversion, "write", write_wrongly)
    refusal(one_layer, tmp_path, "SHA-256")


def test_what_is_computed_is_compared(one_layer, tmp_path, monkeypatch):
    read = conversion.read

    def read_wrongly(path):
        loaded = read(path)
        loaded.scale_shift.forward = lambda x, head: one_layer.scale_shift(x, head) * (1 + 1e-15)
        return loaded

    monkeypatch.setattr(conversion, "read", read_wrongly)
    refusal(one_layer, tmp_path, "computes another Default: ")


def test_output_names(model, written, tmp_path):
    with pytest.raises(InputError, match=r"must end in \.safetensors"):
        convert(model, tmp_path / "out.model")
    target = tmp_path / "out.safetensors"
    target.write_text("mine")
    with pytest.raises(InputError, match="exists"):
        convert(model, target)
    assert target.read_text() == "mine"


# every model that is supported

COMPILED = ("TorchScript", "torch.compile")


@pytest.mark.slow
@pytest.mark.parametrize("row", model_rows.ROWS, ids=lambda row: row.name)
def test_every_supported_model(row, tmp_path):
    if reason := row.missing("cpu"):
        pytest.skip(reason)
    model = row.build()
    given = row.given(model, tmp_path, "cpu") if row.given else model
    if row.refusal or "Equivariance" in row.name or row.name == "prepared for torch.compile":
        with pytest.raises(InputError):
            convert(given, tmp_path / "out.safetensors")
        assert not (tmp_path / "out.safetensors").exists()
        return
    convert(given, tmp_path / "out.safetensors")
    loaded, _ = load_model(tmp_path / "out.safetensors")
    structures = row.structures() if not row.full_width else row.structures()[:1]
    check_same(load_model(given)[0], loaded, structures)
