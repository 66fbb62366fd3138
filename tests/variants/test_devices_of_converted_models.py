"""devices.py, for models converted to OpenEquivariance: where they compute, and in which precisions."""

import copy
from types import SimpleNamespace

import pytest
import torch

import precision_probe as pp
from precision_probe.precisions import PRECISIONS, parse_precisions
from precision_probe.variants.devices import check_precisions, default_precisions

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def network(model):
    """A copy of the small model that says that it is converted to OpenEquivariance."""
    network = copy.deepcopy(model)
    network.interactions[0].oeq_config = SimpleNamespace(enabled=True)
    return network


@pytest.fixture
def ampere(monkeypatch):
    """As if there were a GPU with tensor cores: nothing is run on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))


def test_openequivariance_is_refused_on_the_cpu(network):
    with pytest.raises(pp.InputError, match=r"OpenEquivariance, which computes on CUDA only; the device is cpu"):
        check_precisions(parse_precisions("float32"), CPU, network)
    with pytest.raises(pp.InputError, match=r"OpenEquivariance, which computes on CUDA only; the device is cpu"):
        pp.attach(network, device="cpu")


@pytest.mark.parametrize("names", ["float16", "bfloat16", "float32,bfloat16"])
def test_openequivariance_is_refused_in_half_precision(network, model, ampere, names):
    with pytest.raises(pp.InputError, match=r"float64 and float32 only. Leave out \w*float16"):
        check_precisions(parse_precisions(names), CUDA, network)
    check_precisions(parse_precisions("float32,tf32"), CUDA, network)
    check_precisions(parse_precisions(names), CUDA, model)


def test_openequivariance_is_not_asked_for_halves_by_default(network, model, ampere):
    assert [str(precision) for precision in default_precisions("cuda", network)] == ["float32", "tf32"]
    assert default_precisions("cuda", model) == parse_precisions(PRECISIONS)
    assert {"float32", "bfloat16", "float16"} == {str(precision) for precision in default_precisions("cpu", model)}
