"""graphs.py: graphs against MACE's and ASE's own, labels, and what cannot be run."""

import copy
import itertools

import ase
import ase.build
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.neighborlist import neighbor_list
from ase.stress import full_3x3_to_voigt_6_stress
from hypothesis import given, settings
from hypothesis import strategies as st
from mace.calculators import MACECalculator
from mace.data import AtomicData, KeySpecification, config_from_atoms
from mace.tools import AtomicNumberTable
from mace.tools.torch_geometric import Batch
from runs import molecule

from precision_probe.exceptions import InputError
from precision_probe.models.building import build
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import batch_sizes, build_graph, graph_of_call, joined
from precision_probe.precisions import PRECISIONS
from precision_probe.structures import read_structures
from precision_probe.variants.variant import Variant

CELL = np.array([[4.0, 0.2, 0.0], [0.0, 3.5, 0.3], [0.1, 0.0, 4.4]])


def random_atoms(seed, n_atoms, pbc):
    rng = np.random.default_rng(seed)
    numbers = rng.choice([1, 6, 8], n_atoms)
    return ase.Atoms(numbers, rng.uniform(0, 4, (n_atoms, 3)), cell=CELL, pbc=pbc)


many_atoms = st.builds(random_atoms, st.integers(0, 10**6), st.integers(1, 7), st.tuples(*[st.booleans()] * 3))


def batch_of(model, *structures):
    """The dictionary that MACE is called with, made by mace-torch alone."""
    table = AtomicNumberTable(model.atomic_numbers.tolist())
    info = {
        "total_charge": "charge",
        "total_spin": "spin",
        "external_field": "external_field",
        "elec_temp": "elec_temp",
    }
    keys = KeySpecification(info_keys=info, arrays_keys={"charges": "Qs"})
    with default_dtype(torch.float64):
        entries = [
            AtomicData.from_config(
                config_from_atoms(atoms, keys), z_table=table, cutoff=float(model.r_max), heads=model.heads
            )
            for atoms in structures
        ]
        return Batch.from_data_list(entries).to_dict()


# the graph


def test_what_is_given_is_not_changed(model, crystal):
    before = crystal.copy()
    graph = build_graph(crystal, model)
    graph.data["positions"] += 1
    assert crystal == before
    assert crystal.info == before.info == {}


@pytest.mark.parametrize("pbc", [(True, False, False), (True, True, False)])
def test_cell_need_not_span_where_it_is_not_periodic(model, pbc):
    atoms = ase.Atoms("C2", [(0, 0, 0), (1.2, 0, 0)], cell=[2.5 * periodic for periodic in pbc], pbc=pbc)
    graph = build_graph(read_structures(atoms)[0], model)
    assert graph.n_edges > 2
    assert not graph.periodic.any()


