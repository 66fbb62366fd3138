"""weights.py: the variants have the weights of this moment, however they were changed."""

import copy

import numpy as np
import pytest
import torch
from runs import data_of

import precision_probe as pp
from precision_probe.precisions import PRECISIONS
from precision_probe.probe.weights import Weights
from precision_probe.variants.variant import Variant

CPU = torch.device("cpu")
FAST = {"precisions": "float32", "device": "cpu", "blocks": "readouts.*", "modes": "propagated"}


def weight(model):
    return model.interactions[0].linear_up.weight


def fused(kind):
    def change(model):
        optimizer = kind([weight(model)], lr=1e-2, fused=True)
        weight(model).grad = torch.ones_like(weight(model))
        optimizer.step()

    return change


def load(model):
    model.load_state_dict({name: 1.01 * x if x.is_floating_point() else x for name, x in model.state_dict().items()})


def average(model):
    ema = pytest.importorskip("torch_ema").ExponentialMovingAverage(model.parameters(), decay=0.5)
    with torch.no_grad():
        weight(model).mul_(1.05)
    ema.update()
    ema.copy_to(model.parameters())  # as mace's own training does before a validation


CHANGES = {
    "data": lambda model: weight(model).data.mul_(1.01),
    "copy_": lambda model: weight(model).data.copy_(1.01 * weight(model)),
    "NumPy": lambda model: weight(model).detach().numpy().__imul__(1.01),
    "one bit": lambda model: weight(model).detach().numpy().view(np.int64).__ixor__(1),
    "buffer": lambda model: model.scale_shift.scale.data.mul_(1.01),
    "another parameter": lambda model: setattr(
        model.interactions[0].linear_up, "weight", torch.nn.Parameter(1.01 * weight(model).detach())
    ),
    "load_state_dict": load,
    "torch_ema": average,
    "Adam": fused(torch.optim.Adam),
    "AdamW": fused(torch.optim.AdamW),
    "SGD": fused(torch.optim.SGD),
    "Adagrad": fused(torch.optim.Adagrad),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_weights_are_those_of_the_reference(mine, water, name):
    before = mine(data_of(water, mine))["energy"].item()
    with pp.attach(mine, **FAST) as probe:
        mine(data_of(water, mine))
        CHANGES[name](mine)
        live = mine(data_of(water, mine))
    trace = probe.trace()
    energies = trace.group("propagated", "float64")["energy"].values
    np.testing.assert_allclose(energies, [before, live["energy"].item()], rtol=1e-15)
    assert name == "one bit" or energies[0] != energies[1]
    assert trace.attributes["weights_changed"] is True
    assert trace.attributes["complete"] is True
    assert trace.attributes["not_of_the_called_model"] == {}


def test_signs_of_zero_and_nan_are_bits_too():
    model = torch.nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, torch.nan]]))
    clone = Variant(model, PRECISIONS["float64"], CPU, evaluation=object())
    weights = Weights(model, [clone])
    weights.follow()
    assert not weights.have_changed  # as NaN == NaN is not true
    model.weight.data[0, 0] = -0.0
    weights.follow()
    assert weights.have_changed
    assert torch.signbit(clone.model.weight[0, 0])


def test_a_model_whose_weights_stay_is_not_copied_again(mine, monkeypatch):
    clone = Variant(mine, PRECISIONS["float32"], CPU)
    weights = Weights(mine, [clone])
    monkeypatch.setattr(Variant, "follow", lambda *_: pytest.fail("nothing has changed"))
    weights.follow()
    mine.train(not mine.training)
    weights.follow()
    assert clone.model.training == mine.training
    assert not weights.have_changed


def test_every_kind_of_tensor_is_compared():
    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for dtype in ("float64", "float32", "bfloat16", "int64", "int8", "bool", "complex128"):
                self.register_buffer(f"of_{dtype}", torch.zeros(3, 2, dtype=getattr(torch, dtype)).T)
            self.register_buffer("scalar", torch.tensor(0.0))
            self.register_buffer("nothing", torch.zeros(0))

    names = [name for name, tensor in Mixed().named_buffers() if tensor.numel()]
    for name in names:
        model = Mixed()
        weights = Weights(model, [])
        weights.follow()
        assert not weights.have_changed
        getattr(model, name).fill_(1)
        weights.follow()
        assert weights.have_changed, name
        again = copy.copy(weights)
        again.have_changed = False
        again.follow()
        assert not again.have_changed


def test_weights_in_inference_mode_are_followed_too(mine, water):
    with torch.inference_mode(), pp.attach(mine, **FAST) as probe:
        mine(data_of(water, mine), compute_force=False)
        weight(mine).data.mul_(1.01)
        live = mine(data_of(water, mine), compute_force=False)["energy"].item()
    energies = probe.trace().group("propagated", "float64")["energy"].values
    np.testing.assert_allclose(energies[1], live, rtol=1e-15)
    assert energies[0] != energies[1]
    assert probe.trace().attributes["failures"] == []
