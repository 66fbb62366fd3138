"""The verbs errors, explain, compare and report: what they make of traces, refuse and exit with."""

import copy
import csv
import io
import json
import subprocess
import sys
import textwrap

import ase.build
import numpy as np
import pandas as pd
import pytest
import torch
from runs import trace_of

import precision_probe as pp
from precision_probe.trace.trace import Trace

FINE, EXCEEDED, BAD_INPUT = 0, 1, 2


@pytest.fixture(scope="module")
def trace_file(model, tmp_path_factory):
    with pp.attach(model, precisions="float16", device="cpu", blocks=["interactions.*", "products.*"]) as probe:
        probe.run(ase.build.molecule("H2O"), progress=False)
    return probe.trace().save(tmp_path_factory.mktemp("trace") / "trace.h5")


# errors


def assert_equal(read, table):
    assert table["noise"].isna().all()  # null, or empty: no table of it
    assert np.isfinite(table.select_dtypes("number").drop(columns="noise")).all(axis=None)
    read = read.assign(noise=read["noise"].astype(float))
    pd.testing.assert_frame_equal(read, table, check_dtype=False, rtol=1e-13, atol=0)


def test_errors_as_json(trace_file, run):
    with pp.open_trace(trace_file) as trace:
        table = pp.errors(trace)
    result = run("errors", trace_file, "--format", "json")
    assert result.exit_code == FINE
    assert_equal(pd.DataFrame(json.loads(result.stdout)), table)


def test_json_has_null_for_what_is_not_a_number(trace_file, tmp_path, run):
    with pp.open_trace(trace_file) as trace:
        broken = trace.tree.load().copy(deep=True)
    broken["propagated/float16"]["forces"].values[:] = np.nan
    Trace(broken).save(tmp_path / "broken.h5")
    result = run("errors", tmp_path / "broken.h5", "--format", "json")
    (row,) = [row for row in json.loads(result.stdout, parse_constant=pytest.fail) if row["tensor"] == "forces"]
    assert row["max_abs"] is None
    assert row["nonfinite"] == row["n"] == 9


def test_errors_as_csv_and_as_a_table(trace_file, run):
    with pp.open_trace(trace_file) as trace:
        table = pp.errors(trace)
    as_csv, shown = (run("errors", trace_file, "--format", kind) for kind in ("csv", "table"))
    assert as_csv.exit_code == shown.exit_code == FINE
    for row, expected in zip(csv.DictReader(io.StringIO(as_csv.stdout)), table.to_dict("records"), strict=True):
        assert list(row) == list(expected)
        for name, value in expected.items():
            if name == "noise":
                assert row[name] == ""
            else:
                assert (float(row[name]) if isinstance(value, float) else row[name]) == (
                    value if isinstance(value, float) else str(value)
                )
    assert run("errors", trace_file).stdout == shown.stdout
    assert len([line for line in shown.stdout.splitlines() if line.strip()]) == len(table) + 2
    assert "…" not in shown.stdout


def test_errors_takes_eps(trace_file, run):
    with pp.open_trace(trace_file) as trace:
        expected = pp.errors(trace, eps=0.5)["mean_rel"]
    found = pd.read_csv(io.StringIO(run("errors", trace_file, "--format", "csv", "--eps", "0.5").stdout))["mean_rel"]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_errors_of_some_blocks_alone(trace_file, run, refused):
    with pp.open_trace(trace_file) as trace:
        table = pp.errors(trace)
    for globs in (["interactions.*"], ["model", "products.1"]):
        options = [word for glob in globs for word in ("--block", glob)]
        found = json.loads(run("errors", trace_file, "--format", "json", *options).stdout)
        beginnings = tuple(glob.rstrip("*") for glob in globs)
        assert_equal(pd.DataFrame(found), table[table["block"].str.startswith(beginnings)].reset_index(drop=True))
    refused(run("errors", trace_file, "--block", "model", "--block", "readout?"), "readout?", "interactions.0", "model")


@pytest.mark.parametrize(("name", "kind"), [("e.csv", "csv"), ("e.json", "json"), ("e.txt", "table")])
def test_errors_are_written_to_a_file_as_they_are_printed(folder, trace_file, run, refused, monkeypatch, name, kind):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a file has none
    result = run("errors", trace_file, "-o", name)
    assert (result.exit_code, result.output) == (FINE, "")
    written = (folder / name).read_text("utf-8")
    monkeypatch.delenv("FORCE_COLOR")
    assert written == run("errors", trace_file, "--format", kind).stdout
    refused(run("errors", trace_file, "-o", name), f"{name} exists", "--force")
    assert run("errors", trace_file, "-o", name, "--force", "--format", "csv").exit_code == FINE
    assert (folder / name).read_text("utf-8") == run("errors", trace_file, "--format", "csv").stdout
    assert [path.name for path in folder.iterdir()] == [name]


