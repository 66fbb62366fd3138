"""views.py: every number of a view is one that the trace keeps, in the unit that is said."""

import warnings

import ase.build
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from runs import trace_of
from tables_by_hand import PRECISIONS, QUANTITIES, TABLES

import precision_probe as pp
from precision_probe.analysis.views import numbers, view, views
from precision_probe.trace.tables import StoredTable
from precision_probe.trace.trace import SCHEMA_VERSION, Trace

REDUCED = list(PRECISIONS[1:])
MILLI = 1000


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def real(model):
    molecules = [ase.build.molecule("H2O"), ase.build.molecule("CH4")]
    return trace_of(model, molecules, precisions="float32,bfloat16", blocks="readouts.*")


def trace_with(tables):
    """A trace that has nothing but tables."""
    attributes = {"schema_version": SCHEMA_VERSION, "precisions": '["float64"]', "blocks": "[]", "modes": "[]"}
    return Trace(xr.DataTree.from_dict({"/": xr.Dataset(attrs=attributes)})).with_tables(tables)


def table_and_view(name):
    return TABLES[name].frame, view(trace_with(TABLES), name)


def assert_numbers(frame, expected):
    """Rows and columns in this order, and these numbers."""
    expected = pd.DataFrame(expected)
    assert frame.index.tolist() == expected.index.tolist()
    assert frame.columns.tolist() == expected.columns.tolist()
    np.testing.assert_allclose(frame.to_numpy(float), expected.to_numpy(float), rtol=1e-12)


def test_budget_in_milli_ev_per_angstrom():
    table, shown = table_and_view("budget")
    assert "meV/Å" in shown.title
    labels = ["geometry", "weights", "inputs products.0", "arithmetic products.0", "parts, root of squares"]
    labels += ["all together", "not explained by the parts"]
    expected = {
        name: pd.Series(MILLI * table.loc[table["precision"] == name, "forces_mae"].to_numpy(), labels)
        for name in REDUCED
    }
    assert_numbers(shown.frame, expected)
    assert shown.frame.loc["not explained by the parts", "float16"] == -7.0  # a sign survives


def test_prediction_in_milli_ev():
    table, shown = table_and_view("prediction")
    rows = {
        "energy, bound, meV/atom": "energy_bound",
        "energy, expected": "energy_expected",
        "energy, measured": "energy",
        "forces RMS, expected, meV/Å": "forces_expected",
        "forces RMS, measured": "forces",
    }
    columns = {
        row["precision"]: {label: MILLI * row[key] for label, key in rows.items()} for _, row in table.iterrows()
    }
    assert_numbers(shown.frame, columns)
    assert shown.frame.loc["energy, bound, meV/atom", "float16"] == 100


def test_sweep_in_milli_ev_per_angstrom_with_bits_rising():
    _, shown = table_and_view("sweep")
    expected = {"7": {"whole model": 250.0, "a": 62.5}, "23": {"whole model": 4e3 / 2**20, "a": 1e3 / 2**20}}
    assert_numbers(shown.frame, expected)
    assert "meV/Å" in shown.title


def test_sweep_of_structures_held_out_too():
    table = TABLES["sweep"].frame.assign(held_out_forces=[1.0, 0.125, 0.0, 2.0])
    shown = view(trace_with({"sweep": StoredTable(table, "")}), "sweep").frame
    assert_numbers(shown, {"7": {"whole model": 250.0, "a": 2000.0}, "23": {"whole model": 1000.0, "a": 1e3 / 2**20}})


def test_noise_is_the_worst_of_the_blocks():
    _, shown = table_and_view("noise")
    rows = {"energy": 1, "forces": 2, "blocks, forward": 5, "blocks, backward": 4}
    scales = dict(zip(PRECISIONS, (1e-16, 1e-3, 1e-7), strict=True))
    assert_numbers(shown.frame, {p: {row: n * scale for row, n in rows.items()} for p, scale in scales.items()})


