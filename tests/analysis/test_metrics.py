"""metrics.py against references written from the definitions, in NumPy, torch and dask alike."""

import inspect
import math
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import dask
import dask.array as da
import ml_dtypes
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from precision_probe.analysis import metrics
from precision_probe.analysis.metrics import METRICS, compare
from precision_probe.exceptions import InputError
from precision_probe.precisions import PRECISIONS, Precision

pytestmark = pytest.mark.filterwarnings("error")

inf, nan = math.inf, math.nan

DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


def make_numpy(values: np.ndarray) -> np.ndarray:
    return values


def make_torch(values: np.ndarray) -> torch.Tensor:
    wide = torch.from_numpy(np.asarray(values, dtype=np.float64))
    return wide.to(getattr(torch, values.dtype.name))  # exact: the values were rounded to their dtype before


def make_dask(values: np.ndarray) -> da.Array:
    return da.from_array(values, chunks=3)


LIBRARIES = {"numpy": make_numpy, "torch": make_torch, "dask": make_dask}
in_every_library = pytest.mark.parametrize("make", LIBRARIES.values(), ids=LIBRARIES)


def call(name: str, y: Any, y_hat: Any, precision: Precision) -> Any:
    """The metric of this name, called as a user would."""
    function = getattr(metrics, name)
    needs_precision = "precision" in inspect.signature(function).parameters
    return function(y, y_hat, precision) if needs_precision else function(y, y_hat)


def alone(y: Any, y_hat: Any, precision: Precision) -> dict[str, float]:
    """Every metric, called as a user would; those of dask computed together, which takes a tenth of the time."""
    results = [call(name, y, y_hat, precision) for name in METRICS]
    return {name: float(value) for name, value in zip(METRICS, dask.compute(*results), strict=True)}


def finfo(precision: str) -> Any:
    return ml_dtypes.finfo(DTYPES[precision])


def ulp(y: float, precision: str) -> Fraction:
    """Distance of neighbours in the format at y, from its exact binary digits."""
    smallest = Fraction(float(finfo(precision).smallest_subnormal))
    numerator, denominator = abs(Fraction(y)).as_integer_ratio()
    if numerator == 0:
        return smallest
    exponent = numerator.bit_length() - denominator.bit_length()
    exponent = min(exponent, finfo(precision).maxexp - 1)
    return max(Fraction(2) ** (exponent - finfo(precision).nmant), smallest)


def reference(y: list[float], y_hat: list[float], precision: str) -> dict[str, float]:
    """Every metric of finite numbers from its definition, to 60 decimal digits and without limits of range."""
    with mpmath.workdps(60):
        delta = [mpmath.mpf(b) - mpmath.mpf(a) for a, b in zip(y, y_hat, strict=True)]
        # Elements, and rel_l2 for what is made of it, are limited to the range of float64; sums and squares are not.
        relative = [mpmath.mpf(float(abs(d) / (abs(a) + mpmath.mpf(1e-12)))) for d, a in zip(delta, y, strict=True)]
        ulps = [mpmath.mpf(float(abs(d) / to_mpf(ulp(a, precision)))) for d, a in zip(delta, y, strict=True)]

        def norm(values):
            return mpmath.sqrt(sum(mpmath.mpf(value) ** 2 for value in values))

        if not any(delta):
            rel_l2, sqnr_db = mpmath.mpf(0), mpmath.inf
        elif not any(y):
            rel_l2, sqnr_db = mpmath.inf, -mpmath.inf
        else:
            rel_l2 = mpmath.mpf(float(norm(delta) / norm(y)))
            sqnr_db = -20 * mpmath.log10(rel_l2) if rel_l2 else mpmath.inf
        if any(y) and any(y_hat):
            product = sum(mpmath.mpf(a) * mpmath.mpf(b) for a, b in zip(y, y_hat, strict=True))
            cosine = product / (norm(y) * norm(y_hat))
        else:
            cosine = float(not any(y) and not any(y_hat))
        largest = max(abs(b) for b in y_hat)
        values = {
            "max_abs": max(abs(d) for d in delta),
            "mean_rel": sum(relative) / len(y),
            "mean_abs": sum(abs(d) for d in delta) / len(y),
            "rms": norm(delta) / mpmath.sqrt(len(y)),
            "bias": sum(delta) / len(y),
            "rel_l2": rel_l2,
            "amplification": rel_l2 / (mpmath.mpf(float(finfo(precision).eps)) / 2),
            "sqnr_db": sqnr_db,
            "cosine": cosine,
            "ulp_max": max(ulps),
            "ulp_mean": sum(ulps) / len(y),
            "nonfinite": 0,
            "flushed": sum(a != 0 and b == 0 for a, b in zip(y, y_hat, strict=True)),
            "headroom": mpmath.mpf(float(finfo(precision).max)) / largest if largest else mpmath.inf,
        }
        return {name: float(value) for name, value in values.items()}