@given(atoms=many_atoms, dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
@settings(max_examples=30, deadline=None)
def test_graph_is_the_one_that_mace_makes(model, atoms, dtype):
    with default_dtype(dtype):
        graph = build_graph(atoms, model)
        assert torch.get_default_dtype() is dtype
    expected = {key: value for key, value in batch_of(model, atoms).items() if torch.is_tensor(value)}
    assert graph.data.keys() == expected.keys()
    for key, value in expected.items():
        assert graph.data[key].dtype == value.dtype, key
        assert torch.equal(graph.data[key], value), key
    assert graph.data["positions"].dtype is torch.float64
    assert (graph.n_structures, graph.n_atoms) == (1, len(atoms))


@given(atoms=many_atoms)
@settings(max_examples=30, deadline=None)
def test_edges_are_those_of_ase(model, atoms):
    graph = build_graph(atoms, model)
    sender, distance = neighbor_list("id", atoms, float(model.r_max))
    assert graph.n_edges == len(distance)
    assert graph.edges_per_structure().tolist() == [len(distance)]
    assert np.bincount(graph.data["edge_index"][0], minlength=len(atoms)).tolist() == (
        np.bincount(sender, minlength=len(atoms)).tolist()
    )
    np.testing.assert_allclose(np.sort(graph.edge_lengths()), np.sort(distance), rtol=1e-12)


def test_lone_atom_has_no_edges(model):
    graph = build_graph(ase.Atoms("C"), model)
    assert (graph.n_atoms, graph.n_edges, graph.edge_lengths().numel()) == (1, 0, 0)
    assert graph.edges_per_structure().tolist() == [0]


def test_unknown_element_and_its_structure_are_named(model, water):
    (gold,) = read_structures(ase.Atoms("OAu", [(0, 0, 0), (0, 0, 2)], info={"name": "gilded"}))
    with pytest.raises(InputError, match=r"gilded has Au.*knows H, C, O"):
        build_graph(gold, model)


@pytest.mark.parametrize("shift", [(0, 0, 0), (1, 0, 0), (0, -1, 2)])
def test_coincident_atoms_are_refused_across_boundaries_too(model, shift):
    def pair(gap):
        positions = [(1.0, 1.0, 1.0), np.array([1.0, 1.0, 1.0 + gap]) + np.array(shift) @ CELL]
        return ase.Atoms("CO", positions, cell=CELL, pbc=True, info={"name": "stacked"})

    for gap in (0.0, 5e-5):
        with pytest.raises(InputError, match=r"Structure stacked: atoms . and . are on the same place"):
            build_graph(pair(gap), model)
    assert float(build_graph(pair(2e-3), model).edge_lengths().min()) == pytest.approx(2e-3)


# charge and spin


@pytest.fixture(scope="module")
def embedding(config):
    """A model that takes charge and spin."""
    specs = {
        "total_charge": {"type": "categorical", "per": "graph", "num_classes": 5, "offset": 2, "emb_dim": 4},
        "total_spin": {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 4},
    }
    return build(config | {"embedding_specs": specs}, seed=2)


def energy_of(model, atoms):
    return model(build_graph(atoms, model).cast(torch.float64))["energy"].item()


def calculated(model, atoms, name="energy"):
    """What mace-torch's own calculator gives; until version 0.3.15 it sets the default dtype for good."""
    with default_dtype(torch.float64):
        calculator = MACECalculator(models=copy.deepcopy(model), device="cpu", default_dtype="float64")
        return calculator.get_property(name, atoms.copy())


def test_charge_and_spin_reach_the_model(embedding, water):
    neutral, energies = water.copy(), {}
    for state in ((0, 1), (1, 2), (0, 3)):
        water.info["charge"], water.info["spin"] = state
        energies[state] = energy_of(embedding, water)
        np.testing.assert_allclose(energies[state], calculated(embedding, water), rtol=1e-14)
    assert np.diff(sorted(energies.values())).min() > 1e-6
    np.testing.assert_allclose(energy_of(embedding, neutral), calculated(embedding, neutral), rtol=1e-14)
    np.testing.assert_allclose(energy_of(embedding, neutral), energies[0, 1], rtol=1e-14)


def test_the_names_of_training_files_are_read_too(embedding, water):
    trained = water.copy()
    water.info |= {"charge": 1, "spin": 2}
    trained.info |= {"total_charge": 1, "total_spin": 2}
    assert energy_of(embedding, water) == energy_of(embedding, trained)


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"charge": "neutral"}, r"'charge' is text, where a number is expected \(neutral\), and the model needs it"),
        ({"total_charge": np.array([0, 0, 1])}, r"'total_charge' has the shape \(3,\)"),
        ({"spin": None}, "'spin' is None"),
        ({"charge": np.nan}, "'charge' is NaN"),
    ],
)
def test_what_a_model_needs_and_cannot_be_read_is_refused_and_otherwise_left_out(embedding, model, water, info, words):
    bare = build_graph(water, model).data
    water.info |= info | {"name": "the ion"}
    with pytest.raises(InputError, match=f"Structure the ion: {words}"):
        build_graph(water, embedding)
    graph = build_graph(water, model)
    (note,) = graph.notes
    assert note.startswith(f"{next(iter(info))!r} ")
    assert note.endswith("and is left out; the model does not use it.")
    assert all(torch.equal(graph.data[key], value) for key, value in bare.items())


def test_charges_of_atoms_are_needed_by_models_of_dipoles(config, model, water):
    dipoles = {"model": "AtomicDipolesMACE", "MLP_irreps": "4x1o", "atomic_energies": None, "num_interactions": 1}
    dipoles = build(config | dipoles)
    water.arrays["Qs"] = np.array([0.5, -0.25, -0.25])
    assert build_graph(water, dipoles).data["charges"].tolist() == [0.5, -0.25, -0.25]
    for bad in (np.array(["a", "b", "c"]), np.ones((3, 2)), np.array([0.5, np.nan, 0.0])):
        water.arrays["Qs"] = bad
        with pytest.raises(InputError, match=r"'Qs' .*the model needs it"):
            build_graph(water, dipoles)
        assert len(build_graph(water, model).notes) == 1


def test_weights_of_a_loss_are_read_if_they_can_be(model, water):
    water.info |= {"config_weight": 2.5, "config_type": ["not", "hashable"]}
    graph = build_graph(water, model)
    assert (graph.data["weight"].tolist(), graph.notes) == ([2.5], ())
    water.info["config_weight"] = "abc"
    graph = build_graph(water, model)
    assert graph.data["weight"].tolist() == [1.0]
    (note,) = graph.notes
    assert note.startswith("'config_weight' is text")