def test_equivariance_is_the_worst_of_each_irrep_with_its_spread():
    """Of each the spread is a fifth of the mean."""
    table, shown = table_and_view("equivariance")
    assert shown.frame.columns.tolist() == list(PRECISIONS)
    assert shown.frame["float16"].to_dict() == {
        "rotation: energy": "1.0e-03 ± 2e-04",
        "rotation: forces": "2.0e-03 ± 4e-04",
        "rotation: blocks, 0e": "3.0e-03 ± 6e-04",
        "rotation: blocks, 1o": "5.0e-03 ± 1e-03",
        **{f"inversion: {what}": "0" for what in ("energy", "forces", "blocks, 0e", "blocks, 1o")},
    }
    before = table.drop(columns=["spread", "n_seeds"])  # as older traces have it
    frame = view(trace_with({"equivariance": StoredTable(before, "")}), "equivariance").frame
    assert frame.loc["rotation: blocks, 1o", "float32"] == "5.0e-07"


def test_digits_to_one_decimal():
    _, shown = table_and_view("digits")
    expected = {
        name: {quantity: round(d + more, 1) for quantity, more in QUANTITIES}
        for name, d in zip(PRECISIONS, (14.0, 3.0, 6.0), strict=True)
    }
    assert_numbers(shown.frame, expected)


def test_finite_differences_in_milli_ev():
    _, shown = table_and_view("finite_differences")
    expected = {
        name: {
            "difference, meV/Å": MILLI * u,
            "of it truncation and noise, meV/Å": MILLI * 3 * u,
            "relative to the forces": 2 * u,
            "step, Å": 0.025,
            "noise of the energy, meV": MILLI * 4 * u,
        }
        for name, u in zip(PRECISIONS, (1e-9, 1e-2, 1e-5), strict=True)
    }
    assert_numbers(shown.frame, expected)


def test_steps_along_a_displacement():
    """Stairs of height 0.2 meV/atom have an RMS of 0.2/√12; what is smooth has none."""
    _, shown = table_and_view("displacement")
    assert shown.frame.columns.tolist() == list(PRECISIONS)
    assert shown.frame.loc["energy, meV/atom", "float16"] == pytest.approx(0.2 / np.sqrt(12), rel=0.1)
    assert shown.frame.loc["energy, meV/atom", "float64"] == 0
    assert shown.frame.loc["energy, meV/atom", "float32"] < 1e-9
    assert shown.frame.loc["different energies"].tolist() == [101, 21, 101]
    assert "over 0.01 Å in 101 points" in shown.note


DRIFT_ROWS = ["drift, meV/atom/ps", "± (95 % interval)", "fluctuation, meV/atom"]


def test_drift_and_whether_it_is_told_from_float64s():
    """One precision that is told, and one that is not, with the difference that would have been."""
    nan = np.nan
    columns = ["precision", "drift", "confidence", "difference", "difference_confidence", "detectable", "fluctuation"]
    rows = [
        ("float64", 1.0, 2.0, nan, nan, nan, 3.0),
        ("float16", 5.0, 4.0, 4.0, 0.5, 0.875, 6.0),
        ("float32", 0.75, 2.0, -0.25, 0.5, 0.875, 3.0),
    ]
    table = pd.DataFrame(rows, columns=columns).assign(temperature=300.0)
    shown = view(trace_with({"drift": StoredTable(table, "drift, by hand")}), "drift").frame
    told = shown.loc["told from float64's"]
    assert told.to_dict() == {"float64": "", "float16": "yes", "float32": "no (8.8e-01 would be)"}
    labels = [*DRIFT_ROWS, "drift less float64's, meV/atom/ps", "± (95 % interval, run by run)"]
    expected = {name: (drift, ci, rest, apart, half) for name, drift, ci, apart, half, _, rest in rows}
    assert_numbers(shown.iloc[:-1], {p: dict(zip(labels, values, strict=True)) for p, values in expected.items()})


def test_drift_of_older_traces_as_stored():
    rows = [(name, k, 2 * k, 3 * k) for k, name in enumerate(PRECISIONS, 1)]
    table = pd.DataFrame(rows, columns=["precision", "drift", "confidence", "fluctuation"])
    shown = view(trace_with({"drift": StoredTable(table, "drift, by hand")}), "drift").frame
    assert_numbers(shown, {name: dict(zip(DRIFT_ROWS, (k, 2 * k, 3 * k), strict=True)) for name, k, *_ in rows})


def test_range_says_each_thing_once():
    _, shown = table_and_view("range")
    assert shown.frame.index.tolist() == ["float16"] * 2
    assert shown.frame.iloc[:, 0].tolist() == ["carbon is too heavy", "a readout overflows"]


