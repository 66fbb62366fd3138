"""What a terminal shows, against the tables of numbers that it is made from."""

import io
import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from runs import molecule, trace_of
from tables_by_hand import TABLES

import precision_probe as pp
from precision_probe.analysis.errors import GUIDE, block_errors, exceeded, worst_blocks
from precision_probe.analysis.metrics import METRICS
from precision_probe.analysis.views import view, views
from precision_probe.analysis.whole_model import model_rows, shown_units
from precision_probe.cli.tables.errors import block_table, errors_table, model_table, view_tables
from precision_probe.cli.tables.style import FULL_WIDTH, WIDTH

NAMES = ["float32", "bfloat16", "float16"]
nan = math.nan


def lines(renderable, width):
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(renderable)
    return console.export_text().splitlines()


def row_of(found, *starts):
    """The words of the one line that starts with these words."""
    (words,) = [line.split() for line in found if line.split()[: len(starts)] == list(starts)]
    return words


@pytest.fixture(scope="module")
def trace(model):
    return trace_of(model, molecule(), precisions=NAMES)


@pytest.fixture(scope="module")
def errors(trace):
    return pp.errors(trace)


@pytest.fixture(scope="module")
def summary(trace):
    return pp.summary(trace)


@pytest.fixture
def hand_made():
    """A summary with an error of every kind, in eV and Å."""
    return pd.DataFrame(
        {
            "energy": [0.0, 1.2e-5, 0.5, nan],
            "interaction_energy": [0.0, 3e-7, 0.25, 0.125],
            "forces": [0.0, 2.5e-6, 1.5, 0.75],
            "forces_mae": [0.0, 1e-6, 0.5, 0.25],
            "stress": [0.0, 4e-7, 1e-4, 2e-300],
            "nonfinite": [0, 0, 0, 17],
            "time": [1.0, 0.5, 12.25, 0.75],
            "time_iqr": [0.0, 0.02, 1.5, 0.25],
        },
        index=pd.Index(["float64", *NAMES], name="precision"),
    )


def shown(summary, errors, tolerance=None, causes=None):
    """The table of the model, judged as an audit judges it."""
    limits = {name: limit for name, limit in (tolerance or GUIDE).items() if name in summary}
    of_stress = errors[errors["block"] == "model"].head(1).assign(tensor="stress", units="eV/Å³")
    units = shown_units(pd.concat([errors, of_stress]))
    rows = model_rows(summary, units, exceeded(summary, limits), causes, is_judged=True)
    return model_table(rows, units, limits, is_guide=tolerance is None)


def extreme(errors):
    """The same rows, with the widest numbers that a large audit has."""
    wide = errors.copy()
    for name in METRICS:
        if name not in ("nonfinite", "flushed"):
            wide[name] = -1.2345e-38 if name in ("bias", "cosine", "sqnr_db") else 1.2345e-38
    return wide.assign(nonfinite=10**7, flushed=10**7, n=10**7)


# The model


def test_model_table_shows_each_precision_in_milli_units(hand_made, errors):
    found = lines(shown(hand_made, errors), WIDTH)
    reference = row_of(found, "float64")
    assert reference[1:] == ["0", "0", "0", "0", "0", "1.00", "±", "0.00", "reference"]
    float32 = ["1.2e-02", "3.0e-04", "2.5e-03", "1.0e-03", "4.0e-04", "0.50", "±", "0.01", "ok"]
    assert row_of(found, "float32")[1:] == float32
    parts = {"energy_part": "sums", "energy_share": 0.98, "forces_part": "geometry", "forces_share": np.nan}
    causes = pd.DataFrame([parts], index=["float32"])
    named = lines(shown(hand_made, errors, causes=causes), 160)
    assert row_of(named, "float32")[1:] == [*float32, "sums", "98%", "geometry"]
    assert row_of(found, "bfloat16")[1:6] == ["5.0e+02", "2.5e+02", "1.5e+03", "5.0e+02", "1.0e-01"]
    assert row_of(found, "float16")[1:6] == ["nan", "1.2e+02", "7.5e+02", "2.5e+02", "2.0e-297"]


