"""mixed.py: the model that runs a policy, against mace-torch's own and casts of it."""

import copy
import dataclasses
import io
import types
import warnings

import ase.build
import numpy as np
import pytest
import torch
from ase import units
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from hypothesis import given, settings
from hypothesis import strategies as st
from mace.calculators import MACECalculator
from mace.tools import torch_geometric
from runs import convert, rel_l2

from precision_probe.exceptions import InputError
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.blocks import select_blocks
from precision_probe.models.building import build
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import build_graph
from precision_probe.policy import Policy, Rule
from precision_probe.variants.mixed import Assembly, MixedModel, MixedVariant, apply

FLOAT64 = Policy(())
FLOAT32 = Policy.uniform("float32")
HALF_LAYERS = Policy((Rule("interactions.*", "float16"), Rule("products.*", "float16")))
NESTED = Policy((Rule("interactions.0.linear_up", "float32"), Rule("interactions.*", "float16")))
CRYSTAL = ase.Atoms("CO", [(0, 0, 0), (0.1, 0.2, 1.2)], cell=[2.6, 2.9, 3.1], pbc=True)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def graph(model):
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return build_graph(atoms, model)


@pytest.fixture(scope="module")
def applied(model):
    policies = {"float64": FLOAT64, "float32": FLOAT32, "layers": HALF_LAYERS, "nested": NESTED}
    return {name: policy.apply(model) for name, policy in policies.items()}


@pytest.fixture(scope="module")
def assembly(model):
    """From which apply() too makes its models; one for many policies copies the model once for each dtype."""
    return Assembly(model, torch.device("cpu"))


@pytest.fixture(scope="module")
def other(config):
    """The same architecture with other weights."""
    return build(config, seed=4)


@pytest.fixture(scope="module")
def two_heads(config):
    return build(
        config
        | {
            "heads": ["pbe", "r2scan"],
            "atomic_energies": [[-13.6, -1029.5, -2042.0], [-13.0, -1020.0, -2040.0]],
            "atomic_inter_scale": [0.8, 0.9],
            "atomic_inter_shift": [0.1, 0.2],
        },
        seed=3,
    )


def outputs(network, graph, dtype=torch.float64, **options):
    """What a model says of a graph, called as its users call it; TorchScript rounds otherwise in its first calls."""
    with default_dtype(dtype):
        found = [network(graph.cast(dtype), **options) for _ in range(3)][-1]
    return {name: tensor.detach() for name, tensor in found.items() if tensor is not None}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def seen_dtypes(network, names, graph):
    """The dtypes that enter and leave modules, hooked from outside."""
    found = {}

    def dtypes(nested):
        nested = nested.values() if isinstance(nested, dict) else nested
        nested = (nested,) if torch.is_tensor(nested) else nested
        return {x.dtype for x in nested if torch.is_tensor(x) and x.is_floating_point()}

    def hook_of(name):
        def hook(_, args, kwargs, returned):
            found[name] = dtypes(args) | dtypes(kwargs), dtypes(returned)

        return hook

    handles = [network.get_submodule(name).register_forward_hook(hook_of(name), with_kwargs=True) for name in names]
    outputs(network, graph)
    for handle in handles:
        handle.remove()
    return found


# uniform policies


@pytest.mark.parametrize("options", [{}, {"compute_stress": True}, {"compute_virials": True, "training": True}])
def test_float64_is_the_model_bit_for_bit(model, applied, graph, options):
    assert_same(outputs(applied["float64"], graph, **options), outputs(model, graph, **options))


def test_hessians_and_atomic_stresses_are_the_models(model, applied):
    graph = build_graph(CRYSTAL, model)
    options = {"compute_hessian": True, "compute_atomic_stresses": True, "compute_stress": True}
    expected = outputs(model, graph, **options)
    assert_same(outputs(applied["float64"], graph, **options), expected)
    found = outputs(applied["float32"], graph, **options)
    for name in ("hessian", "atomic_stresses", "stress", "edge_forces"):
        assert 0 < rel_l2(expected[name], found[name]) < 1e-4


