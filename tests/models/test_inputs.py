"""inputs.py: nests of tensors changed and named, against torch's own pytrees and NumPy."""

import types
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from precision_probe.models.inputs import Inputs, map_tensors, named_tensors, overwrites

Point = namedtuple("Point", "x y")
NUMBERS = np.array([1 / 3, -2.5, 70000.0])

tensors = st.builds(
    lambda n, dtype: torch.arange(n).to(dtype), st.integers(0, 3), st.sampled_from([torch.float64, int])
)
leaves = tensors | st.integers() | st.none() | st.text(max_size=3)
nests = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.builds(Point, inner, inner)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(nest=nests)
@settings(deadline=None)
def test_every_tensor_is_changed_and_nothing_else(nest):
    changed, expected = (
        map_tensors(lambda x: 2 * x + 1, nest),
        pytree.tree_map_only(torch.Tensor, lambda x: 2 * x + 1, nest),
    )
    ours, theirs = (pytree.tree_flatten(tree) for tree in (changed, expected))
    assert ours[1] == theirs[1]  # the same containers, named tuples included
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert type(a) is type(b)
        assert torch.equal(a, b) if torch.is_tensor(a) else a == b


def test_other_mappings_become_dictionaries():
    x = torch.ones(1)
    changed = map_tensors(torch.neg, types.MappingProxyType({"x": x, "n": 3}))
    assert type(changed) is dict
    assert (changed["x"].item(), changed["n"]) == (-1, 3)
    assert x.item() == 1


# one call


def inputs():
    return Inputs("i", ([torch.from_numpy(NUMBERS)], torch.tensor([1, 2])), {"by": {"scale": torch.ones(2)}, "n": 4})


@pytest.mark.parametrize(("dtype", "numpy"), [(torch.float16, np.float16), (torch.float32, np.float32)])
def test_cast_rounds_floating_point_numbers_and_follows_their_gradients(dtype, numpy):
    given_inputs = inputs()
    cast = given_inputs.cast(dtype)
    (x,), whole = cast.args
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(x.detach().numpy(), NUMBERS.astype(numpy))
    assert x.requires_grad
    assert x.is_leaf
    assert cast.kwargs["by"]["scale"].dtype is dtype
    assert cast.kwargs["by"]["scale"].requires_grad
    assert (whole.dtype, whole.requires_grad, cast.kwargs["n"], cast.name) == (torch.int64, False, 4, "i")
    assert given_inputs.args[0][0].dtype is torch.float64
    assert not given_inputs.args[0][0].requires_grad


def test_casting_to_the_dtype_they_have_does_not_mark_what_was_given():
    given_inputs = inputs()
    given_inputs.cast(torch.float64)
    assert not given_inputs.args[0][0].requires_grad


def test_what_is_cast_shares_no_memory_with_what_was_given():
    given_inputs = inputs()
    cast = given_inputs.cast(torch.float64)
    with torch.no_grad():
        cast.args[0][0].zero_()
        cast.args[1].zero_()
    assert given_inputs.args[0][0].tolist() == NUMBERS.tolist()
    assert given_inputs.args[1].tolist() == [1, 2]


def test_modules_that_say_that_they_overwrite_their_input():
    relu, dropout = torch.nn.ReLU(inplace=True), torch.nn.Dropout(0.1, inplace=True)
    assert overwrites(relu)
    assert overwrites(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(dropout)))
    assert not overwrites(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Dropout(0.1)))


def test_copies_are_off_the_graph_and_safe_from_changes():
    weights = torch.ones(2, requires_grad=True)
    y = 3 * weights
    given_inputs = Inputs("i", (y,), {"y": [y]}, is_call=True)
    copied = given_inputs.copied()
    with torch.no_grad():
        y.zero_()
    for tensor in (copied.args[0], copied.kwargs["y"][0]):
        assert tensor.tolist() == [3, 3]
        assert not tensor.requires_grad
    assert (copied.name, copied.is_call) == ("i", True)


def test_another_device_has_the_same_shapes():
    moved = inputs().to("meta")
    devices = [x.device.type for x in pytree.tree_leaves((moved.args, moved.kwargs)) if torch.is_tensor(x)]
    assert devices == ["meta"] * 3
    assert moved.args[0][0].shape == (3,)


# what a module returns


a, b, whole = torch.zeros(2), torch.ones(3), torch.ones(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (a, {"output": a}),
        ((a,), {"output": a}),
        ([a], {"output": a}),
        ((a, b), {"output0": a, "output1": b}),
        ((whole, b, None), {"output1": b}),
        (Point(a, b), {"output0": a, "output1": b}),
        ({"x": a, 7: b, "whole": whole, "none": None, "nested": {"y": a}}, {"x": a, "7": b}),
        (whole, {}),
        (None, {}),
        ((), {}),
        (3.5, {}),
    ],
)
def test_outputs_are_named(returned, expected):
    outputs = named_tensors(returned)
    assert list(outputs) == list(expected)
    assert all(outputs[name] is tensor for name, tensor in expected.items())
