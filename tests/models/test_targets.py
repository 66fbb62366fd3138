"""targets.py: what a probe runs, made of what users give: graphs of structures for a MACE, inputs for other modules."""

import ase
import numpy as np
import pytest
import torch
from ase.neighborlist import neighbor_list as neighbour_list
from mace.calculators import MACECalculator
from runs import data_of

from precision_probe.exceptions import InputError
from precision_probe.models.building import build
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.evaluation import AnyModule, MaceDielectric, MaceEnergy
from precision_probe.models.graphs import build_graph
from precision_probe.models.inputs import Inputs
from precision_probe.models.targets import Mace, Module
from precision_probe.structures import read_structures

# a MACE


@pytest.fixture(scope="module")
def two_heads(config):
    options = {
        "heads": ["coarse", "fine"],
        "atomic_energies": [[-1.0, -2.0, -3.0]] * 2,
        "atomic_inter_scale": [1.0, 2.0],
        "atomic_inter_shift": [0.0, 1.0],
        "num_interactions": 1,
    }
    return build(config | options)


def test_structures_become_graphs(model, water, crystal):
    target = Mace(model, None)
    samples = target.samples([water, crystal])
    assert [sample.names for sample in samples] == [("H2O",), ("C8",)]
    for sample, atoms in zip(samples, read_structures([water, crystal]), strict=True):
        expected = build_graph(atoms, model)
        assert sample.data.keys() == expected.data.keys()
        assert all(torch.equal(sample.data[key], value) for key, value in expected.data.items())
    assert (target.about, target.notes, target.gradient_unit) == ({"head": "Default"}, [], "eV")
    assert isinstance(target.evaluation, MaceEnergy)


@pytest.mark.parametrize("source", [5, None, [], "no_such_file.xyz", [torch.ones(2)]])
def test_what_is_no_structure_is_refused(model, source):
    with pytest.raises(InputError):
        Mace(model, None).samples(source)


def test_gradients_of_dipoles_have_no_unit(config):
    dipoles = {"model": "AtomicDipolesMACE", "MLP_irreps": "4x1o", "atomic_energies": None, "num_interactions": 1}
    target = Mace(build(config | dipoles), None)
    assert target.gradient_unit == "1"
    assert isinstance(target.evaluation, MaceDielectric)


@pytest.mark.parametrize(("head", "expected"), [(None, "fine"), ("coarse", "coarse"), ("fine", "fine")])
def test_the_head_reaches_the_graphs_and_is_said(two_heads, water, head, expected):
    target = Mace(two_heads, head)
    assert target.about == {"head": expected}
    (note,) = target.notes
    assert "coarse, fine" in note
    assert note.endswith(f"evaluated with {expected}.")
    (sample,) = target.samples(water)
    assert sample.data["head"].tolist() == [two_heads.heads.index(expected)]


def test_unknown_heads_are_refused(two_heads):
    with pytest.raises(InputError, match=r"no head 'medium'.*coarse, fine"):
        Mace(two_heads, "medium")


def test_structures_without_edges_are_noted_once(model, water):
    lonely = ase.Atoms("CO", [(0, 0, 0), (0, 0, float(model.r_max) + 0.1)], info={"name": "far apart"})
    target = Mace(model, None)
    target.samples([water, lonely, lonely])
    (note,) = target.notes
    assert note.startswith("far apart: no two atoms are within the cutoff of 3 Å")


@pytest.mark.parametrize("by_keyword", [True, False])
def test_calls_of_a_mace_are_copied(model, water, by_keyword):
    data = data_of(water, model)
    args, kwargs = ((), {"data": data}) if by_keyword else ((data,), {"compute_stress": True})
    call = Mace(model, None).sample_of_call(args, kwargs, "call 7")
    data["positions"] += 1
    assert call.sample.names == ("call 7",)
    assert call.sample.data["positions"].tolist() == water.positions.tolist()
    assert not call.is_rounded


# a geometry that was rounded on its way to the model


def slab(crystal):
    """Periodic in two directions, its cell skewed, where float32 has few digits left."""
    crystal.pbc = [True, True, False]
    crystal.positions += 300.1
    return crystal


def called_with(model, calculator, atoms):
    """What a calculator calls the model with, as the target takes it."""
    target, calls = Mace(model, None, holder=calculator), []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(target.sample_of_call(args, kwargs, "c")), with_kwargs=True
    )
    calculator.get_property("forces", atoms)
    hook.remove()
    return calls


