"""variants.py: clones that compute in their precision and leave the model and torch as they were."""

import copy
import functools

import numpy as np
import pytest
import torch
from mace.modules import interaction_classes

from precision_probe.exceptions import InputError
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.building import build
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import build_graph
from precision_probe.models.loading import load_model
from precision_probe.precisions import PRECISIONS, parse_precisions
from precision_probe.structures import read_structures
from precision_probe.variants.devices import check_device
from precision_probe.variants.variant import Variant

CPU = torch.device("cpu")
ON_CPU = ("float64", "float32", "bfloat16", "float16")
BACKENDS = {"cuda": torch.backends.cuda.matmul, "mkldnn": torch.backends.mkldnn.matmul}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def cuda(test):
    return pytest.mark.cuda(needs_cuda(test))


def variant(model, name, device=CPU):
    return Variant(model, PRECISIONS[name], device)


def data_of(graph):
    return {key: value.clone() for key, value in graph.data.items()}


def error(found, reference):
    """Relative to the reference's norm, in float64 on the CPU."""
    found, reference = found.detach().cpu().double(), reference.detach().cpu().double()
    return float((found - reference).norm() / reference.norm())


@pytest.fixture(scope="module")
def built(config):
    """Builds a changed small model, each once."""

    @functools.cache
    def make(items):
        return build(config | dict(items), seed=3)

    def of(**options):
        return make(tuple(options.items()))

    return of


# the clone


@pytest.mark.parametrize("name", [*ON_CPU, "tf32"])
def test_every_float_of_the_clone_has_the_dtype(model, name):
    clone = variant(model, name).model
    for ours, theirs in zip(clone.state_dict().items(), model.state_dict().items(), strict=True):
        assert ours[0] == theirs[0]
        expected = getattr(torch, PRECISIONS[name].dtype) if theirs[1].is_floating_point() else theirs[1].dtype
        assert ours[1].dtype is expected
        assert torch.equal(ours[1], theirs[1].to(expected))
    assert all(not t.is_floating_point() or t.dtype is getattr(torch, PRECISIONS[name].dtype) for t in clone.buffers())
    assert not any(p.requires_grad for p in clone.parameters())


def test_original_is_untouched(model, water):
    mine = copy.deepcopy(model)
    mine.train()
    next(mine.parameters()).requires_grad_(False)
    before = weights_sha256(mine), [p.requires_grad for p in mine.parameters()], mine.training
    graph = build_graph(water, mine)
    numbers = data_of(graph)
    for name in ON_CPU:
        variant(mine, name).predict(graph)
    assert (weights_sha256(mine), [p.requires_grad for p in mine.parameters()], mine.training) == before
    assert all(torch.equal(graph.data[key], value) for key, value in numbers.items())
    assert not any(value.requires_grad for value in graph.data.values())
    assert not any(p.grad is not None for p in mine.parameters())


def test_the_users_hooks_stay_behind(model, water):
    mine, fired = copy.deepcopy(model), []
    for module in (mine, mine.interactions[0], mine.readouts[1].linear_1):
        for kind in ("forward", "forward_pre", "full_backward", "full_backward_pre"):
            getattr(module, f"register_{kind}_hook")(lambda *_: fired.append(1))
    found = variant(mine, "float64").predict(build_graph(water, mine))
    assert fired == []
    assert torch.equal(found["forces"], variant(model, "float64").predict(build_graph(water, mine))["forces"])
    mine(data_of(build_graph(water, mine)), compute_force=False)
    assert fired


# float64 is the model itself


@pytest.mark.parametrize("options", [{}, {"model": "MACE"}, {"num_interactions": 1}])
def test_float64_is_the_bare_model_bit_for_bit(built, water, options):
    model = built(**options)
    graph = build_graph(water, model)
    bare = [model(data_of(graph)) for _ in range(3)][-1]
    found = [variant(model, "float64").predict(graph) for _ in range(3)][-1]
    assert torch.equal(found["energy"], bare["energy"])
    assert torch.equal(found["forces"], bare["forces"])
    assert found["stress"].shape == (1, 3, 3)
    assert torch.isnan(found["stress"]).all()  # not periodic
    assert found.seconds > 0
    assert not any(t.requires_grad for t in (found["energy"], found["interaction_energy"], found["forces"]))


