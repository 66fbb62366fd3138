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
    arrays = list(arrays)
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
    groups = observing(modes).observe(graph).captured
    assert groups.keys() == {f"{mode}/{name}" for mode in modes for name in NAMES}
    everything = observing().observe(graph).captured
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
    groups = observing(("isolated",)).observe(graph).captured
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
    for group, arrays in observing(gradients=gradients).observe(graph).captured.items():
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
    of_energy = by_name(subject.observe(graph).captured["propagated/float64"])
    for name, values in of_loss.items():
        np.testing.assert_allclose(values, -3.0 * of_energy[name], rtol=1e-13)
        assert values.any()


def test_arrays_of_a_loss_say_so(observing, graph):
    for arrays in loss_gradients(observing(), graph, energy=[1.0]).values():
        assert {(array.computed_in, array.unit) for array in arrays} == {("double_backward", "1")}


# One run for both


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for group in ours:
        a, b = by_name(ours[group]), by_name(theirs[group])
        assert a.keys() == b.keys()
        for name in a.keys() - {"seconds"}:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("gradients", ["shared", "none"])
@pytest.mark.parametrize("periodic", [False, True])
def test_one_run_gives_what_a_bare_and_a_captured_one_do(model, variants, gradients, periodic, crystal, clock):
    graph = build_graph(crystal if periodic else molecule(), model)
    told, _ = clock
    subject = Observer(variants, select_blocks(model, None), ("propagated", "isolated"), gradients, "eV")
    apart = subject.observe(graph, repeats=1)
    told.clear()
    at_once = subject.observe(graph, repeats=0)
    assert told == []  # no run of its own
    same(at_once.predictions, apart.predictions)
    same(at_once.captured, apart.captured)
    forward = [array for array in at_once.captured["propagated/float32"] if array.computed_in == "forward"]
    assert (len(forward) < len(at_once.captured["propagated/float32"])) == (gradients == "shared")
    assert np.isnan(by_name(at_once.predictions["float32"])["seconds"]).all()


def test_a_model_that_was_saved_in_training_is_run_at_once_too(mine, graph):
    """Buffers are then put back after each run, the numbers of the elements among them, which blocks are given."""
    made = [Variant(mine.train(), PRECISIONS[name], torch.device("cpu")) for name in NAMES]
    assert all(variant.model.training for variant in made)
    subject = Observer(made, select_blocks(mine, None), ("propagated",), "shared", "eV")
    same(subject.observe(graph, repeats=0).captured, subject.observe(graph, repeats=1).captured)


@pytest.mark.parametrize("periodic", [False, True])
def test_a_run_with_aliases_computes_what_the_prediction_was_computed_of(model, variants, periodic, crystal):
    graph = build_graph(crystal if periodic else molecule(), model)
    blocks = select_blocks(model, None)
    of = {
        gradients: Observer(variants, blocks, ("propagated",), gradients, "eV").observe(graph, repeats=0).captured
        for gradients in ("shared", "per_block")
    }
    for group in of["shared"]:
        ours, theirs = (by_name(a for a in of[name][group] if not a.gradient) for name in ("shared", "per_block"))
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_gradients_of_aliases_need_a_run_of_their_own(observing, graph, clock):
    told, _ = clock
    subject = observing(gradients="per_block")
    assert not subject.predicts_as_it_captures
    subject.observe(graph, repeats=0)
    assert told == list(NAMES)


def test_nothing_is_captured_if_nothing_is_kept(observing, graph):
    subject = observing(modes=())
    subject.keep = "none"
    observed = subject.observe(graph, repeats=0)
    assert observed.captured == {}
    same(observed.predictions, subject.predict(graph))


@pytest.mark.parametrize(("n_bytes", "keep"), [(2**40, "tensors"), (1, "errors")])
def test_errors_are_kept_where_tensors_would_be_large(observing, graph, n_bytes, keep, monkeypatch):
    monkeypatch.setattr(observer, "_MANY_BYTES", n_bytes)
    subject = observing()
    subject.keep = ""
    subject.expect([graph, graph])
    groups = subject.observe(graph, repeats=0).captured
    assert (subject.keep, subject.about()["keep"]) == (keep, keep)
    assert all(name.startswith("errors/") for name in groups) == (keep == "errors")
    assert [note for note in subject.notes if "--keep tensors" in note] == subject.notes
    assert len(subject.notes) == (keep == "errors")


def test_the_size_that_is_said_is_that_of_the_tensors(observing, graph, monkeypatch):
    monkeypatch.setattr(observer, "_MANY_BYTES", 0)
    subject = observing()
    n_bytes = 3 * sum(array.values.nbytes for arrays in subject.observe(graph).captured.values() for array in arrays)
    subject.keep = ""
    subject.expect([graph] * 3)
    subject.observe(graph)
    assert f"would take {n_bytes / 2**30:.1f} GiB" in subject.notes[0]
    for most, keep in ((n_bytes, "tensors"), (n_bytes - 1, "errors")):
        monkeypatch.setattr(observer, "_MANY_BYTES", most)
        subject.keep = ""
        subject.observe(graph)
        assert subject.keep == keep
