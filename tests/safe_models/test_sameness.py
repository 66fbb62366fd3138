"""sameness.py: two models that are not the same are told apart, whatever differs."""

import copy

import numpy as np
import pytest
import torch

from precision_probe.models.attributes import elements
from precision_probe.safe_models.sameness import differences, plain_differences, predictions, same_bits


def by_an_ulp(model):
    weight = model.readouts[0].linear.weight.data
    weight[1] = torch.nextafter(weight[1], weight[1] + 1)


def sign_of_zero(model):
    model.scale_shift.shift.data.fill_(-0.0)


def attribute(model):
    model.interactions[1].avg_num_neighbors *= 1 + 1e-15


def irreps(model):
    model.interactions[0].target_irreps = model.interactions[0].target_irreps + model.interactions[0].target_irreps


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (by_an_ulp, "readouts.0.linear.weight"),
        (sign_of_zero, "scale_shift.shift"),
        (attribute, "interactions.1.avg_num_neighbors"),
        (irreps, "interactions.0.target_irreps"),
    ],
)
def test_a_difference_is_named(model, mine, change, name):
    twin = copy.deepcopy(mine)
    for each in (mine, twin):
        each.scale_shift.shift.data.fill_(0.0)
    assert list(differences(mine, twin)) == []
    change(twin)
    assert list(differences(mine, twin)) == [name]


def test_numbers_of_numpy_are_written_as_those_of_python(mine, model):
    mine.interactions[0].avg_num_neighbors = np.float32(5.5)
    mine.note = ("a", 1)
    found = plain_differences(mine, model)
    assert found == {"interactions.0.avg_num_neighbors": 5.5, "note": ["a", 1]}
    assert type(found["interactions.0.avg_num_neighbors"]) is float


def test_bits_are_compared():
    nan, zero = torch.tensor([torch.nan]), torch.tensor([0.0])
    assert same_bits(nan, nan.clone())
    assert not same_bits(zero, -zero)
    assert not same_bits(zero, zero.double())
    assert not same_bits(zero, zero.reshape(()))
    assert same_bits(torch.empty(0, 3), torch.empty(0, 3))


def test_predictions_are_of_every_element_and_are_no_constants(model):
    found = predictions(model)
    assert set(found) == {f"Default: {name}" for name in ("energy", "interaction_energy", "forces", "stress")}
    assert found["Default: forces"].shape == (8, 3)
    assert found["Default: forces"].abs().min() > 0
    assert torch.isfinite(found["Default: stress"]).all()
    assert elements(model) == [1, 6, 8]