def test_stress_is_maces_own(model, crystal):
    graph = build_graph(crystal, model)
    bare = model(data_of(graph), compute_stress=True)
    found = variant(model, "float64").predict(graph)
    torch.testing.assert_close(found["stress"], bare["stress"], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found["forces"], bare["forces"], rtol=1e-12, atol=1e-12)
    assert error(found["stress"], torch.eye(3).double() * found["stress"].diagonal(dim1=1, dim2=2).mean()) > 0.1


def test_stress_is_the_derivative_of_the_energy(model, crystal):
    def energy(strain):
        atoms = crystal.copy()
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        return float(variant(model, "float64").predict(build_graph(atoms, model))["interaction_energy"])

    stress = variant(model, "float64").predict(build_graph(crystal, model))["stress"][0].numpy()
    for i, j in [(0, 0), (2, 2), (0, 1)]:
        strain = np.zeros((3, 3))
        strain[i, j] = strain[j, i] = 1e-5
        work = (energy(strain) - energy(-strain)) / 2e-5 / crystal.get_volume()
        assert work == pytest.approx(stress[i, j] * (1 if i == j else 2), rel=1e-4)


def test_plain_mace_interaction_energy_has_no_isolated_atoms(built, config, water):
    for extra in ({}, {"pair_repulsion": True}):
        model = built(model="MACE", **extra)
        found = variant(model, "float64").predict(build_graph(water, model))
        isolated = sum(
            dict(zip(config["atomic_numbers"], config["atomic_energies"], strict=True))[z] for z in (8, 1, 1)
        )
        assert float(found["energy"] - found["interaction_energy"]) == pytest.approx(isolated, abs=1e-9)
        assert abs(float(found["interaction_energy"])) > 1e-3
        assert variant(model, "float16").predict(build_graph(water, model))["forces"].shape == (3, 3)


# reduced precisions run


@pytest.mark.parametrize("interaction", sorted(interaction_classes))
def test_every_interaction_class_runs_in_every_precision(built, crystal, interaction):
    model = built(interaction_cls=interaction, interaction_cls_first=interaction)
    assert {type(block).__name__ for block in model.interactions} == {interaction}
    graph = build_graph(crystal, model)
    predictions = {name: variant(model, name).predict(graph) for name in ON_CPU}
    reference = predictions["float64"]
    for name, found in predictions.items():
        dtype = getattr(torch, name)
        assert (found["energy"].dtype, found["interaction_energy"].dtype, found["forces"].dtype) == (dtype,) * 3
        assert found["stress"].dtype is torch.float64
        assert found["stress"].shape == (1, 3, 3)
        for quantity in ("interaction_energy", "stress"):
            u = PRECISIONS[name].unit_roundoff
            off = error(found[quantity], reference[quantity])
            assert off <= 500 * u
            assert name == "float64" or off > u / 1000
    forces = [error(predictions[name]["forces"], reference["forces"]) for name in ("float32", "float16", "bfloat16")]
    assert 0 < forces[0] < forces[1] < forces[2]


def test_absent_elements_isolated_energy_overflows_float16(built, water):
    model = built(atomic_energies=(-13.6, -70_000.0, -2042.0))
    graph = build_graph(water, model)
    found = variant(model, "float16").predict(graph)
    assert torch.isnan(found["energy"]).all()
    assert torch.isfinite(found["forces"]).all()
    assert torch.isfinite(found["interaction_energy"]).all()
    assert error(found["forces"], variant(model, "float64").predict(graph)["forces"]) < 0.1
    assert torch.isfinite(variant(model, "bfloat16").predict(graph)["energy"]).all()


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_multi_head_model_runs(built, water, name):
    model = built(
        heads=("a", "b"),
        atomic_energies=((-13.6, -1029.5, -2042.0), (-1.0, -2.0, -3.0)),
        atomic_inter_scale=(0.8, 0.7),
        atomic_inter_shift=(0.1, 0.2),
    )
    graph = build_graph(water, model)
    found = variant(model, name).predict(graph)
    assert found["energy"].dtype is getattr(torch, name)
    assert error(found["forces"], variant(model, "float64").predict(graph)["forces"]) < 0.2


