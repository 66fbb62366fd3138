"""variant.py: clones that compute in their precision and leave the model and torch as they were."""

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from mace.modules import interaction_classes
from runs import data_of, rel_l2
from torch.utils import _python_dispatch

from precision_probe.models.attributes import weights_sha256
from precision_probe.models.building import build
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.evaluation import AnyModule
from precision_probe.models.graphs import Graph, build_graph
from precision_probe.models.inputs import Inputs
from precision_probe.precisions import PRECISIONS, parse_precision
from precision_probe.structures import read_structures
from precision_probe.variants.devices import check_precisions
from precision_probe.variants.rounding import round_to
from precision_probe.variants.variant import Variant

CPU = torch.device("cpu")
ON_CPU = ("float64", "float32", "bfloat16", "float16")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def cuda(test):
    return pytest.mark.cuda(needs_cuda(test))


def variant(model, name, device=CPU):
    return Variant(model, PRECISIONS[name], device)


def error(found, reference):
    """Relative to the reference's norm; NumPy has no bfloat16, so float64 first."""
    return rel_l2(reference.double(), found.double())


@pytest.fixture(scope="module")
def built(config, model):
    """Builds a changed small model, each once; without changes it is the shared one."""

    @functools.cache
    def make(items):
        return build(config | dict(items), seed=3)

    def of(**options):
        return make(tuple(options.items())) if options else model

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


def test_original_is_untouched(mine, water):
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


def test_the_users_hooks_stay_behind(model, mine, water):
    fired = []
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
def test_nan_is_a_result_and_no_error(mine, crystal, name):
    with torch.no_grad():
        next(iter(mine.readouts[1].parameters())).fill_(torch.nan)
    found = variant(mine, name).predict(build_graph(crystal, mine))
    assert torch.isnan(found["energy"]).all()
    assert torch.isnan(found["stress"]).all()
    assert found["forces"].shape == (8, 3)


# emulated formats


@pytest.mark.parametrize(("name", "nearest"), [("e8m7", "e8m7"), ("m9sr", "m9")])
def test_weights_inputs_and_gradients_of_an_emulated_variant_are_of_the_format(model, water, name, nearest):
    ours, graph = Variant(model, parse_precision(name), CPU), build_graph(water, model)
    nearest = parse_precision(nearest)

    def is_of_the_format(tensor):
        return torch.equal(round_to(tensor.detach(), nearest), tensor.detach())

    weights = [tensor for tensor in ours.model.state_dict().values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in weights} == {torch.float64}
    assert all(map(is_of_the_format, weights))
    seen = []
    handle = ours.model.radial_embedding.register_forward_pre_hook(lambda _, args: seen.extend(args))
    found = ours.predict(graph)
    handle.remove()
    floating = [x for x in seen if torch.is_tensor(x) and x.is_floating_point()]
    assert floating
    assert all(map(is_of_the_format, [*floating, found["energy"], found["forces"]]))
    exact = variant(model, "float64").predict(graph)
    assert 0 < error(found["forces"], exact["forces"]) < 0.1


