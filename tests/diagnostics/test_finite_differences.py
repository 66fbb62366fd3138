"""Whether forces are the gradient, and the steps of rounding: checked against closed forms and a model run by hand."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from runs import molecule

import precision_probe as pp
from precision_probe.analysis.energy_steps import step_sizes
from precision_probe.diagnostics.finite_differences import along_displacement, finite_differences
from precision_probe.models.evaluation import ENERGY, FORCES, Prediction
from precision_probe.models.graphs import build_graph
from precision_probe.precisions import PRECISIONS, Precision, parse_precision
from precision_probe.variants.variant import Variant

CPU = torch.device("cpu")
NAMES = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Cubic:
    """E = Σ x² + c·x³ over all coordinates, its energy rounded to a grid and its forces scaled."""

    precision: Precision = PRECISIONS["float64"]
    grid: float = 1e-14
    scale: float = 1.0

    def predict(self, graph):
        x = graph.data["positions"]
        energy = (x**2 + 2 * x**3).sum().reshape(1)
        forces = -(2 * x + 6 * x**2) * self.scale
        return Prediction({ENERGY: (energy / self.grid).round() * self.grid, FORCES: forces}, 0.0)


@pytest.fixture(scope="module")
def graph(model):
    return build_graph(molecule(), model)


@pytest.fixture(scope="module")
def variants(model):
    return [Variant(model, PRECISIONS[name], CPU) for name in NAMES]


@pytest.fixture(scope="module")
def line(variants, graph):
    return along_displacement(variants, graph)


# along a displacement


def test_the_line_is_straight_as_long_as_asked_and_leaves_the_graph(graph):
    seen = []

    class Watched(Cubic):
        def predict(self, moved):
            seen.append(moved.data["positions"] - graph.data["positions"])
            return super().predict(moved)

    before = graph.data["positions"].clone()
    table = along_displacement([Watched()], graph, length=0.5, n_points=20, seed=4)
    assert torch.equal(graph.data["positions"], before)
    lengths = [float(shift.norm()) for shift in seen]
    np.testing.assert_allclose(lengths, np.linspace(0, 0.5, 20), atol=1e-15)
    np.testing.assert_allclose(table["position"], lengths, atol=1e-15)
    direction = seen[-1] / 0.5
    assert direction.abs().min() > 0
    np.testing.assert_allclose(seen[5], direction * lengths[5], atol=1e-15)
    x = graph.data["positions"] + seen[-1]
    assert table["force"].iloc[-1] == pytest.approx(-1000 * float((direction * (2 * x + 6 * x**2)).sum()))
    start, end = (float((p**2 + 2 * p**3).sum()) for p in (graph.data["positions"], x))
    assert table["energy"].iloc[-1] == pytest.approx(1000 * (end - start) / 3)


def test_energies_are_those_of_the_model_run_by_hand(line, model):
    shift = np.random.default_rng(0).normal(size=(3, 3))
    shift *= 0.01 / np.linalg.norm(shift)
    moved = molecule()
    moved.positions += shift
    outs = [model(build_graph(atoms, model).cast(torch.float64)) for atoms in (molecule(), moved)]
    energy = (outs[1]["interaction_energy"] - outs[0]["interaction_energy"]).item()
    last = line[line["precision"] == "float64"].iloc[-1]
    assert last["energy"] == pytest.approx(1000 * energy / 3, rel=1e-9)
    assert last["force"] == pytest.approx(1e5 * float((outs[1]["forces"].detach().numpy() * shift).sum()), rel=1e-9)
    assert line["precision"].unique().tolist() == list(NAMES)
    assert len(line) == 4 * 101


def test_along_the_line_force_is_minus_the_slope_of_the_energy(line):
    exact = line[line["precision"] == "float64"]
    slope = np.gradient(3 * exact["energy"].to_numpy(), exact["position"].to_numpy())
    np.testing.assert_allclose(-slope[1:-1], exact["force"].iloc[1:-1], rtol=1e-5)


def test_a_displaced_graph_keeps_its_edges(graph):
    moved = graph.displaced(np.full((3, 3), 5.0))
    assert torch.equal(moved.data["edge_index"], graph.data["edge_index"])
    assert torch.equal(moved.data["positions"], graph.data["positions"] + 5)


@pytest.mark.parametrize("options", [{"n_points": 19}, {"length": 0.0}, {"length": float("nan")}])
def test_a_line_too_short_is_refused(graph, options):
    with pytest.raises(pp.InputError, match="at least 20 points"):
        along_displacement([Cubic()], graph, **options)


def test_a_model_steps_more_the_fewer_its_digits(line):
    found = step_sizes(line)
    assert found["force_step"][["float64", "float32", "float16", "bfloat16"]].is_monotonic_increasing
    assert found["energy_step"][["float64", "float32", "float16"]].is_monotonic_increasing
    assert found.loc["bfloat16", "n_distinct"] < found.loc["float16", "n_distinct"] < 30
    assert found.loc["float64", "n_distinct"] == 101


# finite differences


@pytest.mark.parametrize("grid", [1e-12, 1e-8, 1e-4])
def test_the_step_is_about_the_best_and_the_error_about_what_is_expected(graph, grid):
    """A difference of E truncates by c·h²·Σd³; the rounded energy is off by at most half the grid at either end."""
    variants = [Cubic(), Cubic(parse_precision("m50"), grid)]
    found = finite_differences(variants, graph, n_directions=20, seed=1).loc["m50"]
    assert found["energy_noise"] == pytest.approx(grid / np.sqrt(12), rel=0.3)
    directions = np.random.default_rng(1).normal(size=(20, 9))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    skew = np.sqrt(np.mean((2 * (directions**3).sum(axis=1)) ** 2))
    ladder = 0.1 / 4.0 ** np.arange(9)
    total = skew * ladder**2 + grid / np.sqrt(24) / ladder
    assert skew * found["step"] ** 2 + grid / np.sqrt(24) / found["step"] < 1.5 * total.min()
    assert found["difference"] < skew * found["step"] ** 2 + grid / 2 / found["step"]
    assert 1 / 3 < found["difference"] / found["expected"] < 3


def test_forces_that_are_not_the_gradient_are_found_out(graph):
    right, wrong = (finite_differences([Cubic(scale=scale)], graph).loc["float64"] for scale in (1.0, 1.01))
    assert right["relative"] < 1e-8
    assert wrong["relative"] == pytest.approx(0.01 / 1.01, rel=1e-4)
    assert wrong["difference"] > 1e4 * wrong["expected"]


def test_forces_of_zero_have_no_relative_difference(graph):
    still = graph.displaced(-graph.data["positions"].numpy())
    found = finite_differences([Cubic()], still).loc["float64"]
    assert np.isnan(found["relative"])
    assert found["difference"] < 1e-9


def test_an_energy_that_does_not_move_is_as_noisy_as_numbers_of_its_size(graph):
    x = graph.data["positions"]
    energy = float((x**2 + 2 * x**3).sum())
    variants = [Cubic(), Cubic(PRECISIONS["bfloat16"], grid=energy)]
    assert along_displacement(variants, graph, length=0.1)["energy"].iloc[101:].eq(0).all()
    found = finite_differences(variants, graph).loc["bfloat16"]
    assert found["relative"] == pytest.approx(1)
    assert found["energy_noise"] == pytest.approx(2**-8 * energy / np.sqrt(3))
    assert found["step"] > 0.01


def test_the_noise_is_in_ev_of_the_whole_structure(graph):
    """Whatever the number of atoms: as the steps of the line in meV/atom, from points where both have it."""
    variants = [Cubic(), Cubic(parse_precision("m50"), grid=1e-3)]
    found = finite_differences(variants, graph, seed=2).loc["m50"]
    line = along_displacement(variants, graph, length=0.1, n_points=40, seed=2)
    steps = step_sizes(line).loc["m50", "energy_step"]
    assert found["energy_noise"] == pytest.approx(steps * graph.n_atoms / 1000, rel=1e-9)
    assert found["energy_noise"] == pytest.approx(1e-3 / np.sqrt(12), rel=0.3)


def test_a_models_forces_are_the_gradient_as_far_as_noise_lets_see(variants, graph):
    found = finite_differences(variants, graph)
    assert found.index.tolist() == list(NAMES)
    assert found.loc["float64", "relative"] < 1e-7
    assert (found["difference"] < 5 * found["expected"]).all()
    in_order = found.loc[["float64", "float32", "float16", "bfloat16"]]
    for name in ("difference", "expected", "step", "energy_noise"):
        assert in_order[name].is_monotonic_increasing
