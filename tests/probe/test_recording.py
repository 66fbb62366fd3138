"""recording.py: what is said of a whole trace, in its attributes and in notes."""

import numpy as np
import pytest
import torch
from runs import molecule

from precision_probe.models.blocks import select_blocks
from precision_probe.models.graphs import build_graph
from precision_probe.models.targets import Mace
from precision_probe.precisions import PRECISIONS, parse_precision
from precision_probe.probe.observation import Observation
from precision_probe.probe.observing.observer import Observer
from precision_probe.probe.recording import Recording
from precision_probe.probe.replay_check import Difference
from precision_probe.probe.weights import Weights
from precision_probe.trace.recorder import Recorder
from precision_probe.variants.variant import Variant

CPU = torch.device("cpu")


@pytest.fixture
def recording(model):
    """Makes a recording of the small model's readouts, and an observation of a molecule."""

    def make(precision="float32", **provenance):
        variants = [Variant(model, each, CPU) for each in (PRECISIONS["float64"], parse_precision(precision))]
        observer = Observer(variants, select_blocks(model, "readouts.*"), ("propagated",), "per_block", "eV")
        subject, weights = Mace(model, None), Weights(model, variants)
        about = {"model_dtype": "float64", "reference": "the model as it is"} | provenance
        made = Recording(Recorder(None), about, subject, weights, observer)

        def observe(**options):
            graph = build_graph(molecule(), model)
            observed = observer.observe(graph)
            return Observation(graph, observed.predictions, observed.captured, **options)

        return made, observe, weights

    return make


def test_attributes_are_of_all_that_was_recorded(recording):
    made, observe, weights = recording(model_name="small")
    made.add(observe())
    assert made.n_structures == 1
    about = made.trace().attributes
    assert about["model_name"] == "small"
    assert about["precisions"] == ["float64", "float32"]
    assert about["blocks"] == ["readouts.0", "readouts.1"]
    assert (about["modes"], about["gradients"], about["head"]) == (["propagated"], "per_block", "Default")
    assert (about["complete"], about["failures"], about["weights_changed"], about["seed"]) == (True, [], False, None)
    assert (about["not_of_the_called_model"], about["calls_with_rounded_geometry"]) == ({}, 0)
    weights.have_changed = True
    assert made.trace().attributes["weights_changed"] is True
    assert made.notes == []


def test_seeds_of_formats_that_round_at_random_are_kept(recording):
    made, observe, _ = recording("e8m7sr")
    made.add(observe())
    assert made.trace().attributes["seed"] == 0


def test_what_is_missing_makes_a_trace_incomplete(recording):
    made, observe, _ = recording()
    made.n_unfinished = 1
    made.add(observe())
    assert made.trace().attributes["complete"] is False
    made.n_unfinished = 0
    assert made.trace().attributes["complete"] is True
    made.failures.append("call 2 could not be observed (x).")
    about = made.trace().attributes
    assert (about["complete"], about["failures"]) == (False, made.failures)
    assert made.notes == made.failures


def test_calls_of_another_model_are_told_once_and_counted(recording):
    made, observe, _ = recording()
    made.add(observe(number=3))
    assert not made.add_differences(3, [])
    assert made.add_differences(4, [Difference("energy", 0.5, 1e-9, "eV"), Difference("forces", 2.0, 1e-8, "eV/Å")])
    assert not made.add_differences(5, [Difference("forces", np.inf, 1e-8, "eV/Å")])
    about = made.trace().attributes
    assert about["complete"] is False
    assert about["not_of_the_called_model"] == {"4": {"energy": 0.5, "forces": 2.0}, "5": {"forces": np.inf}}
    (note,) = made.notes
    assert note == made.difference
    assert "In 2 call(s), the first of them call 4" in note
    assert "energy by 0.5 eV (rounding explains 1e-09) and forces by 2 eV/Å (rounding explains 1e-08)" in note


def test_notes_are_of_the_reference_first_and_said_once(recording):
    made, observe, _ = recording(model_dtype="float32", reference="the float32 weights")
    made.add_note("twice.")
    made.add_note("twice.")
    made.add(observe(number=1, is_rounded=True))
    made.add(observe(number=2))
    made.add(observe())  # of run(): no call
    first, *rest = made.notes
    assert first == "the reference is the float32 weights."
    assert rest[0] == "twice."
    assert rest[1].startswith("in 1 of 2 calls the reference has the positions as the call rounded them")
    assert len(rest) == 2


def test_an_infinite_difference_survives_the_disk(recording, tmp_path):
    import precision_probe as pp

    made, observe, _ = recording()
    made.add(observe(number=1))
    made.add_differences(1, [Difference("forces", np.inf, 1e-8, "eV/Å")])
    with pp.open_trace(made.trace().save(tmp_path / "t.h5")) as trace:
        assert trace.attributes["not_of_the_called_model"] == {"1": {"forces": np.inf}}