def test_an_embedding_of_what_structures_do_not_carry_is_refused(config, water):
    specs = {"pressure": {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 4}}
    with pytest.raises(InputError, match=r"the model embeds pressure.*call the model"):
        build_graph(water, build(config | {"embedding_specs": specs}))


# a left-handed cell


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 2, 1]])
def test_a_left_handed_cell_gives_what_mace_gives(model, crystal, order):
    """Against mace-torch's calculator, and against the same crystal with its cell vectors in another order."""
    (left,) = read_structures(ase.Atoms(crystal.numbers, crystal.positions, cell=crystal.cell[order], pbc=True))
    assert np.linalg.det(left.cell) < 0
    predicted = Variant(model, PRECISIONS["float64"], torch.device("cpu")).predict(build_graph(left, model))
    for atoms in (left, crystal):
        for name in ("energy", "forces", "stress"):
            expected = calculated(model, atoms, name)
            ours = predicted[name].numpy().squeeze()
            if name == "stress":
                ours = full_3x3_to_voigt_6_stress(ours)
            np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-10, err_msg=name)
    assert np.abs(predicted["stress"].numpy()).max() > 1e-3


# labels


def test_demo_structures_have_labels(model):
    for graph in (build_graph(atoms, model) for atoms in read_structures("demo")):
        assert graph.labels["forces"].shape == (graph.n_atoms, 3)
        assert np.isfinite(graph.labels["energy"]).all()


VOIGT = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
FULL = np.array([[[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]]])


def labels_of(atoms, model):
    return build_graph(read_structures(atoms)[0], model).labels


def test_labels_from_calculator_results(model, crystal):
    forces = np.arange(24.0).reshape(8, 3)
    crystal.calc = SinglePointCalculator(crystal, energy=-7.0, forces=forces, stress=VOIGT)
    labels = labels_of(crystal, model)
    assert labels["energy"].tolist() == [-7.0]
    np.testing.assert_array_equal(labels["forces"], forces)
    np.testing.assert_array_equal(labels["stress"], FULL)


@pytest.mark.parametrize("stress", [VOIGT, FULL[0], FULL.ravel()], ids=["Voigt", "3 by 3", "flat"])
def test_labels_from_mace_keys(model, crystal, stress):
    forces = np.arange(24.0).reshape(8, 3)
    crystal.info |= {"REF_energy": -7.0, "REF_stress": stress}
    crystal.arrays["REF_forces"] = forces
    labels = labels_of(crystal, model)
    assert {key: value.dtype for key, value in labels.items()} == dict.fromkeys(labels, np.float64)
    assert labels["energy"].tolist() == [-7.0]
    np.testing.assert_array_equal(labels["forces"], forces)
    np.testing.assert_array_equal(labels["stress"], FULL)


def test_labels_survive_a_file(model, crystal, tmp_path):
    crystal.calc = SinglePointCalculator(crystal, energy=-7.0, stress=VOIGT)
    ase.io.write(tmp_path / "labelled.extxyz", crystal)
    labels = labels_of(tmp_path / "labelled.extxyz", model)
    assert labels["energy"].tolist() == [-7.0]
    np.testing.assert_allclose(labels["stress"], FULL)


def test_no_labels(model, water):
    assert labels_of(water, model) == {}


def test_results_of_other_positions_are_no_labels(model, water):
    water.calc = LennardJones()
    before = water.get_potential_energy()
    assert labels_of(water, model)["energy"].tolist() == [before]
    water.rattle(0.1)
    assert "energy" not in labels_of(water, model)


def test_results_of_a_shared_calculator_are_each_for_one_structure(model, water, crystal):
    water.calc = crystal.calc = LennardJones()
    forces = crystal.get_forces()
    np.testing.assert_array_equal(labels_of(crystal, model)["forces"], forces)
    assert "forces" not in labels_of(water, model)


