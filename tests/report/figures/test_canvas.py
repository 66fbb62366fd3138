"""canvas.py: colours and marks that are told apart, and what has no place on a logarithmic axis."""

import numpy as np
from matplotlib.figure import Figure
from traces_by_hand import trace_by_hand

from precision_probe.report.drawing.scales import CIVIDIS, OKABE_ITO
from precision_probe.report.figures import canvas


def test_many_series_are_told_apart():
    looks = [canvas.point(slot) for slot in range(36)]
    assert len({(look["color"], look["marker"]) for look in looks}) == 36
    looks = [canvas.line(slot) for slot in range(24)]
    assert len({(look["color"], look["linestyle"]) for look in looks}) == 24
    assert len({tuple(canvas.dashes(slot).values()) for slot in range(12)}) == 12
    assert canvas.colours(3) == list(OKABE_ITO[:3])
    many = canvas.colours(30)
    assert len(set(many)) == 30
    assert (many[0], many[-1]) == (CIVIDIS[0], CIVIDIS[-1])


def test_numbers_without_logarithm_have_no_place():
    values = np.array([1.0, 0.0, -1.0, np.inf, np.nan])
    np.testing.assert_array_equal(canvas.placed(values), [1.0, np.nan, np.nan, np.nan, np.nan])
    assert canvas.n_without_place(values) == 4


def test_names_are_text():
    axes = Figure().add_subplot()
    canvas.rows(axes, ["$\\frac{$\x1b[2J"])
    axes.figure.canvas.draw()  # which would fail on a formula that is none
    assert axes.get_yticklabels()[0].get_text() == r"\$\frac{\$\x1b[2J"


def test_precisions_come_as_they_are_asked_for_or_in_the_order_of_the_run():
    trace = trace_by_hand()
    assert canvas.chosen(trace, None) == ["float16"]
    assert canvas.chosen(trace, None, {"float64", "float16", "float32"}) == ["float64", "float16"]
    assert canvas.chosen(trace, "half") == ["float16"]