def test_edge_vectors_are_taken_for_positions_as_lammps_gives_them(model, applied, graph):
    sender, receiver = graph.data["edge_index"]
    given = {name: graph.data[name] for name in ("node_attrs", "edge_index", "batch")}
    given |= {"natoms": (graph.n_atoms, 0), "lammps_class": None}
    expected, found = [], []
    for network, into in 3 * ((model, expected), (applied["float64"], found)):
        vectors = graph.data["positions"][receiver] - graph.data["positions"][sender]
        out = network(given | {"vectors": vectors}, compute_force=False, compute_edge_forces=True, lammps_mliap=True)
        into[:] = [out["energy"], out["edge_forces"]]
    assert all(map(torch.equal, found, expected))
    assert expected[1].abs().max() > 1e-3


def test_float32_is_the_cast_model_to_rounding_with_energies_nearer(model, applied, graph):
    exact, found = outputs(model, graph), outputs(applied["float32"], graph)
    cast = outputs(copy.deepcopy(model).float(), graph, torch.float32)
    for name in ("forces", "node_feats"):
        assert 0 < rel_l2(exact[name], found[name]) < 3 * rel_l2(exact[name], cast[name]) + 1e-6
        assert rel_l2(cast[name], found[name]) < 1e-5
    for name in ("energy", "node_energy"):
        assert 0 < rel_l2(exact[name], found[name]) < rel_l2(exact[name], cast[name]) / 10


def test_energies_are_sums_in_float64_under_any_policy(model, graph):
    mixed = Policy.uniform("bfloat16").apply(model)
    parts = {}
    for block in (mixed.atomic_energies_fn, mixed.scale_shift):
        block.register_forward_hook(lambda block, _, returned: parts.update({block: returned}))
    found = outputs(mixed, graph)
    assert {tensor.dtype for tensor in parts.values()} == {torch.float64}
    expected = sum(part.sum() for part in parts.values())
    torch.testing.assert_close(found["energy"].squeeze(), expected.detach(), rtol=1e-15, atol=0)
    for tensor, own in ((mixed.scale_shift.scale, model.scale_shift.scale), (mixed.r_max, model.r_max)):
        assert torch.equal(tensor, own)


# what each block computes in


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_weights_are_those_of_the_model_in_the_policys_precision(model, assembly, data):
    names = st.sampled_from([block.name for block in select_blocks(model, ["*", "*.*", "*.*.*"])])
    rule = st.builds(Rule, names, st.sampled_from(["float64", "float32", "bfloat16", "float16"]))
    policy = Policy(tuple(data.draw(st.lists(rule, max_size=4))))
    mixed = assembly.model(policy)
    state = mixed.model.state_dict()
    assert list(state) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        owner = name.rpartition(".")[0]
        dtype = getattr(torch, policy.precision_of(owner).dtype) if tensor.is_floating_point() else tensor.dtype
        assert state[name].dtype is dtype
        assert torch.equal(state[name], tensor.to(dtype))
    assert not any(parameter.requires_grad for parameter in mixed.parameters())


def test_blocks_hand_on_their_own_dtype_and_sums_get_float64(applied, graph):
    names = ["radial_embedding", "interactions.1", "products.1", "readouts.0", "readouts.1"]
    inside = ["interactions.1.linear_up", "products.0.linear", "readouts.1.linear_2"]
    half, double = {torch.float16}, {torch.float64}
    found = seen_dtypes(applied["layers"], [f"model.{name}" for name in (*names, *inside)], graph)
    found = {name.removeprefix("model."): dtypes for name, dtypes in found.items()}
    assert found["radial_embedding"] == (double, double)
    assert found["interactions.1"] == (half | double, half)
    assert found["products.1"] == (half | double, half)
    assert found["readouts.0"] == found["readouts.1"] == (half, double)
    assert found["interactions.1.linear_up"] == found["products.0.linear"] == (half, half)
    assert found["readouts.1.linear_2"] == (double, double)


def test_a_uniform_policy_reaches_every_part(applied, graph):
    single = {torch.float32}
    names = ["bessel_fn", "cutoff_fn"]
    inside = [f"model.radial_embedding.{name}" for name in names] + ["model.readouts.1.linear_1"]
    found = seen_dtypes(applied["float32"], inside, graph)
    assert all(dtypes == (single, single) for dtypes in found.values())


