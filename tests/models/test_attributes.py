"""attributes.py: cutoff, elements, heads and the hash of the weights."""

import hashlib
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_probe.models.attributes import cutoff, elements, heads, inputs_needed, not_finite, weights_sha256
from precision_probe.models.building import build


def test_cutoff_and_elements_are_the_architectures(config):
    model = build(config | {"r_max": 2.75, "atomic_numbers": [8, 6, 1], "num_interactions": 1})
    assert cutoff(model) == 2.75
    assert elements(model) == [8, 6, 1]  # in the order of the one-hot columns, not of the numbers
    assert {type(z) for z in elements(model)} == {int}


@pytest.mark.parametrize(
    ("given_heads", "expected"), [(["a", "b"], ["a", "b"]), (("Default",), ["Default"]), (None, ["Default"])]
)
def test_heads(given_heads, expected):
    assert heads(types.SimpleNamespace(heads=given_heads)) == expected


def test_models_older_than_heads_have_one():
    assert heads(torch.nn.Linear(1, 1)) == ["Default"]


# inputs beside the geometry


def test_what_a_model_needs_beside_the_geometry(model, config):
    specs = {"total_spin": {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 4}}
    dipoles = {"model": "AtomicDipolesMACE", "MLP_irreps": "4x1o", "atomic_energies": None}
    assert inputs_needed(model) == set()
    assert inputs_needed(build(config | {"embedding_specs": specs, "num_interactions": 1})) == {"total_spin"}
    dipole = build(config | dipoles | {"num_interactions": 1})
    assert inputs_needed(dipole) == {"charges"}
    assert inputs_needed(type("Mine", (type(dipole),), {}).__new__(type(dipole))) == {"charges"}


# weights that are no numbers


def test_weights_that_are_no_numbers_are_named():
    layer = torch.nn.BatchNorm1d(3)
    assert not_finite(layer) == []
    layer.running_var[1] = torch.inf  # a bound may be so on purpose
    assert not_finite(layer) == []
    with torch.no_grad():
        layer.weight[0] = torch.inf
    layer.running_mean[2] = torch.nan
    assert not_finite(layer) == ["weight", "running_mean"]


# weights_sha256


@given(place=st.integers(0, 5), bit=st.integers(0, 63), transposed=st.booleans())
@settings(deadline=None)
def test_hash_changes_with_one_bit(place, bit, transposed):
    first, second = torch.nn.Module(), torch.nn.Module()
    for module in (first, second):
        module.register_buffer("values", torch.arange(6.0, dtype=torch.float64).view(2, 3))
    if transposed:  # other strides, the same numbers
        second.values = second.values.T.contiguous().T
    assert weights_sha256(first) == weights_sha256(second)
    bits = second.values.T.view(torch.int64) if transposed else second.values.view(torch.int64)
    bits[divmod(place, bits.shape[1])] ^= -(2**63) if bit == 63 else 1 << bit
    assert weights_sha256(first) != weights_sha256(second)


def test_hash_sees_name_shape_and_dtype():
    def with_buffer(name, values):
        module = torch.nn.Module()
        module.register_buffer(name, values)
        return weights_sha256(module)

    zeros = torch.zeros(4, dtype=torch.float64)
    others = [zeros.view(2, 2), zeros.float(), torch.zeros(8), zeros.view(torch.int64)]
    hashes = {with_buffer("a", zeros), with_buffer("b", zeros), *(with_buffer("a", other) for other in others)}
    assert len(hashes) == 6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_hash_is_that_of_names_dtypes_shapes_and_bytes_in_order_of_name(dtype):
    module = torch.nn.Module()
    module.register_buffer("b", torch.tensor([[1, 2], [-3, 4]], dtype=dtype))
    module.register_buffer("a", torch.tensor(0, dtype=dtype))
    one, three = {  # 1 and -3, little-endian
        torch.float64: ("000000000000f03f", "00000000000008c0"),
        torch.float32: ("0000803f", "000040c0"),
        torch.bfloat16: ("803f", "40c0"),
        torch.int64: ("0100000000000000", "fdffffffffffffff"),
    }[dtype]
    two, four = {
        torch.float64: ("0000000000000040", "0000000000001040"),
        torch.float32: ("00000040", "00008040"),
        torch.bfloat16: ("0040", "8040"),
        torch.int64: ("0200000000000000", "0400000000000000"),
    }[dtype]
    size = len(one) // 2
    expected = f"a {dtype} ()\n".encode() + bytes(size)
    expected += f"b {dtype} (2, 2)\n".encode() + bytes.fromhex(one + two + three + four)
    assert weights_sha256(module) == hashlib.sha256(expected).hexdigest()