def to_mpf(fraction: Fraction) -> Any:
    return mpmath.mpf(fraction.numerator) / fraction.denominator


def check(make: Callable[[np.ndarray], Any], y: np.ndarray, y_hat: np.ndarray, precision: str) -> None:
    """The shared tester: every metric of these arrays, alone and from compare, against the reference."""
    arrays = make(y), make(y_hat)
    expected = reference(y.astype(float).tolist(), y_hat.astype(float).tolist(), precision)
    assume(expected["rel_l2"] > 1e-300 or expected["max_abs"] == 0.0)  # a subnormal has too few digits for decibels
    together = compare(*arrays, PRECISIONS[precision])
    assert list(together) == list(METRICS)
    # Cancellation: the mean may be much smaller than what is summed.
    tolerances = {"bias": 1e-14 * expected["mean_abs"], "cosine": 1e-14, "sqnr_db": 1e-12}
    each = alone(*arrays, PRECISIONS[precision])
    for name, value in together.items():
        tolerance = max(tolerances.get(name, 0.0), 1e-323)
        assert value == pytest.approx(expected[name], rel=1e-13, abs=tolerance), name
        assert each[name] == value, name


def rounded(values: list[float], precision: str) -> np.ndarray:
    """The values rounded to the format, those out of range to its largest number."""
    largest = float(finfo(precision).max)
    return np.clip(np.asarray(values, dtype=np.float64), -largest, largest).astype(DTYPES[precision])


numbers = st.floats(-1e300, 1e300) | st.sampled_from([0.0, -0.0, 5e-324, -3e-320, 2.0**-1022, 1.0, -2.0, 65504.0, 6e-8])
pairs = st.one_of(
    st.tuples(numbers, numbers),
    numbers.map(lambda number: (number, number)),
    st.tuples(numbers, st.floats(-0.01, 0.01)).map(lambda pair: (pair[0], pair[0] * (1 + pair[1]))),
    st.tuples(st.floats(-10, 10), st.floats(-10, 10)),
)
several = st.lists(pairs, min_size=1, max_size=10)
formats = st.sampled_from(list(DTYPES))


@given(data=several, precision=formats)
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_against_reference(library, data, precision):
    y, y_hat = map(list, zip(*data, strict=True))
    check(LIBRARIES[library], np.asarray(y), rounded(y_hat, precision), precision)
    check(LIBRARIES[library], rounded(y, precision), rounded(y_hat, precision), precision)


@given(data=several, precision=formats)
@settings(max_examples=6, deadline=None)
def test_against_reference_dask(data, precision):
    y, y_hat = map(list, zip(*data, strict=True))
    check(make_dask, np.asarray(y), rounded(y_hat, precision), precision)


@in_every_library
@pytest.mark.parametrize("shape", [(), (1,), (257,), (4, 5, 6)])
def test_shapes(make, shape):
    y = np.random.default_rng(0).standard_normal(shape)
    y_hat = np.asarray(1.5 * y, dtype=np.float32)
    expected = reference(y.ravel().tolist(), y_hat.astype(float).ravel().tolist(), "float32")
    assert compare(make(np.asarray(y)), make(y_hat), PRECISIONS["float32"]) == pytest.approx(expected, rel=1e-12)


