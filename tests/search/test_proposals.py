"""Policies made from what blocks cost and do: which are proposed, and in which order."""

import itertools

import numpy as np
import pytest

from precision_probe.policy import Policy, Rule
from precision_probe.precisions import PRECISIONS
from precision_probe.search.convex_hull import Option
from precision_probe.search.proposals import DO_NOTHING, combined, is_low, raised, uniform

BLOCKS = ["node_embedding", "radial_embedding", "spherical_harmonics", "interactions.0", "products.0", "readouts.0"]


def options(**saves_and_errors):
    """For each block, what precisions save, and their error in tolerances; float64 saves nothing and is exact."""
    exact = {DO_NOTHING: Option(0.0, np.zeros(1))}
    return {
        block.replace("_0", ".0"): exact
        | {name: Option(-saves, np.asarray([error])) for name, (saves, error) in choices.items()}
        for block, choices in saves_and_errors.items()
    }


def names_of(policy, blocks):
    return {block: policy.precision_of(block).name for block in blocks}


# uniform


def test_uniform_policies_are_in_the_order_of_the_precisions():
    assert list(uniform(BLOCKS, ["float16", "tf32"])) == [
        "float64",
        *("float16", "float16 after the embeddings"),
        *("tf32", "tf32 after the embeddings"),
    ]


@pytest.mark.parametrize("name", ["float32", "tf32", "bfloat16", "float16"])
def test_uniform_policies_say_what_their_names_do(name):
    policies = uniform(BLOCKS, [name])
    assert policies["float64"].rules == ()
    assert names_of(policies[name], BLOCKS) == dict.fromkeys(BLOCKS, name)
    after = names_of(policies[f"{name} after the embeddings"], BLOCKS)
    assert after == dict.fromkeys(BLOCKS[:3], "float64") | dict.fromkeys(BLOCKS[3:], name)


# combined


def test_the_cheapest_that_may_hold_come_first():
    """Against all assignments there are: errors add as squares, savings add."""
    given = options(
        interactions_0={"float32": (1.0, 0.1), "float16": (2.0, 1.2)},
        products_0={"float32": (0.5, 0.01), "float16": (3.0, 0.9)},
        readouts_0={"float32": (0.2, 0.3), "float16": (0.3, 5.0)},
    )
    points = {}
    for choice in itertools.product(*given.values()):
        picked = [given[block][name] for block, name in zip(given, choice, strict=True)]
        points[choice] = sum(each.cost for each in picked), np.linalg.norm([each.errors[0] for each in picked])
    policies = combined(given, [])
    assert list(policies) == [f"mixed {n}" for n in range(1, len(policies) + 1)]
    proposed = [tuple(names_of(policy, given).values()) for policy in policies.values()]
    costs = [points[choice][0] for choice in proposed]
    assert costs == sorted(costs)
    assert all(cost < 0 for cost in costs)
    assert all(points[choice][1] <= 1.5 for choice in proposed)
    for choice in proposed:  # none is both more expensive and worse than another there is
        assert not any(c < points[choice][0] and e < points[choice][1] for c, e in points.values())


@pytest.mark.parametrize(("error", "n"), [(1.5, 1), (1.51, 0)])
def test_what_hardly_holds_is_not_proposed(error, n):
    assert len(combined(options(products_0={"float16": (1.0, error)}), [])) == n


def test_what_saves_nothing_is_not_proposed():
    assert combined(options(products_0={"float16": (0.0, 0.1)}, readouts_0={"float16": (-1.0, 0.0)}), []) == {}


def test_at_most_six_are_proposed():
    given = options(**{f"block{n}": {"float16": (1.0 + n, 0.1 / (1 + n) ** 3)} for n in range(9)})
    policies = combined(given, [])
    assert len(policies) == 6
    saved = [
        len([name for name in names_of(policy, given).values() if name == "float16"]) for policy in policies.values()
    ]
    assert saved == [9, 8, 7, 6, 5, 4]  # the cheapest


def test_what_is_known_is_not_proposed_again():
    given = options(interactions_0={"float16": (1.0, 0.1)}, products_0={"float16": (1.0, 0.1)})
    (policy,) = combined(given, []).values()
    assert combined(given, [policy]) == {}
    assert combined(given, [Policy.uniform("float16")]) == {}  # other rules, the same precisions
    assert len(combined(given, [Policy.uniform("float32")])) == 1


def test_a_policy_has_one_mode_of_matrix_products():
    """float32 and tf32 are the best of different blocks, but are not to be had together."""
    given = options(
        interactions_0={"float32": (1.0, 0.1), "tf32": (1.1, 5.0), "float16": (0.5, 0.2)},
        products_0={"float32": (1.0, 5.0), "tf32": (1.1, 0.1), "float16": (0.5, 0.2)},
    )
    policies = combined(given, [])
    used = [set(names_of(policy, given).values()) for policy in policies.values()]
    assert not any({"float32", "tf32"} <= names for names in used)
    modes = ["tf32" if "tf32" in names else "ieee" for names in used if names & {"float32", "tf32"}]
    assert set(modes) == {"ieee", "tf32"}
    assert modes == sorted(modes)  # those with float32 come first


# raised, is_low


@pytest.mark.parametrize(
    ("low", "other", "higher"),
    [
        ("float16", "float16", "float32"),
        ("bfloat16", "float16", "float32"),
        ("float32", "float32", "float64"),
        ("tf32", "float16", "float64"),  # as float32 would be computed as tf32
    ],
)
def test_raised_parts_are_in_the_next_precision(low, other, higher):
    policy = Policy((Rule("products.*", low), Rule("readouts.*", other)))
    changed = raised(policy, ["products.0.linear", "readouts.0"])
    assert names_of(changed, ["products.0.linear", "readouts.0", "products.0", "products.1.linear", "readouts.1"]) == {
        "products.0.linear": higher,
        "readouts.0": higher,
        "products.0": low,
        "products.1.linear": low,
        "readouts.1": other,
    }
    assert raised(policy, []) == policy


def test_each_part_is_raised_from_its_own_precision():
    policy = Policy((Rule("products.0", "float32"), Rule("products.1", "float16")))
    changed = raised(policy, ["products.0.linear", "products.1.linear"])
    assert [rule.compute for rule in changed.rules[:2]] == ["float64", "float32"]


@pytest.mark.parametrize("name", PRECISIONS)
def test_low_is_what_has_fewer_digits_than_float64(name):
    digits = {"float64": 53, "float32": 24, "tf32": 11, "bfloat16": 8, "float16": 11}
    policy = Policy((Rule("products.0", name),))
    assert is_low(policy, "products.0") == (digits[name] < 53)
    assert not is_low(policy, "products.1")
