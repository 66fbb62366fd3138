"""observer.py: one sample in every variant, timed alike; blocks in both modes; gradients of a loss."""

import numpy as np
import pytest
import torch
from runs import molecule

from precision_probe.models.blocks import select_blocks
from precision_probe.models.evaluation import Prediction
from precision_probe.models.graphs import build_graph
from precision_probe.precisions import PRECISIONS
from precision_probe.probe.observing import observer
from precision_probe.probe.observing.observer import Observer
from precision_probe.variants.variant import Variant

NAMES = ("float64", "float32")


@pytest.fixture(scope="module")
def variants(model):
    return [Variant(model, PRECISIONS[name], torch.device("cpu")) for name in NAMES]


@pytest.fixture(scope="module")
def graph(model):
    return build_graph(molecule(), model)


@pytest.fixture
def observing(model, variants):
    """Makes an observer of the readouts."""

    def make(modes=("propagated", "isolated"), gradients="per_block"):
        return Observer(variants, select_blocks(model, "readouts.*"), modes, gradients, "eV")

    return make


def by_name(arrays):
    values = {array.name: array.values for array in arrays}
    assert len(values) == len(arrays)
    return values


# Predictions and their times


def test_predictions_are_those_of_the_variants(observing, variants, graph):
    predictions = observing().predict(graph)
    assert list(predictions) == list(NAMES)
    for variant in variants:
        expected = variant.predict(graph)
        arrays = by_name(predictions[variant.precision.name])
        assert arrays.keys() == {quantity.name for quantity in expected.values} | {"seconds"}
        for quantity, tensor in expected.values.items():
            np.testing.assert_array_equal(arrays[quantity.name], tensor.numpy())
    errors = np.abs(by_name(predictions["float32"])["forces"] - by_name(predictions["float64"])["forces"])
    assert 0 < errors.max() < 1e-4


@pytest.fixture
def clock(monkeypatch, graph):
    """Lets evaluations take the seconds that a test puts here, and notes the precision of each."""
    values = Variant.predict
    told, seconds = [], {}

    def predict(self, sample):
        told.append(self.precision.name)
        given = seconds.get(self.precision.name)
        return Prediction(values(self, sample).values, next(given) if given else 0.0)

    monkeypatch.setattr(Variant, "predict", predict)
    return told, seconds


@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_precisions_take_turns_after_a_warm_up_of_the_first_sample(observing, graph, clock, repeats, monkeypatch):
    monkeypatch.setattr(observer, "_TIMING_BUDGET", np.inf)
    told, _ = clock
    subject = observing()
    subject.predict(graph, repeats)
    assert told == ["float64", "float64", "float32", "float32", *NAMES * repeats]
    told.clear()
    subject.predict(graph, repeats)
    assert told == [*NAMES * repeats]


def test_no_evaluation_begins_for_its_time_alone_after_the_budget(observing, graph, clock, monkeypatch):
    told, _ = clock
    monkeypatch.setattr(observer, "_TIMING_BUDGET", -1.0)
    observing().predict(graph, 5)
    assert told[4:] == [*NAMES]


def test_the_time_is_the_median_without_the_warm_up(observing, graph, clock, monkeypatch):
    monkeypatch.setattr(observer, "_TIMING_BUDGET", np.inf)
    _, seconds = clock
    seconds |= {"float64": iter([99.0, 98.0, 5.0, 1.0, 3.0]), "float32": iter([97.0, 96.0, 0.5, 0.25, 4.0])}
    predictions = observing().predict(graph, 3)
    assert {name: by_name(predictions[name])["seconds"].tolist() for name in NAMES} == {
        "float64": [3.0],
        "float32": [0.5],
    }


# What blocks compute


@pytest.mark.parametrize("modes", [("propagated",), ("isolated",), ("propagated", "isolated")], ids="+".join)
def test_groups_are_those_of_the_modes(observing, graph, modes):
    groups = observing(modes).capture(graph)
    assert groups.keys() == {f"{mode}/{name}" for mode in modes for name in NAMES}
    everything = observing().capture(graph)
    for group, arrays in groups.items():  # one mode does not depend on whether the other is asked for
        for name, values in by_name(arrays).items():
            np.testing.assert_array_equal(values, by_name(everything[group])[name], err_msg=f"{group} {name}")


