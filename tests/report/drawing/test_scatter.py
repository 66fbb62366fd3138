"""scatter.py: points stand where their numbers say, with names that do not cover one another."""

import numpy as np
import pytest
from pages_by_hand import parsed

from precision_probe.report.drawing.scatter import Point, scatter

NAN = float("nan")
NAMES = [f"candidate {number}" for number in range(14)]


def circles(drawing):
    """Centre of each circle, by what it says."""
    return {
        next(each.all("title")).text.partition(":")[0]: (float(each.attributes["cx"]), float(each.attributes["cy"]))
        for each in parsed(drawing).all("circle")
        if list(each.all("title"))
    }


def test_few_points_stand_on_a_linear_scale_with_their_names_beside():
    points = [Point(name, x, 1e-3, 0) for name, x in (("a", 1.0), ("b", 2.0), ("c", 4.0), ("d", NAN))]
    drawing = scatter(points, "x", "y", "t", "d")
    (a, b, c) = (x for x, _ in circles(drawing).values())
    np.testing.assert_allclose((c - b) / (b - a), 2, rtol=0.01)
    texts = list(parsed(drawing).all("text"))
    assert [each.text for each in texts if each.attributes.get("class") == "tick"] == ["0", "1", "2", "3", "4", "5"]
    assert {each.text for each in texts} >= {"a", "b", "c"}


def test_many_names_stand_in_a_column_with_a_line_to_each_point():
    points = [Point(name, 10.0 + number, 1e-6, 0, number == 3) for number, name in enumerate(NAMES)]
    drawing = scatter(points, "x", "y", "t", "d")
    heights = sorted(float(each.attributes["y"]) for each in parsed(drawing).all("text") if each.text in NAMES)
    assert len(heights) == len(NAMES)
    assert np.diff(heights).min() >= 16.9  # a tenth is written
    assert heights[0] > 0
    places = {f"M{x:.1f} {y:.1f}" for x, y in circles(drawing).values()}
    lines = [each.attributes["d"] for each in parsed(drawing).all("path") if each.attributes.get("class") == "leader"]
    assert {line.partition("L")[0] for line in lines} == places
    assert sum(each.attributes.get("class") == "ring" for each in parsed(drawing).all("circle")) == 1


def test_times_far_apart_stand_on_a_logarithmic_scale():
    points = [Point(str(x), x, 1e-3, 0) for x in (1.0, 10.0, 100.0)]
    first, second, third = (x for x, _ in circles(scatter(points, "x", "y", "t", "d")).values())
    np.testing.assert_allclose(second - first, third - second, atol=0.2)


@pytest.mark.parametrize("value", [0.0, NAN, 5e-324, 1.7e308, -1.0])
@pytest.mark.parametrize("n", [1, 9])
def test_any_number_can_be_drawn(value, n):
    drawing = parsed(scatter([Point("<p>", float(x), value, 0) for x in range(n)], "x", "y", "t", "d"))
    assert all(0 <= float(each.attributes["cx"]) <= 520 for each in drawing.all("circle"))
