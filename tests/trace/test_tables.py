"""tables.py, and tables in traces: what is read back is what was put in, by whatever reads it."""

import json
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import molecule, trace_of
from tables_by_hand import TABLES

import precision_probe as pp
from precision_probe.trace import recorder
from precision_probe.trace.tables import StoredTable
from precision_probe.trace.trace import SCHEMA_VERSION, Trace

CHEAP = {"precisions": "float16", "device": "cpu", "blocks": "readouts.*", "modes": "propagated"}
MIXED = StoredTable(
    pd.DataFrame(
        {
            "text": ["eV/Å ×", "", "a, b\n"],
            "number": [1.5, np.nan, -np.inf],
            "small": np.asarray([1e-45, 2.0, np.nan], dtype=np.float32),
            "count": [-1, 0, 2**62],
            "is_so": [True, False, True],
        }
    ),
    "Everything that a column may be",
    {"number": "eV/Å", "count": "Å"},
)


@pytest.fixture(scope="module")
def small_trace():
    """Just enough of a trace to be written and opened."""
    attributes = {"precisions": '["float64"]', "modes": "[]", "blocks": "[]"}
    return Trace(xr.DataTree.from_dict({"/": xr.Dataset(attrs={"schema_version": SCHEMA_VERSION, **attributes})}))


@pytest.fixture(scope="module")
def water_trace(model):
    return trace_of(model, molecule(), **CHEAP)


@pytest.fixture(scope="module")
def path(water_trace, tmp_path_factory):
    return water_trace.with_tables(TABLES).save(tmp_path_factory.mktemp("tables") / "trace.h5")


def assert_same(found, expected):
    """The same columns, rows, kinds of numbers, title and units."""
    assert (found.title, found.units) == (expected.title, expected.units)
    assert found.frame.columns.tolist() == expected.frame.columns.tolist()
    assert len(found.frame) == len(expected.frame)
    for name, column in expected.frame.items():
        values = found.frame[name].to_numpy()
        if column.dtype.kind in "biuf":
            assert values.dtype == column.dtype
        np.testing.assert_array_equal(values, column.to_numpy())


# What is put in comes out

COLUMNS = {
    "float": st.floats(),
    "int": st.integers(-(2**63), 2**63 - 1),
    "bool": st.booleans(),
    "text": st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0")),
}
units = st.sampled_from(["", "eV/Å", "meV/atom; forces eV/Å"])


@st.composite
def stored(draw):
    kinds = draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=4))
    n = draw(st.integers(1, 4))
    frame = pd.DataFrame({f"{k}.{i}": draw(st.lists(COLUMNS[k], min_size=n, max_size=n)) for i, k in enumerate(kinds)})
    units_of = {name: unit for name in frame if (unit := draw(units))}
    return StoredTable(frame, draw(COLUMNS["text"]), units_of)


@settings(max_examples=25, deadline=None)
@given(table=stored())
def test_a_table_survives_the_file(small_trace, tmp_path_factory, table):
    saved = small_trace.with_tables({"any": table}).save(tmp_path_factory.getbasetemp() / "any.h5", force=True)
    with pp.open_trace(saved) as opened:
        assert opened.tables == ("any",)
        assert_same(opened.table("any"), table)


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_explain_survive_the_file(path, name):
    with pp.open_trace(path) as opened:
        assert set(opened.tables) == set(TABLES)
        assert_same(opened.table(name), TABLES[name])


def test_a_table_without_rows_keeps_its_columns(small_trace, tmp_path):
    empty = StoredTable(MIXED.frame.iloc[:0], "Nothing to say")
    with pp.open_trace(small_trace.with_tables({"empty": empty}).save(tmp_path / "trace.h5")) as opened:
        found = opened.table("empty")
    assert found.frame.columns.tolist() == MIXED.frame.columns.tolist()
    assert (len(found.frame), found.title) == (0, "Nothing to say")


def test_the_index_is_not_kept(small_trace):
    table = StoredTable(pd.DataFrame({"x": [1.0, 2.0]}, index=["a", "b"]), "indexed")
    found = small_trace.with_tables({"t": table}).table("t").frame
    assert found.index.tolist() == [0, 1]
    assert found["x"].tolist() == [1.0, 2.0]


# Others read the file


@pytest.fixture
def mixed_path(small_trace, tmp_path):
    return small_trace.with_tables({"mixed": MIXED}).save(tmp_path / "mixed.h5")


def test_h5py_reads_a_table(mixed_path):
    with h5py.File(mixed_path) as file:
        group = file["tables/mixed"]
        assert group.attrs["title"] == MIXED.title
        assert group["text"].asstr()[()].tolist() == MIXED.frame["text"].tolist()
        for name in ("number", "small", "count", "is_so"):
            np.testing.assert_array_equal(group[name][()], MIXED.frame[name])
        assert (group["number"].attrs["units"], group["text"].attrs["units"]) == ("eV/Å", "1")


