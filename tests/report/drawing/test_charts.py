"""charts.py: numbers stand where their logarithm says; zeros and NaN have places of their own."""

import math

import numpy as np
import pytest
from pages_by_hand import parsed

from precision_probe.report.drawing.charts import Series, rows_chart

NAN = float("nan")


def circles(drawing):
    """Centre of each circle, by what it says."""
    return {
        next(each.all("title")).text: (float(each.attributes["cx"]), float(each.attributes["cy"]))
        for each in parsed(drawing).all("circle")
        if list(each.all("title"))
    }


def test_places_are_logarithmic_and_rows_follow_one_another():
    values = [1e-6, 1e-4, 1e-2, 1.0]
    found = np.array(list(circles(rows_chart("abcd", [Series("s", values, 0)], "x", "t")).values()))
    np.testing.assert_allclose(np.diff(found[:, 0]), np.diff(found[:, 0])[0], atol=0.2)  # a tenth is written
    np.testing.assert_allclose(np.diff(found[:, 1]), np.diff(found[:, 1])[0])
    assert (np.diff(found, axis=0) > 0).all()


def test_zeros_and_nan_are_beside_the_scale():
    drawing = rows_chart(
        "abcde", [Series("s", [0.0, 1e-3, 1e-1, NAN, math.inf], 0), Series("f", [1e-3] * 5, 1)], "x", "t"
    )
    (zero, low, high, nan, infinite) = (x for x, _ in circles(drawing).values())
    assert zero < low < high < nan == infinite
    lines = [each for each in parsed(drawing).all("path") if "points s0" in each.attributes["class"]]
    assert [each.attributes["d"].count("L") for each in lines] == [1]  # through the two that have a logarithm
    assert {"0", "NaN"} <= {each.text for each in parsed(drawing).all("text")}


def test_series_beyond_the_colours_have_other_shapes():
    drawing = rows_chart(["a"], [Series(str(slot), [1e-3], slot) for slot in range(36)], "x", "t")
    marks = [each for each in parsed(drawing).all() if list(each.all("title")) and each.tag in ("circle", "polygon")]
    assert len({(each.attributes["class"], relative(each)) for each in marks}) == 36


def relative(mark):
    """The corners of a mark from its first, of which a circle has none."""
    corners = np.array([corner.split(",") for corner in mark.attributes.get("points", "0,0").split()], float)
    return tuple(np.round(corners - corners[0]).ravel())


@pytest.mark.parametrize("values", [[0.0], [NAN], [None], [5e-324], [1.7e308], [-1.0]])
def test_any_number_can_be_drawn(values):
    drawing = parsed(rows_chart(["<a>"], [Series("s", values, 0)], "x", "t"))
    places = [float(each.attributes["cx"]) for each in drawing.all("circle")]
    assert all(0 <= place <= 400 for place in places)
