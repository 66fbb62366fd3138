"""array_errors.py: the errors of an array in blocks are those of the array, and no more than a block is in memory."""

import tracemalloc

import numpy as np
import pytest
import xarray as xr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from runs import molecule, trace_of
from traces_by_hand import trace_by_hand

import precision_probe as pp
from precision_probe.analysis import array_errors, pairs
from precision_probe.analysis.array_errors import ArrayErrors
from precision_probe.analysis.metrics import compare
from precision_probe.analysis.rounding_floor import representation_floor
from precision_probe.precisions import parse_precision
from precision_probe.trace.schema import COUNTED
from precision_probe.trace.trace import Trace

SPECIAL = st.sampled_from([0.0, -0.0, 1e-200, -1e180, 1e-310, 5e-324, 65519.0, 65520.0, np.inf, -np.inf, np.nan])
NUMBERS = st.one_of(st.floats(-1e3, 1e3), SPECIAL)


def in_blocks(y, y_hat, precision, at, eps=1e-12):
    errors = ArrayErrors(precision, eps, is_whole=False)
    return errors.of_all([errors.of_block(y[rows], y_hat[rows]) for rows in np.split(np.arange(len(y)), at)])


def check(y, y_hat, precision, at, eps=1e-12):
    found = in_blocks(y, y_hat, precision, at, eps)
    with np.errstate(all="ignore"):
        expected = compare(y, y_hat, precision, eps) | {"floor": representation_floor(y, precision), "n": y.size}
    # where errors cancel, or a ratio is near 1, what is left of them is as near as its parts are
    near = {"bias": 1e-12 * np.nan_to_num(expected["mean_abs"], posinf=1e308), "cosine": 1e-13, "sqnr_db": 1e-12}
    near["floor"] = 1e-150  # of a smaller one, squares are below the least number, and lost where nothing scales them
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=near.get(name, 0), err_msg=name)


@pytest.mark.parametrize("name", ["float32", "tf32", "bfloat16", "float16", "float64", "e5m4", "m10", "e4m3"])
@pytest.mark.parametrize("size", [1.0, 1e-180, 1e150])
def test_blocks_have_the_errors_of_the_whole(name, size, monkeypatch):
    monkeypatch.setattr(array_errors, "_IN_CACHE", 64)
    rng = np.random.default_rng(0)
    y = size * rng.normal(size=(700, 3)) * 10 ** rng.uniform(-6, 3, size=(700, 1))
    y[5], y[100, 1] = 0, -0.0
    y_hat = (y * (1 + 1e-3 * rng.normal(size=y.shape))).astype(np.float32 if size == 1 else np.float64)
    y_hat[300, 2] = 0
    check(y, y_hat, parse_precision(name), [10, 10, 450], eps=1e-6)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12),
    st.integers(0, 12),
    st.sampled_from(["float16", "m10"]),
)
@example([(1e-310, 0.0)], 0, "m10")  # a format without a smallest number, where float64 has one
def test_special_values_have_the_answers_that_metrics_have(numbers, at, name):
    y, y_hat = np.asarray(numbers).T
    check(np.where(np.isfinite(y), y, 1.0), y_hat, parse_precision(name), [min(at, len(y))])


# Traces


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    """Of some molecules, one of which overflows."""
    structures = [molecule(seed) for seed in range(5)]
    return trace_of(model, structures, precisions="float32,e4m3", blocks=["interactions.0", "radial_*"]).save(
        tmp_path_factory.mktemp("trace") / "a.h5"
    )


def tables(path):
    with pp.open_trace(path) as trace, pp.open_trace(path) as again:
        of_errors = {by: pp.errors(trace, by=by) for by in (None, "irrep", "element")}
        return of_errors | {"summary": pp.summary(trace), "comparison": pp.compare_traces(trace, again)}


def test_tables_are_those_of_arrays_in_memory(path, monkeypatch):
    expected = tables(path)
    monkeypatch.setattr(pairs, "_BLOCK", 200)  # numbers: of most arrays some blocks, in which structures end anywhere
    for name, table in tables(path).items():
        whole = expected[name]
        assert len(table)
        numbers = table.select_dtypes(float).columns
        assert table.drop(columns=numbers).equals(whole.drop(columns=numbers)), name
        scale = whole.get("mean_abs", 0 * table[numbers[0]]).fillna(0).replace(np.inf, 0)
        for column in numbers:
            x, y = table[column].to_numpy(), whole[column].to_numpy()
            atol = 1e-12 * scale.to_numpy() if column == "bias" else 1e-15
            assert np.isclose(x, y, rtol=1e-12, atol=atol, equal_nan=True).all(), (name, column)


def tiled(trace, n):
    """The same structures over and over."""
    datasets = {node.path: node.to_dataset(inherit=False) for node in trace.tree.subtree}
    rows = {dim: np.tile(np.arange(size), n) for dim, size in trace.structures.sizes.items() if dim in COUNTED}
    return Trace(
        xr.DataTree.from_dict({path: each.isel(rows, missing_dims="ignore") for path, each in datasets.items()})
    )


def test_memory_is_that_of_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "_BLOCK", 2**11)
    path = tiled(trace_by_hand(), 10_000).save(tmp_path / "a.h5")
    with pp.open_trace(path) as trace:
        n_bytes = trace.group("propagated", "float64")["products.0.output"].nbytes
        expected = pp.errors(trace_by_hand())  # and imports
        tracemalloc.start()
        table = pp.errors(trace)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert table["n"].tolist() == (10_000 * expected["n"]).tolist()
    np.testing.assert_allclose(table["rel_l2"], expected["rel_l2"])
    assert peak < n_bytes / 2
