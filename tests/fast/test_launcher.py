"""launcher.py: what is launched is what the model computes, whatever moves, comes and goes."""

import copy
import warnings

import ase.build
import numpy as np
import pytest
import torch

from precision_probe import Policy, Rule
from precision_probe.exceptions import InputError
from precision_probe.fast import launcher as module
from precision_probe.fast.capture import NotCapturedError
from precision_probe.fast.inputs import Inputs, Shape
from precision_probe.fast.launcher import Launcher
from precision_probe.fast.neighbors import pairs_within
from precision_probe.models.building import build
from precision_probe.models.graphs import build_graph

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(params=["called", "filled"])
def launch(request):
    """Makes launchers, in both ways."""
    return Launcher if request.param == "called" else request.getfixturevalue("filled")


def check(found, atoms, by_mace, tolerance=1e-13):
    energy, forces, stress = by_mace(atoms)
    assert abs(float(found.energy) - energy) <= 1e-14 * abs(energy)
    np.testing.assert_allclose(found.forces, forces, rtol=0, atol=tolerance * np.abs(forces).max())
    if found.stress is not None:
        np.testing.assert_allclose(found.stress[0], stress, rtol=0, atol=tolerance * np.abs(stress).max())


def moved(atoms, rng, distance, strain):
    atoms.positions += rng.normal(0, distance, atoms.positions.shape)
    if atoms.pbc.all():
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, strain, (3, 3))), scale_atoms=True)


def test_what_moves_in_a_cell_that_changes(launch, in_float64, by_mace, diamond, geometry):
    launcher, rng = launch(in_float64), np.random.default_rng(0)
    structures = launcher.structures([diamond])
    for _ in range(8):
        check(launcher.evaluate(structures, *geometry(diamond), stress=True), diamond, by_mace)
        moved(diamond, rng, 0.1, 0.01)
    assert 1 < structures.pairs.n_built < 8


def test_a_molecule_that_flies_apart(launch, in_float64, by_mace, geometry):
    atoms = ase.build.molecule("CH3CH2OH")
    launcher = launch(in_float64)
    structures = launcher.structures([atoms])
    for _ in range(6):
        check(launcher.evaluate(structures, *geometry(atoms)), atoms, by_mace)
        atoms.positions *= 1.15
    assert structures.pairs.n_built > 1


def test_edges_past_their_number(launch, in_float64, by_mace, diamond, geometry):
    """A crystal is pressed until it has three times as many edges."""
    launcher = launch(in_float64)
    structures = launcher.structures([diamond])
    n_before = structures.n_edges
    for _ in range(6):
        check(launcher.evaluate(structures, *geometry(diamond)), diamond, by_mace)
        diamond.set_cell(diamond.cell * 0.94, scale_atoms=True)
    assert structures.n_edges > 2 * n_before


def test_edges_outgrown_while_the_pairs_hold(filled, in_float64, by_mace, diamond, geometry, monkeypatch):
    monkeypatch.setattr("precision_probe.fast.inputs._with_room", lambda n: n)
    launcher = filled(in_float64, skin=2.0)
    structures = launcher.structures([diamond])
    for _ in range(3):
        check(launcher.evaluate(structures, *geometry(diamond)), diamond, by_mace)
        diamond.set_cell(diamond.cell * 0.97, scale_atoms=True)


def test_pairs_are_made_before_they_run_out(in_float64, by_mace, diamond, geometry, monkeypatch):
    """An atom on its way needs no evaluation that is done again, and one that jumps needs one."""
    launcher = Launcher(in_float64)
    structures, n_runs = launcher.structures([diamond]), []
    run = launcher._run
    monkeypatch.setattr(launcher, "_run", lambda sized: n_runs.append(sized) or run(sized))
    for _ in range(9):
        check(launcher.evaluate(structures, *geometry(diamond)), diamond, by_mace)
        diamond.positions[0] += [0.15, 0, 0]
    assert (len(n_runs), structures.pairs.n_built) == (9, 3)
    diamond.positions[1] += [0, 0.7, 0]
    check(launcher.evaluate(structures, *geometry(diamond)), diamond, by_mace)
    assert (len(n_runs), structures.pairs.n_built) == (11, 4)