def test_a_part_in_another_precision_hands_back_what_surrounds_it(model, applied, graph):
    mixed, name = applied["nested"], "interactions.0.linear_up"
    part = mixed.get_submodule(name)
    assert part.weight.dtype is torch.float32
    assert mixed.interactions[0].linear.weight.dtype is torch.float16
    assert mixed.interactions[1].linear_up.weight.dtype is torch.float16
    assert mixed.readouts[0].linear.weight.dtype is torch.float64
    assert seen_dtypes(mixed, [f"model.{name}"], graph)[f"model.{name}"] == ({torch.float16}, {torch.float16})
    x = torch.randn(5, part.irreps_in.dim, dtype=torch.float16)
    own = copy.deepcopy(model.get_submodule(name)).float()
    assert torch.equal(part(x), own(x.float()).half())


def test_rules_before_others_win(model, graph):
    turned = Policy((Rule("interactions.0", "float64"), Rule("interactions.*", "float16"))).apply(model)
    dtypes = [{tensor.dtype for tensor in block.parameters()} for block in turned.interactions]
    assert dtypes == [{torch.float64}, {torch.float16}]
    assert 0 < rel_l2(outputs(model, graph)["forces"], outputs(turned, graph)["forces"]) < 1e-2


def test_errors_lie_between_those_of_uniform_policies(model, applied, graph):
    exact = outputs(model, graph)["forces"]
    layers = rel_l2(exact, outputs(applied["layers"], graph)["forces"])
    everything = rel_l2(exact, outputs(Policy.uniform("float16").apply(model), graph)["forces"])
    assert 1e-5 < layers < everything < 0.1


# energy and forces belong together


def test_forces_are_the_slope_of_the_energy(model, graph):
    policy = Policy((Rule("interactions.*", "float32"), Rule("products.*", "float32")))
    mixed = policy.apply(model)
    forces = outputs(mixed, graph)["forces"]
    step, found = 1e-3, torch.zeros_like(forces)
    for atom, xyz in np.ndindex(*forces.shape):
        energies = []
        for sign in (1, -1):
            data = graph.cast(torch.float64)
            data["positions"] = data["positions"].clone()
            data["positions"][atom, xyz] += sign * step
            energies.append(mixed(data, compute_force=False)["interaction_energy"].item())
        found[atom, xyz] = (energies[1] - energies[0]) / (2 * step)
    noise = 1e-6 * float(outputs(model, graph)["interaction_energy"].abs()) / step  # float32 rounding of the energy
    torch.testing.assert_close(found, forces, rtol=0, atol=noise + 1e-3 * float(forces.abs().max()))


def test_forces_can_be_differentiated(model, applied, graph):
    def gradient(network):
        for _ in range(3):
            data = graph.cast(torch.float64)
            forces = network(data, training=True)["forces"]
            found = torch.autograd.grad((forces**2).sum(), data["positions"])[0]
        return found

    expected = gradient(model)
    assert torch.equal(gradient(applied["float64"]), expected)
    assert 0 < rel_l2(expected, gradient(applied["float32"])) < 1e-4


