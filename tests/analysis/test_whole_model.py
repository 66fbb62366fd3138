"""The rows of the model as a whole, from numbers that no run made."""

import math

import pandas as pd

from precision_probe.analysis.errors import exceeded
from precision_probe.analysis.whole_model import model_rows, shown_units

NAN = math.nan
SUMMARY = pd.DataFrame(
    {
        "energy": [0.0, 2e-3, NAN],
        "forces": [0.0, 0.5, 4.0],
        "forces_mae": [0.0, 0.25, 1.0],
        "dipole": [0.0, 0.125, 0.5],
        "nonfinite": [0, 0, 3],
        "time": [1.0, 0.5, NAN],
        "time_iqr": [0.0, 0.25, NAN],
    },
    index=pd.Index(["float64", "float32", "float16"], name="precision"),
)
ERRORS = pd.DataFrame(
    [("model", "dipole", "eÅ"), ("model", "forces", "eV/Å"), ("model", "energy", "eV"), ("products.0", "output", "1")],
    columns=["block", "tensor", "units"],
)
CAUSES = pd.DataFrame(
    {"energy_part": ["sums"], "energy_share": [0.75], "forces_part": ["geometry"], "forces_share": [NAN]},
    index=["float32"],
)


def rows(limits, causes=None, summary=SUMMARY):
    return model_rows(summary, shown_units(ERRORS), exceeded(summary, limits), causes, is_judged=bool(limits))


def test_units_are_milli_of_what_is_in_ev_and_in_the_order_of_a_summary():
    units = shown_units(ERRORS)
    assert list(units.items()) == [
        ("energy", ("meV/atom", 1e3)),
        ("forces", ("meV/Å", 1e3)),
        ("forces_mae", ("meV/Å", 1e3)),
        ("dipole", ("eÅ", 1.0)),
    ]
    assert shown_units(ERRORS.assign(units="kcal")) == dict.fromkeys(("energy", "forces", "dipole"), ("kcal", 1.0))


def test_each_row_has_its_errors_verdict_time_and_causes():
    reference, float32, float16 = rows({"forces": 1.0, "energy": 1e-3}, CAUSES)
    assert float32.errors == {"energy": 2.0, "forces": 500.0, "forces_mae": 250.0, "dipole": 0.125}
    assert (reference.exceeded, float32.exceeded, set(float16.exceeded)) == ((), ("energy",), {"forces", "energy"})
    assert [row.is_judged for row in (reference, float32, float16)] == [False, True, True]
    assert [row.n_broken for row in (reference, float32, float16)] == [0, 0, 3]
    assert float32.time == (0.5, 0.25)
    assert float32.causes["energy"] == ("sums", 0.75)
    assert float32.causes["forces"][0] == "geometry"
    assert reference.causes == float16.causes == {}


def test_what_was_not_measured_or_judged_is_not_there():
    found = rows({}, summary=SUMMARY.assign(time=NAN))
    assert [row.time for row in found] == [None] * 3
    assert not any(row.is_judged or row.exceeded for row in found)