def test_with_and_without_stress_in_turn(launch, in_float64, by_mace, diamond, geometry):
    launcher, rng = launch(in_float64), np.random.default_rng(0)
    structures = launcher.structures([diamond])
    for turn in range(8):
        check(launcher.evaluate(structures, *geometry(diamond), stress=bool(turn % 2)), diamond, by_mace)
        moved(diamond, rng, 0.08, 0.01)


def test_structures_in_turn_and_together(launch, in_float64, by_mace, diamond, geometry):
    ethanol, water = ase.build.molecule("CH3CH2OH"), ase.build.molecule("H2O")
    launcher = launch(in_float64)
    apart = [(atoms, launcher.structures([atoms])) for atoms in (ethanol, water, diamond)]
    for _ in range(2):
        for atoms, structures in apart:
            check(launcher.evaluate(structures, *geometry(atoms)), atoms, by_mace)
    together = launcher.evaluate(
        launcher.structures([ethanol, diamond, water]), *geometry(ethanol, diamond, water), stress=True
    )
    first = 0
    for number, atoms in enumerate((ethanol, diamond, water)):
        energy, forces, stress = by_mace(atoms)
        last = first + len(atoms)
        assert abs(float(together.energy[number]) - energy) <= 1e-14 * abs(energy)
        assert abs(float(together.energies[first:last].sum()) - energy) <= 1e-12 * abs(energy)
        np.testing.assert_allclose(together.forces[first:last], forces, rtol=0, atol=1e-12)
        if stress is None:
            assert together.stress[number].isnan().all()
        else:
            np.testing.assert_allclose(together.stress[number], stress, rtol=0, atol=1e-14)
        first = last


def test_two_of_one_size_share_what_is_captured_and_not_their_atoms(launch, in_float64, by_mace, geometry):
    first, second = ase.build.molecule("CH3OH"), ase.build.molecule("CH3OH")
    second.numbers[second.numbers == 1] = [1, 1, 6, 1]
    second.positions *= 1.05
    launcher = launch(in_float64)
    both = [(atoms, launcher.structures([atoms])) for atoms in (first, second)]
    for atoms, structures in both * 2:
        check(launcher.evaluate(structures, *geometry(atoms)), atoms, by_mace)


def test_a_mixed_model_computes_what_it_computes_when_called(filled, demo, diamond, geometry):
    mixed = Policy((Rule("interactions.*", "float32"), Rule("products.*", "bfloat16"))).apply(demo)
    launcher = filled(mixed)
    found = launcher.evaluate(launcher.structures([diamond]), *geometry(diamond))
    expected = mixed(build_graph(diamond, demo).cast(torch.float64))
    exact = demo(build_graph(diamond, demo).cast(torch.float64))
    error = (expected["forces"] - exact["forces"]).norm()
    assert error > 1e-4 * exact["forces"].norm()
    # another number of rows takes other kernels, which round otherwise: by less than the rounding itself
    assert (found.forces - expected["forces"]).norm() < 0.5 * error


def test_a_model_cast_as_a_whole(demo, water, geometry):
    cast = copy.deepcopy(demo).to(torch.float32)
    launcher = Launcher(cast)
    found = launcher.evaluate(launcher.structures([water]), *geometry(water))
    expected = cast(build_graph(water, demo).cast(torch.float32))
    np.testing.assert_allclose(found.forces, expected["forces"].detach(), rtol=0, atol=1e-4)
    assert found.energy.dtype == found.forces.dtype == torch.float64


