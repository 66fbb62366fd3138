"""The margin, against what simulated errors of unseen structures need."""

import numpy as np
import pytest
import scipy.stats

from precision_probe.search.margin import FALLBACK, learnt_margin

N, TRIALS = 8, 1500
Q95 = float(scipy.stats.norm.ppf(0.95))


def scattered(spread):
    """Errors whose logarithms are normal, and what 5 % of them exceed."""
    return lambda rng, shape: np.exp(spread * rng.normal(size=shape)), float(np.exp(spread * Q95))


# errors of energies: a number that may be as well negative, of which the size counts
ENERGIES = (lambda rng, shape: np.abs(rng.normal(size=shape)), float(scipy.stats.norm.ppf(0.975)))


def holds(draw, q95, margin=None, n_policies=9):
    """How often 95 % of unseen structures keep a tolerance of which the largest of 8 errors uses the margin."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(TRIALS):
        errors = draw(rng, (n_policies, N))
        used = learnt_margin(errors).value if margin is None else margin
        held += q95 <= errors[0].max() / used
    return held / TRIALS


@pytest.mark.parametrize("errors", [scattered(0.1), scattered(0.3), scattered(0.5), ENERGIES])
def test_with_the_margin_unseen_structures_mostly_hold(errors):
    assert holds(*errors) > 0.85
    assert holds(*errors, n_policies=1) > 0.75


@pytest.mark.parametrize("errors", [scattered(0.5), ENERGIES])
def test_with_a_constant_margin_they_would_not(errors):
    assert holds(*errors, margin=0.8) < 0.75


def test_errors_that_structures_determine_are_no_worse():
    def draw(rng, shape):  # large for the same structures under every policy
        return np.exp(0.3 * rng.normal(size=(1, shape[1])) + 0.1 * rng.normal(size=shape))

    assert holds(draw, float(np.exp(Q95 * np.hypot(0.3, 0.1)))) > 0.75


@pytest.mark.parametrize("spread", [0.1, 0.25, 0.4])
def test_the_margin_is_that_of_the_spread(spread):
    rng = np.random.default_rng(1)
    margin = learnt_margin(np.exp(spread * rng.normal(size=(2000, N))))
    assert margin.scatter == pytest.approx(np.exp(spread), rel=0.02)
    largest = np.quantile(rng.normal(size=(200_000, N)).max(axis=1), 0.05)  # which 95 % of eight have or exceed
    assert margin.value == pytest.approx(np.exp(-spread * (Q95 - largest)), rel=0.02)
    assert f"{margin.value:.0%} of the tolerance" in str(margin)
    assert f"a factor of {margin.scatter:.2f} between these 8 structures" in str(margin)


def test_the_margin_has_limits():
    same = np.ones((3, N))
    assert learnt_margin(same).value == 0.95
    assert learnt_margin(np.exp(5 * np.random.default_rng(0).normal(size=(3, N)))).value == 0.5


@pytest.mark.parametrize("errors", [[], [np.ones(5)], [np.zeros(8)], [np.full(8, np.inf)], [np.full(8, np.nan)]])
def test_where_nothing_can_be_learnt_the_margin_is_the_usual_one(errors):
    margin = learnt_margin(errors)
    assert (margin.value, np.isnan(margin.scatter)) == (FALLBACK, True)
    assert "too few to learn" in str(margin)


def test_what_is_exact_or_breaks_says_nothing_of_the_rest():
    rng = np.random.default_rng(2)
    good = np.exp(0.3 * rng.normal(size=(5, N)))
    broken = np.where(np.arange(N) == 3, np.inf, good[0])
    assert learnt_margin([*good, np.zeros(N), broken]) == learnt_margin(good)
