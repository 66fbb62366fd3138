"""causes.py: points stand where the trace's tables say, and a trace without these says how they are made."""

import numpy as np
import pandas as pd
import pytest
from pages_by_hand import CONTRIBUTIONS
from tables_by_hand import TABLES
from traces_by_hand import trace_by_hand

import precision_probe as pp
from precision_probe.trace.tables import StoredTable


@pytest.fixture
def trace():
    return trace_by_hand().with_tables(TABLES | {"contributions": CONTRIBUTIONS})


def names(axes):
    return [tick.get_text() for tick in axes.get_yticklabels()]


def test_shares_of_parts(trace):
    axes = pp.plot_contributions(trace)
    table = CONTRIBUTIONS.frame
    assert names(axes) == table["part"].tolist() == ["geometry", "products.0", "sums", "the rest"]
    energy, forces = (line for line in axes.lines if line.get_linestyle() == "None")
    np.testing.assert_allclose(energy.get_xdata(), 100 * table["energy_share"])
    np.testing.assert_allclose(forces.get_xdata(), 100 * table["forces_share"])
    assert (energy.get_fillstyle(), forces.get_fillstyle()) == ("none", "full")
    assert axes.get_xlabel().endswith("%")
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first part is at the top


def test_some_parts_and_those_of_a_result_that_is_not_finite(trace):
    assert names(pp.plot_contributions(trace, blocks=["geometry", "products.*"])) == ["geometry", "products.0"]
    broken = CONTRIBUTIONS.frame.assign(forces_share=np.nan)
    axes = pp.plot_contributions(trace.with_tables({"contributions": StoredTable(broken, "broken")}))
    assert "(4 zero, not finite" in axes.get_title()
    with pytest.raises(pp.InputError, match=r"named as layers\..*geometry"):
        pp.plot_contributions(trace, blocks="layers.*")


def test_sources_of_the_force_error(trace):
    axes = pp.plot_budget(trace)
    rows = TABLES["budget"].frame.query("precision == 'float16'")
    assert names(axes) == (rows["source"] + " " + rows["block"]).str.strip().tolist()
    (line,) = axes.lines
    expected = 1e3 * rows["forces_mae"].where(rows["forces_mae"] > 0)
    np.testing.assert_allclose(line.get_xdata(), expected)
    assert "(1 zero" in axes.get_title()  # one number below zero
    assert axes.get_xscale() == "log"
    assert "meV/Å" in axes.get_xlabel()


@pytest.mark.parametrize(
    ("plot", "made_by"),
    [
        (pp.plot_contributions, "precision-probe audit, or"),
        (pp.plot_budget, "audit --explain"),
    ],
)
def test_a_table_that_is_not_there_can_be_made(plot, made_by):
    with pytest.raises(pp.InputError, match=f"the trace has digits. Make it with: precision-probe.*{made_by[16:]}"):
        plot(trace_by_hand())


def test_a_precision_that_the_table_lacks_is_said(trace):
    table = StoredTable(pd.DataFrame(CONTRIBUTIONS.frame.assign(precision="float32")), "of another precision")
    with pytest.raises(pp.InputError, match="table has no"):
        pp.plot_contributions(trace.with_tables({"contributions": table}))