def test_stochastic_rounding_has_a_seed_and_leaves_torchs_random_state_alone(model, water):
    graph, precision = build_graph(water, model), parse_precision("m9sr")
    for _ in range(3):  # TorchScript does other operations in its first calls, and so draws other numbers
        Variant(model, precision, CPU).predict(graph)
    state = torch.random.get_rng_state()
    first, again, other = (Variant(model, precision, CPU, seed=s).predict(graph)["forces"] for s in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# a model that is trained


@pytest.mark.parametrize("name", ["float64", "float16", "e8m7"])
def test_following_takes_over_weights_and_modes(model, mine, name):
    ours = Variant(model, parse_precision(name), CPU)
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.add_(0.1)
    ours.follow(mine)
    expected = Variant(mine, parse_precision(name), CPU)
    for key, tensor in ours.model.state_dict().items():
        assert torch.equal(tensor, expected.model.state_dict()[key])
    mine.train()
    mine.readouts[0].eval()
    ours.follow_mode(mine)
    assert [module.training for module in ours.model.modules()] == [module.training for module in mine.modules()]


class Attached(Graph):
    """A graph whose positions stay on the autograd graph."""

    def cast(self, dtype):
        return dict(self.data)


def test_what_is_differentiable_has_the_forces_as_its_slope(model, water):
    ours, graph = variant(model, "float64"), build_graph(water, model)
    forces = ours.predict(graph)["forces"]
    positions = graph.data["positions"].clone().requires_grad_()
    ((energy, cotangent),) = ours.differentiable(
        Attached({**graph.data, "positions": positions}, graph.names, graph.atomic_numbers, graph.pbc)
    )
    (gradient,) = torch.autograd.grad(energy, positions, cotangent)
    torch.testing.assert_close(-gradient, forces, rtol=1e-12, atol=1e-12)


def test_a_loss_of_forces_has_the_cotangents_that_it_was_given(model, water):
    """In the variant's dtype, and the outputs are those of the model called so."""
    ours, graph = variant(model, "float32"), build_graph(water, model)
    given = {"energy": torch.ones(1, dtype=torch.float64), "forces": torch.full((3, 3), 0.5, dtype=torch.float64)}
    with ours.arithmetic():
        outputs = ours.with_cotangents(graph, given, {"training": True})
    for (y, cotangent), (name, expected) in zip(outputs, given.items(), strict=True):
        assert y.dtype is cotangent.dtype is torch.float32
        assert y.requires_grad
        assert torch.equal(cotangent, expected.float())
        assert error(y, variant(model, "float64").predict(graph)[name]) < 1e-4


@pytest.mark.parametrize("name", ["float32", "e8m7"])
def test_random_numbers_are_the_callers_and_the_same_in_every_variant(model, name):
    """As dropout needs it: each starts from the present random state, which stays where it is."""
    state, drawn = torch.random.get_rng_state(), []
    for ours in (Variant(model, parse_precision(each), CPU) for each in (name, "float64")):
        with ours.arithmetic():
            drawn.append(torch.randint(2**40, (4,)))
    assert torch.equal(*drawn)
    assert torch.equal(torch.random.get_rng_state(), state)


# what surrounds a computation


def inside_inference_mode():
    return torch.inference_mode()


def inside_autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def inside_another_default_dtype():
    return default_dtype(torch.bfloat16)


@pytest.mark.parametrize("name", ["float64", "float32", "e8m7"])
@pytest.mark.parametrize(
    "around", [torch.no_grad, inside_inference_mode, inside_autocast, inside_another_default_dtype]
)
def test_nothing_around_changes_what_is_predicted(model, water, around, name):
    graph, precision = build_graph(water, model), parse_precision(name)
    ours = Variant(model, precision, CPU)
    expected = [ours.predict(graph) for _ in range(3)][-1]
    with around():
        predicted = [ours.predict(graph), Variant(model, precision, CPU).predict(graph)]
    for each in predicted:
        for quantity in ("energy", "forces"):
            assert error(each[quantity], expected[quantity]) <= 10 * precision.unit_roundoff
            assert each[quantity].dtype is expected[quantity].dtype
    assert torch.equal(predicted[0]["forces"], expected["forces"])


def test_another_thread_computes_in_the_precision_too(model, water):
    graph, ours = build_graph(water, model), variant(model, "float32")
    expected = [ours.predict(graph) for _ in range(3)][-1]
    with torch.autocast("cpu", dtype=torch.bfloat16), ThreadPoolExecutor(1) as pool:
        found = pool.submit(ours.predict, graph).result()
    assert torch.equal(found["forces"], expected["forces"])


# modules that overwrite


class Centred(torch.nn.Module):
    """Overwrites what it is called with, and does not say so."""

    def forward(self, x):
        x -= x.mean(dim=0)
        return x**2


def evaluated(network, x, name):
    ours = Variant(network, PRECISIONS[name], CPU, AnyModule(lambda module, x: module(x)))
    sample = Inputs("x", (x,))
    return [ours.predict(sample)["output"] for _ in range(2)]


@pytest.mark.parametrize("name", ["float64", "float32"])
def test_what_a_module_is_called_with_stays_what_it_was(name):
    x = torch.tensor([[1.0, -2.0], [3.0, 4.0]], dtype=torch.float64)
    numbers = x.numpy().copy()
    for output in evaluated(torch.nn.Sequential(torch.nn.ReLU(inplace=True)), x, name):
        np.testing.assert_array_equal(output, np.maximum(numbers, 0))
    for output in evaluated(Centred(), x, name):
        np.testing.assert_array_equal(output, (numbers - numbers.mean(axis=0)) ** 2)
    np.testing.assert_array_equal(x, numbers)


def test_errors_of_modules_are_their_own():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        evaluated(torch.nn.Linear(3, 1).double(), torch.ones(2, 2, dtype=torch.float64), "float64")


def test_buffers_that_a_run_in_training_changes_are_as_before():
    network = torch.nn.BatchNorm1d(2).double().train()
    ours = Variant(network, PRECISIONS["float64"], CPU, AnyModule(lambda module, x: module(x)))
    sample = Inputs("x", (torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.float64),))
    ours.predict(sample)
    assert ours.model.running_mean.tolist() == [0.0, 0.0]
    assert int(ours.model.num_batches_tracked) == 0