def test_total_energy_hides_the_error(built, water):
    model = built()
    graph = build_graph(water, model)
    exact, found = (variant(model, name).predict(graph) for name in ("float64", "float32"))
    half_ulp = np.spacing(np.float32(2069.0)) / 2
    assert abs(float(found["interaction_energy"] - exact["interaction_energy"])) < half_ulp / 10
    # the same energy with its isolated atoms has no digits left below this
    assert 0 < abs(float(found["energy"].double() - exact["energy"])) < 10 * half_ulp


@pytest.mark.parametrize("name", ON_CPU)
def test_nan_is_a_result_and_no_error(model, crystal, name):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(iter(broken.readouts[1].parameters())).fill_(torch.nan)
    found = variant(broken, name).predict(build_graph(crystal, model))
    assert torch.isnan(found["energy"]).all()
    assert torch.isnan(found["stress"]).all()
    assert found["forces"].shape == (8, 3)


# models converted to another backend


def test_a_converted_model_is_built_anew_and_computes_in_the_precision(model, crystal):
    pytest.importorskip("cuequivariance_torch")
    from mace.cli.convert_e3nn_cueq import run as convert

    with default_dtype(torch.float64):  # which the conversion sets for good
        converted = convert(copy.deepcopy(model), device="cpu")
    before = weights_sha256(converted)
    graph = build_graph(crystal, model)
    exact = variant(model, "float64").predict(graph)
    bare = [converted(data_of(graph), compute_virials=True) for _ in range(3)][-1]
    for name in ON_CPU:
        ours = variant(converted, name)
        assert {t.dtype for t in ours.model.state_dict().values() if t.is_floating_point()} == {getattr(torch, name)}
        found = ours.predict(graph)
        assert found["forces"].dtype is getattr(torch, name)
        u = PRECISIONS[name].unit_roundoff
        for quantity in ("interaction_energy", "forces", "stress"):
            off = error(found[quantity], exact[quantity])
            assert off <= 500 * u
            assert name == "float64" or off > u / 1000
    found = variant(converted, "float64").predict(graph)
    for quantity in ("energy", "forces"):
        torch.testing.assert_close(found[quantity], bare[quantity].detach(), rtol=1e-13, atol=1e-13)
    assert weights_sha256(converted) == before


# the device


@pytest.mark.parametrize("name", ["tpu9", "gpu", "", "cuda:x"])
def test_unknown_device(name):
    with pytest.raises(InputError, match=r"Unknown device.*cpu, cuda or cuda:N"):
        check_device(name, ())


@pytest.mark.parametrize("name", ["meta", "mps"])
def test_devices_that_cannot_compute_float64_are_refused(name):
    with pytest.raises(InputError):
        check_device(name, ())


def test_absent_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"sees no CUDA device.*--device cpu"):
        check_device("cuda", ())


def test_absent_second_gpu_and_old_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    with pytest.raises(InputError, match=r"no device 'cuda:1'.*1 CUDA"):
        check_device("cuda:1", ())
    with pytest.raises(InputError, match=r"tf32 needs a GPU of compute capability 8\.0"):
        check_device("cuda:0", parse_precisions("float32,tf32"))
    assert check_device("cuda:0", parse_precisions("float16")) == torch.device("cuda:0")


def test_tf32_needs_cuda():
    with pytest.raises(InputError, match=r"tf32.*--device cuda"):
        check_device("cpu", parse_precisions("float32,tf32"))
    assert check_device("cpu", parse_precisions("float32")) == CPU
    assert check_device(CPU, ()) == CPU


# torch's matmul mode