NO_ERROR = dict.fromkeys(METRICS, 0.0) | {"sqnr_db": inf, "cosine": 1.0}
INFINITE = dict.fromkeys(METRICS, inf) | {"sqnr_db": -inf, "cosine": nan, "headroom": 0.0, "flushed": 0}
UNKNOWN = dict.fromkeys(METRICS, nan) | {"nonfinite": 1, "flushed": 0}

# Reference, variant and every metric in float16: largest number 65504, ulp(1) = 2^-10, u = 2^-11.
DEFINED = {
    "empty": ([], [], NO_ERROR | {"headroom": inf}),
    "equal": ([1.0, -2.0, 0.1], [1.0, -2.0, 0.1], NO_ERROR | {"headroom": 32752.0}),
    "both all zero": ([0.0, -0.0], [-0.0, 0.0], NO_ERROR | {"headroom": inf}),
    "reference all zero": (
        [0.0, 0.0],
        [3.0, -4.0],
        {
            "max_abs": 4.0,
            "mean_rel": 3.5e12,
            "mean_abs": 3.5,
            "rms": math.sqrt(12.5),
            "bias": -0.5,
            "rel_l2": inf,
            "amplification": inf,
            "sqnr_db": -inf,
            "cosine": 0.0,
            "ulp_max": 4.0 * 2**24,
            "ulp_mean": 3.5 * 2**24,
            "nonfinite": 0,
            "flushed": 0,
            "headroom": 16376.0,
        },
    ),
    "variant all zero": (
        [3.0, -4.0],
        [0.0, -0.0],
        {
            "max_abs": 4.0,
            "mean_rel": 1.0,
            "mean_abs": 3.5,
            "rms": math.sqrt(12.5),
            "bias": 0.5,
            "rel_l2": 1.0,
            "amplification": 2048.0,
            "sqnr_db": 0.0,
            "cosine": 0.0,
            "ulp_max": 1536.0,
            "ulp_mean": 1280.0,
            "nonfinite": 0,
            "flushed": 2,
            "headroom": inf,
        },
    ),
    "constant": (
        [0.25] * 7,
        [0.75] * 7,
        {
            "max_abs": 0.5,
            "mean_rel": 2.0,
            "mean_abs": 0.5,
            "rms": 0.5,
            "bias": 0.5,
            "rel_l2": 2.0,
            "amplification": 4096.0,
            "sqnr_db": -20 * math.log10(2),
            "cosine": 1.0,
            "ulp_max": 2048.0,
            "ulp_mean": 2048.0,
            "nonfinite": 0,
            "flushed": 0,
            "headroom": 65504.0 / 0.75,
        },
    ),
    "inf": ([1.0, 2.0, 0.0, 4.0], [1.0, inf, 0.0, 4.0], INFINITE | {"nonfinite": 1}),
    "-inf": ([1.0, 2.0, 0.0, 4.0], [1.0, -inf, 0.0, 4.0], INFINITE | {"nonfinite": 1, "bias": -inf}),
    "inf of both signs": ([1.0, 2.0, 3.0, 4.0], [-inf, 2.0, 3.0, inf], INFINITE | {"nonfinite": 2, "bias": nan}),
    "inf for all zeros": ([0.0, 0.0], [inf, 0.0], INFINITE | {"nonfinite": 1}),
    "nan": ([1.0, 2.0, 0.0, 4.0], [1.0, nan, 0.0, 4.0], UNKNOWN),
    "nan for all zeros": ([0.0, 0.0], [0.0, nan], UNKNOWN),
    "nan beside inf of both signs": (
        [1.0, 2.0, 3.0, 4.0],
        [inf, nan, -inf, 0.0],
        UNKNOWN | {"nonfinite": 3, "flushed": 1, "headroom": nan},
    ),
    "nan in the reference": (
        [1.0, nan, 0.0, 4.0],
        [1.0, 2.0, 0.0, 0.0],
        UNKNOWN | {"nonfinite": 0, "flushed": 1, "headroom": 32752.0},
    ),
    "inf - inf": ([1.0, inf], [1.0, inf], UNKNOWN | {"nonfinite": 1, "headroom": 0.0}),
    "inf in the reference": (
        [1.0, inf],
        [1.0, 2.0],
        UNKNOWN | {"max_abs": inf, "mean_abs": inf, "rms": inf, "bias": -inf, "nonfinite": 0, "headroom": 32752.0},
    ),
}


