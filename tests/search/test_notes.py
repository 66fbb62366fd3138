"""What is said of a search, against numbers that no run made."""

import numpy as np
import pandas as pd
import pytest

from precision_probe.search import notes
from precision_probe.search.held_out import Outcome
from precision_probe.search.measuring import CAST
from precision_probe.search.proposals import DO_NOTHING

SINGLE, DOUBLE = CAST.format("float32"), CAST.format("float64")


def table(mixed, single=1.0, double=2.0, share=0.5):
    """A table of candidates with times by round: of those that are cast as a whole, and of a mixed one."""
    noise = np.random.default_rng(0).lognormal(sigma=0.4, size=11)  # which all share
    seconds = {"mixed": mixed, SINGLE: single, DOUBLE: double, DO_NOTHING: double}
    return pd.DataFrame(
        {
            "share": {"mixed": 0.5, SINGLE: 30.0, DOUBLE: 0.0, DO_NOTHING: share},
            "rounds": {name: tuple(each * noise) for name, each in seconds.items()},
        }
    )


def test_what_was_kept_comes_with_its_bound():
    first, second = notes.of_test("the file", {"mixed": Outcome(64, 64, 1, 0.43)}, 1, True)
    assert first == (
        "The file kept the tolerance on 64 of 64 structures held out, of 1 trajectory or composition (the same atoms "
        "in the same order); its largest error there is 0.43 of the tolerance."
    )
    assert second.startswith("So it keeps the tolerance on at least 95.4% of structures drawn like those held out")
    assert "confidence 0.95)" in second


def test_retries_are_told_and_counted():
    tried = {"a": Outcome(40, 64, 1, 3.0), "b": Outcome(60, 64, 2, 1.5), "c": Outcome(63, 64, 3, 1.01)}
    *failed, kept, bound = notes.of_test("the file", tried, 3, True)
    assert [line.split()[0] for line in failed] == ["a", "b"]
    assert "on only 40 of 64 held out, and was given up" in failed[0]
    assert "63 of 64 structures held out, of 3 trajectories or compositions" in kept
    assert f"at least {Outcome(63, 64, 3).at_least:.1%}" in bound
    assert "confidence 0.95, 0.9833 for this one, as it is number 3 of those tried on them" in bound


def test_of_one_structure_little_is_said():
    kept, bound = notes.of_test("the file", {"mixed": Outcome(1, 1, 1, 0.2)}, 1, True)
    assert "on 1 of 1 structure held out" in kept
    assert "at least 5.0% of structures" in bound
    kept, nothing = notes.of_test("the file", {"mixed": Outcome(1, 1, 1, 0.2)}, 1, False)
    assert "on 1 of 1 structure searched on" in kept
    assert nothing == "There were too few structures to hold any out, so nothing is known of others."
    assert not {"proven", "verified", "proved"} & set(f"{kept} {bound} {nothing}".lower().replace(",", "").split())


@pytest.mark.parametrize(("seconds", "words"), [(0.8, None), (1.0, "as fast, as far as is resolved"), (1.2, "faster")])
def test_that_the_cast_model_is_as_fast_is_said_with_both_errors(seconds, words):
    said = notes.of_choice("mixed", table(seconds), ["mixed"], "time")
    assert len(said) == (0 if words is None else 1)
    if words is not None:
        assert f"cast to float32 as a whole is {words}: this one takes {seconds:.3g} times as long" in said[0]
        assert "98.8% confidence" in said[0]
        assert said[0].endswith("reach 30 of the tolerance, here 0.5.")
    assert notes.of_choice("mixed", table(seconds), ["mixed"], "memory") == []


def test_what_is_not_told_apart_is_said():
    (said,) = notes.of_choice("mixed", table(0.8), ["mixed", "other"], "time")
    assert said.startswith(
        "2 policies are as fast, this one among them: their differences are not resolved in 11 inter"
    )


def test_to_do_nothing_has_the_times_of_the_model_as_it_is():
    first, second = notes.of_choice(DO_NOTHING, table(3.0), [DO_NOTHING], "time")
    assert first == "No other policy keeps the tolerance and is known to be faster: run the model in float64."
    assert "this one takes 2 times as long" in second
    first, second = notes.of_choice(DO_NOTHING, table(3.0, share=2.0), [DO_NOTHING], "memory")
    assert "known to be smaller" in first
    assert "a float32 interface rounds positions" in second


def test_runs_are_counted():
    assert notes.of_runs(12, np.nan) == "12 runs of the model for errors."
    assert notes.of_runs(12, 0.876).endswith("a Spearman correlation of 0.88.")


def test_what_is_gained_by_launching_is_said_of_the_same_rounds():
    found = table(0.01)
    times = {"slow": 50, "slower": 80}
    rounds = {name: tuple(ratio * second for second in found.loc["mixed", "rounds"]) for name, ratio in times.items()}
    assert notes.of_rivals("mixed", found.assign(seconds=0.01), []) == []
    rivals = pd.DataFrame({"rounds": rounds | {"none": ()}, "seconds": {"slow": 0.5, "slower": 0.8, "none": np.inf}})
    both = pd.concat([found.assign(seconds=0.01), rivals.assign(share=3.0)])
    ours, slow, slower = notes.of_rivals("mixed", both, ["slower", "none", "slow"])
    assert ours.startswith("Launched as a graph it takes 10 ms, with errors of ")
    assert slow.startswith("slow takes 500 ms, 50 times as long (50 to 50, ")
    assert slower.startswith("slower takes 800 ms, 80 times as long")
    assert slow.endswith("errors of 3 tolerances.")


@pytest.mark.parametrize("share", [0.0, 1.0, np.nan])
def test_nothing_is_said_of_float64_where_there_is_nothing_to_say(share):
    assert notes.of_float64("mixed", table(1.0).assign(float64_share=share)) == []


def test_what_slow_float64_costs():
    (said,) = notes.of_float64("mixed", table(1.0).assign(float64_share=0.01))
    assert said.startswith("0.01 of its operations are in float64.")
    assert "would take 1.63 times as long" in said
    (said,) = notes.of_float64("mixed", table(1.0).assign(float64_share=0.01), "cuEquivariance")
    assert said.startswith("0.01 of its operations outside cuEquivariance's kernels are in float64.")
