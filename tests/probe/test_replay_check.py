"""replay_check.py: what rounding explains of the distance between a live call and its replay, and what it does not."""

import math

import numpy as np
import pytest
import torch

from precision_probe.models.graphs import build_graph
from precision_probe.models.inputs import Inputs
from precision_probe.precisions import PRECISIONS
from precision_probe.probe.replay_check import live_values, unexplained
from precision_probe.trace.arrays import ModelArray

FLOAT32 = PRECISIONS["float32"]
U = 2.0**-24
INPUTS = Inputs("x", (torch.ones(2),))


def array(name, values, unit="1"):
    values = np.asarray(values, dtype=np.float64)
    return ModelArray(name, values, tuple(f"axis{i}" for i in range(values.ndim)), unit, name)


def difference(live, replayed, sample=INPUTS, precision=FLOAT32):
    """The differences of what two dictionaries hold."""
    live = {name: np.asarray(values, dtype=np.float64) for name, values in live.items()}
    return unexplained(live, [array(name, values) for name, values in replayed.items()], sample, precision)


@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16"])
def test_the_bound_is_256_roundoffs_of_the_largest_number(name):
    precision = PRECISIONS[name]
    bound = 256 * precision.unit_roundoff * 3.0
    live = {"output": [1.0, -3.0]}
    assert difference(live, {"output": [1.0 + 0.99 * bound, -3.0]}, precision=precision) == []
    (found,) = difference(live, {"output": [1.0 + 1.5 * bound, -3.0]}, precision=precision)
    assert (found.quantity, found.bound) == ("output", bound)
    assert found.largest == pytest.approx(1.5 * bound)


def test_forces_that_cancel_are_measured_by_the_energy_of_an_atom(model, water):
    graph = build_graph(water, model)
    live = {"forces": np.full((3, 3), 1e-3), "interaction_energy": [-15.0]}  # 5 eV an atom
    within, beyond = 250 * U * 5, 260 * U * 5
    assert difference(live, {"forces": live["forces"] + within}, graph) == []
    (found,) = difference(live, {"forces": live["forces"] + beyond}, graph)
    assert found.bound == 256 * U * 5


def test_an_interaction_energy_that_cancels_is_measured_by_the_forces(model, water):
    graph = build_graph(water, model)
    live = {"interaction_energy": [1e-6], "forces": np.full((3, 3), 2.0)}
    assert difference(live, {"interaction_energy": [1e-6 + 500 * U]}, graph) == []
    (found,) = difference(live, {"interaction_energy": [1e-6 + 520 * U]}, graph)
    assert found.bound == 512 * U


def test_dipoles_that_cancel_are_measured_by_their_unit(model, water):
    graph = build_graph(water, model)
    assert difference({"dipole": [[0.0, 0.0, 0.0]]}, {"dipole": [[250 * U, 0, 0]]}, graph) == []
    assert difference({"dipole": [[0.0, 0.0, 0.0]]}, {"dipole": [[260 * U, 0, 0]]}, graph)


def test_long_shifts_are_rounded_otherwise_where_stress_is_asked_for(model, crystal):
    graph = build_graph(crystal, model)
    longest = np.abs(graph.data["unit_shifts"].numpy() @ crystal.cell.array).max()
    live = {"energy": [1.0]}
    (found,) = difference(live, {"energy": [1.1]}, graph)
    assert found.bound == pytest.approx((256 + 16 * longest) * U, rel=1e-12)


@pytest.mark.parametrize(("mine", "theirs"), [(math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (math.inf, -math.inf)])
def test_what_is_not_finite_in_one_alone_is_no_rounding(mine, theirs):
    (found,) = difference({"output": [mine, 1.0]}, {"output": [theirs, 1.0]})
    assert found.largest == math.inf


@pytest.mark.parametrize("same", [math.nan, math.inf, -math.inf, 0.0])
def test_what_is_the_same_is_no_difference(same):
    assert difference({"output": [same, 1.0]}, {"output": [same, 1.0]}) == []
    assert difference({"output": [same]}, {"output": [same]}) == []


def test_other_sizes_are_a_difference_and_other_quantities_none():
    (found,) = difference({"output": [1.0, 2.0]}, {"output": [1.0]})
    assert found.largest == math.inf
    assert difference({"output": [1.0]}, {"another": [1.0]}) == []
    assert difference({"stress": [1.0], "seconds": [1.0]}, {"stress": [2.0], "seconds": [3.0]}) == []


def test_a_sentence_says_how_much_and_what_rounding_explains():
    (found,) = unexplained({"forces": np.array([2.0])}, [array("forces", [2.5], "eV/Å")], INPUTS, FLOAT32)
    assert str(found) == "forces by 0.5 eV/Å (rounding explains 3e-05)"
    (found,) = difference({"output": [2.0]}, {"output": [2.5]})
    assert str(found) == "output by 0.5 (rounding explains 3e-05)"


def test_live_values_are_all_that_a_call_returned():
    energy = torch.tensor([3.0, 5.0], requires_grad=True)
    forces = torch.arange(6, dtype=torch.bfloat16).view(2, 3)
    values = live_values({"energy": energy, "forces": forces, "stress": None, "count": torch.tensor([1])})
    assert {name: value.tolist() for name, value in values.items()} == {
        "energy": [3.0, 5.0],
        "forces": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
    }
    assert live_values(torch.tensor(2.0))["output"].shape == ()
    assert live_values(None) == {}


def test_the_interaction_energy_is_made_of_contributions_as_the_variants_make_it():
    contributions = torch.tensor([[10.0, 1.0, 2.0], [20.0, 3.0, 4.0]])
    values = live_values({"energy": torch.tensor([13.0, 27.0]), "contributions": contributions})
    assert values["interaction_energy"].tolist() == [3.0, 7.0]