def test_netcdf4_reads_a_table(mixed_path):
    netcdf = pytest.importorskip("netCDF4")
    with netcdf.Dataset(mixed_path) as file:
        file.set_auto_mask(False)
        group = file["tables/mixed"]
        assert group["text"][...].tolist() == MIXED.frame["text"].tolist()
        for name in ("number", "small", "count", "is_so"):
            np.testing.assert_array_equal(group[name][...], MIXED.frame[name])
            assert group[name].dimensions == ("mixed.row",)
        assert all(variable.units and variable.long_name for variable in group.variables.values())


def test_attributes_stay_json(path):
    with h5py.File(path) as file:
        assert json.loads(file.attrs["precisions"]) == ["float64", "float16"]


def test_reading_needs_neither_torch_nor_mace(path):
    code = """
        import sys

        import precision_probe as pp
        from precision_probe.analysis.views import view, views

        with pp.open_trace(sys.argv[1]) as trace:
            for name in trace.tables:
                print(name, len(trace.table(name).frame))
            assert len([view(trace, name) for name in views(trace)]) == len(trace.tables) + 1
        from precision_probe.cli.main import app

        app(["explain", sys.argv[1]], standalone_mode=False)
        assert not {"torch", "mace", "e3nn"} & set(sys.modules)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sorted(lines[: len(TABLES)]) == sorted(f"{name} {len(table.frame)}" for name, table in TABLES.items())
    assert "What the force error comes from" in done.stdout


# Traces with tables, and without


def test_unknown_names_are_refused(small_trace):
    with pytest.raises(pp.InputError, match=r"no table 'budget'\. It has none: audit with --explain"):
        small_trace.table("budget")
    with pytest.raises(pp.InputError, match=r"no table 'budgets'\. It has mixed, digits\."):
        small_trace.with_tables({"mixed": MIXED, "digits": TABLES["digits"]}).table("budgets")
    assert small_trace.tables == ()


def test_more_tables_leave_the_given_trace_alone(water_trace):
    before = water_trace.tree.copy(deep=True)
    more = water_trace.with_tables({"mixed": MIXED})
    again = more.with_tables({"mixed": TABLES["digits"], "noise": TABLES["noise"]})
    assert (water_trace.tables, more.tables, again.tables) == ((), ("mixed",), ("mixed", "noise"))
    assert_same(more.table("mixed"), MIXED)
    assert_same(again.table("mixed"), TABLES["digits"])
    xr.testing.assert_identical(water_trace.tree, before)
    for node in before.subtree:
        if node.data_vars:
            xr.testing.assert_identical(again.tree[node.path].to_dataset(), node.to_dataset())
    assert again.attributes == water_trace.attributes


def test_tables_are_no_precision_and_no_mode(water_trace, path):
    with pp.open_trace(path) as opened:
        assert opened.modes == water_trace.modes
        found, expected = (pp.errors(trace).drop(columns=["noise", "resolved"]) for trace in (opened, water_trace))
        pd.testing.assert_frame_equal(found, expected, check_dtype=False)
        assert pp.compare_traces(opened, water_trace)["equivalent"].all()


def test_a_saved_trace_gets_more_tables(path, tmp_path):
    with pp.open_trace(path) as opened:
        opened.with_tables({"mixed": MIXED}).save(tmp_path / "more.h5")
        assert "mixed" not in opened.tables
    with pp.open_trace(tmp_path / "more.h5") as more:
        assert set(more.tables) == {*TABLES, "mixed"}
        assert_same(more.table("mixed"), MIXED)
        assert_same(more.table("budget"), TABLES["budget"])


# Probes


@pytest.mark.parametrize("grows", [False, True])
def test_the_finished_file_of_a_probe_has_its_tables(model, tmp_path, monkeypatch, grows):
    if grows:
        monkeypatch.setattr(recorder, "_MANY_BYTES", 1)
    output = tmp_path / "out.h5"
    with pp.attach(model, **CHEAP, output=output) as probe:
        probe.run(molecule(), progress=False)
        probe.add_tables({"mixed": TABLES["digits"]})
        assert (tmp_path / "out.h5.partial").exists() == grows
        assert probe.trace().tables == ("mixed",)
        probe.add_tables({"mixed": MIXED, "noise": TABLES["noise"]})
        probe.run(molecule(), progress=False)
        assert_same(probe.trace().table("mixed"), MIXED)
    with pp.open_trace(output) as opened:
        assert opened.structures.sizes["structure"] == 2
        assert opened.tables == ("mixed", "noise")
        assert_same(opened.table("mixed"), MIXED)
    assert [item.name for item in tmp_path.iterdir()] == ["out.h5"]
    assert probe.trace().tables == ("mixed", "noise")
    for late in (lambda: probe.add_tables({"late": MIXED}), lambda: probe.explain(molecule(), progress=False)):
        with pytest.raises(pp.InputError, match="finished when the probe was detached"):
            late()


def test_a_probe_without_a_file_takes_tables_at_any_time(model):
    with pp.attach(model, **CHEAP) as probe:
        probe.run(molecule(), progress=False)
    probe.add_tables({"mixed": MIXED})
    assert probe.trace().tables == ("mixed",)
