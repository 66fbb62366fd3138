"""frames.py: what is joined is what stands in the groups, and errors are differences of it."""

import ase.data
import numpy as np
import pytest
from runs import molecule, trace_of

import precision_probe as pp
from precision_probe.analysis.frames import per_part, worst_tensors
from precision_probe.exceptions import InputError


@pytest.fixture(scope="module")
def trace(model, crystal_of_carbon):
    return trace_of(
        model, [molecule(1), crystal_of_carbon, molecule(2)], precisions="float32,bfloat16", blocks="products.*"
    )


@pytest.fixture(scope="module")
def crystal_of_carbon():
    import ase.build

    atoms = ase.build.bulk("C", cubic=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def test_every_array_stands_beside_those_of_other_precisions(trace):
    joined = pp.to_dataset(trace)
    assert joined["precision"].values.tolist() == ["float64", "float32", "bfloat16"]
    for name in joined["precision"].values:
        group = trace.group("propagated", name)
        assert set(group.data_vars) <= set(joined.data_vars)
        for variable in group.data_vars:
            np.testing.assert_array_equal(joined[variable].sel(precision=name), group[variable])
    numbers = trace.structures["atomic_numbers"].values
    assert joined["element"].values.tolist() == [ase.data.chemical_symbols[number] for number in numbers]
    assert joined["name"].values.tolist() == trace.structures["name"].values.tolist()


def test_the_isolated_mode(trace):
    joined = pp.to_dataset(trace, "isolated")
    assert "forces" not in joined
    np.testing.assert_array_equal(
        joined["products.0.output"].sel(precision="float32"), trace.group("isolated", "float32")["products.0.output"]
    )
    with pytest.raises(InputError, match=r"nothing of the mode 'alone'\. It has: propagated, isolated"):
        pp.to_dataset(trace, "alone")


def test_errors_of_every_atom(trace):
    table = pp.per_atom(trace)
    sizes = trace.structures["n_atoms"].values
    assert len(table) == 2 * sizes.sum()
    exact = trace.group("propagated", "float64")["forces"].values
    for precision in ("float32", "bfloat16"):
        rows = table.loc[precision]
        error = trace.group("propagated", precision)["forces"].values.astype(float) - exact
        np.testing.assert_array_equal(rows[["error_x", "error_y", "error_z"]], error)
        np.testing.assert_allclose(rows["error"], np.sqrt((error**2).sum(axis=1)), rtol=1e-15)
        np.testing.assert_allclose(rows["force"], np.sqrt((exact**2).sum(axis=1)), rtol=1e-15)
    assert table.loc[("float32", 1)].index.tolist() == list(range(sizes[1]))
    assert set(table.loc[("float32", 1), "element"]) == {"C"}
    assert table.loc[("float32", 2, 0), "name"] == trace.structures["name"].values[2]


def test_the_largest_error_of_every_block(trace):
    table, all_errors = pp.per_block(trace), pp.errors(trace)
    assert table.index.tolist() == ["products.0", "products.1"]
    for (mode, direction, precision), column in table.items():
        for block, found in column.items():
            rows = all_errors[
                (all_errors["mode"] == mode) & (all_errors["direction"] == direction) & (all_errors["block"] == block)
            ]
            assert found == rows[rows["precision"] == precision]["rel_l2"].max()
    assert (pp.per_block(trace, "max_abs") > 0).all().all()


@pytest.mark.parametrize("by", ["irrep", "element"])
def test_the_largest_error_of_every_part_of_outputs(trace, by):
    table = per_part(trace, by, "isolated")
    errors = pp.errors(trace, by=by).query("mode == 'isolated' and direction == 'forward' and resolved")
    for precision, part in table.columns:
        for block in table.index:
            rows = errors[(errors["precision"] == precision) & (errors[by] == part) & (errors["block"] == block)]
            assert table.loc[block, (precision, part)] == rows["rel_l2"].max() or rows.empty
    parts = {"irrep": ["0e", "1o"], "element": ["H", "C", "O"]}[by]
    assert set(table["float32"]) <= set(parts)
    assert list(table["float32"]) == [part for part in parts if part in table["float32"]]
    assert table.columns.unique("precision").tolist() == ["float32", "bfloat16"]


def test_the_tensor_that_stands_for_a_block(trace):
    table = pp.errors(trace)
    worst = worst_tensors(table, trace.blocks, "propagated", "bfloat16", "backward")
    assert worst.index.tolist() == list(trace.blocks)
    expected = pp.per_block(trace)["propagated", "backward", "bfloat16"]
    np.testing.assert_array_equal(worst["rel_l2"], expected)
    assert worst_tensors(table, trace.blocks, "propagated", "float16", "forward").empty


def test_what_is_zero_up_to_rounding_has_no_relative_error(model):
    """Σ Y² of normalised spherical harmonics is constant, so that its gradient is."""
    table = pp.per_block(trace_of(model, [molecule(1)], blocks="spherical_harmonics"))
    assert np.isnan(table.loc["spherical_harmonics"].get(("isolated", "backward", "float32"), np.nan))
    assert 0 < table.loc["spherical_harmonics", ("isolated", "forward", "float32")] < 1e-5


def test_a_result_that_is_not_finite_is_not_passed_over(model):
    trace = trace_of(model, [molecule(1)], blocks="interactions.0", modes="propagated")
    before = pp.per_block(trace)
    trace.tree["propagated/float32"]["interactions.0.skip"].values[0, 0] = np.nan
    after = pp.per_block(trace)
    forward, backward = (("propagated", direction, "float32") for direction in ("forward", "backward"))
    assert np.isfinite(before.loc["interactions.0", forward])
    assert after.loc["interactions.0", forward] == np.inf
    assert after.loc["interactions.0", backward] == before.loc["interactions.0", backward]


def test_what_is_not_there_is_said(trace, model):
    with pytest.raises(InputError, match=r"no metric 'mode'\. There are: max_abs, mean_rel"):
        pp.per_block(trace, "mode")
    alone = trace_of(model, [molecule(1)], precisions="float64", blocks="products.*")
    with pytest.raises(InputError, match="no forces in a precision beside float64"):
        pp.per_atom(alone)
    with pytest.raises(InputError, match="no blocks beside float64"):
        pp.per_block(alone)