def test_isolated_blocks_are_run_on_the_reference_s_inputs(observing, variants, graph):
    """The first readout is linear: its output and the gradient of its squares, by hand."""
    inputs = []
    exact, single = (variant.model for variant in variants)
    hook = exact.readouts[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    with variants[0].arithmetic():
        exact(graph.cast(torch.float64), compute_force=False)
    hook.remove()
    groups = observing(("isolated",)).capture(graph)
    for name, readout in zip(NAMES, (exact.readouts[0], single.readouts[0]), strict=True):
        dtype, tolerance = getattr(torch, name), {"float64": 1e-14, "float32": 1e-6}[name]
        x = inputs[0].to(dtype).requires_grad_()
        y = readout(x, None)
        (gradient,) = torch.autograd.grad((y**2).sum(), x)
        arrays = by_name(groups[f"isolated/{name}"])
        np.testing.assert_array_equal(arrays["readouts.0.output"], y.detach())
        np.testing.assert_allclose(arrays["readouts.0.node_feats.grad"], gradient, rtol=tolerance)


@pytest.mark.parametrize("gradients", ["per_block", "shared", "none"])
def test_which_arrays_there_are(observing, graph, gradients):
    outputs = {"readouts.0.output", "readouts.1.output"}
    inputs = {"readouts.0.node_feats.grad", "readouts.1.node_feats.grad"}
    for group, arrays in observing(gradients=gradients).capture(graph).items():
        assert by_name(arrays).keys() == outputs | (set() if gradients == "none" else inputs)
        unit = "eV" if group.startswith("propagated") else "1"  # alone, they are of the block's own outputs' squares
        assert {array.unit for array in arrays if array.name in inputs} <= {unit}


# Gradients of a loss


def loss_gradients(subject, graph, **cotangents):
    given = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in cotangents.items()}
    return subject.loss_gradients(graph, given, {"training": True})


def test_gradients_of_a_loss_are_linear_in_what_it_makes_of_the_outputs(observing, graph):
    """A vector–Jacobian product: Jᵀ(a + 2b) = Jᵀa + 2Jᵀb."""
    forces = np.random.default_rng(0).normal(size=(3, 3))
    subject = observing()
    of_energy, of_forces, of_both = (
        {group: by_name(arrays) for group, arrays in loss_gradients(subject, graph, **cotangents).items()}
        for cotangents in ({"energy": [1.5]}, {"forces": forces}, {"energy": [1.5], "forces": 2 * forces})
    )
    assert of_both.keys() == {"loss/float64", "loss/float32"}
    for group, tolerance in (("loss/float64", 1e-12), ("loss/float32", 1e-5)):
        assert of_both[group].keys() == {"readouts.0.node_feats.grad", "readouts.1.node_feats.grad"}
        for name, values in of_both[group].items():
            expected = of_energy[group][name] + 2 * of_forces[group][name]
            assert np.linalg.norm(values - expected) <= tolerance * np.linalg.norm(expected)
    assert np.abs(of_forces["loss/float64"]["readouts.1.node_feats.grad"]).max() > 0


def test_gradients_of_a_loss_of_energies_are_those_of_the_energy_times_its_cotangent(observing, graph):
    subject = observing(("propagated",))
    of_loss = by_name(loss_gradients(subject, graph, energy=[-3.0])["loss/float64"])
    of_energy = by_name(subject.capture(graph)["propagated/float64"])
    for name, values in of_loss.items():
        np.testing.assert_allclose(values, -3.0 * of_energy[name], rtol=1e-13)
        assert values.any()


def test_arrays_of_a_loss_say_so(observing, graph):
    for arrays in loss_gradients(observing(), graph, energy=[1.0]).values():
        assert {(array.computed_in, array.unit) for array in arrays} == {("double_backward", "1")}
