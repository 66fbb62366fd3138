"""evaluation.py: dipoles, polarizabilities, charges and total energies, against the bare models' own outputs."""

import copy
import inspect
import io
from functools import partial

import ase
import numpy as np
import pytest
import torch
from mace.calculators import MACECalculator
from rich.console import Console
from runs import rel_l2, trace_of

import precision_probe as pp
from precision_probe.analysis.errors import exceeded
from precision_probe.analysis.whole_model import model_rows, shown_units
from precision_probe.cli.tables.errors import block_table, model_table
from precision_probe.models.building import build
from precision_probe.models.evaluation import (
    CHARGES,
    ENERGY,
    INTERACTION,
    MaceDielectric,
    MaceEnergy,
    Prediction,
    interaction_energy,
    mace_evaluation,
)
from precision_probe.models.graphs import build_graph
from precision_probe.structures import read_structures

ENERGIES = [-13.6, -1029.5, -2042.0]
propagated_trace = partial(trace_of, modes="propagated")


def molecules():
    """A charged water and a carbon monoxide, with point charges on their atoms."""
    water = ase.Atoms("OHH", [(0.02, 0.0, 0.11), (0.0, 0.78, -0.48), (0.05, -0.75, -0.45)])
    carbon = ase.Atoms("CO", [(0, 0, 0), (0.1, 0.2, 1.2)])
    for atoms, charges in ((water, [-0.8, 0.4, 0.6]), (carbon, [0.1, -0.1])):
        atoms.arrays["Qs"] = np.array(charges)
    return [water, carbon]


def graphs(model, structures):
    return [build_graph(atoms, model) for atoms in read_structures(structures)]


def outputs(model, structures, **options):
    return [model(graph.cast(torch.float64), **options) for graph in graphs(model, structures)]


def stacked(returned, name):
    return torch.cat([out[name].detach() for out in returned]).numpy()


def rendered(*tables):
    console = Console(file=io.StringIO(), width=140)
    console.print(*tables)
    return console.file.getvalue()


CONFIGS = {
    "AtomicDipolesMACE": {"MLP_irreps": "4x1o", "atomic_energies": None},
    "AtomicDielectricMACE": {
        "hidden_irreps": "8x0e + 8x1o + 8x2e",
        "MLP_irreps": "4x0e + 4x1o + 4x2e",
        "atomic_energies": None,
    },
    "EnergyDipolesMACE": {"MLP_irreps": "4x0e + 4x1o"},
    "MACE": {},
}
QUANTITIES = {
    "AtomicDipolesMACE": {"dipole": "D"},
    "AtomicDielectricMACE": {"dipole": "e·Å", "charges": "e", "polarizability": "unit of the training data"},
    "EnergyDipolesMACE": {"energy": "eV", "interaction_energy": "eV", "forces": "eV/Å", "dipole": "D"},
    "MACE": {"energy": "eV", "interaction_energy": "eV", "forces": "eV/Å"},
}
DIPOLES = ["AtomicDipolesMACE", "AtomicDielectricMACE"]


@pytest.fixture(scope="module")
def models(config):
    return {name: build(config | {"model": name} | changes, seed=2) for name, changes in CONFIGS.items()}


@pytest.fixture(scope="module")
def traces(models):
    return {name: propagated_trace(model, molecules(), precisions="float16") for name, model in models.items()}


# what models predict


@pytest.mark.parametrize("name", CONFIGS)
def test_quantities_are_the_bare_models_outputs(models, traces, name):
    group = traces[name].group("propagated", "float64")
    returned = outputs(models[name], molecules())
    assert {str(n) for n, array in group.items() if "block" not in array.attrs} == {*QUANTITIES[name], "seconds"}
    for quantity, unit in QUANTITIES[name].items():
        assert group[quantity].attrs["units"] == unit
        assert group[quantity].attrs["native_dtype"] == "float64"
        if quantity != "interaction_energy":
            np.testing.assert_array_equal(group[quantity], stacked(returned, quantity))
        assert np.abs(group[quantity]).max() > 1e-6


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes(traces, name):
    group = traces[name].group("propagated", "float16")
    dims = {
        "dipole": ("structure", "xyz"),
        "charges": ("atom",),
        "polarizability": ("structure", "xyz", "xyz_2"),
        "forces": ("atom", "xyz"),
    }
    sizes = {"structure": 2, "atom": 5, "xyz": 3, "xyz_2": 3}
    for quantity in set(dims) & set(QUANTITIES[name]):
        assert group[quantity].dims == dims[quantity]
        assert group[quantity].shape == tuple(sizes[dim] for dim in dims[quantity])


