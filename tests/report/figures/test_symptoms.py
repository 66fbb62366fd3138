"""symptoms.py: energies along a line, broken symmetries and digits are those of the trace's tables."""

import numpy as np
import pytest
from tables_by_hand import QUANTITIES, TABLES
from traces_by_hand import trace_by_hand

import precision_probe as pp


@pytest.fixture
def trace():
    return trace_by_hand().with_tables(TABLES)


def test_stairs_along_a_line(trace):
    axes = pp.plot_displacement(trace)
    table = TABLES["displacement"].frame
    drawn = {line.get_label(): line for line in axes.lines}
    assert list(drawn) == ["float64", "float16"]
    for name, line in drawn.items():
        curve = table[table["precision"] == name]
        np.testing.assert_array_equal(line.get_xdata(), curve["position"])
        np.testing.assert_array_equal(line.get_ydata(), curve["energy"])
    assert pp.plot_displacement(trace, precisions="float16").lines[0].get_color() == drawn["float16"].get_color()


def test_broken_symmetries_with_their_spread(trace):
    axes = pp.plot_equivariance(trace)
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    results = ["energy", "forces", "blocks, 0e", "blocks, 1o"]
    assert labels == [f"{motion}: {what}" for motion in ("rotation", "inversion") for what in results]
    drawn = {container.get_label(): container for container in axes.containers}
    assert list(drawn) == ["float64", "float16"]
    points, _, (bars,) = drawn["float16"]
    expected = 1e-3 * np.array([1.0, 2.0, 3.0, 5.0])  # of rotations; inversions break nothing
    np.testing.assert_allclose(points.get_xdata(), [*expected, *[np.nan] * 4])
    ends = np.array([segment[:, 0] for segment in bars.get_segments()[:4]])
    np.testing.assert_allclose(ends, np.outer(expected, [0.8, 1.2]))
    assert "(8 zero" in axes.get_title()  # inversions, in two precisions
    axes = pp.plot_equivariance(trace, precisions="float16", blocks="rotation: *")
    assert [tick.get_text() for tick in axes.get_yticklabels()] == labels[:4]


def test_digits_of_results(trace):
    axes = pp.plot_digits(trace)
    drawn = {line.get_label(): line.get_xdata().tolist() for line in axes.lines}
    extra = [more for _, more in QUANTITIES]
    for name, whole in (("float64", 14), ("float16", 3)):
        assert drawn[name] == pytest.approx([whole + more for more in extra], abs=0.06)  # to a tenth, as on the page
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["energy", "interaction energy", "forces"]
    assert axes.get_xlim()[0] == 0


@pytest.mark.parametrize("plot", [pp.plot_displacement, pp.plot_equivariance, pp.plot_digits])
def test_a_table_that_is_not_there_can_be_made(plot):
    bare = trace_by_hand()
    del bare.tree["tables"]
    with pytest.raises(pp.InputError, match=r"no table at all\. Make it with: precision-probe audit --explain"):
        plot(bare)