def test_nothing_out_of_range_is_said(tmp_path):
    empty = StoredTable(TABLES["range"].frame.iloc[:0], "")
    saved = trace_with({"range": empty}).save(tmp_path / "trace.h5")
    with pp.open_trace(saved) as read:
        for trace in (trace_with({"range": empty}), read):
            frame = view(trace, "range").frame
            assert frame.index.tolist() == ["all precisions"]
            assert frame.iloc[0, 0] == "every number stays within range"


@pytest.mark.parametrize(("name", "column"), [("digits", "digits"), ("noise", "spread"), ("budget", "forces_mae")])
def test_a_precision_of_which_nothing_is_finite_is_shown(name, column):
    table = TABLES[name].frame.copy()
    table.loc[table["precision"] == "float16", column] = np.nan
    shown = view(trace_with({name: StoredTable(table, "")}), name).frame
    assert shown.columns.tolist() == view(trace_with(TABLES), name).frame.columns.tolist()
    assert shown.index.tolist() == view(trace_with(TABLES), name).frame.index.tolist()
    assert shown["float16"].isna().all()
    assert shown["float32"].notna().all()


# physics


def test_physics_in_the_units_of_its_rows(real):
    frame = view(real, "physics").frame
    assert frame.columns.tolist() == ["float64", "float32", "bfloat16"]
    exact, rounded = (real.group("propagated", name) for name in ("float64", "bfloat16"))
    delta = rounded["forces"].values.astype(float) - exact["forces"].values
    energy = np.abs(rounded["energy"].values.astype(float) - exact["energy"].values) / real.structures["n_atoms"].values
    column = frame["bfloat16"]
    assert column["forces MAE, meV/Å"] == pytest.approx(MILLI * np.abs(delta).mean())
    assert column["forces RMSE, meV/Å"] == pytest.approx(MILLI * np.sqrt((delta**2).mean()))
    assert column["forces, largest, meV/Å"] == pytest.approx(MILLI * np.abs(delta).max())
    assert column["energy, meV/atom"] == pytest.approx(MILLI * energy.mean())
    assert column["forces, 95 % below, meV/Å"] == pytest.approx(MILLI * np.percentile(np.abs(delta), 95))
    y = exact["forces"].values
    assert column["forces too large by, %"] == pytest.approx(100 * (y * delta).sum() / (y**2).sum())
    is_carbon = np.asarray(list("OHHCHHHH")) == "C"
    assert column["C: forces MAE, meV/Å"] == pytest.approx(MILLI * np.abs(delta[is_carbon]).mean())
    squares = (y[is_carbon] ** 2).sum()
    expected = 100 * (y[is_carbon] * delta[is_carbon]).sum() / squares if squares else np.nan
    assert column["C: forces too large by, %"] == pytest.approx(expected, nan_ok=True)
    assert column["worst atom"].endswith(("of H2O", "of CH4"))
    assert not any("stress" in label or "own" in label for label in frame.index)  # neither cells nor labels
    assert frame["float64"]["forces MAE, meV/Å"] == 0


def test_numbers_are_the_whole_tables(real):
    with_tables = real.with_tables(TABLES)
    assert set(numbers(with_tables, "physics")["structure"]) == {"H2O", "CH4", "all"}
    pd.testing.assert_frame_equal(numbers(with_tables, "budget"), TABLES["budget"].frame, check_dtype=False)
    with pytest.raises(pp.InputError, match="no table 'budget'"):
        numbers(real, "budget")


# which


def test_all_stored_tables_and_physics_are_shown(real):
    assert views(real) == ("physics",)
    other = StoredTable(pd.DataFrame({"x": [1.0]}), "someone else's")
    trace = real.with_tables(TABLES | {"theirs": other})
    assert set(views(trace)) == {"physics", *TABLES}
    assert views(trace)[0] == "physics"
    with pytest.raises(pp.InputError, match=r"Unknown table 'theirs'.*physics.*budget"):
        view(trace, "theirs")
    with pytest.raises(pp.InputError, match=r"no table 'noise'.*--explain"):
        view(real, "noise")


def test_outputs_of_another_module_are_no_physics_whatever_their_names():
    class Potential(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 3)

        def forward(self, x):
            return {"forces": self.layer(x), "energy": x.sum(dim=1, keepdim=True)}

    trace = trace_of(Potential(), torch.ones(2, 3), call=lambda m, x: m(x), blocks="*", precisions="float16")
    assert views(trace) == ()
    with pytest.raises(pp.InputError, match="no energies and forces"):
        view(trace, "physics")
