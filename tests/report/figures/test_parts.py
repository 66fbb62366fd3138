"""parts.py: errors of irreps and of elements are those of numbers picked out by hand."""

import numpy as np
import pytest
from pages_by_hand import of_many, with_nan
from traces_by_hand import IRREPS, trace_by_hand

import precision_probe as pp


def outputs(trace, precision):
    return trace.group("propagated", precision)["products.0.output"].values.astype(float)


def picked(by):
    """Rows or columns of the block's output, (atom, feature), of each part."""
    if by == "irrep":
        return {irrep: np.s_[:, np.array(IRREPS) == irrep] for irrep in ("0e", "1o")}
    return {"H": np.s_[[0]], "C": np.s_[[2]], "O": np.s_[[1]]}  # by atomic number


@pytest.mark.parametrize(("by", "plot"), [("irrep", pp.plot_irreps), ("element", pp.plot_elements)])
def test_a_line_for_each_part_has_its_relative_error(by, plot):
    trace = trace_by_hand()
    axes = plot(trace)
    exact, rounded = outputs(trace, "float64"), outputs(trace, "float16")
    expected = [
        np.linalg.norm(rounded[part] - exact[part]) / np.linalg.norm(exact[part]) for part in picked(by).values()
    ]
    np.testing.assert_allclose([line.get_ydata()[0] for line in axes.lines], expected, rtol=1e-6)
    assert len({line.get_color() for line in axes.lines}) == len(expected)
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["float16", *picked(by)]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["products.0"]
    assert axes.get_yscale() == "log"


def test_a_part_that_is_not_finite_is_left_out_and_counted():
    axes = pp.plot_irreps(with_nan())  # the first number of the first atom, 0e
    first, second = (line.get_ydata()[0] for line in axes.lines)
    assert np.isnan(first)
    assert second > 0
    assert "(1 zero, not finite or not there: not shown)" in axes.get_title()


def test_without_parts_it_is_said_that_there_are_none():
    with pytest.raises(pp.InputError, match="no blocks"):
        pp.plot_irreps(of_many(2))
    trace = trace_by_hand()
    trace.tree["structures"] = trace.tree["structures"].to_dataset().drop_vars("atomic_numbers")
    with pytest.raises(pp.InputError, match="by chemical element"):
        pp.plot_elements(trace)
