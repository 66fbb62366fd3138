"""Which library computes what is launched."""

import pytest
import torch
from runs import molecule

from precision_probe.exceptions import InputError
from precision_probe.models.backends import backend
from precision_probe.models.graphs import build_graph
from precision_probe.search.running import backends
from precision_probe.search.running.backends import chosen
from precision_probe.search.timing import Timed


@pytest.fixture
def graph(model):
    return build_graph(molecule(1), model)


@pytest.fixture
def kernels(monkeypatch):
    """As if kernels were installed, and these times were taken of both."""

    def patch(ratio, does_not_fit=False):
        seconds = tuple(1.0 + number / 100 for number in range(11))
        times = {"e3nn": seconds, "cuEquivariance": tuple(ratio * second for second in seconds)}
        times |= {"e3nn": ()} if does_not_fit else {}
        monkeypatch.setattr(backends, "has_cuequivariance_kernels", lambda device: True)
        monkeypatch.setattr(
            backends,
            "side_by_side",
            lambda calls, device, rounds: {name: Timed(times[name], None) for name in calls if call_runs(calls[name])},
        )

    return patch


def call_runs(call):
    return bool(torch.isfinite(call().forces).all())


@pytest.mark.parametrize(("ratio", "name"), [(0.5, "cuEquivariance"), (1.0, "e3nn"), (1.5, "e3nn")])
def test_the_faster_one_is_taken(model, graph, kernels, ratio, name):
    kernels(ratio)
    found = chosen(model, graph, "auto")
    assert backend(found.model) == name
    assert (found.model is model) == (name == "e3nn")
    assert found.why.startswith(f"{name} computes it")
    assert f"by cuEquivariance {ratio:.3g} times that" in found.why
    assert backend(model) == "e3nn"


def test_what_fits_is_taken(model, graph, kernels):
    kernels(2.0, does_not_fit=True)
    found = chosen(model, graph, "auto")
    assert backend(found.model) == "cuEquivariance"
    assert found.why.endswith("by e3nn the largest structure does not fit in the memory.")


def test_without_kernels_there_is_no_choice(model, graph):
    found = chosen(model, graph, "auto")
    assert found.model is model
    assert found.why == ""


def test_what_is_asked_for_is_taken(model, converted, graph):
    assert backend(chosen(model, graph, "cuEquivariance").model) == "cuEquivariance"
    assert chosen(model, graph, "e3nn").model is model
    assert chosen(converted, graph, "auto").model is converted


def test_what_cannot_be_converted_stays_and_says_so(model, graph, kernels, monkeypatch):
    def refuse(model, device):
        raise InputError("This cannot be converted.")

    kernels(0.5)
    monkeypatch.setattr(backends, "to_cuequivariance", refuse)
    found = chosen(model, graph, "auto")
    assert found.model is model
    assert found.why == "e3nn computes it, as cuEquivariance does not: This cannot be converted."


def test_wrong_backends_are_refused(model, converted, graph):
    with pytest.raises(InputError, match="one of auto, e3nn, cuEquivariance; got 'oeq'"):
        chosen(model, graph, "oeq")
    with pytest.raises(InputError, match="converted to cuEquivariance already"):
        chosen(converted, graph, "e3nn")
