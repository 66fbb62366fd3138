"""rounding.py: bit for bit what ml_dtypes and torch do, and arithmetic that is like the hardware's."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from runs import trace_of

import precision_probe as pp
from precision_probe.precisions import parse_precision
from precision_probe.structures import read_structures
from precision_probe.variants.rounding import Rounding, generator_of, round_to

# IEEE 754 formats of two other libraries, by name
FORMATS = {
    "e8m23": np.float32,
    "e5m10": np.float16,
    "e8m7": ml_dtypes.bfloat16,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3": ml_dtypes.float8_e4m3,
    "e3m4": ml_dtypes.float8_e3m4,
}
any_bits = arrays(np.uint64, 64, elements=st.integers(0, 2**64 - 1))


def around(dtype):
    """Every neighbourhood where rounding is delicate: ties, subnormals, the largest number and beyond."""
    info = ml_dtypes.finfo(dtype)
    tiny, largest = float(info.smallest_subnormal), float(info.max)
    exact = np.concatenate([tiny * np.arange(0, 40), float(info.tiny) * np.linspace(0.9, 2.1, 50), [largest, 1.0, 3.0]])
    between = np.concatenate(
        [exact, exact + tiny / 2, exact * (1 + float(info.eps) / 2), exact * (1 + float(info.eps))]
    )
    near = np.concatenate([between, np.nextafter(between, 0), np.nextafter(between, np.inf)])
    return np.concatenate([near, -near, [0.0, -0.0, np.inf, -np.inf, np.nan]])


def same(found, expected):
    """Equal, NaN to NaN, and zeros of the same sign."""
    np.testing.assert_array_equal(found, expected)
    finite = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(found[finite]), np.signbit(expected[finite]))


def once_rounded(values, dtype):
    """NumPy's own rounding from float64; ml_dtypes goes through float32, so values are made float32 first."""
    with np.errstate(all="ignore"):
        return values.astype(dtype).astype(np.float64)


@pytest.mark.parametrize("name", FORMATS)
def test_delicate_numbers_are_rounded_as_other_libraries_do(name):
    with np.errstate(all="ignore"):
        values = around(FORMATS[name])
        if FORMATS[name] not in (np.float32, np.float16):
            values = values.astype(np.float32).astype(np.float64)
    same(round_to(torch.as_tensor(values), parse_precision(name)).numpy(), once_rounded(values, FORMATS[name]))


@given(bits=any_bits)
@settings(max_examples=50, deadline=None)
@pytest.mark.parametrize("name", ["e8m23", "e5m10"])
def test_random_bit_patterns_are_rounded_as_numpy_does(name, bits):
    values = bits.view(np.float64)
    same(round_to(torch.as_tensor(values), parse_precision(name)).numpy(), once_rounded(values, FORMATS[name]))


@given(bits=arrays(np.uint32, 64, elements=st.integers(0, 2**32 - 1)))
@settings(max_examples=50, deadline=None)
@pytest.mark.parametrize(("name", "dtype"), [("e8m7", torch.bfloat16), ("e5m10", torch.float16)])
def test_random_float32_patterns_are_rounded_as_torch_casts_do(name, dtype, bits):
    values = torch.as_tensor(bits.view(np.float32).astype(np.float64))
    expected = values.float().to(dtype).double()
    same(round_to(values, parse_precision(name)).numpy(), expected.numpy())


@given(bits=any_bits)
@settings(max_examples=50, deadline=None)
def test_a_format_without_range_has_bounded_relative_error_and_rounds_once(bits):
    values = torch.as_tensor(bits.view(np.float64))
    normal = values[torch.isfinite(values) & (values.abs() > 1e-300) & (values.abs() < 1e300)]
    for name in ("m1", "m10", "m51"):
        rounded = round_to(normal, parse_precision(name))
        assert ((rounded - normal).abs() <= parse_precision(name).unit_roundoff * normal.abs()).all()
        assert torch.equal(round_to(rounded, parse_precision(name)), rounded)
    assert torch.equal(round_to(normal, parse_precision("m52")), normal)