@pytest.mark.parametrize("name", ["float32", "layers", "nested"])
def test_a_batch_is_its_structures_one_by_one(model, applied, name, crystal, water):
    graphs = [build_graph(atoms, model) for atoms in (crystal, CRYSTAL, water)]
    entries = [torch_geometric.Data(**graph.cast(torch.float64)) for graph in graphs]
    for entry, graph in zip(entries, graphs, strict=True):
        entry.num_nodes = graph.n_atoms
        del entry["batch"], entry["ptr"]
    batch = torch_geometric.Batch.from_data_list(entries).to_dict()
    found = applied[name](batch, compute_stress=True)
    ones = [outputs(applied[name], graph, compute_stress=True) for graph in graphs]
    tolerance = 1e-6 if name == "float32" else 2e-3
    for key in ("energy", "forces", "stress", "node_energy"):
        expected = torch.cat([one[key] for one in ones])
        torch.testing.assert_close(found[key].detach(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def test_stress_is_the_models_to_rounding(model, applied, crystal):
    graph = build_graph(crystal, model)
    expected = outputs(model, graph, compute_stress=True)["stress"]
    assert 0 < rel_l2(expected, outputs(applied["float32"], graph, compute_stress=True)["stress"]) < 1e-5
    assert 0 < rel_l2(expected, outputs(applied["layers"], graph, compute_stress=True)["stress"]) < 5e-2


# other models


@pytest.mark.parametrize("compute", ["float32", "bfloat16", "float16"])
def test_models_of_several_heads(two_heads, water, compute):
    mixed = Policy.uniform(compute).apply(two_heads)
    assert mixed.heads == ["pbe", "r2scan"]
    for head in mixed.heads:
        graph = build_graph(water, two_heads, head)
        expected, found = outputs(two_heads, graph), outputs(mixed, graph)
        assert 0 < rel_l2(expected["interaction_energy"], found["interaction_energy"]) < 0.1
        assert 0 < rel_l2(expected["forces"], found["forces"]) < 0.1
        atoms = water.copy()
        atoms.calc = Policy.uniform(compute).calculator(two_heads, head=head)
        assert atoms.get_potential_energy() == pytest.approx(found["energy"].item(), abs=1e-3)


@pytest.mark.parametrize("stored", [torch.float64, torch.float32])
def test_a_model_takes_and_gives_float64_whatever_it_is_stored_in(mine, graph, stored):
    single = mine.to(stored)
    wide = copy.deepcopy(single).double()
    mixed = FLOAT64.apply(single)
    assert next(mixed.parameters()).dtype is torch.float64
    moved = dataclasses.replace(graph, data={**graph.data, "positions": graph.data["positions"] + 500.0})
    found, expected = (outputs(network, moved, compute_stress=True) for network in (mixed, wide))
    assert_same(found, expected)
    assert {tensor.dtype for tensor in found.values()} == {torch.float64}
    half = outputs(HALF_LAYERS.apply(single), graph)
    assert {tensor.dtype for tensor in half.values()} == {torch.float64}
    assert_same(half, outputs(HALF_LAYERS.apply(wide), graph))


@pytest.mark.parametrize("stored", [torch.float64, torch.float32])
def test_a_float32_interface_rounds_what_goes_in_and_out(mine, graph, stored):
    mixed = HALF_LAYERS.apply(mine.to(stored), interface="float32")
    assert next(mixed.parameters()).dtype is torch.float32
    found = outputs(mixed, graph, torch.float32, compute_stress=True)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    narrow = dataclasses.replace(graph, data=graph.cast(torch.float32))
    expected = outputs(HALF_LAYERS.apply(mine), narrow, compute_stress=True)
    assert_same(found, {name: tensor.float() for name, tensor in expected.items()})


def test_a_variant_rounds_structures_as_callers_of_its_interface_do(model, graph):
    far = dataclasses.replace(graph, data={**graph.data, "positions": graph.data["positions"] + 500.0})
    exact = outputs(model, graph)["forces"]
    errors = {}
    for interface in ("float64", "float32"):
        variant = MixedVariant(FLOAT64.apply(model, interface=interface), torch.device("cpu"))
        errors[interface] = float((variant.predict(far)["forces"] - exact).abs().max())
    assert errors["float64"] < 1e-10  # 500 Å in float64: 2⁻⁴⁴ Å
    assert errors["float32"] > 1e-6  # in float32: 2⁻¹⁵ Å
    assert set(far.data["positions"].unique().tolist()) != set(far.data["positions"].float().double().unique().tolist())


@pytest.mark.parametrize("interface", ["float16", "double", "", torch.float64, None])
def test_other_interfaces_are_refused(model, interface):
    with pytest.raises(InputError, match=r"takes and gives float64 or float32; got the interface"):
        FLOAT64.apply(model, interface=interface)


def test_another_interface_than_that_which_was_tested_warns(model):
    policy = Policy((), evidence={"interface": "float64"})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        apply(policy, model)
        apply(FLOAT64, model, interface="float32")  # of which nothing is known
    with pytest.warns(UserWarning, match="tested with a float64 interface and is applied with a float32 one"):
        policy.apply(model, interface="float32")


def test_gradients_reach_the_positions_that_a_user_gave(mine, graph):
    mixed = FLOAT32.apply(mine, interface="float32")
    data = graph.cast(torch.float32)
    before = {name: tensor.clone() for name, tensor in data.items()}
    out = mixed(data, training=True, compute_stress=True)
    (gradient,) = torch.autograd.grad(out["energy"].sum(), data["positions"])
    torch.testing.assert_close(-gradient, out["forces"].detach())
    assert set(data) == set(before)
    assert all(torch.equal(data[name], tensor) for name, tensor in before.items())


def test_a_module_with_a_forward_of_its_own_keeps_it(model, mine, graph):
    conv = mine.interactions[0].conv_tp

    def twice(self, *args):  # as mace-torch changes fused convolutions
        return 2 * type(self).forward(self, *args)

    conv.forward = types.MethodType(twice, conv)
    expected = outputs(mine, graph)["forces"]
    assert rel_l2(expected, outputs(model, graph)["forces"]) > 0.01
    for policy in (FLOAT64, FLOAT32, Policy((Rule("interactions.0.conv_tp", "float32"),))):
        mixed = policy.apply(mine)
        for each in (mixed, copy.deepcopy(mixed)):
            assert rel_l2(expected, outputs(each, graph)["forces"]) < 1e-5


@pytest.mark.cuda
@needs_cuda
def test_fused_convolutions_of_cuequivariance(model, graph):
    cueq = convert(model, device="cuda")
    assert "forward" in cueq.interactions[0].conv_tp.__dict__  # fused
    expected = outputs(model, graph)["forces"]
    for rules in ((), (Rule("interactions.0.conv_tp", "float32"), Rule("interactions.*", "float16"))):
        mixed = Policy(rules).apply(cueq)
        buffer = io.BytesIO()
        torch.save(mixed, buffer)
        buffer.seek(0)
        for each in (mixed, copy.deepcopy(mixed), torch.load(buffer, weights_only=False)):
            found = outputs(each, graph.to("cuda"))["forces"].cpu()
            assert rel_l2(expected, found) < (5e-2 if rules else 1e-9)


def test_a_model_converted_to_cuequivariance(model, converted):
    cuet = pytest.importorskip("cuequivariance_torch")
    graph = build_graph(CRYSTAL, model)
    expected = outputs(converted, graph)
    assert_same(outputs(FLOAT64.apply(converted), graph), expected)
    mixed = Policy((Rule("interactions.0.conv_tp", "float32"), Rule("interactions.*", "float16"))).apply(converted)
    found = outputs(mixed, graph)
    assert 0 < rel_l2(expected["forces"], found["forces"]) < 5e-2
    buffer = io.BytesIO()
    torch.save(mixed, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)  # a deepcopy is made of the same parts
    assert_same(outputs(loaded, graph), found)
    assert loaded.policy == mixed.policy
    assert loaded.interface.dtype is torch.float64
    dtypes = [{name: tensor.dtype for name, tensor in each.state_dict().items()} for each in (loaded, mixed)]
    assert dtypes[0] == dtypes[1]

    def math_dtypes(name):
        parts = mixed.get_submodule(name).modules()
        return {m._math_dtype_orig for m in parts if isinstance(m, cuet.SegmentedPolynomial)} - {None}

    assert math_dtypes("interactions.0") == {torch.float32}
    assert math_dtypes("interactions.1") == {torch.float16}
    assert math_dtypes("products.0") == {torch.float64}


# the module


def test_attributes_are_the_models(model, applied):
    mixed = applied["layers"]
    for name in ("r_max", "atomic_numbers", "num_interactions"):
        assert torch.equal(getattr(mixed, name), getattr(model, name))
    assert mixed.heads == model.heads
    assert str(mixed.products[0].linear.irreps_out) == str(model.products[0].linear.irreps_out)
    assert mixed.policy is HALF_LAYERS
    assert not mixed.training
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = mixed.absent


@pytest.mark.parametrize("name", ["float32", "layers", "nested"])
def test_copies_and_files_compute_the_same(applied, graph, tmp_path, name):
    mixed = applied[name]
    expected = outputs(mixed, graph)
    buffer = io.BytesIO()
    torch.save(mixed, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(mixed), torch.load(buffer, weights_only=False)):
        assert isinstance(other, MixedModel)
        assert other.policy == mixed.policy
        assert_same(outputs(other, graph), expected)
        with torch.no_grad():  # which must not share anything with the first
            for parameter in other.model.parameters():
                parameter.zero_()
    assert_same(outputs(mixed, graph), expected)


def test_state_is_taken_over(other, applied, graph):
    mixed = NESTED.apply(other)
    expected = outputs(applied["nested"], graph)
    assert not torch.equal(outputs(mixed, graph)["forces"], expected["forces"])
    mixed.load_state_dict(applied["nested"].state_dict())
    assert_same(outputs(mixed, graph), expected)


def test_the_model_cannot_be_cast(model, applied, graph):
    mixed, dtypes = applied["layers"], [tensor.dtype for tensor in applied["layers"].parameters()]
    for cast in (mixed.float, mixed.half, mixed.bfloat16, lambda: mixed.to(torch.float32)):
        with pytest.raises(InputError, match=r"takes and gives torch.float64, and cannot be cast to torch"):
            cast()
    expected = outputs(mixed, graph)
    assert mixed.double() is mixed
    assert mixed.to("cpu", torch.float64).cpu() is mixed
    assert [tensor.dtype for tensor in mixed.parameters()] == dtypes
    assert_same(outputs(mixed, graph), expected)


def test_a_float32_interface_loses_nothing_of_what_is_float64(mine):
    mixed = HALF_LAYERS.apply(mine, interface="float32")
    for tensor in mixed.model.state_dict().values():
        if tensor.dtype is torch.float64:
            tensor *= 1 + 2.0**-40
    before = weights_sha256(mixed)
    assert weights_sha256(mixed.float().to("cpu")) == before
    with pytest.raises(InputError, match=r"cannot be cast to torch\.float64"):
        mixed.double()


def test_the_model_moves_with_every_dtype_kept(applied):
    mixed = copy.deepcopy(applied["nested"])
    dtypes = {name: tensor.dtype for name, tensor in mixed.state_dict().items()}
    moved = mixed.to("meta")
    assert {name: tensor.dtype for name, tensor in moved.state_dict().items()} == dtypes
    assert {tensor.device.type for tensor in moved.state_dict().values()} == {"meta"}


def test_the_model_cannot_be_trained(applied):
    with pytest.raises(InputError, match=r"cannot be trained: its weights are frozen"):
        applied["layers"].train()
    assert not applied["layers"].eval().training


def test_the_users_model_is_left_as_it_is(mine, graph):
    mine.train()
    fired = []
    mine.interactions[0].register_forward_hook(lambda *_: fired.append(1))
    before = weights_sha256(mine), [p.requires_grad for p in mine.parameters()], mine.training, str(mine)
    outputs(NESTED.apply(mine), graph, compute_stress=True)
    assert (weights_sha256(mine), [p.requires_grad for p in mine.parameters()], mine.training, str(mine)) == before
    assert not fired
    assert not any("forward" in vars(module) for module in mine.modules() if not hasattr(module, "_c"))


@pytest.mark.parametrize("setting", ["none", "ieee", "tf32"])
def test_matrix_products_are_exact_whatever_the_user_allows(applied, graph, setting):
    backend, seen = torch.backends.cuda.matmul, []
    before = backend.fp32_precision
    part = applied["float32"].interactions[0].linear_up
    handle = part.register_forward_hook(lambda *_: seen.append((backend.fp32_precision, torch.get_default_dtype())))
    try:
        backend.fp32_precision = setting
        left = backend.fp32_precision
        outputs(applied["float32"], graph)
        assert backend.fp32_precision == left
    finally:
        handle.remove()
        backend.fp32_precision = "none"
    assert backend.fp32_precision == before
    assert set(seen) == {("ieee", torch.float32)}


# ASE


@pytest.fixture
def mixed_file(model, tmp_path):
    path = tmp_path / "mixed.model"
    torch.save(Policy((Rule("interactions.*", "float32"), Rule("products.*", "float32"))).apply(model), path)
    return path


def test_a_saved_model_relaxes_a_structure_and_runs_dynamics(mixed_file, water):
    calculator = MACECalculator(model_paths=str(mixed_file), device="cpu", default_dtype="float64")
    atoms = water.copy()
    atoms.calc = calculator
    before = atoms.get_potential_energy()
    BFGS(atoms, logfile=None, maxstep=0.02).run(fmax=1e-3, steps=4)
    assert atoms.get_potential_energy() < before
    atoms.set_velocities(np.random.default_rng(0).normal(scale=0.02, size=(3, 3)))
    dynamics, totals = VelocityVerlet(atoms, 0.2 * units.fs), []
    dynamics.attach(lambda: totals.append(atoms.get_total_energy()))
    dynamics.run(20)
    assert np.ptp(totals) < 0.05 * atoms.get_kinetic_energy() + 1e-4
    assert calculator.get_descriptors(atoms).shape[0] == 3
    assert calculator.get_hessian(atoms).shape == (9, 3, 3)


@pytest.mark.parametrize("stored", [torch.float64, torch.float32])
@pytest.mark.parametrize("interface", ["float64", "float32"])
def test_calculators_give_what_the_model_gives(mine, crystal, stored, interface, tmp_path):
    path = tmp_path / "mine.model"
    torch.save(mine.to(stored), path)
    atoms = crystal.copy()
    atoms.calc = HALF_LAYERS.calculator(path, interface=interface)
    dtype = getattr(torch, interface)
    mixed = HALF_LAYERS.apply(mine, interface=interface)
    expected = outputs(mixed, build_graph(crystal, mine), dtype, compute_stress=True)
    tolerance = 1e-12 if interface == "float64" else 2e-3
    np.testing.assert_allclose(atoms.get_potential_energy(), expected["energy"].item(), rtol=tolerance)
    for found, name in ((atoms.get_forces(), "forces"), (atoms.get_stress(voigt=False)[None], "stress")):
        np.testing.assert_allclose(found, expected[name], atol=tolerance * np.abs(found).max())
    energies = atoms.calc.results["energies"]
    np.testing.assert_allclose(energies.sum(), atoms.get_potential_energy(), rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"default_dtype": "float64"}])
