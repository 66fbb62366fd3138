"""backends.py: models converted to cuEquivariance and OpenEquivariance, against mace-torch's conversion and e3nn."""

import contextlib
import copy
import dataclasses
import subprocess
import sys
import textwrap
from functools import partial
from types import SimpleNamespace

import ase
import ase.build
import numpy as np
import pytest
import torch
from runs import convert, rel_l2, trace_of

import precision_probe as pp
from precision_probe.models import backends
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.building import build
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import build_graph
from precision_probe.models.loading import load_model

CPU = torch.device("cpu")
HALVES = [torch.bfloat16, torch.float16]
ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
CRYSTAL = ase.Atoms("CO", [(0, 0, 0), (0.1, 0.2, 1.2)], cell=[2.6, 2.9, 3.1], pbc=True)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def marked(model, name, **config):
    """A copy that says that it is converted."""
    network = copy.deepcopy(model)
    setattr(network.interactions[0], name, SimpleNamespace(enabled=True, **config))
    return network


def outputs(model, graph, dtype):
    with default_dtype(dtype):
        out = model(graph.cast(dtype), compute_virials=True)
    return {name: out[name].detach() for name in ("energy", "interaction_energy", "forces", "virials", "node_feats")}


trace_crystal = partial(trace_of, structures=CRYSTAL)


def math_dtypes(model):
    """In which dtypes cuEquivariance was told to compute."""
    import cuequivariance_torch as cuet

    return {m._math_dtype_orig for m in model.modules() if isinstance(m, cuet.SegmentedPolynomial)} - {None}


@pytest.fixture(scope="module")
def graph(model):
    return build_graph(CRYSTAL, model)


@pytest.fixture(scope="module")
def layouts(model, converted):
    """The small model converted to both layouts of cuEquivariance."""
    return {"ir_mul": converted, "mul_ir": convert(model, "mul_ir")}


@pytest.fixture(scope="module")
def clones(converted):
    return {dtype: backends.clone(converted, dtype, CPU) for dtype in ROUNDOFF}


# which backend, which layout


def test_backends_and_layouts_are_told(model, layouts):
    assert (backends.backend(model), backends.irreps_layout(model)) == ("e3nn", "mul_ir")
    for layout, network in layouts.items():
        assert (backends.backend(network), backends.irreps_layout(network)) == ("cuEquivariance", layout)
    assert backends.backend(torch.nn.Linear(1, 1)) == "e3nn"


def test_two_libraries_are_told(model):
    assert backends.backend(marked(model, "oeq_config")) == "OpenEquivariance"
    network = marked(model, "cueq_config", layout_str="ir_mul")
    network.interactions[0].oeq_config = SimpleNamespace(enabled=True)
    assert backends.backend(network) == "cuEquivariance and OpenEquivariance"
    network.interactions[0].cueq_config.enabled = False
    assert (backends.backend(network), backends.irreps_layout(network)) == ("OpenEquivariance", "mul_ir")


def test_math_dtype_is_wider_only_in_cuda_kernels(model):
    network, cuda = marked(model, "cueq_config"), torch.device("cuda")
    for dtype in ROUNDOFF:
        assert backends.math_dtype(model, dtype, cuda) is dtype
        assert backends.math_dtype(network, dtype, CPU) is dtype
        assert backends.math_dtype(network, dtype, cuda) is (torch.float32 if dtype in HALVES else dtype)


# clones


@pytest.mark.parametrize("layout", ["ir_mul", "mul_ir"])
def test_float64_clone_is_the_model_bit_for_bit(layouts, graph, layout):
    network = layouts[layout]
    clone = backends.clone(network, torch.float64, CPU)
    assert type(clone) is type(network)
    assert clone is not network
    state = clone.state_dict()
    assert list(state) == list(network.state_dict())
    for name, tensor in network.state_dict().items():
        assert torch.equal(state[name], tensor)
        assert not tensor.numel() or state[name].data_ptr() != tensor.data_ptr()
    cloned = outputs(clone, graph, torch.float64)
    for name, value in outputs(network, graph, torch.float64).items():
        assert torch.equal(cloned[name], value), name
    assert not any(parameter.requires_grad for parameter in clone.parameters())
    assert clone.training is False