@pytest.mark.parametrize("periodicity", ["none", "all", "two"])
def test_the_calculator_has_the_positions_in_float64(mine, water, crystal, periodicity):
    atoms = {"none": water, "all": crystal, "two": slab(crystal.copy())}[periodicity]
    with default_dtype(torch.float64):
        calculator = MACECalculator(models=mine.float(), device="cpu", default_dtype="float32")
    (call,) = called_with(mine, calculator, atoms)
    assert not call.is_rounded
    graph = call.sample
    np.testing.assert_array_equal(graph.data["positions"], atoms.positions)
    periodic = np.flatnonzero(atoms.pbc)
    np.testing.assert_array_equal(graph.cells[0][periodic], atoms.cell.array[periodic])
    sender, receiver = graph.data["edge_index"].numpy()
    vectors = atoms.positions[receiver] - atoms.positions[sender] + graph.data["shifts"].numpy()
    image = graph.data["unit_shifts"].numpy() @ np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)
    np.testing.assert_allclose(vectors, atoms.positions[receiver] - atoms.positions[sender] + image, atol=1e-12)
    lengths = np.linalg.norm(vectors, axis=1)
    expected = neighbour_list("d", atoms, float(mine.r_max))  # of ASE
    np.testing.assert_allclose(np.sort(lengths), np.sort(expected), atol=1e-12)


def test_other_atoms_than_those_of_the_call_are_not_taken(mine, water):
    with default_dtype(torch.float64):
        calculator = MACECalculator(models=mine.float(), device="cpu", default_dtype="float32")
    (call,) = called_with(mine, calculator, water)
    assert not call.is_rounded
    target = Mace(mine, None, holder=calculator)
    data = {name: x.float() if x.is_floating_point() else x for name, x in data_of(water, mine).items()}
    assert not target.sample_of_call((data,), {}, "the same").is_rounded
    data["positions"] += 1e-6
    moved = target.sample_of_call((data,), {}, "moved")
    assert moved.is_rounded
    assert torch.equal(moved.sample.data["positions"], data["positions"].double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_direct_call_has_rounded_positions_alone(model, water, dtype):
    data = {name: x.to(dtype) if x.is_floating_point() else x for name, x in data_of(water, model).items()}
    for holder in (None, model, "a file"):
        call = Mace(model, None, holder=holder).sample_of_call((data,), {}, "c")
        assert call.is_rounded
        assert torch.equal(call.sample.data["positions"], data["positions"].double())


# any other module


def test_one_input_or_a_list_of_them_numbered_on():
    target = Module(lambda module, x: module(x))
    x = torch.ones(2)
    assert [sample.name for sample in target.samples(x)] == ["input 0"]
    assert [sample.name for sample in target.samples([x, x])] == ["input 1", "input 2"]
    (pair,) = target.samples((x, 2 * x))  # only a list is several inputs
    assert pair.name == "input 3"
    assert [tensor.tolist() for tensor in pair.args[0]] == [[1, 1], [2, 2]]
    assert not pair.is_call
    assert (target.about, target.notes, target.gradient_unit) == ({}, [], "1")


def test_inputs_are_copied():
    x = torch.ones(2)
    (sample,) = Module(lambda module, x: module(x)).samples(x)
    x.zero_()
    assert sample.args[0].tolist() == [1, 1]


def test_no_inputs_are_refused():
    with pytest.raises(InputError, match="list of inputs is empty"):
        Module(lambda module, x: module(x)).samples([])


def test_calls_of_a_module_go_to_its_forward_and_not_through_the_callable():
    def fail(*_):
        pytest.fail("the callable is for inputs given to run()")

    target = Module(fail)
    bilinear, x, y = (
        torch.nn.Bilinear(2, 2, 1).double(),
        torch.ones(3, 2).double(),
        torch.arange(6.0).view(3, 2).double(),
    )
    call = target.sample_of_call((x,), {"input2": y}, "call 0")
    sample, expected = call.sample, bilinear(x, y)
    assert not call.is_rounded
    x.zero_()
    assert isinstance(sample, Inputs)
    assert (sample.name, sample.is_call) == ("call 0", True)
    assert isinstance(target.evaluation, AnyModule)
    ((quantity, tensor),) = target.evaluation.predict(bilinear, sample.cast(torch.float64), sample).items()
    assert torch.equal(tensor, expected)
    assert (quantity.name, quantity.dims, quantity.unit) == ("output", ("output.row", "output.feature"), "1")


def test_inputs_go_through_the_callable():
    linear = torch.nn.Linear(2, 1).double()
    target = Module(lambda module, x: {"twice": 2 * module(x["x"])})
    (sample,) = target.samples({"x": torch.eye(2).double()})
    ((quantity, tensor),) = target.evaluation.predict(linear, sample.cast(torch.float64), sample).items()
    assert quantity.name == "twice"
    torch.testing.assert_close(tensor, 2 * (linear.weight.T + linear.bias).detach(), rtol=1e-15, atol=0)