def test_the_file_of_a_float32_checkpoint_computes_with_float64_geometry(mine, water, tmp_path, options):
    """Far from the origin, where float32 positions are 8e-6 Å apart."""
    torch.save(FLOAT64.apply(mine.float()), tmp_path / "mixed.model")
    exact = MACECalculator(models=[copy.deepcopy(mine).double()], default_dtype="float64")
    far = water.copy()
    far.positions += 100
    found = MACECalculator(model_paths=str(tmp_path / "mixed.model"), device="cpu", **options).get_property(
        "forces", far
    )
    np.testing.assert_allclose(found, exact.get_property("forces", far), rtol=0, atol=1e-12)
    single = MACECalculator(models=[copy.deepcopy(mine).float()], default_dtype="float32")
    assert np.abs(single.get_property("forces", far) - found).max() > 1e-7


def test_a_calculator_in_another_dtype_is_refused(model):
    with pytest.raises(InputError, match=r"cannot be cast to torch\.float32.*with the interface that is needed"):
        FLOAT32.calculator(model, default_dtype="float32")


# models of older versions of mace-torch


@pytest.mark.parametrize("absent", [(), ("heads",), ("heads", "num_interactions")])
def test_the_file_of_an_older_checkpoint_loads(model, mine, water, tmp_path, absent):
    """Of 2022: the cutoff a number, the elements a list; heads and the number of layers came later."""
    for name, value in (("r_max", float(mine.r_max)), ("atomic_numbers", mine.atomic_numbers.tolist())):
        delattr(mine, name)
        setattr(mine, name, value)
    for name in absent:
        delattr(mine, name)
    torch.save(FLOAT32.apply(mine), tmp_path / "mixed.model")
    calculator = MACECalculator(model_paths=str(tmp_path / "mixed.model"), device="cpu")
    assert calculator.r_max == float(model.r_max)
    assert calculator.z_table.zs == model.atomic_numbers.tolist()
    exact = MACECalculator(models=[copy.deepcopy(model)], default_dtype="float64")
    error = np.abs(calculator.get_property("forces", water) - exact.get_property("forces", water)).max()
    assert 0 < error < 1e-5
    assert calculator.get_descriptors(water).shape == exact.get_descriptors(water).shape
    assert isinstance(mine.r_max, float)  # the user's model is left as it is


