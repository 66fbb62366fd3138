"""growth.py: what is drawn are the numbers of the tables, and what cannot be drawn is said."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from runs import molecule, trace_of
from traces_by_hand import trace_by_hand

import precision_probe as pp
from precision_probe.exceptions import InputError


@pytest.fixture(scope="module")
def trace(model):
    return trace_of(model, [molecule(1), molecule(2)], precisions="float32,float16")


def drawn(axes, colour, linestyle):
    """The line of a colour and of dashes."""
    (line,) = (each for each in axes.lines if (each.get_color(), each.get_linestyle()) == (colour, linestyle))
    return line.get_ydata()


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_errors_from_block_to_block(trace, direction):
    axes = pp.plot_growth(trace, direction=direction)
    table = pp.per_block(trace)["propagated", direction]
    table = table if direction == "forward" else table.iloc[::-1]
    labelled = {line.get_label(): line.get_ydata() for line in axes.lines if not line.get_label().startswith("_")}
    assert list(labelled) == ["float32", "float16"]
    for name, values in labelled.items():
        expected = table[name].where(table[name] > 0)
        np.testing.assert_array_equal(values, expected)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list(table.index)
    assert axes.get_yscale() == "log"
    n_zero = int((table.fillna(0) == 0).sum().sum())
    assert (f"{n_zero} zero" in axes.get_title()) is (n_zero > 0)


def test_beside_errors_are_the_floor_and_roundings_at_random(trace):
    axes = pp.plot_growth(trace, precisions="float16")
    colour = axes.lines[0].get_color()
    n_blocks = np.arange(1, len(pp.per_block(trace)) + 1)
    np.testing.assert_allclose(drawn(axes, colour, ":"), 2.0**-11 * np.sqrt(n_blocks))
    errors = pp.errors(trace).query("precision == 'float16' and mode == 'propagated' and direction == 'forward'")
    for block, floor in zip(
        [tick.get_text() for tick in axes.get_xticklabels()], drawn(axes, colour, "--"), strict=True
    ):
        worst = errors[errors["block"] == block].sort_values("rel_l2").iloc[-1]
        assert floor == worst["floor"] or (np.isnan(floor) and not worst["floor"] > 0)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["float16", "floor", "√n·u"]


def test_blocks_and_precisions(trace):
    axes = pp.plot_blocks(trace, precisions="float16", blocks=["interactions.*", "products.*"])
    image = axes.images[0].get_array()
    table = pp.per_block(trace)["propagated"].loc[["interactions.0", "products.0", "interactions.1", "products.1"]]
    expected = np.log10(table[[("forward", "float16"), ("backward", "float16")]])
    np.testing.assert_allclose(image, expected, rtol=1e-12)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["float16 →", "float16 ←"]
    assert axes.images[0].get_cmap().name == "cividis"


def test_axes_can_be_given(trace):
    figure = Figure()
    first, second = figure.subplots(1, 2)
    assert pp.plot_growth(trace, ax=first) is first
    assert pp.plot_blocks(trace, ax=second) is second


def test_zeros_and_nan_are_left_out_and_counted():
    trace = trace_by_hand()
    axes = pp.plot_blocks(trace)
    shown = np.isfinite(np.asarray(axes.images[0].get_array(), dtype=float))
    n_out = int((~shown).sum())
    assert (f"({n_out} zero, not finite or not there: not shown)" in axes.get_title()) is (n_out > 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precisions": "bfloat16"}, r"no bfloat16\. It has: float32, float16"),
        ({"blocks": "layers.*"}, r"No block is named as layers\.\*\. There are: node_embedding"),
        ({"direction": "sideways"}, "no errors of the direction 'sideways'"),
    ],
)
def test_what_is_not_there_is_said(trace, options, words):
    with pytest.raises(InputError, match=words):
        pp.plot_growth(trace, **options)
