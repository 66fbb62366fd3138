"""bits.py: bits that are enough are found by hand in the sweep, and its lines have its numbers."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from tables_by_hand import TABLES
from traces_by_hand import trace_by_hand

import precision_probe as pp
from precision_probe.report.drawing.scales import OKABE_ITO

SWEEP = TABLES["sweep"].frame


def lines_of(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_bits_that_are_enough_for_each_tolerance():
    rows = [("whole model", b, 2.0**-b) for b in (4, 8, 12, 16)] + [("a", b, 2.0 ** -(b + 4)) for b in (4, 8, 12, 16)]
    sweep = pd.DataFrame(rows, columns=["block", "bits", "forces"])
    axes = pp.plot_bits(sweep, tolerance=1e-2)
    drawn = [line.get_xdata() for line in axes.lines if line.get_linestyle() == "None"]
    # 2⁻⁸ is the first below 1e-2, 2⁻¹² below 1e-3, 2⁻¹⁶ below 1e-4; a needs four fewer
    np.testing.assert_array_equal(drawn, [[8, 4], [12, 8], [16, 12]])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["0.01 eV/Å", "0.001 eV/Å", "0.0001 eV/Å"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["whole model", "a"]
    assert "bfloat16" in {text.get_text() for text in axes.texts}
    axes = pp.plot_bits(sweep, tolerance=1e-5, blocks="a")
    (points, *_, none) = [line.get_xdata() for line in axes.lines if line.get_linestyle() == "None"]
    assert points.tolist() == [16]
    assert np.isnan(none).all()
    assert "(1 points: no number of bits tried is enough)" in axes.get_title()


def test_a_line_for_each_block_has_the_numbers_of_the_table():
    trace = trace_by_hand().with_tables({"sweep": TABLES["sweep"]})
    axes = pp.plot_sweep(trace, quantity="energy", tolerance=1e-3)
    drawn = lines_of(axes)
    assert list(drawn) == ["whole model", "a"]
    for name, line in drawn.items():
        rows = SWEEP[SWEEP["block"] == name].set_index("bits")["energy"]
        assert line.get_xdata().tolist() == [7, 23]
        assert line.get_ydata().tolist() == rows.loc[[7, 23]].tolist()
    assert axes.get_ylabel() == "largest error of energy / eV/atom"
    assert {"bfloat16", "float16, tf32", "float32", " tolerance"} == {text.get_text() for text in axes.texts}


def test_dozens_of_blocks_are_told_apart_without_red_beside_green():
    rows = [(f"b{n}", bits, 1.0) for n in range(20) for bits in (7, 23)]
    drawn = lines_of(pp.plot_sweep(pd.DataFrame(rows, columns=["block", "bits", "forces"])))
    looks = {(line.get_color(), line.get_linestyle()) for line in drawn.values()}
    assert len(looks) == len(drawn) == 20
    assert {to_hex(colour) for colour, _ in looks} <= {*OKABE_ITO, "#000000"}


@pytest.mark.filterwarnings("error")
def test_errors_of_zero_have_no_logarithm_and_are_left_out():
    table = SWEEP.assign(forces=SWEEP["forces"].where(SWEEP["bits"] < 20, 0.0))
    assert "(2 zero" in pp.plot_sweep(table).get_title()
    assert "(4 zero" in pp.plot_sweep(table.assign(forces=0.0)).get_title()


def test_what_is_not_there_is_said():
    for plot in (pp.plot_bits, pp.plot_sweep):
        with pytest.raises(pp.InputError, match=r"table 'sweep'.*precision-probe sweep -o"):
            plot(trace_by_hand())
        with pytest.raises(pp.InputError, match="got the quantity 'charge'"):
            plot(SWEEP, quantity="charge")