def test_errors_refuses_what_is_no_trace(water_file, run, refused):
    refused(run("errors", water_file), "water.xyz is not an HDF5 file")
    refused(run("errors", "absent.h5"), "absent.h5 does not exist", "precision-probe audit")


# explain


def numbers_after(text, title, *words):
    """The numbers in the one row that begins with these words, of the table under a title."""
    lines = [line.split() for line in text[text.index(title) :].splitlines()]
    row = next(line for line in lines if line[: len(words)] == list(words))
    return [float(word) for word in row[len(words) :]]


def test_explain_prints_the_numbers_of_the_trace(explained, run, flat, titles):
    _, path = explained
    result = run("explain", path)
    assert (result.exit_code, result.stderr) == (FINE, "")
    for title in titles.values():
        assert title in flat(result.stdout)
    with pp.open_trace(path) as trace:
        summary = pp.summary(trace).loc["float16"]
        budget = trace.table("budget").frame.set_index(["source", "block"])["forces_mae"]
        bits = trace.table("sweep").frame
        digits = trace.table("digits").frame.query("quantity == 'forces'").set_index("precision")["digits"]
    none, mae = numbers_after(result.stdout, titles["physics"], "forces", "MAE,", "meV/Å")
    assert none == 0  # float64's own
    assert mae == pytest.approx(1000 * summary["forces_mae"], rel=0.05)
    for source in ("geometry", "weights", "all together"):
        (error,) = numbers_after(result.stdout, titles["budget"], *source.split())
        assert error == pytest.approx(1000 * budget[source, ""], rel=0.05)
    whole = bits[bits["block"] == "whole model"].sort_values("bits")
    errors = numbers_after(result.stdout, titles["sweep"], "whole", "model")
    assert errors == pytest.approx(1000 * whole["forces"], rel=0.05)
    shown = numbers_after(result.stdout, titles["digits"], "forces")
    assert shown == pytest.approx(digits[["float64", "float16"]].tolist(), abs=0.06)


@pytest.mark.parametrize("name", ["physics", "sweep"])
def test_explain_prints_one_table(explained, name, run, flat, titles):
    _, path = explained
    result = run("explain", path, "--table", name)
    assert (result.exit_code, result.stderr) == (FINE, "")
    assert [other for other, title in titles.items() if title in flat(result.stdout)] == [name]


@pytest.mark.parametrize("name", ["physics", "range", "budget"])
def test_explain_writes_one_table_as_json_and_csv(explained, name, run):
    from precision_probe.analysis.physical_errors import by_structure

    _, path = explained
    with pp.open_trace(path) as trace:
        expected = by_structure(trace) if name == "physics" else trace.table(name).frame
    as_json, as_csv = (run("explain", path, "--table", name, "--format", kind) for kind in ("json", "csv"))
    assert as_json.exit_code == as_csv.exit_code == FINE
    rows = json.loads(as_json.stdout, parse_constant=pytest.fail)
    read = pd.read_csv(io.StringIO(as_csv.stdout), keep_default_na=False)
    assert len(rows) == len(read) == len(expected)
    assert read.columns.tolist() == expected.columns.tolist()
    for row, line, wanted in zip(rows, read.to_dict("records"), expected.to_dict("records"), strict=True):
        for column, value in wanted.items():
            if isinstance(value, str):
                assert row[column] == line[column] == value
            elif np.isfinite(value):
                assert row[column] == value
                assert float(line[column]) == pytest.approx(value, rel=1e-15)
            else:
                assert row[column] is None


def test_explain_writes_all_tables_as_json(explained, run, titles):
    _, path = explained
    document = json.loads(run("explain", path, "--format", "json").stdout, parse_constant=pytest.fail)
    assert document["trace"] == str(path)
    found = {table["name"]: table["title"] for table in document["tables"]}
    assert all(found[name].startswith(title) for name, title in titles.items())
    with pp.open_trace(path) as trace:
        for table in document["tables"]:
            if table["name"] in trace.tables:
                stored = trace.table(table["name"])
                assert table["units"] == stored.units
                assert [list(row) for row in table["rows"]] == [list(stored.frame)] * len(stored.frame)
    alone = json.loads(run("explain", path, "--table", "budget", "--format", "json").stdout)
    assert next(table["rows"] for table in document["tables"] if table["name"] == "budget") == alone


def test_explain_refuses(explained, trace_file, run, refused):
    _, path = explained
    refused(run("explain", path, "--format", "csv"), "--table", "csv", "json")
    refused(run("explain", path, "--table", "budgets"), "budgets", "physics", "budget")
    refused(run("explain", path, "--table", "budgets", "--format", "csv"), "budgets")
    refused(run("explain", trace_file, "--table", "budget"), "no table 'budget'", "--explain")
    refused(run("explain", "absent.h5"), "absent.h5 does not exist")


