"""cost.py: times and errors of candidates and precisions, zeros among them."""

import numpy as np
import pytest
from pages_by_hand import of_many
from traces_by_hand import trace_by_hand

import precision_probe as pp

CANDIDATES = {
    "model.to(float64)": {"seconds": 0.02, "forces": 0.0},
    "model.to(float32)": {"seconds": 0.01, "forces": 2e-5},
    "mixed": {"seconds": 0.012, "forces": 3e-7},
    "not timed": {"forces": 1e-6},
    "written by hand": {"seconds": "quick", "forces": 1e-6},
}


def points(axes):
    return {
        line.get_label(): (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


def test_candidates_of_a_policy(tmp_path):
    evidence = {"chosen": "mixed", "candidates": CANDIDATES}
    path = pp.Policy.uniform("float32").save(tmp_path / "policy.json")
    policy = pp.Policy(pp.Policy.load(path).rules, {"forces": 1e-4}, evidence)
    axes = pp.plot_policy(policy)
    expected = {name: (1e3 * row["seconds"], 1e3 * row["forces"]) for name, row in list(CANDIDATES.items())[:3]}
    assert list(points(axes)) == list(expected)
    np.testing.assert_allclose(list(points(axes).values()), list(expected.values()))
    (ring,) = (line for line in axes.lines if line.get_fillstyle() == "none")
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == pytest.approx((12, 3e-4))
    low, high = axes.get_ylim()
    assert low < 0 < 0.1 < high  # zero and the tolerance, 0.1 meV/Å, are within
    assert axes.get_yscale() == "symlog"
    assert "ms" in axes.get_xlabel()
    assert "meV/Å" in axes.get_ylabel()


@pytest.mark.parametrize(("seconds", "scale"), [(0.07, "linear"), (0.2, "log")])
def test_times_that_are_far_apart_are_on_a_logarithmic_scale(seconds, scale):
    slow = {"MACECalculator, float64": {"seconds": seconds, "forces": 0.0}}
    candidates = {"candidates": dict(list(CANDIDATES.items())[:3]) | slow}
    axes = pp.plot_policy(pp.Policy((), evidence=candidates))
    assert axes.get_xscale() == scale
    assert points(axes)["MACECalculator, float64"] == pytest.approx((1e3 * seconds, 0.0))


def test_precisions_of_a_trace():
    trace = trace_by_hand()
    trace.tree["propagated/float16"]["seconds"].values[:] = (0.2, 0.3)  # of 0.1 and 0.2: 2 and 1.5 times as long
    axes = pp.plot_times(trace)
    largest = 1e3 * np.abs(pp.errors(trace).set_index("tensor")["max_abs"]["forces"])
    assert list(points(axes)) == ["float64", "float16"]
    np.testing.assert_allclose(list(points(axes).values()), [(1.0, 0.0), (1.75, largest)])
    assert "meV/Å" in axes.get_ylabel()
    assert axes.get_xlim()[0] == 0


def test_an_error_that_is_not_finite_is_counted():
    trace = trace_by_hand()
    trace.tree["propagated/float16"]["forces"].values[0, 0] = np.nan
    axes = pp.plot_times(trace)
    assert list(points(axes)) == ["float64"]
    assert "(1 zero, not finite" in axes.get_title()


def test_what_is_not_there_is_said():
    with pytest.raises(pp.InputError, match=r"does not say how long.*--time"):
        pp.plot_times(of_many(2))
    with pytest.raises(pp.InputError, match=r"does not say what candidates lose.*recommend"):
        pp.plot_policy(pp.Policy.uniform("float32"))