def test_buffers_that_a_state_does_not_list_are_followed():
    network = torch.nn.Linear(2, 2).double()
    network.register_buffer("shift", torch.zeros(2, dtype=torch.float64), persistent=False)
    ours = Variant(network, PRECISIONS["float32"], CPU, AnyModule(lambda module, x: module(x)))
    network.shift += 0.5
    ours.follow(network)
    assert ours.model.shift.tolist() == [0.5, 0.5]


# models converted to another backend


def test_a_converted_model_is_built_anew_and_computes_in_the_precision(model, converted, crystal):
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


# the arithmetic


@pytest.mark.parametrize("name", PRECISIONS)
def test_matrix_products_inside_are_as_the_precision_says(model, name):
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    with variant(model, name).arithmetic():
        assert [backend.fp32_precision for backend in backends] == ["tf32" if name == "tf32" else "ieee", "ieee"]
    assert [backend.fp32_precision for backend in backends] == before


@pytest.mark.parametrize("name", ON_CPU)
def test_default_dtype_inside(model, name):
    before = torch.get_default_dtype()
    with variant(model, name).arithmetic():
        assert torch.get_default_dtype() is getattr(torch, name)
    assert torch.get_default_dtype() is before


@pytest.mark.parametrize("kind", ["ScaleShiftMACE", "MACE"])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "e5m10"])
def test_a_call_returns_what_is_predicted(built, crystal, kind, name):
    """And leaves all else to the caller, but for inputs in the format: those of the call are float64's, if emulated."""
    model = built(model=kind)
    here, graph = Variant(model, parse_precision(name), CPU), build_graph(crystal, model)
    found = here.call(graph.cast(here.dtype), compute_virials=True)
    predicted = here.predict(graph)
    for each in ("energy", "interaction_energy", "forces"):
        assert torch.equal(found[each], predicted[each])


def test_inputs_of_a_call_are_rounded_while_operations_are_not(model, crystal, monkeypatch):
    """Rounding divides by the smallest number: in float32 on a GPU that is times infinity, and of zero makes NaN."""
    modes, graph = [], build_graph(crystal, model)
    here = Variant(model, parse_precision("e8m23"), CPU)
    of_input = here._rounded
    monkeypatch.setattr(
        here, "_rounded", lambda each: modes.append(_python_dispatch._get_current_dispatch_mode()) or of_input(each)
    )
    here.call(graph.cast(here.dtype))
    assert len(modes) == len(graph.data)
    assert set(modes) == {None}


# on a GPU


@cuda
def test_cuda_float64_agrees_with_the_cpu(model, crystal):
    graph = build_graph(crystal, model)
    cpu, gpu = (variant(model, "float64", torch.device(d)).predict(graph.to(d)) for d in ("cpu", "cuda"))
    for quantity in ("energy", "interaction_energy", "forces", "stress"):
        assert error(gpu[quantity], cpu[quantity]) < 1e-10


@cuda
def test_cuda_precisions_run_and_their_errors_are_in_order(demo):
    (ice,) = [atoms for atoms in read_structures("demo") if atoms.pbc.all()]
    graph = build_graph(ice.repeat(2), demo).to("cuda")
    device = torch.device("cuda")
    check_precisions(tuple(PRECISIONS.values()), device, demo)
    found = {name: variant(demo, name, device).predict(graph) for name in PRECISIONS}
    assert found["tf32"]["forces"].dtype is torch.float32
    assert all(torch.isfinite(prediction["stress"]).all() for prediction in found.values())
    errors = {name: error(prediction["forces"], found["float64"]["forces"]) for name, prediction in found.items()}
    assert 0 < errors["float32"] < errors["tf32"] / 10
    assert errors["tf32"] < errors["bfloat16"]
    assert not torch.equal(found["tf32"]["forces"], found["float32"]["forces"])