# what an attached model was called with


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_graph_of_a_batch(model, water, crystal, dtype):
    data = batch_of(model, water, crystal, ase.Atoms("H"))
    data["pbc"] = torch.tensor([[False] * 3, [True] * 3, [False] * 3])  # which it has from mace-torch 0.3.15 on
    data = {key: value.to(dtype) if torch.is_floating_point(value) else value for key, value in data.items()}
    graph = graph_of_call(data, model, "call 4")
    assert graph.names == ("call 4[0]", "call 4[1]", "call 4[2]")
    assert (graph.n_structures, graph.n_atoms) == (3, 12)
    assert graph.atomic_numbers.tolist() == [8, 1, 1, *[6] * 8, 1]
    assert graph.pbc.tolist() == [[False] * 3, [True] * 3, [False] * 3]
    assert graph.periodic.tolist() == [False, True, False]
    singles = [build_graph(atoms, model) for atoms in (water, crystal, ase.Atoms("H"))]
    assert graph.edges_per_structure().tolist() == [single.n_edges for single in singles]
    lengths = torch.cat([single.edge_lengths() for single in singles])
    torch.testing.assert_close(graph.edge_lengths(), lengths, rtol=1e-6 if dtype is torch.float32 else 0, atol=0)
    for key, value in data.items():
        assert torch.equal(graph.data[key], value.double() if torch.is_floating_point(value) else value)
        assert graph.data[key].data_ptr() != value.data_ptr() or not value.numel()


def test_joined_graphs_are_the_batch_that_mace_makes(model, water, crystal):
    structures = (water, crystal, ase.Atoms("H"))
    first, *rest = (build_graph(atoms, model) for atoms in structures)
    graph = joined([first, joined(rest)])
    expected = batch_of(model, *structures)
    for key, value in graph.data.items():
        assert torch.equal(value, expected[key]), key
    assert set(graph.data) == {key for key, value in expected.items() if torch.is_tensor(value)}
    assert (len(graph.names), graph.n_structures, graph.n_atoms) == (3, 3, 12)
    assert graph.atomic_numbers.tolist() == [8, 1, 1, *[6] * 8, 1]
    assert graph.periodic.tolist() == [False, True, False]


def test_graph_of_one_call_is_a_copy(model, water):
    data = batch_of(model, water)
    graph = graph_of_call(data, model, "call 0")
    data["positions"].requires_grad_().data.add_(1.0)
    assert graph.names == ("call 0",)
    assert graph.data["positions"].tolist() == water.positions.tolist()
    assert not graph.data["positions"].requires_grad


def test_periodicity_of_a_call_without_pbc(model, water, crystal):
    for atoms in (water, crystal):
        data = batch_of(model, atoms)
        data.pop("pbc", None)
        assert graph_of_call(data, model, "call 0").periodic.tolist() == [atoms.pbc.all()]


def test_without_pbc_each_structure_and_direction_is_judged_by_its_edges(model, water, crystal):
    slab = crystal.copy()
    slab.center(vacuum=4.0, axis=2)
    slab.pbc = (True, True, False)
    data = batch_of(model, water, slab, crystal)
    data.pop("pbc", None)
    graph = graph_of_call(data, model, "call 0")
    assert graph.pbc.tolist() == [[False] * 3, [True, True, False], [True] * 3]


# Batches


def in_batches(graphs, most_edges):
    """The graphs of each batch as one."""
    rest = iter(graphs)
    return [joined(list(itertools.islice(rest, size))) for size in batch_sizes((g.n_edges for g in graphs), most_edges)]


@pytest.mark.parametrize(
    ("most_edges", "sizes"), [(1, [1, 1, 1, 1]), (6, [1, 1, 1, 1]), (12, [2, 2]), (18, [3, 1]), (10**6, [4])]
)
def test_structures_that_follow_one_another_are_joined_up_to_so_many_edges(model, most_edges, sizes):
    graphs = [build_graph(molecule(seed), model) for seed in range(4)]
    assert {graph.n_edges for graph in graphs} == {6}
    batches = in_batches(graphs, most_edges)
    assert [batch.n_structures for batch in batches] == sizes
    assert [name for batch in batches for name in batch.names] == [graph.names[0] for graph in graphs]


def test_labels_are_joined_and_nan_where_a_structure_has_none(model, water, crystal):
    with_labels = water.copy()
    with_labels.calc = SinglePointCalculator(with_labels, energy=-3.0, forces=np.arange(9.0).reshape(3, 3))
    (read,) = read_structures(with_labels)
    (batch,) = in_batches([build_graph(crystal, model), build_graph(read, model)], 10**6)
    n = len(crystal)
    np.testing.assert_array_equal(batch.labels["energy"], [np.nan, -3.0])
    assert np.isnan(batch.labels["forces"][:n]).all()
    np.testing.assert_array_equal(batch.labels["forces"][n:], np.arange(9.0).reshape(3, 3))
    assert "stress" not in batch.labels


def test_elements_of_each_structure(model, water, crystal):
    (batch,) = in_batches([build_graph(atoms, model) for atoms in (water, crystal, water)], 10**6)
    species = batch.species
    assert species.atomic_numbers.tolist() == [1, 8, 6, 1, 8]
    assert species.per_structure.tolist() == [2, 1, 2]
    np.testing.assert_array_equal(species.atomic_numbers[species.of_atom], batch.atomic_numbers)