@in_every_library
@pytest.mark.parametrize("case", DEFINED)
def test_defined_answers(make, case):
    y, y_hat, expected = DEFINED[case]
    arrays = make(np.asarray(y, dtype=np.float64)), make(np.asarray(y_hat, dtype=np.float64))
    precision = PRECISIONS["float16"]
    settings_before = np.geterr()
    together = compare(*arrays, precision)
    each = alone(*arrays, precision)
    assert together == pytest.approx(expected, rel=1e-11, abs=1e-15, nan_ok=True)
    assert each == pytest.approx(together, rel=0, abs=0, nan_ok=True)
    assert np.geterr() == settings_before
    exact = ("equal", "empty", "both all zero")
    assert case not in exact or together == expected
    assert math.copysign(1.0, together["sqnr_db"]) == 1.0 or together["sqnr_db"]  # no −0 dB


@pytest.mark.parametrize("make", [make_numpy, make_torch], ids=["numpy", "torch"])
@pytest.mark.parametrize("case", DEFINED)
def test_own_settings_are_kept_and_not_felt(make, case):
    y, y_hat, expected = DEFINED[case]
    arrays = make(np.asarray(y, dtype=np.float64)), make(np.asarray(y_hat, dtype=np.float64))
    with np.errstate(all="raise"):
        together = compare(*arrays, PRECISIONS["float16"])
        assert set(np.geterr().values()) == {"raise"}
    assert together == pytest.approx(expected, rel=1e-11, abs=1e-15, nan_ok=True)


def test_overflow_and_underflow_are_silent():
    with np.errstate(all="raise"):
        errors = compare(np.asarray([1e308, 1e-300, 0.0]), np.asarray([-1e308, 3e-310, 1e300]), PRECISIONS["float32"])
    assert errors["max_abs"] == errors["mean_rel"] == errors["ulp_max"] == inf


@in_every_library
@pytest.mark.parametrize("power", [-1074, -1060, -1000, -500, 500, 900, 1021])
def test_extreme_magnitudes(make, power):
    y, y_hat = np.asarray([3.0, 4.0, 0.0]), np.asarray([3.0, 5.0, 0.0])
    scale = math.ldexp(1.0, power)
    errors = compare(make(y * scale), make(y_hat * scale), PRECISIONS["float64"])
    assert errors["rel_l2"] == 0.2
    assert errors["cosine"] == pytest.approx(29 / math.sqrt(850), rel=1e-15)
    assert errors["max_abs"] == scale
    assert errors["rms"] == pytest.approx(scale / math.sqrt(3), rel=1e-15, abs=5e-324)
    assert errors["mean_abs"] == pytest.approx(scale / 3, rel=1e-15, abs=5e-324)


@in_every_library
@pytest.mark.parametrize(
    "value",
    [
        np.asarray([0x7FF0000000000001, 0]).view(np.float64),
        np.asarray([0x7F800001, 0], dtype=np.uint32).view(np.float32),
        np.asarray([0x7F81, 0], dtype=np.uint16).view(ml_dtypes.bfloat16),
        np.asarray([0x7D00, 0], dtype=np.uint16).view(np.float16),
    ],
    ids=lambda value: value.dtype.name,
)
def test_signalling_nans_are_silent(make, value):
    with np.errstate(invalid="ignore"):
        array = make(value)
    errors = compare(array, array, PRECISIONS["float32"])
    assert errors == pytest.approx(UNKNOWN, nan_ok=True)


def test_sums_beyond_the_range():
    y = np.zeros(1000)
    errors = compare(y, y + 1e308, PRECISIONS["float64"])
    assert errors["rms"] == errors["mean_abs"] == errors["bias"] == errors["max_abs"] == 1e308