def test_float32_clone_is_what_mace_converts_from_float32(model, clones, graph):
    clone = clones[torch.float32]
    expected = convert(copy.deepcopy(model).float())
    ours, theirs = (outputs(network, graph, torch.float32) for network in (clone, expected))
    for name in ("interaction_energy", "forces", "virials", "node_feats"):
        assert ours[name].dtype is torch.float32
        assert rel_l2(theirs[name], ours[name]) < 50 * ROUNDOFF[torch.float32], name
    assert list(clone.state_dict()) == list(expected.state_dict())


@pytest.mark.parametrize("dtype", ROUNDOFF, ids=str)
def test_clones_compute_in_their_own_dtype(converted, clones, dtype):
    clone = clones[dtype]
    assert math_dtypes(clone) == {dtype}
    assert math_dtypes(converted) == {torch.float64}
    tensors = (*clone.parameters(), *clone.buffers())
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {dtype}


def test_casting_alone_would_leave_the_arithmetic_as_it_was(converted):
    assert math_dtypes(copy.deepcopy(converted).float()) == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_clones_err_as_those_of_the_e3nn_model_do(model, clones, graph, dtype):
    exact = outputs(model, graph, torch.float64)
    ours = outputs(clones[dtype], graph, dtype)
    theirs = outputs(backends.clone(model, dtype, CPU), graph, dtype)
    for name in ("interaction_energy", "forces", "virials"):
        error, usual = (rel_l2(exact[name], computed[name].double()) for computed in (ours, theirs))
        assert ours[name].dtype is dtype
        assert 0 < error < max(20 * usual, 20 * ROUNDOFF[dtype]), name


def test_neighbours_and_hooks(converted, graph):
    """The average number of neighbours is no part of the state, and is taken along; hooks are not."""
    network = copy.deepcopy(converted)
    for interaction in network.interactions:
        interaction.avg_num_neighbors = 7.5
    expected = outputs(network, graph, torch.float64)["forces"]
    network.products[0].register_forward_hook(lambda *_: pytest.fail("the hook was taken along"))
    clone = backends.clone(network, torch.float64, CPU)
    assert torch.equal(outputs(clone, graph, torch.float64)["forces"], expected)
    assert network.products[0]._forward_hooks
    assert not torch.equal(outputs(converted, graph, torch.float64)["forces"], expected)


# the model and the process are left as they were


@contextlib.contextmanager
def nothing_changes(network):
    from mace.tools.cg import O3_e3nn

    def state():
        config = dataclasses.asdict(network.interactions[0].cueq_config)
        requires_grad = [parameter.requires_grad for parameter in network.parameters()]
        return weights_sha256(network), torch.get_default_dtype(), network.training, config, requires_grad

    before, random = state(), torch.get_rng_state()
    couplings = O3_e3nn.__dict__["clebsch_gordan"]
    yield
    assert state() == before
    assert torch.equal(torch.get_rng_state(), random)
    assert O3_e3nn.__dict__["clebsch_gordan"] is couplings


