"""rebuilding.py: a model from its description and its tensors, each in the dtype that it has."""

import pytest
import torch

from precision_probe.models.attributes import weights_sha256
from precision_probe.safe_models.description import Description
from precision_probe.safe_models.rebuilding import rebuilt, unloaded

ONE_LAYER = {"num_interactions": 1}


@pytest.mark.slow
def test_each_tensor_has_the_dtype_that_it_is_given(one_layer, config):
    state = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in one_layer.state_dict().items()
    }
    state["r_max"] = state["r_max"].double()
    state["readouts.0.linear.weight"] = state["readouts.0.linear.weight"].bfloat16()
    made = rebuilt(Description(config | ONE_LAYER), state)
    assert {name: tensor.dtype for name, tensor in made.state_dict().items()} == {
        name: tensor.dtype for name, tensor in state.items()
    }
    assert all(torch.equal(tensor, state[name]) for name, tensor in made.state_dict().items())


def test_attributes_and_frozen_parameters(one_layer, config):
    frozen = ("readouts.0.linear.weight",)
    made = rebuilt(
        Description(config | ONE_LAYER, {"interactions.0.avg_num_neighbors": 7.5}, frozen=frozen),
        one_layer.state_dict(),
    )
    assert [each.avg_num_neighbors for each in made.interactions] == [7.5]
    assert tuple(name for name, each in made.named_parameters() if not each.requires_grad and each.numel()) == frozen
    assert weights_sha256(made) == weights_sha256(one_layer)


def test_a_tensor_of_2022_becomes_the_number_that_it_was(config):
    made = unloaded(Description(config | ONE_LAYER, {"r_max": 3.0}))
    assert type(made.r_max) is float
    assert "r_max" not in made.state_dict()