integers = st.integers(-(2**20), 2**20)


@given(data=st.lists(st.tuples(integers, integers), min_size=1, max_size=20), power=st.integers(-1000, 1000))
@settings(deadline=None)
def test_scaling(data, power):
    y, y_hat = np.asarray(data, dtype=np.float64).T
    scale = 2.0**power
    before = compare(y, y_hat, PRECISIONS["float64"])
    after = compare(scale * y, scale * y_hat, PRECISIONS["float64"])
    for name in ("rel_l2", "amplification", "sqnr_db", "cosine", "nonfinite", "flushed"):
        assert after[name] == before[name], name
    for name in ("max_abs", "mean_abs", "rms", "bias"):
        assert after[name] == scale * before[name], name
    assert compare(y, scale * y, PRECISIONS["float64"])["cosine"] == 1.0
    assert -1.0 <= before["cosine"] <= 1.0


@given(data=several, seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_order_does_not_matter(data, seed):
    y, y_hat = np.asarray(data).T
    order = np.random.default_rng(seed).permutation(len(y))
    before, after = (compare(y[index], y_hat[index], PRECISIONS["float32"]) for index in (slice(None), order))
    tolerance = {"bias": 1e-14 * before["mean_abs"], "cosine": 1e-14, "sqnr_db": 1e-12}
    for name in METRICS:
        assert after[name] == pytest.approx(before[name], rel=1e-13, abs=tolerance.get(name, 1e-323)), name
    for name in ("max_abs", "ulp_max", "nonfinite", "flushed", "headroom"):
        assert after[name] == before[name], name


@given(y=st.floats(allow_nan=False, allow_infinity=False).filter(lambda y: abs(y) < 1.7e308))
def test_ulp_float64(y):
    neighbour = math.nextafter(y, inf)
    expected = (Fraction(neighbour) - Fraction(y)) / Fraction(math.ulp(y))  # ½ just above a negative power of 2
    for make in (make_numpy, make_torch):
        arrays = make(np.asarray([y])), make(np.asarray([neighbour]))
        assert float(call("ulp_max", *arrays, PRECISIONS["float64"])) == expected


def every_number(precision: str) -> np.ndarray:
    """All finite numbers of a format of 16 bits; for 32 bits, those with the 16 bits at the low end all 0 or all 1."""
    bits = np.arange(2**16, dtype=np.uint32)
    if precision == "float32":
        numbers = np.concatenate([bits << 16, bits << 16 | 0xFFFF]).view(np.float32)
    else:
        numbers = bits.astype(np.uint16).view(DTYPES[precision])
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return numbers[np.isfinite(numbers)]


@in_every_library
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_ulp_is_the_spacing(make, precision):
    y = every_number(precision)
    y = y[np.abs(y) < finfo(precision).max]  # which has no finite neighbour
    spacing = np.abs(np.spacing(np.abs(y)).astype(np.float64))
    make = make if make is not make_dask else lambda values: da.from_array(values, chunks=20_000)
    arrays = make(y), make(y.astype(np.float64) - spacing)
    # Each is exactly one unit off, as neither the largest nor the mean differs from 1.
    assert float(call("ulp_max", *arrays, PRECISIONS[precision])) == 1.0
    assert float(call("ulp_mean", *arrays, PRECISIONS[precision])) == 1.0


@in_every_library
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("exponent", [-1074, -1022, -149, -127, -126, -24, -15, -14, -1, 0, 1, 15, 16, 127, 128, 1023])
def test_ulp_beside_powers_of_two(make, precision, exponent):
    power = math.ldexp(1.0, exponent)
    for y in (math.nextafter(power, 0.0), power, math.nextafter(power, inf)):
        arrays = make(np.asarray([y])), make(np.zeros(1))
        assert float(call("ulp_max", *arrays, PRECISIONS[precision])) == float(Fraction(y) / ulp(y, precision))


def test_ulp_beyond_the_range_is_that_of_the_largest_number():
    assert call("ulp_max", np.asarray([1e9]), np.asarray([1e9 + 64.0]), PRECISIONS["float16"]) == 64.0 / 32.0


def test_tf32_counts_in_its_own_units():
    y, y_hat = np.asarray([1.0, 2.0**-126]), np.asarray([1.0 + 2.0**-10, 2.0**-126])
    errors = compare(y, y_hat, PRECISIONS["tf32"])
    assert errors["ulp_max"] == 1.0
    assert errors["amplification"] == pytest.approx(2.0, rel=1e-15)
    assert errors["headroom"] > 3e38


@given(y=st.lists(st.floats(-6e4, 6e4), min_size=1, max_size=20), precision=formats)
@settings(deadline=None)
def test_correct_rounding_is_half_a_unit(y, precision):
    y = np.asarray(y)
    errors = compare(y, y.astype(DTYPES[precision]), PRECISIONS[precision])
    assert errors["ulp_max"] <= 0.5
    if np.abs(y).min() >= float(finfo(precision).smallest_normal):
        assert errors["amplification"] <= 1.0


def test_headroom_and_flushed_of_a_cast():
    y = np.asarray([2.0**-24, 2.0**-25, 2.0**-26, 0.0, 1e-300, 1024.0])
    errors = compare(y, y.astype(np.float16), PRECISIONS["float16"])
    assert errors["flushed"] == 3
    assert errors["headroom"] == 65504 / 1024


@pytest.mark.parametrize("eps", [1e-3, 1.0, 1e6])
def test_eps(eps):
    y, y_hat = np.asarray([0.0, -2.0]), np.asarray([1.0, 1.0])
    expected = (1 / eps + 3 / (2 + eps)) / 2
    assert metrics.mean_rel(y, y_hat, eps=eps) == pytest.approx(expected, rel=1e-15)
    assert compare(y, y_hat, PRECISIONS["float32"], eps=eps)["mean_rel"] == metrics.mean_rel(y, y_hat, eps=eps)
    assert metrics.mean_rel(y, y_hat) == pytest.approx(5e11, rel=1e-9)


@in_every_library
def test_integers_are_taken_to_float64(make):
    y, y_hat = np.asarray([100, 50, 3], dtype=np.int8), np.asarray([-100, 50, 3], dtype=np.int8)
    assert compare(make(y), make(y_hat), PRECISIONS["float32"])["max_abs"] == 200.0


@in_every_library
@pytest.mark.parametrize("name", METRICS)
def test_kind_of_the_result(make, name):
    y = make(np.asarray([1.0, 2.0, 3.0, 4.0]))
    y_hat = make(np.asarray([1.0, 2.5, 3.0, 0.0], dtype=np.float32))
    result = call(name, y, y_hat, PRECISIONS["float32"])
    assert type(result) is type(y)
    assert result.shape == ()
    assert str(result.dtype).removeprefix("torch.") == ("int64" if name in ("nonfinite", "flushed") else "float64")


@in_every_library
def test_compare_gives_plain_numbers(make):
    y, y_hat = make(np.asarray([1.0, 2.0, 3.0, 4.0])), make(np.asarray([1.0, 2.5, 3.0, 0.0], dtype=np.float32))
    for name, number in compare(y, y_hat, PRECISIONS["float32"]).items():
        assert type(number) is (int if name in ("nonfinite", "flushed") else float)


@pytest.mark.parametrize("name", METRICS)
def test_dask_stays_lazy(name):
    def fail(block):
        raise AssertionError("computed too early")

    y = da.ones(6, chunks=2).map_blocks(fail, dtype=np.float64, meta=np.empty(0))
    result = call(name, y, y, PRECISIONS["float16"])
    with pytest.raises(AssertionError, match="computed too early"):
        result.compute()


def test_dask_computes_its_arrays_once():
    calls = []

    def count(block):
        calls.append(1)
        return block

    y = da.ones(6, chunks=2).map_blocks(count, dtype=np.float64, meta=np.empty(0))
    compare(y, da.ones(6, chunks=2), PRECISIONS["float16"])
    assert len(calls) == 3


def test_dask_chunks_may_differ():
    y = np.random.default_rng(0).standard_normal((6, 8))
    y_hat = y.astype(np.float16)
    together = compare(da.from_array(y, chunks=(2, 8)), da.from_array(y_hat, chunks=(3, 3)), PRECISIONS["float16"])
    assert together == pytest.approx(compare(y, y_hat, PRECISIONS["float16"]), rel=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_torch_device_is_kept_and_not_waited_for(name):
    y = torch.ones(5, dtype=torch.bfloat16, device="meta")  # it has no data: reading any would fail
    for arrays in ((y, y.double()), (y[:0], y[:0])):
        assert call(name, *arrays, PRECISIONS["bfloat16"]).device.type == "meta"


def test_torch_tensors_that_require_gradients():
    y = torch.ones(3, requires_grad=True)
    assert compare(y, 2 * y, PRECISIONS["float32"])["rel_l2"] == 1.0
    assert not metrics.rms(y, 2 * y).requires_grad


@in_every_library
def test_shapes_must_agree(make):
    y, y_hat = make(np.zeros((2, 3))), make(np.zeros((3, 1)))
    for name in METRICS:
        with pytest.raises(InputError, match=r"\(2, 3\).*\(3, 1\)"):
            call(name, y, y_hat, PRECISIONS["float32"])
    with pytest.raises(InputError, match=r"\(2, 3\).*\(3, 1\)"):
        compare(y, y_hat, PRECISIONS["float32"])


def test_arrays_are_left_alone():
    y, y_hat = np.asarray([1.0, 0.0, nan]), np.asarray([inf, 0.0, 2.0])
    for array in (y, y_hat):
        array.flags.writeable = False
    compare(y, y_hat, PRECISIONS["float32"])
    tensors = torch.tensor([1.0, 0.0, 3.0]).double(), torch.tensor([inf, 0.0, 2.0]).double()
    compare(*tensors, PRECISIONS["float32"])
    assert [tensor.tolist() for tensor in tensors] == [[1.0, 0.0, 3.0], [inf, 0.0, 2.0]]


def test_names():
    in_the_order_of_the_tables = (
        "max_abs mean_rel mean_abs rms bias rel_l2 amplification sqnr_db cosine ulp_max ulp_mean "
        "nonfinite flushed headroom"
    )
    assert list(METRICS) == in_the_order_of_the_tables.split()
    for name, definition in METRICS.items():
        assert definition.endswith("."), name
        assert "\n" not in definition
        assert callable(getattr(metrics, name))
    assert set(metrics.__all__) == {*METRICS, "METRICS", "EPS", "compare"}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16", "float16"])
def test_cuda_agrees_with_cpu(precision):
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(100_003, generator=generator, dtype=torch.float64)
    y *= 2.0 ** torch.randint(-30, 30, y.shape, generator=generator)
    y_hat = y.to(getattr(torch, precision))
    cuda = y.cuda(), y_hat.cuda()
    expected = compare(y, y_hat, PRECISIONS[precision])
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        try:
            torch.cuda.set_sync_debug_mode("error")
            alone = {name: call(name, *cuda, PRECISIONS[precision]) for name in METRICS}
        finally:
            torch.cuda.set_sync_debug_mode(before)
    assert all(result.device.type == "cuda" for result in alone.values())
    tolerance = 1e-12 * expected["mean_abs"] if math.isfinite(expected["mean_abs"]) else 0.0
    for errors in (compare(*cuda, PRECISIONS[precision]), {name: float(value) for name, value in alone.items()}):
        bias = errors.pop("bias")
        assert bias == pytest.approx(expected["bias"], rel=1e-12, abs=tolerance, nan_ok=True)
        assert errors == pytest.approx({name: expected[name] for name in errors}, rel=1e-12, abs=1e-300, nan_ok=True)
    for y_values, y_hat_values, answers in DEFINED.values():
        arrays = (torch.tensor(values, dtype=torch.float64, device="cuda") for values in (y_values, y_hat_values))
        errors = compare(*arrays, PRECISIONS["float16"])
        assert errors == pytest.approx(answers, rel=1e-11, abs=1e-15, nan_ok=True)