# conversions by others


@pytest.fixture
def e3nn_defaults():
    """mace-torch switches e3nn's code generation off while it compiles, and not on again if that fails."""
    import e3nn

    before = e3nn.get_optimization_defaults()
    yield
    e3nn.set_optimization_defaults(**before)


def to_cueq(mixed):
    from mace.cli.convert_e3nn_cueq import run

    return run(mixed)


def for_lammps(mixed):
    from e3nn.util import jit
    from mace.calculators import LAMMPS_MACE

    return jit.compile(LAMMPS_MACE(mixed))


CONVERSIONS = [
    lambda mixed: MACECalculator(models=[mixed], enable_cueq=True),
    lambda mixed: MACECalculator(models=[mixed], compile_mode="default"),
    to_cueq,
    lambda mixed: to_cueq(copy.deepcopy(mixed)),  # as ML-IAP exports do
    for_lammps,
    torch.jit.script,
]


@pytest.mark.usefixtures("e3nn_defaults")
@pytest.mark.parametrize("convert", CONVERSIONS)
def test_conversions_are_refused_in_one_sentence_and_leave_the_model_alone(model, graph, convert):
    pytest.importorskip("cuequivariance")
    mixed = HALF_LAYERS.apply(model)
    expected = outputs(mixed, graph)
    with default_dtype(torch.float64), pytest.raises(InputError) as caught:
        convert(mixed)
    text = str(caught.value)
    assert text.startswith("A model in mixed precision is not converted: for cuEquivariance or OpenEquivariance")
    assert "apply the policy to that" in text
    assert "call it eagerly" in text
    assert text.count(". ") == 0
    assert_same(outputs(mixed, graph), expected)


