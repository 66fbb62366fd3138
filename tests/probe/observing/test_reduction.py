"""reduction.py: statistics made by torch, in parts, have the metrics of the whole arrays."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from precision_probe.analysis.metrics import compare
from precision_probe.analysis.rounding_floor import representation_floor
from precision_probe.analysis.statistics import STATISTICS, combined, floor_of, metrics_of
from precision_probe.precisions import parse_precision
from precision_probe.probe.observing import reduction
from precision_probe.probe.observing.reduction import Columns, Owners, errors_of_nan, reduced, side_by_side

IRREPS = ("0e", "0e", "1o", "1o", "1o", "0e")
SPECIAL = st.sampled_from([0.0, 1e-200, -1e180, 1e-310, np.inf, -np.inf, np.nan])
NUMBERS = st.one_of(st.floats(-1e3, 1e3), SPECIAL)


def arrays(seed, n_rows=7, shape=(6,), size=1.0):
    rng = np.random.default_rng(seed)
    y = size * rng.normal(size=(n_rows, *shape))
    return y, y * (1 + 1e-3 * rng.normal(size=y.shape))


def check(statistics, y, y_hat, precision):
    found, expected = metrics_of(statistics, precision), compare(y, y_hat, precision)
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=1e-13 if name == "bias" else 0, err_msg=name)
    np.testing.assert_allclose(floor_of(statistics), representation_floor(y, precision), rtol=1e-11)


def statistics_of(y, y_hat, owners, parts, precision):
    columns = Columns.of([torch.as_tensor(y)], [parts])
    flat = [owners.in_order(side_by_side([torch.as_tensor(array)])) for array in (y, y_hat)]
    ((labels, found),) = columns.each(reduced(*flat, owners, columns, parse_precision(precision)))
    assert found.shape == (owners.n, len(labels), len(STATISTICS))
    return labels, found.numpy()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16", "e5m4", "e8m7sr"])
@pytest.mark.parametrize("size", [1.0, 1e-180, 1e150])
def test_parts_and_wholes_have_the_metrics_of_the_arrays(precision, size):
    y, y_hat = arrays(0, size=size)
    owner = np.asarray([0, 2, 2, 0, 1, 2, 0])
    labels, found = statistics_of(y, y_hat, Owners(3, torch.as_tensor(owner)), IRREPS, precision)
    assert labels == ("0e", "1o")
    format_ = parse_precision(precision)
    with np.errstate(all="ignore"):
        check(combined(found.reshape(-1, len(STATISTICS))), y, y_hat, format_)
        for number in range(3):
            check(combined(found[number]), y[owner == number], y_hat[owner == number], format_)
        for index, label in enumerate(labels):
            chosen = np.asarray(IRREPS) == label
            check(combined(found[:, index]), y[:, chosen], y_hat[:, chosen], format_)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12), st.integers(1, 3))
def test_special_values_have_the_answers_that_metrics_have(pairs, n_owners):
    y, y_hat = np.asarray(pairs).T
    if not np.isfinite(y).all():  # then it is no reference
        y = np.where(np.isfinite(y), y, 1.0)
    # what is compared is one number a row, and belongs to one of some owners
    owner = np.arange(len(y)) % n_owners
    with np.errstate(all="ignore"):
        _, found = statistics_of(y[:, None], y_hat[:, None], Owners(n_owners, torch.as_tensor(owner)), (), "float32")
        whole = combined(found.reshape(-1, len(STATISTICS)))
        found, expected = metrics_of(whole, parse_precision("float32")), compare(y, y_hat, parse_precision("float32"))
    # where errors cancel, or a ratio is near 1, what is left of them is as near as its parts are
    near = {"bias": 1e-12 * np.nan_to_num(expected["max_abs"], posinf=1e308), "cosine": 1e-13, "sqnr_db": 1e-12}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=near.get(name, 0), err_msg=name)


def test_rows_of_one_owner_and_more_dimensions():
    y, y_hat = arrays(1, shape=(4, 3))
    labels, found = statistics_of(y, y_hat, Owners(1), ("1o", "1o", "1o"), "float16")
    assert labels == ("1o",)
    check(found[0, 0], y, y_hat, parse_precision("float16"))


def test_nothing_has_the_errors_of_one_exact_zero():
    y = np.zeros((0, 3))
    _, found = statistics_of(y, y, Owners(2, torch.zeros(0, dtype=torch.int64)), (), "float32")
    check(combined(found.reshape(-1, len(STATISTICS))), y, y, parse_precision("float32"))


@pytest.mark.parametrize("lacking", [[0, 1, 2], [1]])
def test_a_variant_that_computed_nothing_has_the_errors_of_nan(lacking):
    """Also beside structures that it did compute: all but the floor, of which nothing is known then."""
    y, y_hat = arrays(3)
    owners, float32 = Owners(3, torch.as_tensor([0, 2, 2, 0, 1, 2, 0])), parse_precision("float32")
    _, found = statistics_of(y, y_hat, owners, IRREPS, "float32")
    columns = Columns.of([torch.as_tensor(y)], [IRREPS])
    shape = owners.in_order(torch.as_tensor(y)).shape
    found[lacking] = errors_of_nan(shape, owners, columns).numpy()[lacking]
    y_hat[np.isin([0, 2, 2, 0, 1, 2, 0], lacking)] = np.nan
    whole, expected = metrics_of(combined(found.reshape(-1, len(STATISTICS))), float32), compare(y, y_hat, float32)
    for name, value in expected.items():
        np.testing.assert_array_equal(whole[name], value, err_msg=name)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_tensors_side_by_side_are_those_apart(precision):
    owners = Owners(2, torch.as_tensor([0, 1, 1, 0]))
    given = [(arrays(0, 4), IRREPS), (arrays(1, 4, (2, 4), 1e-9), ("0e", "1o", "1o", "1o")), (arrays(2, 4, ()), ())]
    tensors = [[torch.as_tensor(pair[index]).float() for pair, _ in given] for index in range(2)]
    columns = Columns.of(tensors[0], [parts for _, parts in given])
    ordered = (owners.in_order(side_by_side(each)) for each in tensors)
    together = reduced(*ordered, owners, columns, parse_precision(precision))
    for (labels, found), (pair, parts) in zip(columns.each(together), given, strict=True):
        y, y_hat = (np.asarray(array, dtype=np.float32).astype(float) for array in pair)
        labels_apart, apart = statistics_of(y, y_hat, owners, parts, precision)
        assert labels == labels_apart
        np.testing.assert_allclose(found.numpy(), apart, rtol=1e-13)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_what_is_worked_on_at_once_changes_no_number(precision, monkeypatch):
    y, y_hat = (torch.as_tensor(array) for array in arrays(3, n_rows=50, shape=(100, 3)))
    owners = Owners(3, torch.arange(50) % 3)
    columns = Columns.of([y], [("1o", "1o", "1o")])
    ordered = [owners.in_order(side_by_side([each])) for each in (y, y_hat)]
    found = []
    for cached in (1, 2**30):
        monkeypatch.setattr(reduction, "_CACHED", cached)
        found.append(reduced(*ordered, owners, columns, parse_precision(precision)))
    assert torch.equal(*found)


def test_nothing_waits_for_the_numbers():
    """On a device that has none, whatever would need one fails."""
    y = torch.empty(5, 6, device="meta", dtype=torch.float64)
    owners, columns = Owners(2, torch.empty(5, device="meta", dtype=torch.int64)), Columns.of([y], [IRREPS])
    for name in ("float32", "tf32", "bfloat16", "float16", "e5m4"):
        ordered = owners.in_order(y)
        assert reduced(ordered, ordered, owners, columns, parse_precision(name)).shape == (2, 2, len(STATISTICS))


class Launches(TorchDispatchMode):
    """Counts operations but those that only look at tensors otherwise."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("precision", "most"), [("float32", 90), ("tf32", 90), ("float16", 110)])
