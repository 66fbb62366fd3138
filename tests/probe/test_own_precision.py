"""own_precision.py: which clone a live call is compared with."""

import pytest
import torch
from runs import data_of

import precision_probe as pp
from precision_probe.models.evaluation import AnyModule
from precision_probe.models.inputs import Inputs
from precision_probe.precisions import PRECISIONS
from precision_probe.probe.own_precision import OwnPrecision
from precision_probe.variants.variant import Variant

CPU = torch.device("cpu")
FAST = {"device": "cpu", "blocks": "readouts.*", "modes": "isolated"}
EVALUATION = AnyModule(lambda module, x: module(x))


def make(module, precision):
    return Variant(module, precision, CPU, EVALUATION)


def own(module, *names):
    return OwnPrecision(module, [make(module, PRECISIONS[name]) for name in ("float64", *names)], make)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_variant_in_the_models_dtype_is_taken_and_made_where_there_is_none(dtype):
    linear = torch.nn.Linear(2, 1).to(getattr(torch, dtype))
    assert own(linear, "float32", "bfloat16").extra is None
    alone = own(linear)
    assert (alone.extra is None) == (dtype == "float64")
    if alone.extra is not None:
        assert alone.extra.precision.name == dtype
    assert alone.note == ""


def test_a_variant_emulated_or_in_tf32_is_not_in_the_models_dtype():
    linear = torch.nn.Linear(2, 1)
    variants = [make(linear, PRECISIONS["float64"]), make(linear, pp.precisions.parse_precision("e8m23"))]
    assert OwnPrecision(linear, variants, make).extra.precision.name == "float32"


def test_a_model_that_holds_two_dtypes_is_not_compared_and_says_so():
    mixed = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1).double())
    both = own(mixed)
    assert both.note.startswith("the model holds float32, float64: its calls are not compared")
    assert both.differences(torch.ones(1), Inputs("x", (torch.ones(1),)), {}) == []


def test_a_model_without_weights_computes_in_the_dtype_of_its_inputs():
    square = torch.nn.Sequential(torch.nn.Tanh())
    x = torch.tensor([1 / 3], dtype=torch.float32)
    compared, sample = own(square), Inputs("x", (x,))
    assert compared.extra is None
    assert compared.differences(torch.tanh(x), sample, {}) == []
    assert compared.extra.precision.name == "float32"
    (difference,) = compared.differences(1.01 * torch.tanh(x), sample, {})
    assert difference.largest == pytest.approx(0.01 * torch.tanh(x).item(), rel=1e-5)


def test_a_clone_that_is_no_variant_follows_the_weights(mine, water):
    mine.float()
    data = {name: x.float() if x.is_floating_point() else x for name, x in data_of(water, mine).items()}
    with pp.attach(mine, precisions="bfloat16", **FAST) as probe:
        for _ in range(2):
            mine(dict(data))
            mine.interactions[0].linear_up.weight.data.mul_(1.05)
    attributes = probe.trace().attributes
    assert attributes["not_of_the_called_model"] == {}
    assert attributes["weights_changed"] is True
    assert attributes["precisions"] == ["float64", "bfloat16"]