def test_the_class_keeps_its_name(applied):
    mixed = applied["layers"]
    name = type(mixed).__name__
    assert (name, f"{name}", repr(mixed)[:10]) == ("MixedModel", "MixedModel", "MixedModel")
    assert name in {"MixedModel"}
    assert name not in ("AtomicDipolesMACE", "EnergyDipolesMACE")
    assert name != "MACELES"


# refusals


@pytest.mark.parametrize(
    ("glob", "message"),
    [
        ("interaction.*", r"No block matches 'interaction\.\*'.*Did you mean"),
        ("interactions", r"interactions is a list of blocks; name its members with interactions\.\*"),
        ("readouts.0.linear._compiled_main", r"nearest block that can be is readouts\.0\.linear"),
        ("products.*.symmetric_contractions.contractions.*.graph_opt_main", r"is code generated for the block"),
    ],
)
def test_rules_that_name_no_block_are_refused(model, glob, message):
    with pytest.raises(InputError, match=message):
        Policy((Rule(glob, "float32"),)).apply(model)


def test_what_is_no_model_or_mixed_already_is_refused(applied, tmp_path):
    with pytest.raises(InputError, match="not a MACE model"):
        FLOAT32.apply(torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match="does not exist"):
        FLOAT32.calculator(tmp_path / "absent.model")
    with pytest.raises(InputError, match="in mixed precision already"):
        FLOAT32.apply(applied["float32"])