@pytest.mark.parametrize("name", CONFIGS)
def test_summary_is_the_largest_error(traces, name):
    trace = traces[name]
    table = pp.summary(trace)
    extra = {"nonfinite", "time", "time_iqr", *(["forces_mae"] if "forces" in QUANTITIES[name] else [])}
    assert set(table) == {*QUANTITIES[name], *extra}
    exact, ours = (trace.group("propagated", precision) for precision in ("float64", "float16"))
    for quantity in set(QUANTITIES[name]) - {"energy", "interaction_energy"}:
        delta = np.abs(ours[quantity].values.astype(float) - exact[quantity].values)
        assert table.loc["float16", quantity] == delta.max() > 0
    assert table.loc["float16", "nonfinite"] == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_tables_render(traces, name):
    summary, errors = pp.summary(traces[name]), pp.errors(traces[name])
    limits = {"forces": 1e-9, "energy": 1e-9} if "forces" in QUANTITIES[name] else {}  # as far as there are any
    over = exceeded(summary, {"forces": 1e-9, "energy": 1e-9, "stress": 1e-9})
    units = shown_units(errors)
    rows = model_rows(summary, units, over, is_judged=bool(limits))
    text = rendered(model_table(rows, units, limits, is_guide=False))
    assert ("dipole" in text) == ("dipole" in QUANTITIES[name])
    assert ("forces max" in text) == ("forces" in QUANTITIES[name])
    assert ("too large: forces, energy" in " ".join(text.split())) == ("forces" in QUANTITIES[name])
    assert "meV/Å³" not in text
    assert "readouts.1" in rendered(block_table(errors))


@pytest.mark.parametrize("name", DIPOLES)
def test_tolerances_are_judged_only_of_what_there_is(traces, name):
    over = exceeded(pp.summary(traces[name]), {"forces": 1e-12, "energy": 1e-12})
    assert over.empty


@pytest.mark.parametrize("name", DIPOLES)
def test_what_gradients_are_of_is_in_their_units(traces, name):
    group = traces[name].group("propagated", "float64")
    assert group["readouts.1.node_feats.grad"].attrs["units"] == "1"
    assert group["radial_embedding.edge_lengths.grad"].attrs["units"] == "1/Å"
    energies = traces["EnergyDipolesMACE"].group("propagated", "float64")
    assert energies["radial_embedding.edge_lengths.grad"].attrs["units"] == "eV/Å"


# what the blocks' gradients are of


def gradients_by_hand(model, graph, of):
    """Of a number made of a model's outputs, with respect to what one block alone takes, and to what two share."""
    kept = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: kept.update({name: y}))
        for name in ("products.1", "spherical_harmonics")
    ]
    data = graph.cast(torch.float64)
    data["positions"].requires_grad_()
    out = model(data)
    for handle in handles:
        handle.remove()
    return torch.autograd.grad(of(out), [kept["products.1"], kept["spherical_harmonics"]])