def test_failing_to_clone_changes_nothing_either(converted, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(type(converted), "load_state_dict", fail)
    with (
        nothing_changes(converted),
        pytest.raises(pp.InputError, match=r"cannot be built anew in torch.float32 \(RuntimeE"),
    ):
        backends.clone(converted, torch.float32, CPU)


def test_probing_changes_nothing_else(converted, graph):
    before = outputs(converted, graph, torch.float64)
    with nothing_changes(converted):
        trace_crystal(converted, precisions="bfloat16", modes="isolated", blocks="readouts.*")
    after = outputs(converted, graph, torch.float64)
    assert all(torch.equal(after[name], before[name]) for name in before)


# traces


DENSITY = {
    "interaction_cls_first": "RealAgnosticDensityInteractionBlock",
    "interaction_cls": "RealAgnosticDensityResidualInteractionBlock",
}


@pytest.fixture(scope="module")
def e3nn_trace(model):
    return trace_crystal(model, precisions="float64")


def assert_same_arrays(ours, theirs):
    for mode in ("propagated", "isolated"):
        a, b = (trace.group(mode, "float64") for trace in (ours, theirs))
        assert set(a.data_vars) == set(b.data_vars)
        for name in set(a.data_vars) - {"seconds"}:
            assert a[name].dims == b[name].dims
            assert a[name].attrs.get("irreps") == b[name].attrs.get("irreps")
            if (mode, name) == ("isolated", "spherical_harmonics.vectors.grad"):  # zero up to rounding
                assert np.abs(b[name]).max() < 1e-12
                continue
            if (mode, name) == (
                "propagated",
                "atomic_energies_fn.node_attrs.grad",
            ):  # no part of what is differentiated
                assert not a[name].any()
                assert not b[name].any()
                continue
            assert rel_l2(a[name], b[name]) < 1e-12, (mode, name)


@pytest.mark.parametrize("layout", ["ir_mul", "mul_ir"])
def test_every_array_is_the_e3nn_models(e3nn_trace, layouts, layout):
    trace = trace_crystal(layouts[layout], precisions="float64")
    assert_same_arrays(e3nn_trace, trace)
    names = [str(name) for name in trace.group("propagated", "float64").data_vars]
    assert sum(name.endswith(".grad") for name in names) > 12
    assert trace.attributes["backend"] == "cuEquivariance"
    for name in ("hidden_irreps", "edge_irreps", "interactions", "heads", "cutoff"):
        assert trace.attributes[name] == e3nn_trace.attributes[name]


def test_every_array_of_density_blocks_is_the_e3nn_models(config):
    model = build(config | DENSITY, seed=3)
    assert_same_arrays(*(trace_crystal(network, precisions="float64") for network in (model, convert(model))))


def test_reduced_precisions_are_equivalent_too(model, converted):
    options = {"precisions": "float32,float16", "modes": "isolated", "blocks": ["interactions.1", "products.*"]}
    traces = [trace_crystal(network, **options) for network in (model, converted)]
    table = pp.compare_traces(*traces)
    assert table["equivalent"].all(), table[~table["equivalent"]]
    assert traces[1].attributes["math_dtypes"] == {name: name for name in ("float64", "float32", "float16")}


# what is refused


def test_a_class_that_mace_cannot_build_anew_is_refused(config):
    network = marked(build(config | {"model": "MACE"}), "cueq_config", layout_str="ir_mul")
    with pytest.raises(pp.InputError, match=r"a MACE converted to cuEquivariance, which mace-torch cannot build anew"):
        pp.attach(network, device="cpu")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("cueq_config", r"cuEquivariance cannot be built anew in torch\.float64.*e3nn model"),
        ("oeq_config", r"OpenEquivariance, which computes on CUDA only; the device is cpu"),
    ],
)
def test_converted_models_are_not_cast_but_refused_where_they_cannot_be_built_anew(model, key, words):
    """A cast does not reach their arithmetic."""
    network = marked(model, key)  # of no layout that could be built
    assert load_model(network)[0] is network
    with pytest.raises(pp.InputError, match=words):
        pp.attach(network, precisions="float32", device="cpu")
    assert not network._forward_hooks
    assert not network._forward_pre_hooks


# without cuEquivariance


WITHOUT = """
    import sys

    sys.modules["cuequivariance"] = sys.modules["cuequivariance_torch"] = None
    import ase.build
    import precision_probe as pp

    with pp.attach("demo", precisions="float64", device="cpu", modes="isolated", blocks="readouts.*") as probe:
        probe.run(ase.build.molecule("H2O"), progress=False)
    assert not hasattr(sys.modules["mace.tools.cg"].O3_e3nn, "clebsch_gordan")
    print(probe.trace().group("propagated", "float64")["energy"].item())
"""