def test_tf32_needs_a_gpu(model):
    with pytest.raises(InputError, match=r"tf32 is arithmetic of NVIDIA tensor cores"):
        Policy.uniform("tf32").apply(model, "cpu")


def test_a_policy_made_for_other_weights_warns(model, other):
    policy = Policy((), model={"class": type(model).__name__, "sha256": weights_sha256(model)})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        apply(policy, model)
    with pytest.warns(UserWarning, match="made for a model with other weights"):
        policy.apply(other)


def test_a_model_by_name_is_taken(demo, graph):
    mixed = FLOAT32.apply("demo")
    assert 0 < rel_l2(outputs(demo, graph)["forces"], outputs(mixed, graph)["forces"]) < 1e-5


# on a GPU


@pytest.mark.cuda
@needs_cuda
def test_tf32_blocks_and_moves_on_cuda(model, graph):
    exact = outputs(model, graph)["forces"]
    moved = graph.to("cuda")
    errors = {}
    for name in ("float32", "tf32", "float16"):
        mixed = Policy((Rule("interactions.*", name), Rule("products.*", name))).apply(model, "cuda")
        errors[name] = rel_l2(exact, outputs(mixed, moved)["forces"].cpu())
        dtypes = [tensor.dtype for tensor in mixed.parameters()]
        assert [tensor.dtype for tensor in mixed.cpu().parameters()] == dtypes
        assert rel_l2(exact, outputs(mixed, graph)["forces"]) < 0.05
    assert 0 < errors["float32"] < errors["tf32"] / 10
    assert errors["float16"] < 0.05
