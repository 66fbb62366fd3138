"""What a reader of a recommendation should know, in sentences."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from precision_probe.search.held_out import CONFIDENCE, Outcome
from precision_probe.search.measuring import CAST, runs_as
from precision_probe.search.operations import SLOW_RATE, slowdown
from precision_probe.search.paired_times import ratio_of
from precision_probe.search.proposals import DO_NOTHING

__all__ = ["WHAT_IS_TESTED", "of_choice", "of_float64", "of_rivals", "of_runs", "of_test"]

WHAT_IS_TESTED = {
    "eager": "the file that apply writes, loaded by MACECalculator with its defaults",
    "graph": "what Policy.calculator launches as a graph",
}  # by how models are run


def of_test(what: str, tried: Mapping[str, Outcome], n_kinds: int, are_held_out: bool) -> list[str]:
    """On what the tolerance was kept, and what that says of other structures.

    Args:
        what: One of :data:`WHAT_IS_TESTED`.
        tried: What was tried, in order; the last was chosen.
        n_kinds: How many kinds of structures there are among those that it was tried on.
        are_held_out: Whether these were held out of the search.
    """
    *failed, name = tried
    where = "held out" if are_held_out else "searched on"
    said = [
        f"{each} was within the margin on the structures searched on, but as users get it kept the tolerance on only "
        f"{tried[each].within} of {tried[each].n_structures} {where}, and was given up."
        for each in failed
    ]
    tested = tried[name]
    structures, kinds = _counted(tested.n_structures, "structure"), _counted(n_kinds, "trajectory or composition")
    said.append(
        f"{what[0].upper()}{what[1:]}{',' if ',' in what else ''} kept the tolerance on {tested.within} of "
        f"{structures} {where}, of {kinds} (the same atoms in the same order); its largest error there is "
        f"{tested.largest:.2g} of the tolerance."
    )
    if not are_held_out:
        said.append("There were too few structures to hold any out, so nothing is known of others.")
        return said
    tries = f", {tested.level:.4g} for this one, as it is number {tested.attempt} of those tried on them"
    said.append(
        f"So it keeps the tolerance on at least {tested.at_least:.1%} of structures drawn like those held out (Clopper "
        f"and Pearson's one-sided bound, confidence {CONFIDENCE:g}{tries if tested.attempt > 1 else ''}); frames that "
        "resemble each other say less than as many independent structures."
    )
    return said


def of_rivals(name: str, table: pd.DataFrame, rivals: Sequence[str]) -> list[str]:
    """What is gained beside what people run otherwise, where that was timed.

    Args:
        name: What was chosen.
        table: As :func:`of_choice` takes it.
        rivals: Names of what people run otherwise.
    """
    seconds, rounds, shares = (table[column].to_dict() for column in ("seconds", "rounds", "share"))
    ours = runs_as(name)
    ran = [rival for rival in rivals if np.isfinite(seconds[rival])]
    if not ran:
        return []
    said = [f"Launched as a graph it takes {1e3 * seconds[ours]:.3g} ms, with errors of {shares[name]:.2g} tolerances."]
    for rival in sorted(ran, key=lambda rival: seconds[rival]):
        ratio = ratio_of(rounds[rival], rounds[ours])
        said.append(
            f"{rival} takes {1e3 * seconds[rival]:.3g} ms, {ratio.median:.3g} times as long ({ratio.low:.3g} to "
            f"{ratio.high:.3g}, {ratio.level:.1%} confidence), making its graph on the CPU each time; errors of "
            f"{shares[rival]:.2g} tolerances."
        )
    return said


def of_float64(name: str, table: pd.DataFrame, backend: str = "e3nn") -> list[str]:
    """What is to be expected where float64 is slow.

    Args:
        name: What was chosen.
        table: As :func:`of_choice` takes it.
        backend: What computes the model; operations in the kernels of others than e3nn are not counted.
    """
    share = float(table["float64_share"].to_dict()[name])
    if not 0 < share < 1:  # all in one precision, or by kernels of which nothing is known
        return []
    which = "operations" if backend == "e3nn" else f"operations outside {backend}'s kernels"
    return [
        f"{share:.2g} of its {which} are in float64. On GPUs where that is {SLOW_RATE} times slower than float32, "
        f"that arithmetic would take {slowdown(share):.3g} times as long as if none were, and all of it in "
        f"float64 {SLOW_RATE} times."
    ]


def of_choice(name: str, table: pd.DataFrame, as_cheap: Sequence[str], objective: str) -> list[str]:
    """Why this one, and what is to be said against it.

    Args:
        name: What was chosen.
        table: As :meth:`precision_probe.search.search.Search.measured` returns it.
        as_cheap: The policies that it was chosen among, as they cost as little.
        objective: As :func:`precision_probe.recommend` takes it.
    """
    said = []
    row = table.loc[name]
    if name == DO_NOTHING:
        better = "faster" if objective == "time" else "smaller"
        said.append(f"No other policy keeps the tolerance and is known to be {better}: run the model in float64.")
        if row["share"] > 1:
            said.append("Not even that keeps the tolerance: a float32 interface rounds positions and results.")
    return said + (_of_times(name, table, as_cheap) if objective == "time" else [])


def of_runs(n_runs: int, rank: float) -> str:
    """What the search took, and how well adjoints would have ranked the blocks."""
    ranks = f"; adjoints rank the blocks' force errors with a Spearman correlation of {rank:.2f}"
    return f"{n_runs} runs of the model for errors{ranks if np.isfinite(rank) else ''}."


def _of_times(name: str, table: pd.DataFrame, as_cheap: Sequence[str]) -> list[str]:
    """What is as fast as what was chosen, or faster."""
    rounds, shares = table["rounds"].to_dict(), table["share"].to_dict()
    float32 = CAST.format("float32")
    own = rounds[runs_as(name)]
    said = []
    ratio = ratio_of(own, rounds[float32])
    if not ratio.high < 1:
        how = "faster" if ratio.low > 1 else "as fast, as far as is resolved"
        said.append(
            f"The model cast to float32 as a whole is {how}: this one takes {ratio.median:.3g} times as long "
            f"({ratio.low:.3g} to {ratio.high:.3g}, {ratio.level:.1%} confidence). On the structures searched on the "
            f"errors of that reach {shares[float32]:.2g} of the tolerance, here {shares[name]:.2g}."
        )
    if len(as_cheap) > 1:
        said.append(
            f"{len(as_cheap)} policies are as fast, this one among them: their differences are not resolved in "
            f"{len(own)} interleaved rounds ({ratio.level:.1%} confidence), or below 1 %. Of these the most "
            "accurate was taken. To tell them apart, let nothing else run, or give a larger structure."
        )
    return said


def _counted(number: int, noun: str) -> str:
    """A number of things, such as "2 structures" and "3 trajectories or compositions"."""
    plural = " or ".join(f"{word[:-1]}ies" if word.endswith("y") else f"{word}s" for word in noun.split(" or "))
    return f"{number} {noun if number == 1 else plural}"
