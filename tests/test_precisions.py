"""precisions.py against what NumPy, ml_dtypes and torch say of the same formats."""

import ml_dtypes
import numpy as np
import pytest
import torch

from precision_probe.exceptions import InputError
from precision_probe.precisions import (
    DEFAULT_PRECISIONS,
    PRECISIONS,
    Precision,
    parse_precision,
    parse_precisions,
)

NUMPY = {"float64": np.float64, "float32": np.float32, "float16": np.float16}


@pytest.mark.parametrize("name", NUMPY)
def test_numbers_as_in_numpy(name):
    precision, finfo = PRECISIONS[name], np.finfo(NUMPY[name])
    assert precision.unit_roundoff == finfo.eps / 2
    assert precision.largest == finfo.max
    assert precision.smallest_normal == finfo.smallest_normal
    assert precision.smallest_subnormal == finfo.smallest_subnormal
    assert precision.significand_bits == finfo.nmant + 1
    assert precision.min_exponent == finfo.minexp
    assert precision.max_exponent == finfo.maxexp - 1


@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16", "float16"])
def test_numbers_as_in_ml_dtypes(name):
    precision, finfo = PRECISIONS[name], ml_dtypes.finfo(getattr(ml_dtypes, name, name))
    assert precision.unit_roundoff == float(finfo.eps) / 2
    assert precision.largest == float(finfo.max)
    assert precision.smallest_normal == float(finfo.smallest_normal)
    assert precision.smallest_subnormal == float(finfo.smallest_subnormal)
    assert precision.significand_bits == finfo.nmant + 1
    assert precision.min_exponent == finfo.minexp
    assert precision.max_exponent == finfo.maxexp - 1


@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16", "float16"])
def test_numbers_as_in_torch(name):
    precision, dtype = PRECISIONS[name], getattr(torch, name)
    finfo = torch.finfo(dtype)
    assert precision.dtype == name
    assert precision.unit_roundoff == finfo.eps / 2
    assert precision.largest == finfo.max
    assert precision.smallest_normal == finfo.smallest_normal
    smallest = torch.tensor(precision.smallest_subnormal, dtype=torch.float64)
    assert smallest.to(dtype).double() == smallest
    assert (smallest / 2).to(dtype) == 0


def test_tf32_has_the_range_of_float32_and_the_digits_of_float16():
    tf32 = PRECISIONS["tf32"]
    assert tf32.dtype == "float32"
    assert (tf32.min_exponent, tf32.max_exponent) == (-126, 127)
    assert tf32.smallest_normal == np.finfo(np.float32).smallest_normal
    assert tf32.unit_roundoff == np.finfo(np.float16).eps / 2
    # The largest: a float32 whose 13 last bits are 0, as the tensor cores read it.
    assert np.float32(tf32.largest).view(np.uint32) == 0x7F7FE000
    assert np.float32(tf32.smallest_subnormal).view(np.uint32) == 0x2000


@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16", "float16"])
def test_unit_roundoff_is_the_largest_rounding_error(name):
    precision, dtype = PRECISIONS[name], getattr(torch, name)
    u = precision.unit_roundoff
    assert torch.tensor(1.0, dtype=dtype) + torch.tensor(2 * u, dtype=dtype) > 1
    assert torch.tensor(1.0, dtype=dtype) + torch.tensor(u, dtype=dtype) == 1  # the tie goes to even
    if name != "float64":
        y = 1 + torch.arange(100_000, dtype=torch.float64) / 100_000
        error = ((y.to(dtype).double() - y) / y).abs().max()
        assert 0.9 * u < error <= u


def test_only_tf32_needs_cuda():
    assert [name for name, precision in PRECISIONS.items() if precision.needs_cuda] == ["tf32"]


def test_names():
    assert list(PRECISIONS) == ["float64", "float32", "tf32", "bfloat16", "float16"]
    assert all(str(precision) == precision.name == name for name, precision in PRECISIONS.items())
    assert set(DEFAULT_PRECISIONS) == {"float32", "bfloat16", "float16"}


def test_a_precision_cannot_be_changed():
    with pytest.raises(AttributeError):
        PRECISIONS["float16"].significand_bits = 12


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("float64", "float64"),
        ("fp64", "float64"),
        ("double", "float64"),
        ("fp32", "float32"),
        ("single", "float32"),
        ("bf16", "bfloat16"),
        ("fp16", "float16"),
        ("half", "float16"),
        ("TF32", "tf32"),
        ("  BFloat16 ", "bfloat16"),
        (str(torch.bfloat16), "bfloat16"),
        (str(torch.half), "float16"),
    ],
)
def test_parse(text, name):
    assert parse_precision(text) is PRECISIONS[name]


def test_parse_keeps_a_precision():
    mine = Precision("mine", 5, 5, "float32")
    assert parse_precision(mine) is mine
    assert parse_precisions(mine) == (mine,)
    assert parse_precisions([mine, "half"]) == (mine, PRECISIONS["float16"])


@pytest.mark.parametrize("text", ["float8", "", "floot16", "16", "fp 16"])
def test_unknown_names(text):
    with pytest.raises(InputError, match="Unknown precision") as caught:
        parse_precision(text)
    assert repr(text) in str(caught.value)
    assert all(name in str(caught.value) for name in PRECISIONS)


def test_a_near_miss_is_suggested():
    with pytest.raises(InputError, match="Did you mean 'bfloat16'"):
        parse_precision("bfloat61")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("float16", ["float16"]),
        ("fp32, bf16,half", ["float32", "bfloat16", "float16"]),
        (["half", "fp16", "float16"], ["float16"]),
        (("float16", "float32"), ["float16", "float32"]),
        ("float64,float32", ["float32"]),
        ("float32,,", ["float32"]),
        ("float64", []),
        ((name for name in ("tf32", "half")), ["tf32", "float16"]),
    ],
)
def test_parse_several(names, expected):
    assert [str(precision) for precision in parse_precisions(names)] == expected


@pytest.mark.parametrize("names", ["", " , ", []])
def test_none_given(names):
    with pytest.raises(InputError, match="No precision"):
        parse_precisions(names)


def test_one_unknown_among_several():
    with pytest.raises(InputError, match="'fp12'"):
        parse_precisions("fp32,fp12")
