"""precisions.py against what NumPy, ml_dtypes and torch say of the same formats."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from precision_probe.exceptions import InputError
from precision_probe.precisions import (
    PRECISIONS,
    Precision,
    emulated,
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


def test_only_tf32_rounds_the_inputs_of_products_alone_and_needs_cuda():
    for name in (*PRECISIONS, "e8m10", "m10sr"):  # an emulation of its bits is not tf32
        precision = parse_precision(name)
        assert precision.products_only == precision.needs_cuda == (name == "tf32")
        assert precision.matmul_mode == ("tf32" if name == "tf32" else "ieee")


@pytest.mark.parametrize("name", [*PRECISIONS, "e5m10", "m7sr"])
def test_storage_is_what_holds_the_numbers(name):
    precision = parse_precision(name)
    assert precision.storage is (PRECISIONS["float32"] if name == "tf32" else precision)
    assert precision.storage.dtype == precision.dtype
    assert precision.storage.storage is precision.storage
    assert precision.storage.unit_roundoff <= precision.unit_roundoff


def test_names():
    assert list(PRECISIONS) == ["float64", "float32", "tf32", "bfloat16", "float16"]
    assert all(str(precision) == precision.name == name for name, precision in PRECISIONS.items())
    assert not any(precision.emulated for precision in PRECISIONS.values())


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


@pytest.mark.parametrize(("name", "bits", "range_", "stochastic"), [
    ("e5m10", (11, 5), True, False),
    ("M10", (11, 11), False, False),
    ("e8m7sr", (8, 8), True, True),
])  # fmt: skip
def test_names_of_formats(name, bits, range_, stochastic):
    precision = parse_precision(name)
    assert (precision.significand_bits, precision.exponent_bits) == bits
    assert (precision.has_range, precision.stochastic) == (range_, stochastic)
    assert (precision.emulated, precision.dtype) == (True, "float64")


@pytest.mark.parametrize("name", ["e12m10", "e1m3", "m0", "m53", "e5", "e5m"])
def test_formats_that_cannot_be_emulated_are_refused(name):
    with pytest.raises(InputError, match=name):
        parse_precision(name)


@given(significand=st.integers(2, 53), exponent=st.none() | st.integers(2, 11), stochastic=st.booleans())
def test_the_name_of_an_emulated_format_means_that_format(significand, exponent, stochastic):
    precision = emulated(significand, exponent, stochastic=stochastic)
    assert parse_precision(precision.name) == precision
    assert (precision.significand_bits, precision.exponent_bits) == (significand, exponent or 11)
    assert precision.has_range == (exponent is not None)
    assert precision.stochastic == stochastic
    # a unit in the last place of 1 is 2¹⁻ᵖ: rounding to nearest is at most half of it off, at random a whole one
    assert precision.unit_roundoff * (1 if stochastic else 2) == 2.0 ** (1 - significand)


@pytest.mark.parametrize("bits", [(1, 5), (54, 5), (11, 1), (11, 12), (54, None)])
def test_bits_that_float64_does_not_have_are_refused(bits):
    with pytest.raises(InputError, match=r"cannot be emulated in float64: 2 to 11 bits of exponent and 1 to 52"):
        emulated(*bits)


@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16", "float16"])
def test_an_emulated_format_has_the_numbers_of_the_hardwares_with_the_same_bits(name):
    """float64's exponents are what a format without range of its own has."""
    real = PRECISIONS[name]
    for exponent in (real.exponent_bits, *([None] if name == "float64" else [])):
        precision = emulated(real.significand_bits, exponent)
        for number in ("unit_roundoff", "largest", "smallest_normal", "smallest_subnormal"):
            assert getattr(precision, number) == getattr(real, number)


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
