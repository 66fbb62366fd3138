"""live_calls.py in long runs: molecular dynamics, relaxations and batched simulations go on as if it were not there."""

import copy
import random
import warnings

import ase
import ase.units
import numpy as np
import pytest
import torch
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.optimize import BFGS, FIRE
from mace.calculators import MACECalculator
from runs import data_of

import precision_probe as pp
from precision_probe.models.building import build
from precision_probe.models.graphs import graph_of_call
from precision_probe.structures import read_structures

CHEAP = {"precisions": "float32", "device": "cpu", "blocks": "readouts.*", "modes": "isolated"}
WHOLE = {"precisions": "float32", "device": "cpu", "blocks": "readouts.*"}

pytestmark = [
    pytest.mark.filterwarnings("ignore:The implementation of `fixcm=True`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:use FrechetCellFilter for better convergence:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def other(config):
    """Another one; tests must not change it."""
    return build(config, seed=6)


def demo_structures(*names):
    """Structures of the demo, by name."""
    by_name = {atoms.info["name"]: atoms for atoms in read_structures("demo")}
    return [by_name[name] for name in names]


def calculator(*models):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MACECalculator(models=list(models), device="cpu", default_dtype="float64")


def names_of(probe):
    return probe.trace().structures["name"].values.tolist()


# Molecular dynamics


def langevin(atoms, steps, seed=0):
    """A seeded run; the positions at each call of the calculator, the last ones and the last momenta."""
    dynamics = Langevin(atoms, 0.5 * ase.units.fs, temperature_K=300, friction=0.02, rng=np.random.default_rng(seed))
    visited = []
    dynamics.attach(lambda: visited.append(atoms.positions.copy()))
    dynamics.run(steps)
    return visited, atoms.positions.copy(), atoms.get_momenta()


def test_a_hundred_steps_of_molecular_dynamics(demo):
    model = copy.deepcopy(demo)
    (atoms,) = demo_structures("ethanol")
    bare, watched = atoms.copy(), atoms.copy()
    bare.calc = calculator(model)
    visited, *end = langevin(bare, 100)
    watched.calc = calculator(model)
    with (
        pp.attach(watched.calc, **CHEAP, every=10) as probe,
        pp.attach(watched.calc, **CHEAP, every=10, limit=5) as limited,
    ):
        _, *watched_end = langevin(watched, 100)
    for ours, theirs in zip(watched_end, end, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(visited) == 101  # one call for each, the first before the first step
    assert names_of(probe) == [f"call {number}" for number in range(10, 101, 10)]
    assert names_of(limited) == [f"call {number}" for number in (10, 20, 30, 40, 50)]
    expected = np.concatenate([visited[number - 1] for number in range(10, 101, 10)])
    np.testing.assert_array_equal(probe.trace().structures["positions"], expected)
    assert probe.trace().attributes["complete"] is True
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("seed", [1, 2])
def test_observed_positions_are_those_of_the_trajectory(mine, water, seed):
    water.calc = calculator(mine)
    with pp.attach(water.calc, **CHEAP, every=3) as probe:
        visited, *_ = langevin(water, 9, seed)
    found = probe.trace().structures["positions"].values.reshape(-1, 3, 3)
    np.testing.assert_array_equal(found, [visited[number - 1] for number in (3, 6, 9)])


# Relaxations


def relax(optimizer, atoms, target, steps=6):
    """Positions, cell and energy at each step of a relaxation."""
    visited = []
    relaxation = optimizer(target, logfile=None)
    relaxation.attach(
        lambda: visited.append((atoms.positions.copy(), atoms.cell.array.copy(), atoms.get_potential_energy()))
    )
    relaxation.run(fmax=1e-6, steps=steps)
    return [np.array(values) for values in zip(*visited, strict=True)]


@pytest.mark.parametrize("optimizer", [BFGS, FIRE])
@pytest.mark.parametrize("with_cell", [False, True])
def test_relaxations_of_a_crystal(mine, crystal, optimizer, with_cell):
    bare, watched = crystal.copy(), crystal.copy()
    bare.calc = calculator(mine)
    expected = relax(optimizer, bare, FrechetCellFilter(bare) if with_cell else bare)
    watched.calc = calculator(mine)
    with pp.attach(watched.calc, **WHOLE) as probe:
        found = relax(optimizer, watched, FrechetCellFilter(watched) if with_cell else watched)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    positions, cells, energies = expected
    assert names_of(probe) == [f"call {number}" for number in range(1, len(energies) + 1)]
    structures, predicted = probe.trace().structures, probe.trace().group("propagated", "float64")
    np.testing.assert_array_equal(structures["positions"].values.reshape(positions.shape), positions)
    np.testing.assert_array_equal(structures["cell"], cells)
    np.testing.assert_allclose(predicted["energy"], energies, rtol=1e-12)
    assert structures["pbc"].values.all()


def test_observed_forces_and_stress_are_the_calculator_s(mine, crystal):
    crystal.calc = calculator(mine)
    with pp.attach(crystal.calc, **WHOLE) as probe:
        forces, stress = crystal.get_forces(), crystal.get_stress(voigt=False)
    predicted = probe.trace().group("propagated", "float64")
    np.testing.assert_allclose(predicted["forces"], forces, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(predicted["stress"][0], stress, rtol=1e-10, atol=1e-12)


# Batched simulations


def batched_nve(torch_sim, model, structures, steps, **attached):
    """Positions at each call of a batched run of torch-sim with seeded momenta, and the probe that watched it."""
    from torch_sim.models.mace import MaceModel

    wrapped = MaceModel(model, device=torch.device("cpu"), dtype=torch.float64, compute_stress=False)
    state = torch_sim.initialize_state(structures, torch.device("cpu"), torch.float64)
    start, step = torch_sim.nve(wrapped, dt=torch.tensor(5e-4), kT=torch.tensor(0.02), seed=7)
    probe = pp.attach(wrapped.model, **CHEAP, **attached) if attached else None
    state = start(state)
    visited = [state.positions.detach().numpy().copy()]
    for _ in range(steps):
        state = step(state)
        visited.append(state.positions.detach().numpy().copy())
    if probe is not None:
        probe.detach()
    return visited, probe


def test_batched_simulation_of_two_molecules(demo):
    torch_sim = pytest.importorskip("torch_sim")
    structures = demo_structures("ethanol", "water")
    visited, _ = batched_nve(torch_sim, copy.deepcopy(demo), structures, 6)
    watched, probe = batched_nve(torch_sim, copy.deepcopy(demo), structures, 6, every=2)
    np.testing.assert_array_equal(watched, visited)
    assert probe.trace().attributes["failures"] == []
    assert names_of(probe) == [f"call {number}[{index}]" for number in (2, 4, 6) for index in (0, 1)]
    found = probe.trace().structures
    assert found["n_atoms"].values.tolist() == [9, 3] * 3
    np.testing.assert_array_equal(found["positions"], np.concatenate([visited[call - 1] for call in (2, 4, 6)]))
    energies = probe.trace().group("propagated", "float64")["energy"].values.reshape(3, 2)
    assert (energies[:, 0] < energies[:, 1]).all()  # ethanol's below water's


def test_batched_simulation_of_two_crystals(mine, crystal):
    torch_sim = pytest.importorskip("torch_sim")
    structures = [crystal, crystal.copy()]
    structures[1].rattle(0.05, seed=3)
    visited, _ = batched_nve(torch_sim, copy.deepcopy(mine), structures, 2)
    watched, probe = batched_nve(torch_sim, copy.deepcopy(mine), structures, 2, every=3)
    np.testing.assert_array_equal(watched, visited)
    assert names_of(probe) == ["call 3[0]", "call 3[1]"]
    assert probe.trace().structures["pbc"].values.all()


def periodic_batch(model):
    """Two water molecules, each in a periodic cell so large that no edge leaves it."""
    large = ase.Atoms("OHH", [(5.0, 5.0, 5.1), (5.0, 5.8, 4.5), (5.0, 4.2, 4.5)], cell=[10] * 3, pbc=True)
    one = data_of(large, model)
    both = {key: torch.cat([one[key]] * 2) for key in ("positions", "node_attrs", "shifts", "unit_shifts", "cell")}
    both["edge_index"] = torch.cat([one["edge_index"], one["edge_index"] + 3], dim=1)
    return both | {"ptr": torch.tensor([0, 3, 6]), "batch": torch.tensor([0, 0, 0, 1, 1, 1])}


@pytest.mark.parametrize(
    "pbc",
    [
        torch.ones(2, 3, dtype=torch.bool),
        torch.ones(3, dtype=torch.bool),
        True,
    ],
    ids=["rows", "one row for all", "one value for all"],
)
def test_periodicity_of_a_batch_in_each_form_that_simulation_packages_give_it(model, pbc):
    graph = graph_of_call(periodic_batch(model) | {"pbc": pbc}, model, "call 1")
    assert graph.pbc.tolist() == [[True] * 3] * 2


# What a call must leave as it was


def host_state(model):
    """Everything of the process and of the model that an observation could change."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002  (the one that users may rely on)
        "random": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "matmul": [backend.fp32_precision for backend in backends],
        "precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "weights": [(name, id(tensor), tensor._version, tensor.tolist()) for name, tensor in tensors],
        "requires_grad": [(name, tensor.requires_grad, tensor.is_leaf) for name, tensor in tensors],
        "grads": [None if tensor.grad is None else tensor.grad.tolist() for tensor in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "warnings": list(warnings.filters),
    }


@pytest.mark.parametrize("is_training", [False, True])
def test_state_of_the_host_is_untouched(mine, water, is_training):
    mine.train(is_training)
    mine.readouts[0].requires_grad_(False)
    for parameter in mine.interactions.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    data = data_of(water, mine)
    with pp.attach(mine, **WHOLE | {"precisions": "float32,float16"}) as probe:
        out = mine(data, training=is_training)
        before = host_state(mine)
        for _ in range(3):
            out = mine(data, training=is_training)
        if is_training:
            torch.autograd.grad(out["forces"].square().sum(), [mine.interactions[0].linear_up.weight])
    assert host_state(mine) == before
    assert probe.n_structures == 4
    assert probe.trace().attributes["failures"] == []


def test_no_gradients_are_switched_on_for_the_caller(mine, water):
    data = data_of(water, mine)
    with pp.attach(mine, **WHOLE) as probe, torch.no_grad():
        out = mine(data, compute_force=False)
        assert not torch.is_grad_enabled()
    assert not out["energy"].requires_grad
    assert np.isfinite(probe.trace().group("propagated", "float64")["forces"]).all()


# Several probes


def test_a_committee_watched_by_nested_probes_each_with_its_file(mine, other, water, tmp_path):
    other = copy.deepcopy(other)  # a calculator sets requires_grad of its models
    bare = water.copy()
    bare.calc = calculator(mine, other)
    visited, *end = langevin(bare, 8)
    water.calc = calculator(mine, other)
    first, second = water.calc.models
    paths = [tmp_path / f"{name}.h5" for name in ("outer", "inner", "other")]
    with (
        pp.attach(first, **CHEAP, every=2, output=paths[0]),
        pp.attach(second, **CHEAP, every=4, output=paths[2]),
    ):
        with pp.attach(first, **WHOLE, every=3, limit=2, output=paths[1]):
            _, *found = langevin(water, 8)
        assert paths[1].exists()
        assert not paths[0].exists()
    for ours, theirs in zip(found, end, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for path, model, calls in zip(paths, (mine, mine, other), ((2, 4, 6, 8), (3, 6), (4, 8)), strict=True):
        with pp.open_trace(path) as trace:
            assert trace.structures["name"].values.tolist() == [f"call {number}" for number in calls]
            expected = np.concatenate([visited[number - 1] for number in calls])
            np.testing.assert_array_equal(trace.structures["positions"], expected)
            energies = [model(data_of(ase.Atoms("OHH", visited[n - 1]), model))["energy"].item() for n in calls]
            np.testing.assert_allclose(trace.group("propagated", "float64")["energy"], energies, rtol=1e-12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inner.h5", "other.h5", "outer.h5"]
