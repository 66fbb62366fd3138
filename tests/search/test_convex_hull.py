"""The lower hull against all assignments there are."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_probe.policy import Policy, Rule
from precision_probe.search.convex_hull import Option, assignments, rules_of

PRECISIONS = ("float64", "float32", "bfloat16", "float16")
BLOCKS = ("node_embedding", "interactions.0", "products.0", "interactions.1", "products.1", "readouts.0")


@st.composite
def instances(draw, most_errors=3, infinite=False):
    """What blocks cost and do in some precisions; float64 costs nothing and is exact."""
    n = draw(st.integers(1, most_errors))
    errors = st.floats(0, 10) | st.just(np.inf) if infinite else st.floats(0, 10)
    drawn = st.builds(Option, st.floats(-10, 1), st.lists(errors, min_size=n, max_size=n).map(np.asarray))
    exact = {"float64": Option(0.0, np.zeros(n))}
    names = draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=4, unique=True))
    return {name: exact | {each: draw(drawn) for each in PRECISIONS[1 : draw(st.integers(2, 4))]} for name in names}


def combinations(options):
    """Every assignment."""
    for precisions in itertools.product(*options.values()):
        yield dict(zip(options, precisions, strict=True))


def cost(options, precisions):
    return sum(options[block][precision].cost for block, precision in precisions.items())


def bound(options, precisions):
    """The sum of squares of the largest error of each block: the error itself, where there is but one."""
    return sum(options[block][precision].errors.max() ** 2 for block, precision in precisions.items())


@given(instances())
@settings(max_examples=40, deadline=None)
def test_all_are_on_the_lower_hull(options):
    points = np.asarray([(cost(options, each), bound(options, each)) for each in combinations(options)])
    for found in assignments(options):
        x, y = cost(options, found.precisions), bound(options, found.precisions)
        for (x0, y0), (x1, y1) in itertools.product(points[points[:, 0] <= x], points[points[:, 0] >= x]):
            if x1 - x0 > 1e-9:  # the line between two others does not pass below
                assert y <= y0 + (x - x0) / (x1 - x0) * (y1 - y0) + 1e-6


@given(instances(most_errors=1))
@settings(max_examples=40, deadline=None)
def test_none_is_dominated(options):
    every = [(cost(options, each), np.sqrt(bound(options, each))) for each in combinations(options)]
    for found in assignments(options):
        assert not any(c < found.cost - 1e-6 and e < found.error - 1e-6 for c, e in every)


@given(instances(infinite=True))
@settings(max_examples=40, deadline=None)
def test_the_ends_are_the_cheapest_and_the_most_accurate(options):
    finite = [each for each in combinations(options) if np.isfinite(bound(options, each))]
    found = assignments(options)
    assert found[0].cost == pytest.approx(min(cost(options, each) for each in finite), abs=1e-6)
    assert min(each.error for each in found) == pytest.approx(0, abs=1e-3)


@given(instances(infinite=True))
@settings(max_examples=40, deadline=None)
def test_costs_add_and_errors_add_as_roots_of_squares(options):
    found = assignments(options)
    for each in found:
        picked = [options[block][precision] for block, precision in each.precisions.items()]
        assert each.cost == pytest.approx(cost(options, each.precisions))
        together = np.linalg.norm([option.errors for option in picked], axis=0)
        assert each.error == pytest.approx(together.max())
        assert np.isfinite(together).all()  # what is infinite is never chosen
        assert list(each.precisions) == list(options)
    assert [each.cost for each in found] == sorted(each.cost for each in found)
    assert len({tuple(each.precisions.values()) for each in found}) == len(found)
    assert assignments(options) == found


def test_nan_is_never_chosen():
    options = {"a": {"float64": Option(0.0, np.zeros(2)), "float16": Option(-5.0, np.asarray([0.1, np.nan]))}}
    assert [each.precisions["a"] for each in assignments(options)] == ["float64"]


def test_the_unit_of_costs_does_not_matter():
    def options(unit):
        found = {}
        for number, block in enumerate(BLOCKS, 1):
            halved = Option(-unit * number, np.asarray([1.0 / number]))
            found[block] = {"float64": Option(0.0, np.zeros(1)), "float16": halved}
        return found

    per_unit = [[each.precisions for each in assignments(options(unit))] for unit in (1e-6, 1.0, 1e10)]
    assert per_unit[0] == per_unit[1] == per_unit[2]
    assert len(per_unit[0]) == len(BLOCKS) + 1  # one block after another


def test_nothing_to_choose_from():
    (found,) = assignments({"a": {"float64": Option(0.0, np.zeros(1))}})
    assert (found.precisions, found.cost, found.error) == ({"a": "float64"}, 0, 0)


@given(st.fixed_dictionaries(dict.fromkeys(BLOCKS, st.sampled_from(PRECISIONS))))
def test_rules_say_what_was_assigned(precisions):
    rules = rules_of(precisions)
    policy = Policy(tuple(Rule(glob, precision) for glob, precision in rules))
    found = {name: precision.name for name, precision in policy.assignments(BLOCKS).items()}
    assert found == precisions
    assert len(rules) <= len([each for each in precisions.values() if each != "float64"])


def test_rules_are_few():
    assert rules_of(dict.fromkeys(BLOCKS, "float64")) == []
    assert [glob for glob, _ in rules_of(dict.fromkeys(BLOCKS, "float32"))] == [
        "node_embedding",
        "interactions.*",
        "products.*",
        "readouts.0",
    ]