def test_the_demo_is_the_same_without_cuequivariance():
    pytest.importorskip("cuequivariance_torch")
    command = [sys.executable, "-c", textwrap.dedent(WITHOUT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    trace = trace_of("demo", ase.build.molecule("H2O"), precisions="float64", modes="isolated", blocks="readouts.*")
    energy = trace.group("propagated", "float64")["energy"].item()
    np.testing.assert_allclose(float(done.stdout.splitlines()[-1]), energy, rtol=1e-14)


# on a GPU


def refusing(network):
    """A deepcopy that does not copy a converted model."""
    real = copy.deepcopy

    def deepcopy(value, memo=None):
        assert value is not network, "a converted model was copied"
        return real(value, memo)

    return deepcopy


@pytest.mark.cuda
@needs_cuda
def test_fused_convolutions_are_equivalent_on_cuda(wide, monkeypatch):
    pytest.importorskip("cuequivariance_ops_torch")
    network = convert(wide, device="cuda")
    assert network.interactions[0].cueq_config.conv_fusion
    options = {"precisions": "float32,tf32,bfloat16,float16", "device": "cuda"}
    reference = trace_crystal(copy.deepcopy(wide).cuda(), **options)
    monkeypatch.setattr(backends.copy, "deepcopy", refusing(network))
    trace = trace_crystal(network, **options)
    table = pp.compare_traces(reference, trace)
    assert table["equivalent"].all(), table[~table["equivalent"]]
    assert trace.attributes["math_dtypes"] == {
        "float64": "float64",
        "float32": "float32",
        "tf32": "float32",
        "bfloat16": "float32",
        "float16": "float32",
    }
    clone = backends.clone(network, torch.bfloat16, torch.device("cuda"))
    assert math_dtypes(clone) == {torch.float32}


@pytest.mark.cuda
@needs_cuda
def test_openequivariance_is_equivalent_on_cuda(wide, monkeypatch):
    pytest.importorskip("openequivariance")
    from mace.cli.convert_e3nn_oeq import run

    with default_dtype(torch.float64), torch.random.fork_rng(devices=[]):
        network = run(copy.deepcopy(wide).cuda(), device="cuda").eval()
    assert backends.backend(network) == "OpenEquivariance"
    options = {"precisions": "float32,tf32", "device": "cuda"}
    reference = trace_crystal(copy.deepcopy(wide).cuda(), **options)
    monkeypatch.setattr(backends.copy, "deepcopy", refusing(network))
    trace = trace_crystal(network, **options)
    table = pp.compare_traces(reference, trace)
    assert table["equivalent"].all(), table[~table["equivalent"]]
    assert trace.attributes["math_dtypes"] == {"float64": "float64", "float32": "float32", "tf32": "float32"}
    with pytest.raises(pp.InputError, match="float64 and float32 only"):
        pp.attach(network, device="cuda", precisions="float16")


# what cannot be copied


def normalised():
    torch.manual_seed(0)
    with pytest.warns(FutureWarning):  # torch's own: there is a newer one
        return torch.nn.Sequential(torch.nn.utils.weight_norm(torch.nn.Linear(3, 8)), torch.nn.Linear(8, 1))


def refused(network, name):
    with pytest.raises(pp.InputError, match=rf"^{name} is computed from other tensors, and cannot be copied") as caught:
        backends.clone(network, torch.float64, CPU)
    assert all(word in str(caught.value) for word in ("remove_weight_norm", "parametrizations", "detach()"))


def test_weights_that_are_computed_before_each_call_are_refused_by_name():
    network = normalised()
    refused(network, r"0\.weight")  # on an autograd graph
    with torch.no_grad():
        network(torch.ones(1, 3))  # off it torch copies the weight, and nobody would ever compute it anew
    refused(network, r"0\.weight")
    spectral = torch.nn.Sequential(torch.nn.utils.spectral_norm(torch.nn.Linear(3, 8)))
    refused(spectral, r"0\.weight")


def test_tensors_on_a_graph_are_refused_wherever_a_module_keeps_them():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    network[0].seen = {"last": [network[0](torch.ones(1, 2))]}
    refused(network, r"0\.seen")
    network[0].seen = {"last": [torch.ones(1, 2, requires_grad=True)]}  # a leaf
    backends.clone(network, torch.float64, CPU)
    network[0].register_buffer("norm", network[0].weight.norm())
    refused(network, r"0\.norm")


def test_what_the_refusal_says_to_do_works():
    network, x = normalised(), torch.ones(2, 3)
    expected = network(x)
    torch.nn.utils.remove_weight_norm(network[0])
    torch.testing.assert_close(backends.clone(network, torch.float32, CPU)(x), expected, rtol=1e-6, atol=1e-6)
    network = normalised()
    torch.nn.utils.remove_weight_norm(network[0])
    torch.nn.utils.parametrizations.weight_norm(network[0])
    torch.testing.assert_close(backends.clone(network, torch.float32, CPU)(x), expected, rtol=1e-6, atol=1e-6)


def test_no_hook_of_any_kind_is_copied(mine):
    def nothing(*_):
        return None

    mine.register_forward_pre_hook(nothing, with_kwargs=True)
    mine.interactions[0].register_forward_hook(nothing, with_kwargs=True, always_call=True)
    mine.readouts[0].register_full_backward_hook(nothing)
    made = backends.clone(mine, torch.float32, CPU)
    eager = [module for module in made.modules() if not isinstance(module, torch.jit.ScriptModule)]
    assert not any(value for module in eager for name, value in vars(module).items() if name.endswith("_hooks"))
    assert not any(module._forward_hooks_always_called or module._forward_hooks_with_kwargs for module in eager)
    assert len(mine._forward_pre_hooks) == 1