def test_what_fills_up_adds_exactly_nothing(demo, diamond):
    """However much of it there is, forces of a few atoms in float64 are the same to rounding, and of it zero."""
    graph = build_graph(diamond, demo)
    inputs = Inputs(Shape(1, 64, 4096, 8192), graph, demo, None, 1.0, torch.device("cpu"))
    pairs = pairs_within(
        graph.data["positions"], torch.from_numpy(diamond.cell.array), torch.ones(3, dtype=torch.bool), 4.0
    )
    inputs.set_pairs(pairs)
    data, status = inputs.data()
    n_edges = int(status[0])
    assert n_edges == graph.n_edges
    assert data["edge_index"].shape == (2, 4096)
    given = set(zip(*graph.data["edge_index"].tolist(), strict=True))
    assert set(zip(*data["edge_index"][:, :n_edges].tolist(), strict=True)) == given
    lengths = (
        data["positions"][data["edge_index"][1]] - data["positions"][data["edge_index"][0]] + data["shifts"]
    ).norm(dim=1)
    assert (lengths[n_edges:] >= 2 * float(demo.r_max) - 1e-12).all()
    out = demo(data)
    assert (out["forces"][graph.n_atoms :] == 0).all()
    bare, _ = inputs.data(filled=False)
    assert {key: len(value) for key, value in bare.items()} == {key: len(graph.data[key]) for key in bare}
    assert set(zip(*bare["edge_index"].tolist(), strict=True)) == given


def test_what_fills_up_stays_within_the_range_of_float16(filled, demo, by_mace, diamond, geometry):
    """Or else its NaN would reach all forces by way of the strain, whose gradient runs through every position."""
    launcher = filled(Policy.uniform("float16").apply(demo))
    found = launcher.evaluate(launcher.structures([diamond]), *geometry(diamond), stress=True)
    _, forces, stress = by_mace(diamond)
    np.testing.assert_allclose(found.forces, forces, rtol=0, atol=0.05 * np.abs(forces).max())
    np.testing.assert_allclose(found.stress[0], stress, rtol=0, atol=0.05 * np.abs(stress).max())


def test_nothing_of_the_surroundings_is_changed(in_float64, water, geometry):
    launcher = Launcher(in_float64)
    before = torch.get_default_dtype(), torch.random.get_rng_state().clone(), torch.is_grad_enabled()
    with torch.no_grad():
        found = launcher.evaluate(launcher.structures([water]), *geometry(water))
    assert not found.forces.requires_grad
    assert torch.equal(before[1], torch.random.get_rng_state())
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (before[0], before[2])
    with torch.inference_mode():
        again = launcher.evaluate(launcher.structures([water]), *geometry(water))
    assert torch.equal(found.forces, again.forces)


def test_graphs_are_bounded_in_number(in_float64, geometry):
    launcher = Launcher(in_float64)
    for name in ("H2O", "CH4", "CH3OH", "C2H6", "CH3CH2OH", "C6H6"):
        atoms = ase.build.molecule(name)
        launcher.evaluate(launcher.structures([atoms]), *geometry(atoms))
    assert len(launcher._sized) == 4


def test_what_cannot_be_captured_is_called_and_said_once(in_float64, by_mace, water, geometry, monkeypatch):
    def refuse(*_):
        raise NotCapturedError("it asks the GPU for a number")

    monkeypatch.setattr(module, "Captured", refuse)
    monkeypatch.setattr(module, "Room", lambda device: None)
    launcher = Launcher(in_float64, captures=True)
    structures = launcher.structures([water])
    check(launcher.evaluate(structures, *geometry(water)), water, by_mace)
    with pytest.warns(UserWarning, match="No CUDA graph is used.*it asks the GPU for a number"):
        check(launcher.evaluate(structures, *geometry(water)), water, by_mace)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(launcher.evaluate(structures, *geometry(water)), water, by_mace)
    assert launcher.why_not == "it asks the GPU for a number"


