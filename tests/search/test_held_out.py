"""Structures held out: how they are spread, and bounds against sums of the binomial distribution."""

import ase
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

from precision_probe.search.held_out import Outcome, count_kinds, split

SYMBOLS = ("H2O", "HOH", "CH4")  # the first two have the same composition, but not in the same order


def frames(kinds):
    """Structures of these kinds, each with the number of its place."""
    made = [ase.Atoms(SYMBOLS[kind]) for kind in kinds]
    for number, atoms in enumerate(made):
        atoms.info["number"] = number
    return made


def numbers(structures):
    return [atoms.info["number"] for atoms in structures]


# the bound


def bound_by_hand(within, n, level):
    """The share of which so many or more of n are within with a probability of 1 − level, from the sum itself."""
    if within == 0:
        return 0.0

    def excess(share):
        k = np.arange(within, n + 1)
        return float(np.sum(np.exp(log_choose(n, k)) * share**k * (1 - share) ** (n - k))) - (1 - level)

    return scipy.optimize.brentq(excess, 1e-12, 1 - 1e-12)


def log_choose(n, k):
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    return logs[n] - logs[k] - logs[n - k]


@pytest.mark.parametrize(("within", "n"), [(64, 64), (63, 64), (61, 64), (1, 1), (0, 1), (2, 2), (19, 20)])
@pytest.mark.parametrize("attempt", [1, 2, 5])
def test_the_bound_is_clopper_and_pearsons(within, n, attempt):
    outcome = Outcome(within, n, attempt)
    assert outcome.level == pytest.approx(1 - 0.05 / attempt)
    assert outcome.at_least == pytest.approx(bound_by_hand(within, n, 1 - 0.05 / attempt), abs=1e-9)
    assert outcome.share == within / n


def test_one_structure_says_next_to_nothing_and_64_say_95_percent():
    assert Outcome(64, 64).at_least == pytest.approx(0.05 ** (1 / 64))
    assert round(Outcome(64, 64).at_least, 3) == 0.954
    assert Outcome(1, 1).at_least == pytest.approx(0.05)


@pytest.mark.parametrize("share", [0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("attempts", [1, 2, 6])
def test_of_so_many_tried_hardly_ever_is_any_bound_wrong(share, attempts):
    within = np.random.default_rng(0).binomial(64, share, size=(4000, attempts))
    bounds = np.asarray([Outcome(k, 64, attempts).at_least for k in range(65)])[within]
    assert np.mean((bounds > share).any(axis=1)) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)


# the choice


@given(kinds=st.lists(st.integers(0, 2), min_size=1, max_size=120), seed=st.integers(0, 5))
def test_no_structure_is_in_both_and_as_many_as_wanted_are_in_each(kinds, seed):
    searched, held_out = (numbers(part) for part in split(frames(kinds), seed, 8, 64))
    n = len(kinds)
    assert len(searched) == min(8, (n + 1) // 2)
    assert len(held_out) == min(64, n - len(searched))
    assert len({*searched, *held_out}) == len(searched) + len(held_out)


@pytest.mark.parametrize("seed", range(5))
def test_frames_of_a_trajectory_are_spread_over_it(seed):
    searched, held_out = (np.sort(numbers(part)) for part in split(frames([0] * 720), seed, 8, 64))
    assert ((searched // 90) == np.arange(8)).all()  # one in each eighth
    stretches = np.sort([*searched, *held_out]) // 10
    assert (stretches == np.arange(72)).all()  # one of each ten frames


def test_each_kind_has_its_share_wherever_its_frames_stand():
    kinds = [number % 3 for number in range(720)]
    searched, held_out = split(frames(kinds), 0, 9, 63)
    for part in (searched, held_out):
        counts = [sum(str(atoms.symbols) == str(ase.Atoms(name).symbols) for atoms in part) for name in SYMBOLS]
        assert counts == [len(part) // 3] * 3


def test_the_choice_is_the_seeds():
    kinds = [0] * 100
    first, again, other = (numbers(split(frames(kinds), seed, 8, 64)[0]) for seed in (0, 0, 1))
    assert first == again != other


def test_kinds_have_the_same_atoms_in_the_same_order():
    assert count_kinds(atoms.numbers for atoms in frames([0, 1, 2, 0, 0])) == 3
    assert count_kinds(atoms.numbers for atoms in frames([0, 0])) == 1