def compare_gradients(model, trace, structures, of):
    by_hand = [gradients_by_hand(model, graph, of) for graph in graphs(model, structures)]
    by_readout, by_edges = (torch.cat(parts).numpy() for parts in zip(*by_hand, strict=True))
    group = trace.group("propagated", "float64")
    layers = sum(group[f"interactions.{layer}.edge_attrs.grad"].values for layer in (0, 1))
    np.testing.assert_allclose(group["readouts.1.node_feats.grad"], by_readout, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(layers, by_edges, rtol=1e-10, atol=1e-13)
    assert np.abs(by_edges).max() > 1e-8


def squares(out):
    total = out["dipole"].square().sum()
    return total if out.get("polarizability") is None else total + out["polarizability"].square().sum()


@pytest.mark.parametrize("name", DIPOLES)
def test_gradients_are_of_the_squares(models, traces, name):
    compare_gradients(models[name], traces[name], molecules(), squares)


@pytest.mark.parametrize("name", ["EnergyDipolesMACE", "MACE"])
def test_gradients_are_of_the_interaction_energy(models, traces, name):
    model = models[name]
    expected = [forces_of(model, graph) for graph in graphs(model, molecules())]
    trace = traces[name]
    group = trace.group("propagated", "float64")
    vectors = group["spherical_harmonics.vectors.grad"].values
    lengths = group["radial_embedding.edge_lengths.grad"].values
    unit = np.concatenate([vectors_of(graph) for graph in graphs(model, molecules())])
    pull = vectors + lengths * unit
    sender, receiver = global_edges(trace)
    forces = np.zeros((5, 3))
    np.add.at(forces, receiver, -pull)
    np.add.at(forces, sender, pull)
    np.testing.assert_allclose(forces, np.concatenate(expected), rtol=1e-10, atol=1e-12)


def forces_of(model, graph):
    return model(graph.cast(torch.float64))["forces"].detach().numpy()


def vectors_of(graph):
    sender, receiver = graph.data["edge_index"].numpy()
    positions = graph.data["positions"].detach().numpy()
    vectors = positions[receiver] - positions[sender] + graph.data["shifts"].numpy()
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def global_edges(trace):
    structures = trace.structures
    first = np.concatenate([[0], np.cumsum(structures["n_atoms"].values)[:-1]])
    first = np.repeat(first, structures["n_edges"].values)
    return structures["sender"].values + first, structures["receiver"].values + first


# what a training loss makes of the outputs


def test_how_a_mace_is_run_depends_on_its_class(models, model):
    for name, network in {**models, "ScaleShiftMACE": model}.items():
        assert type(mace_evaluation(network)) is (MaceDielectric if name in DIPOLES else MaceEnergy), name


@pytest.mark.parametrize("names", [["stress"], ["virials"], ["stress", "virials", "energy", "forces"]])
def test_cotangents_of_stress_go_to_the_virials(model, crystal, names):
    """What is linear in the outputs, as a first-order loss is, comes out the same with stress made from the virials."""
    (graph,) = graphs(model, crystal)
    generator = torch.Generator().manual_seed(0)
    options = {"training": True, "compute_virials": True, "compute_stress": True}
    out = model(graph.cast(torch.float64), **options)
    cotangents = {name: torch.randn(out[name].shape, generator=generator, dtype=torch.float64) for name in names}
    pairs = MaceEnergy(model).with_cotangents(model, graph.cast(torch.float64), graph, cotangents, options)
    loss = sum((y * cotangent).sum() for y, cotangent in pairs)
    expected = sum((out[name] * cotangent).sum() for name, cotangent in cotangents.items())
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    assert abs(expected.item()) > 1e-6  # and so far above what the comparison allows
    assert sorted(cotangents) == sorted(names)  # what was given is not changed


def test_cotangents_of_dipoles_are_taken_as_they_are(models):
    model = models["AtomicDielectricMACE"]
    graph = graphs(model, molecules())[0]
    cotangents = {"polarizability": torch.eye(3, dtype=torch.float64)[None], "dipole": torch.ones(1, 3)}
    pairs = MaceDielectric(model).with_cotangents(model, graph.cast(torch.float64), graph, cotangents, {})
    out = model(graph.cast(torch.float64))
    for (y, cotangent), (name, expected) in zip(pairs, cotangents.items(), strict=True):
        assert cotangent is expected
        assert torch.equal(y, out[name])


def test_predictions_are_asked_for_by_name():
    total, interaction, charges = torch.tensor([-9.0]), torch.tensor([-1.0]), torch.zeros(3)
    whole = Prediction({ENERGY: total, INTERACTION: interaction, CHARGES: charges}, 0.1)
    assert whole["charges"] is charges
    assert whole.changing_energy is interaction
    assert Prediction({ENERGY: total}, 0.1).changing_energy is total


# the energy without the isolated atoms'


def isolated_atoms(atoms):
    return sum(ENERGIES[(1, 6, 8).index(number)] for number in atoms.numbers)


@pytest.mark.parametrize("name", ["MACE", "EnergyDipolesMACE", "ScaleShiftMACE"])
def test_interaction_energy_is_the_energy_less_the_atoms(models, model, name):
    network = model if name == "ScaleShiftMACE" else models[name]
    for atoms, out in zip(molecules(), outputs(network, molecules()), strict=True):
        expected = out["energy"].item() - isolated_atoms(atoms)
        np.testing.assert_allclose(interaction_energy(out).item(), expected, atol=1e-9)
        assert abs(expected) > 1e-3


def batched(singles):
    """Graphs side by side, as MACE's own loader joins them."""
    data = {key: torch.cat([graph.data[key] for graph in singles]) for key in singles[0].data if key != "edge_index"}
    sizes = [graph.n_atoms for graph in singles]
    first = np.concatenate([[0], np.cumsum(sizes)])
    data["ptr"] = torch.tensor(first)
    data["batch"] = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    edges = [graph.data["edge_index"] + start for graph, start in zip(singles, first[:-1].tolist(), strict=True)]
    return data | {"edge_index": torch.cat(edges, dim=1)}


def test_interaction_energy_of_a_batch(models):
    singles = graphs(models["MACE"], molecules())
    alone = [interaction_energy(models["MACE"](graph.cast(torch.float64))) for graph in singles]
    assert [energy.shape for energy in alone] == [(1,), (1,)]
    together = interaction_energy(models["MACE"](batched(singles)))
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("part", ["les_energy", "electrostatic_energy"])
def test_long_range_models_do_not_say_what_their_interaction_energy_is(part):
    out = {"energy": torch.ones(1), "interaction_energy": torch.ones(1), part: torch.ones(1)}
    assert interaction_energy(out) is None


@pytest.fixture(scope="module")
def polar(config):
    features = pytest.importorskip("graph_longrange.features").GTOElectrostaticFeatures
    if "force_pbc_evaluator" not in inspect.signature(features.precompute_geometry).parameters:
        pytest.skip("this graph_longrange is newer than mace-torch 0.3.16 can call (0.4.0 is the last)")
    options = {"atomic_multipoles_max_l": 1, "field_feature_max_l": 1, "kspace_cutoff_factor": 1.0}
    return build(config | {"model": "PolarMACE"} | options, seed=2)


def test_polar_models_have_a_total_energy_alone(polar):
    trace = propagated_trace(polar, molecules(), precisions="float64")
    group = trace.group("propagated", "float64")
    returned = outputs(polar, molecules())
    assert "interaction_energy" not in group
    for quantity in ("energy", "forces", "dipole"):
        assert rel_l2(group[quantity], stacked(returned, quantity)) < 1e-10
    assert "interaction_energy" not in pp.summary(trace)
    assert all(interaction_energy(out) is None for out in returned)


def test_polar_gradients_are_of_the_total_energy(polar):
    structures = molecules()
    blocks = ["interactions.*", "readouts.*", "products.*", "lr_source_maps.*"]
    trace = propagated_trace(polar, structures, precisions="float64", blocks=blocks)
    group = trace.group("propagated", "float64")
    expected = np.concatenate([message_gradient(polar, graph) for graph in graphs(polar, structures)])
    assert rel_l2(group["products.1.node_feats.grad"], expected) < 1e-10
    assert np.abs(expected).max() > 1e-6


def message_gradient(model, graph):
    """Of the total energy with respect to the second interaction's message, which one block alone is given."""
    kept = []
    handle = model.interactions[1].register_forward_hook(lambda _, __, y: kept.append(y[0]))
    energy = model(graph.cast(torch.float64), compute_force=False)["energy"]
    handle.remove()
    return torch.autograd.grad(energy.sum(), kept[0])[0].numpy()


# charges


def probed_energy(model, atoms):
    trace = propagated_trace(model, atoms, precisions="float64", blocks="readouts.*", gradients=False)
    return trace.group("propagated", "float64")["energy"].item()


def calculated_energy(model, atoms):
    atoms = atoms.copy()
    atoms.calc = MACECalculator(models=copy.deepcopy(model), device="cpu", default_dtype="float64")
    return atoms.get_potential_energy()


def test_charge_reaches_a_polar_model(polar):
    water = molecules()[0]
    energies = []
    for charge, spin in ((0, 1), (1, 2)):
        water.info["charge"], water.info["spin"] = charge, spin
        energies.append(probed_energy(polar, water))
        np.testing.assert_allclose(energies[-1], calculated_energy(polar, water), rtol=1e-12)
    assert abs(energies[0] - energies[1]) > 1e-6


def test_charges_on_atoms_shift_the_dipole(models):
    water, bare = molecules()[0], molecules()[0]
    del bare.arrays["Qs"]
    model = models["AtomicDipolesMACE"]
    dipoles = []
    for atoms in (water, bare):
        trace = propagated_trace(model, atoms, precisions="float64", blocks="readouts.*")
        dipoles.append(trace.group("propagated", "float64")["dipole"].values[0])
    expected = (water.arrays["Qs"][:, None] * water.positions).sum(axis=0) / 0.2081943  # e·Å in Debye
    np.testing.assert_allclose(dipoles[0] - dipoles[1], expected, rtol=1e-6)