def test_model_table_marks_what_is_too_large(hand_made, errors):
    found = lines(shown(hand_made, errors), 200)
    assert "too large: energy, forces" in " ".join(row_of(found, "bfloat16"))
    assert "too large: energy, forces (17 NaN/inf)" in " ".join(row_of(found, "float16"))
    assert sum("NaN/inf" in line for line in found) == 1
    notes = " ".join(found)
    assert all(f"{name} {limit:g} " in notes for name, limit in GUIDE.items())
    assert "a guide: set your own with --tolerance" in notes


@pytest.mark.parametrize(
    ("tolerance", "verdicts"),
    [
        ({"forces": 1e-6}, ["too large: forces"] * 3),
        ({"forces": 1.0}, ["ok", "too large: forces", "ok (17 NaN/inf)"]),
        ({"stress": 1.0}, ["ok", "ok", "ok (17 NaN/inf)"]),
        ({"energy": 1e9}, ["ok", "ok", "too large: energy"]),
    ],
)
def test_model_table_judges_by_the_tolerance(hand_made, errors, tolerance, verdicts):
    found = lines(shown(hand_made, errors, tolerance), 200)
    for name, verdict in zip(NAMES, verdicts, strict=True):
        words = " ".join(row_of(found, name))
        assert verdict in words
        assert ("ok" in words) == verdict.startswith("ok")
    assert "(--tolerance)" in " ".join(found)


def test_model_table_has_no_stress_column_where_there_is_none(hand_made, errors):
    with_stress, without = (
        "\n".join(lines(shown(table, errors, {"forces": 1.0}), WIDTH))
        for table in (hand_made, hand_made.drop(columns="stress"))
    )
    assert "meV/Å³" in with_stress
    assert "meV/Å³" not in without


# The blocks


def test_block_table_shows_each_block_of_each_precision(errors, trace):
    found = lines(block_table(errors), WIDTH)
    wide = block_errors(errors)
    sections = [found.index(next(x for x in found if x.strip().startswith(f"{name}, u = "))) for name in NAMES]
    for name, start, end in zip(NAMES, sections, [*sections[1:], len(found)], strict=True):
        section = found[start + 1 : end]
        for block in trace.blocks:
            forward = row_of(section, block, "fwd")
            expected = wide.loc[(name, block, "forward")]
            for words, mode in ((forward[2:6], "propagated"), (forward[6:10], "isolated")):
                values = [expected[metric, mode] for metric in ("rel_l2", "amplification", "max_abs", "mean_rel")]
                assert [float(word) for word in words] == pytest.approx(values, rel=0.06)
        assert sum(line.split()[:1] == ["bwd"] for line in section) == len(trace.blocks)


def test_block_table_shows_that_an_exact_gradient_is_zero(errors):
    text = lines(block_table(errors), WIDTH)
    rows = [line.split() for line in text if "~0" in line.split()]
    assert len(rows) == len(NAMES)
    for words in rows:
        assert words[0] == "bwd"
        assert words.count("~0") == 3
        assert [words[5], words[6], words[8]] == ["~0"] * 3  # all but max_abs
    none = lines(block_table(errors.assign(resolved=True)), WIDTH)
    assert not any("~0" in line.split() for line in none)


def test_block_table_shows_nan(errors):
    broken = errors.copy()
    where = (broken["block"] == "products.0") & (broken["precision"] == "float16") & (broken["mode"] == "propagated")
    assert where.any()
    broken.loc[where, [name for name in METRICS if name not in ("nonfinite", "flushed")]] = nan
    found = lines(block_table(broken), WIDTH)
    rows = [line.split() for line in found if "nan" in line]
    assert [words[-8:-4] for words in rows] == [["nan"] * 4] * 2  # outputs and gradients
    assert rows[0][0] == "products.0"


@pytest.mark.parametrize("mode", ["propagated", "isolated"])
def test_block_table_of_one_mode(errors, mode):
    found = lines(block_table(errors[(errors["mode"] == mode) | (errors["block"] == "model")]), WIDTH)
    assert len(row_of([line for line in found if "fwd" in line][:9], "products.0", "fwd")) == 6
    assert [word for word in " ".join(found[:4]).split() if word in ("propagated", "isolated")] == [mode]


