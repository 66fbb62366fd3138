"""costs.py: what a file of a policy says, in its units; whatever else stands there is left out."""

import pytest
from pages_by_hand import of_many
from traces_by_hand import trace_by_hand

import precision_probe as pp
from precision_probe.report.costs import ERROR, TIME, candidates, is_recommended, placed, times
from precision_probe.report.findings import Findings


def policy(said):
    return pp.Policy((), evidence={"chosen": "a", "candidates": said})


def test_candidates_in_units_that_are_read():
    said = {
        "a": {"seconds": 0.002, "forces": 3e-6, "rules": "* float32", "more": 1},
        "b": {"forces": 1e-3},
        "c": "text",
    }
    table = candidates(policy(said))
    assert table.index.tolist() == ["a", "b"]
    assert set(table) == {"rules", TIME, ERROR}
    assert table.loc["a", [TIME, ERROR]].tolist() == pytest.approx([2.0, 3e-3])
    assert table.loc["b", TIME] is None
    assert placed(table).index.tolist() == ["a"]
    assert is_recommended(policy(said), "a")
    assert not is_recommended(policy(said), "b")


@pytest.mark.parametrize("said", [None, [], "text", {}, {"a": {"seconds": True, "forces": [1]}}])
def test_what_is_no_number_has_no_place(said):
    assert placed(candidates(policy(said))).empty


def test_times_of_precisions():
    table = times(Findings(trace_by_hand(), {}, is_guide=True))
    assert table.index.tolist() == ["float64", "float16"]
    ratio, half_range, error = (table[name]["float16"] for name in table)
    assert (ratio, half_range) == (1.0, 0.0)  # all took equally long
    assert error == pytest.approx(1e3 * pp.summary(trace_by_hand())["forces"]["float16"])
    assert times(Findings(of_many(1), {}, is_guide=True)).empty  # which was not timed