SETTINGS = {
    "untouched": lambda: None,
    "new style": lambda: setattr(BACKENDS["cuda"], "fp32_precision", "tf32"),
    "new style, exact": lambda: setattr(BACKENDS["cuda"], "fp32_precision", "ieee"),
    "new style on the CPU": lambda: setattr(BACKENDS["mkldnn"], "fp32_precision", "bf16"),
    "old style": lambda: setattr(BACKENDS["cuda"], "allow_tf32", True),
    "set_float32_matmul_precision": lambda: torch.set_float32_matmul_precision("medium"),
}


def modes():
    return {name: backend.fp32_precision for name, backend in BACKENDS.items()}


@pytest.fixture
def torchs_own_mode():
    before = modes()
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    for name, backend in BACKENDS.items():
        backend.fp32_precision = before[name]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["float32", "tf32"])
def test_matmul_mode_is_set_and_restored(model, torchs_own_mode, setting, name):
    SETTINGS[setting]()
    before = modes()
    with variant(model, name).arithmetic():
        assert modes() == {"cuda": "tf32" if name == "tf32" else "ieee", "mkldnn": "ieee"}
    assert modes() == before
    with pytest.raises(ArithmeticError), variant(model, name).arithmetic():
        raise ArithmeticError
    assert modes() == before


def test_old_style_flags_can_be_read_afterwards(model, torchs_own_mode):
    torch.set_float32_matmul_precision("high")
    with variant(model, "float32").arithmetic():
        pass
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cuda.matmul.allow_tf32


def test_inherited_matmul_mode_stays_inherited(model, torchs_own_mode):
    torch.backends.fp32_precision = "tf32"
    with variant(model, "float32").arithmetic():
        pass
    assert modes() == {"cuda": "tf32", "mkldnn": "tf32"}
    torch.backends.fp32_precision = "ieee"
    assert modes() == {"cuda": "ieee", "mkldnn": "ieee"}


@pytest.mark.parametrize("name", ON_CPU)
def test_default_dtype_inside(model, name):
    before = torch.get_default_dtype()
    with variant(model, name).arithmetic():
        assert torch.get_default_dtype() is getattr(torch, name)
    assert torch.get_default_dtype() is before


# on a GPU


@cuda
def test_cuda_float64_agrees_with_the_cpu(model, crystal):
    graph = build_graph(crystal, model)
    cpu, gpu = (variant(model, "float64", torch.device(d)).predict(graph.to(d)) for d in ("cpu", "cuda"))
    for quantity in ("energy", "interaction_energy", "forces", "stress"):
        assert error(gpu[quantity], cpu[quantity]) < 1e-10


@cuda
def test_cuda_precisions_run_and_their_errors_are_in_order():
    model, _ = load_model("demo")
    (ice,) = [atoms for atoms in read_structures("demo") if atoms.pbc.all()]
    graph = build_graph(ice.repeat(2), model).to("cuda")
    device = check_device("cuda", tuple(PRECISIONS.values()))
    found = {name: variant(model, name, device).predict(graph) for name in PRECISIONS}
    assert found["tf32"]["forces"].dtype is torch.float32
    assert all(torch.isfinite(prediction["stress"]).all() for prediction in found.values())
    errors = {name: error(prediction["forces"], found["float64"]["forces"]) for name, prediction in found.items()}
    assert 0 < errors["float32"] < errors["tf32"] / 10
    assert errors["tf32"] < errors["bfloat16"]
    assert not torch.equal(found["tf32"]["forces"], found["float32"]["forces"])


@cuda
@pytest.mark.parametrize("setting", ["new style", "new style, exact"])
def test_cuda_matrix_products_are_as_the_precision_says(model, torchs_own_mode, setting):
    SETTINGS[setting]()
    a = torch.rand(256, 256, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    exact = a.double() @ a.double()
    off = {}
    for name in ("float32", "tf32"):
        with variant(model, name, torch.device("cuda")).arithmetic():
            off[name] = error(a @ a, exact)
    assert off["float32"] < 2**-20 < off["tf32"] < 2**-8
