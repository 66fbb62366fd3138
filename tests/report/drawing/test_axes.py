"""axes.py: numbers stand where they should, and ticks where they say."""

import math

import numpy as np
import pytest

from precision_probe.report.drawing.axes import LinearAxis, LogAxis, axis_of_times


def test_a_linear_axis_begins_at_zero_and_holds_all():
    axis = LinearAxis.of([1.0, 2.0, 4.0], 10, 110)
    assert (axis.at(0.0), axis.at(axis.most)) == (10, 110)
    assert [label for _, label in axis.ticks] == ["0", "1", "2", "3", "4", "5"]
    np.testing.assert_allclose([place for place, _ in axis.ticks], [10, 30, 50, 70, 90, 110])


def test_a_logarithmic_axis_has_places_for_zero_and_nan():
    axis = LogAxis.of([0.0, 1e-3, 10.0, math.nan], 0, 200)
    assert axis.at(0.0) < axis.at(1e-3) < axis.at(1.0) < axis.at(10.0) < axis.at(math.nan)
    np.testing.assert_allclose(axis.at(1.0) - axis.at(0.1), axis.at(0.1) - axis.at(0.01))
    assert {"0", "NaN"} <= {label for _, label in axis.ticks}


@pytest.mark.parametrize(
    ("times", "kind"),
    [
        ([1.0, 8.0], LinearAxis),
        ([1.0, 8.1], LogAxis),
        ([0.0, 100.0], LinearAxis),
        ([], LinearAxis),
        ([3.0], LinearAxis),
    ],
)
def test_times_are_logarithmic_where_they_are_far_apart(times, kind):
    assert type(axis_of_times(times, 0, 100)) is kind