def test_few_kernels_are_launched_however_many_tensors_there_are(precision, most):
    """Of which there are so many that launching them takes what running a small model takes."""
    counts = []
    for n in (1, 20):
        y, owners = torch.ones(5, 6 * n, dtype=torch.float64), Owners(2, torch.zeros(5, dtype=torch.int64))
        columns = Columns.of([y[:, :6]] * n, [IRREPS] * n)
        with Launches() as launched:
            ordered = owners.in_order(y)
            reduced(ordered, ordered, owners, columns, parse_precision(precision))
        counts.append(launched.n)
    assert counts[0] == counts[1] <= most


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("n_owners", [1, 3, 40])
def test_a_gpu_reduces_the_same_tensors_to_the_same_statistics(precision, n_owners):
    y, y_hat = arrays(0, n_rows=5000)
    y_hat[7, 2], y_hat[9, 3] = np.inf, np.nan
    of_row = torch.as_tensor(np.random.default_rng(0).integers(0, n_owners, len(y)))
    found = []
    for device in ("cpu", "cuda"):
        tensors = [torch.as_tensor(array).to(device) for array in (y, y_hat)]
        owners, columns = Owners(n_owners, of_row.to(device)), Columns.of(tensors[:1], [IRREPS])
        ordered = (owners.in_order(side_by_side([tensor])) for tensor in tensors)
        found.append(reduced(*ordered, owners, columns, parse_precision(precision)).cpu().numpy())
    cpu, cuda = (dict(zip(STATISTICS, np.moveaxis(each, -1, 0), strict=True)) for each in found)
    for name in STATISTICS:
        # a sum of errors of both signs is as near as its terms are
        atol = 1e-12 * np.nan_to_num(cpu["error_magnitudes"], posinf=0).max() if name == "errors" else 0
        np.testing.assert_allclose(cuda[name], cpu[name], rtol=1e-12, atol=atol, err_msg=name)
