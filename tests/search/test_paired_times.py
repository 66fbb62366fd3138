"""Ratios of times within rounds: intervals against counting by hand, and choices against a simulated machine."""

import itertools

import numpy as np
import pytest

from precision_probe.search.paired_times import LEVEL, MIN_ROUNDS, as_fast_as_the_fastest, ratio_of

ROUNDS, TRIALS = 11, 1000
COMMON, OWN = 0.4, 0.02  # noise that all calls of a round share, and that of each


def level_by_counting(n, outside):
    """How often the median lies between the order statistics: of all 2^n ways to fall on either side of it."""
    below = np.asarray([sum(signs) for signs in itertools.product((0, 1), repeat=n)])
    return np.mean((below >= outside) & (below <= n - outside))


@pytest.mark.parametrize(("n", "outside"), [(6, 1), (8, 1), (9, 2), (11, 2), (12, 3)])
def test_the_interval_is_the_narrowest_of_order_statistics_with_the_level(n, outside):
    seconds = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))
    ratio = ratio_of((3 * seconds).tolist(), [2.0] * n)
    assert (ratio.low, ratio.high) == (1.5 * outside, 1.5 * (n + 1 - outside))
    assert ratio.median == 1.5 * np.median(seconds)
    assert ratio.level == pytest.approx(level_by_counting(n, outside))
    assert level_by_counting(n, outside + 1) < LEVEL <= ratio.level


def test_too_few_rounds_resolve_nothing():
    assert level_by_counting(MIN_ROUNDS - 1, 1) < LEVEL <= level_by_counting(MIN_ROUNDS, 1)
    few, enough = (ratio_of([1.0] * n, [2.0] * n) for n in (MIN_ROUNDS - 1, MIN_ROUNDS))
    assert (few.median, few.low, few.high, few.resolved) == (0.5, 0, np.inf, False)
    assert (enough.low, enough.high, enough.resolved) == (0.5, 0.5, True)


@pytest.mark.parametrize(("seconds", "others"), [((), (1.0,) * 9), ((1.0,) * 9, ())])
def test_what_did_not_fit_into_memory_is_not_compared(seconds, others):
    ratio = ratio_of(seconds, others)
    assert np.isnan(ratio.median)
    assert not ratio.resolved


def test_intervals_hold_the_median_as_often_as_they_say():
    rng = np.random.default_rng(0)
    ratios = [ratio_of(rng.lognormal(sigma=0.5, size=ROUNDS).tolist(), [1.0] * ROUNDS) for _ in range(4000)]
    held = np.mean([ratio.low <= 1 <= ratio.high for ratio in ratios])
    assert held == pytest.approx(ratios[0].level, abs=4 * np.sqrt(0.0117 * 0.9883 / 4000))


# which is the fastest


def times(rng, speeds, rounds=ROUNDS):
    """What calls take on a machine that other work slows down, all calls of a round alike."""
    common = rng.lognormal(sigma=COMMON, size=rounds)
    return {name: tuple(speed * common * rng.lognormal(sigma=OWN, size=rounds)) for name, speed in speeds.items()}


def chosen(speeds, seed=1):
    """For each trial, what is as fast as the fastest."""
    rng = np.random.default_rng(seed)
    return [list(as_fast_as_the_fastest(times(rng, speeds), 1.0)) for _ in range(TRIALS)]


def test_the_faster_of_two_is_chosen_though_the_machine_is_busy():
    trials = chosen({"slow": 1.15, "fast": 1.0})
    assert np.mean([names == ["fast"] for names in trials]) >= 0.95


def test_medians_of_one_would_not_have_told():
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(TRIALS):
        both = times(rng, {"slow": 1.15, "fast": 1.0})
        low, high = np.percentile(both["fast"], [25, 75])
        wrong += np.median(both["slow"]) <= np.median(both["fast"]) + (high - low)
    assert wrong > 0.9 * TRIALS  # as fast, by the interquartile range of one


@pytest.mark.parametrize("speed", [1.0, 1.002])
def test_what_is_as_fast_or_nearly_is_not_resolved(speed):
    trials = chosen({"a": 1.0, "b": speed})
    assert np.mean([len(names) == 2 for names in trials]) >= 0.95


def test_among_many_the_fastest_are_found():
    speeds = {f"slow {n}": 1.1 + n / 50 for n in range(10)} | {"a": 1.0, "b": 1.0}
    trials = chosen(speeds)
    assert np.mean([set(names) == {"a", "b"} for names in trials]) >= 0.95
    assert all(set(names) <= {"a", "b"} for names in trials)


def test_a_small_difference_does_not_count_though_it_is_resolved():
    seconds = {"a": (1.0,) * 11, "b": (1.009,) * 11, "c": (1.02,) * 11}
    assert list(as_fast_as_the_fastest(seconds, 1.01)) == ["a", "b"]
    assert list(as_fast_as_the_fastest(seconds, 1.0)) == ["a"]


def test_what_did_not_fit_is_not_fast_unless_nothing_did():
    assert list(as_fast_as_the_fastest({"large": (), "a": (1.0,) * 6}, 1.01)) == ["a"]
    assert list(as_fast_as_the_fastest({"large": (), "larger": ()}, 1.01)) == ["large", "larger"]
