"""Numbers and prose of the page of findings, and what is computed from its tables."""

import math

import findings_data
import pytest
from findings_data import Model, number
from findings_physics import told_from_float64, worst_motion
from findings_top import smallest_seen


@pytest.mark.parametrize(("value", "text"), [
    (None, "–"),
    (float("nan"), "–"),
    (0.0, "0"),
    (135.7, "140"),
    (-0.00555, "-0.0056"),
    (99.9, "100"),
    (12345.0, "12,000"),
    (3.8e-5, "3.8e-5"),
    (99_900.0, "1.0e5"),
])  # fmt: skip
def test_two_significant_digits(value, text):
    assert number(value) == text


def test_shares_are_of_the_sum_of_squares():
    """Blocks of a kind are taken together; what is not a source does not count."""
    rows = [("geometry", "", 3e-3), ("inputs", "products.0", 4e-3), ("arithmetic", "products.1", 12e-3)]
    rows += [(name, "", 1.0) for name in (findings_data.PARTS, findings_data.TOTAL, findings_data.REST)]
    budget = [{"precision": "float16", "source": s, "block": b, "forces_rms": x} for s, b, x in rows]
    shares = Model("demo", {"tables": {"budget": budget}}, None).shares
    assert shares["share"].to_dict() == pytest.approx(
        {("float16", "geometry"): 9 / 169, ("float16", "products"): 160 / 169}
    )
    assert shares.loc[("float16", "products"), "forces"] == pytest.approx(math.hypot(4, 12))


def test_drifts_of_runs_that_share_their_start_are_apart_by_their_differences():
    """Intervals of the drifts themselves, which meet, do not matter."""
    exact = {"structure": "ice", "precision": "float64", "drift": 0.1, "confidence": 9.0, "difference": None}
    exact |= {"difference_confidence": None, "detectable": None}
    near = exact | {"precision": "float32", "difference": 0.01, "difference_confidence": 0.02, "detectable": 0.035}
    far = near | {"precision": "float16", "difference": -0.03}
    rows = Model("demo", {}, {"drift": [exact, near, far]}).drifts
    assert [row["apart"] for row in rows] == [False, False, True]
    assert [told_from_float64(row) for row in rows[1:]] == ["no, 0.035 would have been", "yes, by -0.030 ± 0.020"]
    assert [row["is_zero"] for row in rows] == [True, True, True]
    assert smallest_seen(rows) == "; where it is not, 0.035 would have been"


def motions():
    """Forces under three motions, the last of which is one alone."""
    rows = [("rotation", 5e-2, 2e-2), ("translation", 2.5e-2, 1e-2), ("inversion", 0.0, math.nan)]
    names = ["motion", "rel_l2", "spread"]
    common = {"precision": "float16", "block": "model", "tensor": "forces"}
    return [common | dict(zip(names, row, strict=True)) for row in rows]


def test_motions_are_not_ranked_beyond_their_spread():
    rows = motions()
    names = [row["motion"] for row in rows]

    def worst(spread):
        changed = [row | {"spread": spread * row["spread"]} for row in rows]
        return worst_motion(Model("demo", {"tables": {"equivariance": changed}}, None), "float16", names)

    assert worst(1) == "rotation or translation (0.050 ± 0.020)"
    assert worst(0.5) == "rotation (0.050 ± 0.010)"


@pytest.mark.parametrize(
    ("items", "text"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_listing(items, text):
    assert findings_data.listing(items) == text


@pytest.mark.parametrize(("needed", "text"), [(math.nan, "> 23"), (4, "≤ 4"), (10, "10")])
def test_at_the_ends_of_the_bits_tried_only_a_bound_is_known(needed, text):
    model = Model("demo", {"tables": {"sweep": [{"bits": bits} for bits in (4, 10, 23)]}}, None)
    assert findings_data.bits_cell(model, needed) == text