def test_a_model_without_energies_is_refused():
    with pytest.raises(InputError, match="predicts no energy"):
        Launcher(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("n_atoms", [1, 4])
def test_other_numbers_of_atoms_are_refused(in_float64, water, geometry, n_atoms):
    launcher = Launcher(in_float64)
    with pytest.raises(InputError, match=rf"have the shapes \(3, 3\) and \(1, 3, 3\); got \({n_atoms}, 3\)"):
        launcher.evaluate(launcher.structures([water]), torch.zeros(n_atoms, 3), geometry(water)[1])


def test_positions_that_are_not_finite_are_refused_at_any_step(in_float64, diamond, geometry):
    launcher = Launcher(in_float64)
    structures = launcher.structures([diamond])
    positions, cells = geometry(diamond)
    launcher.evaluate(structures, positions, cells)
    positions[3, 1] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        launcher.evaluate(structures, positions, cells)


def test_a_head_of_several(config, water, geometry):
    heads = {"heads": ["pbe", "r2scan"], "atomic_inter_scale": [0.8, 0.9], "atomic_inter_shift": [0.1, 0.2]}
    two_heads = build(config | heads | {"atomic_energies": [[-13.6, -1029.5, -2042.0], [-13.0, -1020.0, -2040.0]]})
    mixed = Policy(()).apply(two_heads)
    for head in two_heads.heads:
        launcher = Launcher(mixed, head)
        found = launcher.evaluate(launcher.structures([water]), *geometry(water))
        expected = two_heads(build_graph(water, two_heads, head).cast(torch.float64))
        assert abs(float(found.energy) - float(expected["energy"])) < 1e-12 * abs(float(expected["energy"]))


# On a GPU


@pytest.fixture
def gpu_model(demo):
    return Policy(()).apply(demo, "cuda")


@pytest.mark.cuda
@needs_cuda
def test_graph_and_calls_agree_to_rounding(gpu_model, by_mace, diamond, geometry):
    captured, called = Launcher(gpu_model), Launcher(gpu_model, captures=False)
    mine, theirs = captured.structures([diamond]), called.structures([diamond])
    rng = np.random.default_rng(0)
    for _ in range(8):
        found, expected = (
            each.evaluate(of, *geometry(diamond), stress=True) for each, of in ((captured, mine), (called, theirs))
        )
        for name in ("energy", "forces", "stress"):
            one, other = getattr(found, name), getattr(expected, name)
            assert (one - other).norm() <= 1e-14 * other.norm()
        moved(diamond, rng, 0.04, 0.01)
    assert captured.why_not == ""
    assert all(each.captured is not None for each in captured._sized.values() if each.structures is mine)


@pytest.mark.cuda
@needs_cuda
def test_edges_outgrown_on_a_gpu(gpu_model, by_mace, diamond, geometry):
    launcher = Launcher(gpu_model)
    structures = launcher.structures([diamond])
    for _ in range(5):
        for _ in range(2):
            found = launcher.evaluate(structures, *geometry(diamond))
        energy, forces, _ = by_mace(diamond)
        assert abs(float(found.energy) - energy) <= 1e-13 * abs(energy)
        np.testing.assert_allclose(found.forces.cpu(), forces, rtol=0, atol=1e-12 * np.abs(forces).max())
        diamond.set_cell(diamond.cell * 0.94, scale_atoms=True)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("compute", ["float32", "tf32", "bfloat16", "float16"])
def test_precisions_are_captured(demo, diamond, geometry, compute):
    mixed = Policy((Rule("interactions.*", compute), Rule("products.*", compute))).apply(demo, "cuda")
    launcher = Launcher(mixed)
    structures = launcher.structures([diamond])
    first = launcher.evaluate(structures, *geometry(diamond))
    second = launcher.evaluate(structures, *geometry(diamond))
    assert launcher.why_not == ""
    u = {"float32": 2**-24, "tf32": 2**-11, "bfloat16": 2**-8, "float16": 2**-11}[compute]
    assert (first.forces - second.forces).norm() <= 50 * u * first.forces.norm()
