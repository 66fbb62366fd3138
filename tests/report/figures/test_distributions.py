"""distributions.py: parts of atoms and of numbers are counted, one by one."""

import numpy as np
import pytest
from pages_by_hand import of_many, with_nan
from traces_by_hand import trace_by_hand

import precision_probe as pp


def counted(axes, errors):
    """Check that each bin of a histogram has the part of the numbers that lie in it."""
    (patch,) = axes.patches
    parts, edges, _ = patch.get_data()
    for part, low, high in zip(parts, edges[:-1], edges[1:], strict=True):
        assert part == pytest.approx(np.mean((errors >= low) & (errors < high)))
    assert np.allclose(np.diff(np.log10(edges)), 1 / 4)


def test_force_errors_of_atoms():
    axes = pp.plot_forces(of_many(5))  # of each third atom 1, 2, 3, 4, 5 meV/Å
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 3, 4, 5])
    np.testing.assert_allclose(line.get_ydata(), np.array([15, 14, 13, 12, 11]) / 15)
    assert "(10 zero" in axes.get_title()
    assert "meV/Å" in axes.get_xlabel()


def test_force_errors_of_components():
    trace = of_many(30)
    axes = pp.plot_distribution(trace)
    exact, rounded = (trace.group("propagated", name)["forces"].values for name in ("float64", "float16"))
    counted(axes, 1e3 * np.abs(rounded - exact).ravel())
    assert "(240 zero" in axes.get_title()
    assert axes.get_xlabel().endswith("/ meV/Å")


def test_outputs_of_a_block_in_units_of_their_size():
    trace = trace_by_hand()
    axes = pp.plot_distribution(trace, blocks="products.*")
    exact, rounded = (
        trace.group("propagated", name)["products.0.output"].values.astype(float) for name in ("float64", "float16")
    )
    errors = np.abs(rounded - exact).ravel() / np.sqrt(np.mean(exact**2))
    counted(axes, errors)
    n_zero = int((errors == 0).sum())
    assert (f"({n_zero} zero" in axes.get_title()) is (n_zero > 0)
    assert axes.get_title().startswith("products.0")


def test_what_is_not_finite_is_counted_and_what_is_not_there_is_said():
    assert "not finite" in pp.plot_distribution(with_nan(), blocks="products.0").get_title()
    trace = trace_by_hand()
    for precision in ("float64", "float16"):
        group = trace.tree[f"propagated/{precision}"]
        trace.tree[f"propagated/{precision}"] = group.to_dataset().drop_vars(["products.0.output", "forces"])
    with pytest.raises(pp.InputError, match=r"keeps no outputs of products\.0.*--keep tensors"):
        pp.plot_distribution(trace, blocks="products.0")
    for plot in (pp.plot_forces, pp.plot_distribution):
        with pytest.raises(pp.InputError, match="no forces"):
            plot(trace)