def test_explain_says_what_a_plain_trace_lacks(trace_file, run, flat):
    result = run("explain", trace_file)
    assert result.exit_code == FINE
    assert "In your units" in result.stdout
    assert "Note: " in result.stderr
    assert "audit --explain" in flat(result.stderr)
    assert run("explain", trace_file, "--table", "physics").stderr == ""


# compare


@pytest.fixture(scope="module")
def compared(model, tmp_path_factory):
    """Traces of a model, of the same with one weight of its second interaction changed by 1 %, and of atoms moved."""
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.interactions[1].linear.weight.mul_(1.01)
    moved = ase.build.molecule("H2O")
    moved.positions += 1
    options = {"blocks": "interactions.1", "modes": "propagated"}
    cases = {
        "base": (model, ase.build.molecule("H2O")),
        "broken": (broken, ase.build.molecule("H2O")),
        "moved": (model, moved),
    }
    folder = tmp_path_factory.mktemp("compared")
    traces = {name: trace_of(network, atoms, **options) for name, (network, atoms) in cases.items()}
    return traces, {name: trace.save(folder / f"{name}.h5") for name, trace in traces.items()}


def test_equivalent_traces_exit_with_0(compared, run):
    _, files = compared
    result = run("compare", files["base"], files["base"])
    assert result.exit_code == FINE, result.output
    assert result.stderr.strip() == "Equivalent: every difference is within rounding."
    assert "DIFFERENT" not in result.stdout
    assert "interactions.1" in result.stdout


def test_different_traces_exit_with_1_and_name_the_first(compared, run):
    _, files = compared
    result = run("compare", files["base"], files["broken"])
    assert result.exit_code == EXCEEDED, result.output
    message = result.stderr.strip()
    assert message.startswith("Not equivalent: rounding does not explain ")
    assert "the first is interactions.1 message (forward, propagated, float64): rel_l2 1.0e-02" in message
    assert "DIFFERENT" in result.stdout
    assert "model_sha256" in result.stdout


def test_compare_as_csv_and_json_is_the_table(compared, run):
    traces, files = compared
    table = pp.compare_traces(traces["base"], traces["broken"])
    printed = run("compare", files["base"], files["broken"], "--format", "csv")
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(printed.stdout)), table, check_dtype=False, rtol=1e-12)
    rows = json.loads(run("compare", files["base"], files["broken"], "--format", "json").stdout)
    assert [row["equivalent"] for row in rows] == table["equivalent"].tolist()
    assert [row["allowed"] for row in rows] == pytest.approx(table["allowed"].tolist(), rel=1e-12)


def test_what_cannot_be_compared_exits_with_2(compared, run, tmp_path):
    _, files = compared
    for other, words in ((files["moved"], "different structures"), (tmp_path / "absent.h5", "does not exist")):
        result = run("compare", files["base"], other)
        assert result.exit_code == BAD_INPUT
        assert result.stderr.startswith("Error: ")
        assert words in result.stderr
        assert result.stdout == ""


def test_traces_are_compared_without_torch_mace_and_e3nn(compared):
    _, files = compared
    script = """
        import sys

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("torch", "mace", "e3nn", "ase"):
                    raise ImportError(f"{name} is not installed here")

        sys.meta_path.insert(0, Refuse())
        from precision_probe.cli.main import main

        main()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), "compare", str(files["base"]), str(files["broken"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == EXCEEDED, done.stderr
    assert "interactions.1 message (forward" in done.stderr


# report


def test_report_writes_a_page(trace_file, folder, run, refused):
    result = run("report", trace_file, "--tolerance", "forces=1e-9")
    assert result.exit_code == FINE  # it is to be looked at: audit judges
    assert "Page written to report.html" in result.stderr
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "float16: beyond the tolerance in forces" in page
    assert f"precision-probe report {trace_file}" in page
    refused(run("report", trace_file), "report.html", "exists", "--force")
    assert run("report", trace_file, "--force", "-q").output == ""


def test_report_shows_a_policy(trace_file, folder, run, refused):
    pp.Policy.uniform("float32").save(folder / "policy.json")
    assert run("report", trace_file, "--policy", "policy.json").exit_code == FINE
    assert "Recommended: * in float32; the rest is float64." in (folder / "report.html").read_text(encoding="utf-8")
    refused(run("report", trace_file, "-o", "b.html", "--policy", "none.json"), "none.json", "cannot be read")
    refused(run("report", trace_file, "-o", "b.html", "--tolerance", "charge=1"), "charge")
    refused(run("report", "none.h5", "-o", "b.html"), "none.h5")


def test_report_of_two_traces(trace_file, folder, run):
    assert run("report", trace_file, trace_file, "-o", "both.html").exit_code == FINE
    assert "Equivalent:" in (folder / "both.html").read_text(encoding="utf-8")