# Every error


SHOWN = (*METRICS, "floor")


def test_errors_table_shows_every_row(errors):
    found = [line.split() for line in lines(errors_table(errors), FULL_WIDTH)]
    rows = [words for words in found if words[:1] and words[0] in NAMES]
    assert len(rows) == len(errors) > 150
    for words, row in zip(rows, errors.to_dict("records"), strict=True):
        direction = {"forward": "fwd", "backward": "bwd"}[row["direction"]]
        tensor = f"{row['block']}.{row['tensor']}"
        assert words[:6] == [row["precision"], row["mode"], tensor, direction, row["units"], str(row["n"])]
        expected = [row[name] for name in SHOWN]
        assert [float(word) for word in words[6:]] == pytest.approx(expected, rel=0.051, nan_ok=True)
    (heading,) = [words for words in found if "precision" in words]
    assert heading[-15:] == [{"amplification": "ampl."}.get(name, name) for name in SHOWN]


# What explains errors


@pytest.fixture(scope="module")
def explained(trace):
    return trace.with_tables(TABLES)


@pytest.mark.parametrize("name", ["physics", *TABLES])
def test_view_tables_show_every_row_and_number(explained, name):
    (renderable,) = view_tables(explained, name)
    found = lines(renderable, FULL_WIDTH)
    expected = view(explained, name)
    text = " ".join(" ".join(found).split())  # a title may be wider than its table
    assert text.startswith(expected.title)
    assert text.endswith(expected.note)
    assert any(all(str(column) in line for column in expected.frame.columns) for line in found)
    for label, values in expected.frame.iterrows():
        words = str(label).split()
        rows = [line.split() for line in found if line.split()[: len(words)] == words]
        assert any(is_row(row[len(words) :], values) for row in rows), (label, rows)


def is_row(words, values):
    """Whether words are these values: numbers to two digits, text as it is, nothing for what is missing."""
    kept = [value for value in values if isinstance(value, str) or not pd.isna(value)]
    texts = [word for value in kept for word in (value.split() if isinstance(value, str) else [value])]
    return len(words) == len(texts) and all(
        word == text if isinstance(text, str) else float(word) == pytest.approx(text, rel=0.051)
        for word, text in zip(words, texts, strict=True)
    )


def test_view_tables_are_all_that_can_be_shown(explained):
    assert set(views(explained)) == {"physics", *TABLES}
    texts = [" ".join(" ".join(lines(each, FULL_WIDTH)).split()) for each in view_tables(explained)]
    for text, name in zip(texts, views(explained), strict=True):
        assert text.startswith(view(explained, name).title)


# No digit is lost


def uncut(renderable, width):
    found = lines(renderable, width)
    assert len(found) > 5
    return not any("…" in line for line in found)


def test_nothing_is_cut_off_at_the_tables_own_width(hand_made, errors):
    crowded = hand_made.assign(time=123.456, time_iqr=123.456, nonfinite=10**6)
    crowded[["energy", "interaction_energy", "forces", "forces_mae", "stress"]] = 1.2345e30
    for table in (errors, extreme(errors)):
        assert uncut(block_table(table), WIDTH)
        assert uncut(errors_table(table), FULL_WIDTH)
    for table in (hand_made, crowded):
        assert uncut(shown(table, errors), WIDTH)


DEEP = "interactions.10.conv_tp_weights.layer0"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("model", "interactions.0.conv_tp"),
        ("block", DEEP),
        ("errors", DEEP),
        ("model", DEEP),
    ],
)
def test_long_block_names_are_not_cut_off(hand_made, errors, kind, name):
    worst = worst_blocks(errors)["float32"]
    deep = errors.assign(block=np.where(errors["block"] == worst, name, errors["block"]))
    assert name in worst_blocks(deep).values()
    renderable = {
        "model": lambda: shown(hand_made, deep),
        "block": lambda: block_table(deep),
        "errors": lambda: errors_table(deep),
    }[kind]()
    width = FULL_WIDTH if kind == "errors" else WIDTH
    assert uncut(renderable, width)
    if kind != "model":  # there it may be folded
        assert any(name in line for line in lines(renderable, width))
