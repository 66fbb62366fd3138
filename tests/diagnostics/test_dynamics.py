"""Dynamics: the calculator against the variant, and drift against straight lines and float64."""

import numpy as np
import pytest
import scipy.stats
import torch
from runs import molecule, rel_l2

from precision_probe.diagnostics.dynamics import _launcher, _lines, _summary, energy_drift
from precision_probe.exceptions import InputError
from precision_probe.fast.calculator import GraphCalculator
from precision_probe.models.graphs import build_graph
from precision_probe.precisions import parse_precision
from precision_probe.structures import read_structures
from precision_probe.variants.variant import Variant

CPU = torch.device("cpu")
BENZENE, ICE = "demo@4", "demo@6"


def test_a_straight_line_is_drift_and_what_is_about_it_fluctuation():
    time = np.arange(100) * 0.0005
    wiggle = 0.1 * (-1.0) ** np.arange(100)
    slopes, fluctuation = _lines(np.asarray([3 * time + wiggle, 5 * time + wiggle]), 0.0005)
    assert slopes == pytest.approx([3, 5], abs=0.3)
    assert fluctuation == pytest.approx(0.1, rel=0.01)


def test_how_a_run_starts_is_no_drift():
    """Energy that changes in the first tenth alone, be it by ever so much."""
    time = np.arange(1001) * 0.0005
    start = np.where(np.arange(1001) < 100, 50.0, 0.0)
    slopes, fluctuation = _lines(np.asarray([2 * time + start]), 0.0005)
    assert slopes == pytest.approx([2], rel=1e-9)
    assert fluctuation < 1e-9


def test_drifts_of_runs_that_share_their_start_are_compared_run_by_run():
    """Against SciPy's paired test; what runs have in common says nothing of the precision."""
    rng = np.random.default_rng(0)
    exact = rng.normal(0, 5, 6)
    slopes = exact + 0.3 + rng.normal(0, 0.1, 6)
    row = _summary(slopes, exact)
    interval = scipy.stats.ttest_rel(slopes, exact).confidence_interval(0.95)
    assert row["difference"] == pytest.approx((interval.low + interval.high) / 2)
    assert row["difference_confidence"] == pytest.approx((interval.high - interval.low) / 2)
    alone = scipy.stats.ttest_1samp(slopes, 0).confidence_interval(0.95)
    assert row["drift"] == pytest.approx(slopes.mean())
    assert row["confidence"] == pytest.approx((alone.high - alone.low) / 2)
    assert row["difference_confidence"] < row["confidence"] / 20
    assert np.isnan(list(_summary(exact, None).values())[2:]).all()


def test_one_run_says_nothing_of_others():
    row = _summary(np.asarray([3.0]), np.asarray([1.0]))
    assert (row["drift"], row["difference"]) == (3, 2)
    assert np.isnan([row["confidence"], row["difference_confidence"], row["detectable"]]).all()


@pytest.mark.parametrize("n_runs", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 8))])
def test_what_is_said_to_be_detectable_is_detected(n_runs):
    """In 95 of a hundred trials in which drifts are that far apart, and in 5 of those in which they are not at all."""
    rng = np.random.default_rng(0)
    rows = [_summary(rng.normal(0, 1, n_runs), np.zeros(n_runs)) for _ in range(4000)]
    ratio = rows[0]["detectable"] / rows[0]["difference_confidence"]
    true = ratio * scipy.stats.t.ppf(0.975, n_runs - 1) / np.sqrt(n_runs)  # of a scatter of one
    differences, halves = (np.asarray([row[key] for row in rows]) for key in ("difference", "difference_confidence"))
    assert np.mean(np.abs(differences) > halves) == pytest.approx(0.05, abs=0.015)
    assert np.mean(np.abs(differences + true) > halves) > 0.94


@pytest.mark.parametrize("start", [BENZENE, ICE], ids=["molecule", "crystal"])
@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16", "e5m10"])
def test_dynamics_are_of_what_the_variant_predicts(demo, start, name):
    """The edges come in another order, so that sums are rounded otherwise; nothing else is."""
    (atoms,) = read_structures(start)
    precision, rng = parse_precision(name), np.random.default_rng(0)
    variant = Variant(demo, precision, CPU)
    atoms.calc = GraphCalculator(_launcher(variant, None), interaction=True)
    for _ in range(3):
        if atoms.pbc.all():
            atoms.get_stress()
        expected = variant.predict(build_graph(atoms, demo))
        energy = float(expected["interaction_energy"])
        assert atoms.get_potential_energy() == pytest.approx(energy, rel=8 * precision.unit_roundoff)
        assert rel_l2(expected["forces"].double(), atoms.get_forces()) < 8 * precision.unit_roundoff
        atoms.rattle(0.05, rng=rng)


def test_float64_keeps_its_energy_and_runs_start_alike(model):
    found = energy_drift(model, molecule(), "float32", steps=20, timestep=0.1, n_runs=2)
    assert found.index.tolist() == ["float64", "float32"]
    assert found.loc["float32", "drift"] == pytest.approx(found.loc["float64", "drift"], abs=1.0)
    assert found.loc["float32", "difference"] == pytest.approx(found["drift"].diff().iloc[1], abs=1e-9)
    assert found.loc["float32", "difference_confidence"] < found.loc["float32", "confidence"]
    assert found.loc["float64", ["difference", "difference_confidence", "detectable"]].isna().all()
    again = energy_drift(model, molecule(), "float32", steps=20, timestep=0.1, n_runs=2)
    assert found.equals(again)


def test_a_precision_that_cannot_hold_the_numbers_is_named_and_others_are_kept(demo):
    with pytest.warns(RuntimeWarning, match=r"cannot be run in e3m2, whose row is NaN\..*NaN or infinity"):
        found = energy_drift(demo, molecule(), "e3m2,float32", steps=2, n_runs=2)
    assert found.loc["e3m2"].isna().all()
    assert found.loc["float32"].notna().all()


def test_without_float64_there_is_nothing_to_compare_with(mine):
    mine.scale_shift.scale.fill_(torch.inf)
    with pytest.raises(InputError, match=r"cannot be run in float64\..*NaN or infinity"):
        energy_drift(mine, molecule(), "float32", steps=2, n_runs=1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("error:No CUDA graph is used")
@pytest.mark.parametrize("start", [BENZENE, ICE], ids=["molecule", "crystal"])
def test_energy_drifts_on_a_gpu_as_on_a_cpu(demo, start):
    """In 10 fs rounding has not grown: another order of the edges moves float64's by 1e-11 meV/atom/ps on a CPU."""
    (atoms,) = read_structures(start)
    options = {"steps": 20, "n_runs": 2}
    found = energy_drift(demo, atoms, ["float32", "tf32", "bfloat16", "float16", "e8m23"], device="cuda", **options)
    expected = energy_drift(demo, atoms, "float64", **options).loc["float64", ["drift", "fluctuation"]]
    np.testing.assert_allclose(found.loc["float64", ["drift", "fluctuation"]], expected, rtol=0, atol=1e-6)
    differences = found["difference"].abs()
    # the mode of tf32 is in its graph
    assert differences[["float32", "e8m23"]].max() < differences[["tf32", "bfloat16", "float16"]].min()