def test_stochastic_rounding_is_right_on_average_and_lands_on_neighbours():
    precision = parse_precision("e5m3sr")
    x = torch.tensor([1.03, -5.71, 300.9, 3e-5], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    found = round_to(x.expand(20000, -1), precision, generator)
    assert all(len(column.unique()) == 2 for column in found.T)
    nearest = round_to(found[0], parse_precision("e5m3"))
    assert torch.equal(nearest, found[0])
    spacing = found.max(dim=0).values - found.min(dim=0).values
    assert ((found.mean(dim=0) - x).abs() < 5 * spacing / 2 / np.sqrt(20000)).all()  # five standard errors at most
    assert (found.max(dim=0).values >= x).all()
    assert (found.min(dim=0).values <= x).all()


def test_every_result_forward_and_backward_is_of_the_format():
    precision = parse_precision("e8m7")
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(6, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = (round_to(x, precision).requires_grad_() for x in (a, b))
    with Rounding(precision):
        y = torch.nn.functional.silu(a @ b) / (1 + b.square())
        (grad,) = torch.autograd.grad(y.sum(), a)
        written = torch.zeros(6, 6, dtype=torch.float64).add_(y.detach()).div_(3.0)
        view = y.T[:2]
    for tensor in (y, grad, written):
        assert torch.equal(round_to(tensor.detach(), precision), tensor.detach())
    assert view._base is not None or view.data_ptr() == y.data_ptr()  # views stay views
    exact = torch.nn.functional.silu(a @ b) / (1 + b.square())
    assert 0 < float((y - exact).detach().abs().max()) < 0.05
    assert torch.equal(torch.ones(1, dtype=torch.float64) / 3, torch.tensor([1 / 3], dtype=torch.float64))  # it is off


def test_stochastic_float32_is_stochastic():
    x = torch.full((1000,), 0.333251953125, dtype=torch.float64)  # its neighbours in float32 are 2⁻²⁵ away
    with Rounding(parse_precision("e8m23sr"), torch.Generator().manual_seed(0)):
        y = x + 2.0**-26
    assert 400 < int((y > x).sum()) < 600


def test_integers_and_other_dtypes_are_left_alone():
    with Rounding(parse_precision("m2")):
        assert (torch.arange(9) * 1001).tolist() == [n * 1001 for n in range(9)]
        assert torch.tensor([1.1]).dtype == torch.float32


@pytest.mark.parametrize("name", ["e8m7sr", "m52sr"])
def test_stochastic_formats_need_a_generator(name):
    precision = parse_precision(name)
    with pytest.raises(ValueError, match=f"{name} is rounded at random and needs a generator"):
        round_to(torch.ones(1, dtype=torch.float64), precision)
    with pytest.raises(ValueError, match=f"{name} is rounded at random and needs a generator"):
        Rounding(precision)


@pytest.mark.parametrize("name", ["e5m3sr", "m3sr"])
def test_random_numbers_are_the_generators_and_torchs_own_are_left_alone(name):
    precision, x = parse_precision(name), torch.linspace(-3e-5, 3.0, 1001, dtype=torch.float64)
    before, rounded, computed = torch.random.get_rng_state(), [], []
    for seed in (0, 0, 1):
        rounded.append(round_to(x, precision, generator_of(precision, "cpu", seed)))
        with Rounding(precision, generator_of(precision, "cpu", seed)):
            computed.append(x * x)
    assert torch.equal(torch.random.get_rng_state(), before)
    for first, again, other in (rounded, computed):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_formats_rounded_to_nearest_draw_nothing():
    precision = parse_precision("e5m3")
    assert generator_of(precision, "cpu") is None
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    round_to(torch.linspace(-3, 3, 101, dtype=torch.float64), precision, generator)
    assert torch.equal(generator.get_state(), before)


# against hardware


HARDWARE = {"float32": "e8m23", "bfloat16": "e8m7", "float16": "e5m10"}


@pytest.fixture(scope="module")
def beside_hardware():
    names = [*HARDWARE, *HARDWARE.values()]
    return trace_of("demo", read_structures("demo")[1:3], precisions=names)


@pytest.mark.parametrize("real", HARDWARE)
def test_on_every_block_errors_are_like_the_hardwares(beside_hardware, real):
    table = pp.errors(beside_hardware)
    table = table[~table["block"].isin(["model", "scale_shift", "atomic_energies_fn"])]  # a few energies: no statistics
    keys = ["mode", "block", "tensor", "direction"]
    expected, found = (table[table["precision"] == name].set_index(keys) for name in (real, HARDWARE[real]))
    compared = expected["resolved"] & (expected["rel_l2"] > 0)
    assert compared.sum() > 40
    ratio = (found["rel_l2"] / expected["rel_l2"])[compared]
    assert ratio.between(1 / 1.5, 1.5).all(), ratio[~ratio.between(1 / 1.5, 1.5)]


def test_emulated_float32_is_float32(beside_hardware):
    real, found = (beside_hardware.group("propagated", name) for name in ("float32", "e8m23"))
    for name in ("energy", "forces", "interactions.1.message", "interactions.0.edge_attrs.grad"):
        np.testing.assert_array_equal(found[name], real[name])


@pytest.mark.parametrize(
    ("real", "scale", "count"),
    [("float16", 3e4, "nonfinite"), ("bfloat16", 3e39, "nonfinite"), ("float16", 1e-6, "flushed")],
)
def test_numbers_overflow_and_vanish_where_the_hardwares_do(mine, water, real, scale, count):
    with torch.no_grad():
        mine.interactions[0].linear.weight.mul_(scale)
    table = pp.errors(trace_of(mine, water, precisions=[real, HARDWARE[real]])).set_index(
        ["mode", "block", "tensor", "direction"]
    )
    expected, found = (table[table["precision"] == name] for name in (real, HARDWARE[real]))
    message = ("propagated", "interactions.0", "message", "forward")
    assert found.loc[message, count] == expected.loc[message, count] > 0
    assert expected[count].sum() > 20
    assert found[count].sum() == pytest.approx(expected[count].sum(), rel=0.1)
