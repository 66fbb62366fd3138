"""rounding_floor.py: what NumPy, ml_dtypes and torch store."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from precision_probe.analysis.rounding_floor import representation_floor, represented
from precision_probe.precisions import PRECISIONS, parse_precision
from precision_probe.variants.rounding import round_to

any_bits = arrays(np.uint64, 64, elements=st.integers(0, 2**64 - 1))
DTYPES = {"float32": np.float32, "tf32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@given(bits=any_bits)
@settings(max_examples=50, deadline=None)
@pytest.mark.parametrize("name", DTYPES)
def test_random_bit_patterns_are_stored_as_by_the_dtype(name, bits):
    with np.errstate(all="ignore"):
        values = bits.view(np.float64).astype(np.float32).astype(np.float64)  # ml_dtypes goes through float32
        expected = values.astype(DTYPES[name]).astype(np.float64)
    np.testing.assert_array_equal(represented(values, PRECISIONS[name]), expected)


@given(bits=any_bits)
@settings(max_examples=50, deadline=None)
@pytest.mark.parametrize("name", ["e5m10", "e4m3", "e8m23", "m10", "m30"])
def test_emulated_formats_are_those_of_the_rounding_mode(name, bits):
    values = bits.view(np.float64)
    values = values[(np.abs(values) < 1e300) & (np.abs(values) > 1e-290)]  # the sum that rounds stays in float64
    expected = round_to(torch.as_tensor(values), parse_precision(name)).numpy()
    np.testing.assert_array_equal(represented(values, parse_precision(name)), expected)


def test_the_floor_is_the_error_of_the_stored_reference():
    y = np.random.default_rng(0).normal(size=10_000)
    expected = np.linalg.norm(y.astype(np.float16).astype(np.float64) - y) / np.linalg.norm(y)
    assert representation_floor(y, PRECISIONS["float16"]) == pytest.approx(expected)
    assert representation_floor(1e200 * y, parse_precision("m10")) == pytest.approx(expected, rel=0.05)
    assert representation_floor(np.zeros(3), PRECISIONS["float16"]) == 0
    assert representation_floor(np.asarray([1e5, 1.0]), PRECISIONS["float16"]) == np.inf
    assert representation_floor(y, PRECISIONS["float64"]) == 0
