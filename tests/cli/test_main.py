"""cli.py: what each verb does, writes, prints and exits with."""

import copy
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time

import ase.build
import ase.io
import numpy as np
import pandas as pd
import pytest
import torch
from mace.calculators import MACECalculator
from typer.testing import CliRunner

import precision_probe as pp
import precision_probe.probe.observer
import precision_probe.search.measuring
from precision_probe.cli.main import app
from precision_probe.models.building import build
from precision_probe.policy import Policy, Rule
from precision_probe.trace.trace import Trace

FINE, EXCEEDED, BAD_INPUT, FAILED = 0, 1, 2, 3


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in an empty folder, on a CPU."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return work


@pytest.fixture
def water_file(water, tmp_path):
    ase.io.write(tmp_path / "water.xyz", water)
    return tmp_path / "water.xyz"


@pytest.fixture
def two_file(water, tmp_path):
    ase.io.write(tmp_path / "two.xyz", [water, ase.build.molecule("CH4")])
    return tmp_path / "two.xyz"


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output or "--traceback" in arguments
    return result


def audit(*arguments, precisions="float32"):
    """A quick one; options among the arguments that are given again win."""
    return run("audit", "--blocks", "readouts.*", "--modes", "propagated", "-p", precisions, *arguments)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def refused(result, *words, code=BAD_INPUT):
    """One short paragraph at the end of stderr, which says these words."""
    assert result.exit_code == code, result.output
    *before, message = result.stderr.strip().splitlines()
    assert message.startswith("Error: ")
    assert not any("rror" in line for line in before)
    assert len(message) < 700
    assert all(word in message for word in words), message
    assert result.stdout == ""


# audit: what it writes


def test_audit_counts_up_its_default_name(folder, model_file, water_file):
    for number in (1, 2):
        result = audit(model_file, water_file)
        assert result.exit_code == FINE, result.output
        assert names(folder) == [f"small-water-{n}.h5" for n in range(1, number + 1)]
        assert f"Trace written to small-water-{number}.h5" in result.stderr
    with pp.open_trace("small-water-2.h5") as trace:
        assert trace.attributes["model_name"] == "small"
        assert trace.structures["n_atoms"].values.tolist() == [3]
        assert [str(precision) for precision in trace.precisions] == ["float32"]
        assert trace.modes == ("propagated",)


def test_audit_prints_both_tables(model_file, water_file):
    result = run("audit", model_file, water_file, "-p", "fp32,half,bf16")
    assert result.exit_code == FINE
    for expected in ("The model as a whole", "Block by block", "float32", "float16", "bfloat16", "products.1"):
        assert expected in result.stdout
    assert "float64, float32, float16, bfloat16" in " ".join(result.stderr.split())


def test_audit_replaces_its_output_only_with_force(folder, model_file, water_file):
    output = folder / "out.h5"
    output.write_bytes(b"precious")
    refused(audit(model_file, water_file, "-o", output), "out.h5 exists", "--force")
    refused(audit("absent.model", water_file, "-o", output), "out.h5 exists")  # known before anything is loaded
    assert output.read_bytes() == b"precious"
    assert audit(model_file, water_file, "-o", output, "--force").exit_code == FINE
    with pp.open_trace(output) as trace:
        assert trace.attributes["model_name"] == "small"
    assert names(folder) == ["out.h5"]


@pytest.mark.parametrize("mode", ["propagated", "isolated"])
def test_audit_in_one_mode(model_file, water_file, mode):
    result = audit(model_file, water_file, "--modes", mode, "-o", "out.h5")
    assert result.exit_code == FINE, result.output
    assert "Block by block" in result.stdout
    with pp.open_trace("out.h5") as trace:
        assert trace.modes == (mode,)


def test_audit_of_chosen_blocks(model_file, water_file):
    blocks = ("--blocks", "products.*", "--blocks", "interactions.0.linear_up")
    assert run("audit", model_file, water_file, *blocks, "-p", "float32", "-o", "out.h5").exit_code == FINE
    with pp.open_trace("out.h5") as trace:
        assert trace.blocks == ("products.0", "products.1", "interactions.0.linear_up")


def test_quiet_audit_prints_nothing(folder, model_file, water_file):
    result = audit(model_file, water_file, "-o", "out.h5", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (FINE, "", "")
    assert names(folder) == ["out.h5"]


def test_structures_without_edges_run_and_are_reported(model_file, tmp_path):
    ase.io.write(tmp_path / "far.xyz", ase.Atoms("OH", [(0, 0, 0), (9, 0, 0)], info={"name": "apart"}))
    result = audit(model_file, tmp_path / "far.xyz")
    assert result.exit_code == FINE, result.output
    assert "apart: no two atoms are within the cutoff of 3 Å" in " ".join(result.stdout.split())


# audit: tolerances


@pytest.fixture
def audited_errors(model_file, water_file):
    audit(model_file, water_file, "-o", "exact.h5", "-q", precisions="float32,float16")
    with pp.open_trace("exact.h5") as trace:
        return pp.summary(trace)


def test_audit_names_what_exceeds_the_tolerance(folder, model_file, water_file, audited_errors):
    fine, coarse = audited_errors.loc["float32", "forces"], audited_errors.loc["float16", "forces"]
    limit = (fine * coarse) ** 0.5
    result = audit(
        model_file, water_file, "--tolerance", f"forces={limit},energy=1e9", "-q", precisions="float32,float16"
    )
    assert result.exit_code == EXCEEDED
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("float16: forces error ")
    assert f"{coarse:.2e}" in line
    assert f"{limit:.2e} eV/Å" in line
    assert f"({coarse / limit:.1f} times)" in line
    assert "small-water-1.h5" in names(folder)


def test_audit_within_the_tolerance_is_fine(model_file, water_file):
    result = audit(model_file, water_file, "--tolerance", "forces=1e3,energy=1e3")
    assert result.exit_code == FINE
    assert "ok: within forces 1000 eV/Å" in " ".join(result.stdout.split())


def test_a_tolerance_that_cannot_be_judged_is_said(model_file, water_file):
    result = audit(model_file, water_file, "--tolerance", "stress=1e-9", "-q")
    assert result.exit_code == FINE
    assert "stress" in result.stderr


def test_an_overflow_is_a_result(config, water_file, tmp_path):
    torch.save(build(config | {"atomic_energies": [-13.6, -1029.5, -70000.0]}), tmp_path / "heavy.model")
    result = audit(tmp_path / "heavy.model", water_file, precisions="float16")
    assert result.exit_code == FINE
    (row,) = [line.split() for line in result.stdout.splitlines() if "NaN/inf" in line]
    assert row[:2] == ["float16", "nan"]
    judged = audit(tmp_path / "heavy.model", water_file, "--tolerance", "energy=1e9", "-q", precisions="float16")
    assert judged.exit_code == EXCEEDED
    assert "float16: energy error nan exceeds" in judged.stderr


# audit: what it refuses, before anything is written


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-p", "float23"], ["float23", "Did you mean 'float32'"]),
        (["-p", ","], ["No precision"]),
        (["-p", "tf32"], ["tf32", "cuda"]),
        (["--blocks", "productz.*"], ["productz.*", "Did you mean 'products."]),
        (["--modes", "both"], ["both", "propagated, isolated"]),
        (["--modes", ""], ["mode"]),
        (["--device", "cuda"], ["cuda", "--device cpu"]),
        (["--device", "abacus"], ["abacus", "cpu, cuda"]),
        (["--device", "meta"], ["meta", "cpu, cuda"]),
        (["--tolerance", "force=1"], ["force=1", "forces (eV/Å)"]),
        (["--tolerance", "forces"], ["forces=1e-3"]),
        (["--tolerance", "forces=-1"], ["above zero"]),
        (["-o", "missing/out.h5"], ["missing/out.h5 cannot be written"]),
        (["-o", "."], ["is a folder"]),
    ],
)
def test_audit_refuses_options(folder, model_file, water_file, options, words):
    refused(run("audit", model_file, water_file, *options), *words)
    assert names(folder) == []


def save_truncated(model, path):
    torch.save(model, path)
    path.write_bytes(path.read_bytes()[:-1000])


def save_script(_, path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(path)


BAD_MODELS = {
    "missing": (lambda model, path: None, ["does not exist"]),
    "folder": (lambda model, path: path.mkdir(), ["is a folder"]),
    "garbage": (lambda model, path: path.write_bytes(b"no model" * 100), ["cannot be read as a torch checkpoint"]),
    "empty": (lambda model, path: path.touch(), ["cannot be read as a torch checkpoint"]),
    "truncated": (save_truncated, ["truncated"]),
    "other module": (lambda model, path: torch.save(torch.nn.Linear(2, 2), path), ["Linear", "not a MACE model"]),
    "state dict": (lambda model, path: torch.save(model.state_dict(), path), ["state dict"]),
    "tensor": (lambda model, path: torch.save(torch.zeros(3), path), ["Tensor", "not a MACE model"]),
    "TorchScript": (save_script, ["TorchScript"]),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", BAD_MODELS)
@pytest.mark.parametrize("verb", ["audit", "inspect"])
def test_bad_models_are_refused(folder, model, water_file, tmp_path, kind, verb):
    write, words = BAD_MODELS[kind]
    write(model, tmp_path / "bad.model")
    refused(run(verb, tmp_path / "bad.model", water_file), "bad.model", *words)
    assert names(folder) == []


def crystal_with(cell):
    return ase.Atoms("C2", [(0, 0, 0), (1.4, 0, 0)], cell=cell, pbc=True, info={"name": "odd"})


BAD_STRUCTURES = {
    "unknown element": (ase.Atoms("OSi", [(0, 0, 0), (0, 0, 1.6)], info={"name": "glass"}), ["glass", "Si", "H, C, O"]),
    "NaN positions": (ase.Atoms("OH", [(0, 0, 0), (0, np.nan, 1)], info={"name": "lost"}), ["lost", "[1]", "NaN"]),
    "coincident": (ase.Atoms("OHH", [(0, 0, 0), (0, 0, 1), (0, 0, 1)], info={"name": "x"}), ["x: atoms", "same place"]),
    "zero volume": (crystal_with([(3, 0, 0), (0, 3, 0), (3, 3, 0)]), ["odd", "zero volume"]),
    "no cell": (crystal_with(np.zeros((3, 3))), ["odd", "zero volume"]),
    "left-handed": (crystal_with([(0, 3, 0), (3, 0, 0), (0, 0, 3)]), ["odd", "negative volume"]),
}


@pytest.mark.parametrize("kind", BAD_STRUCTURES)
@pytest.mark.parametrize("verb", ["audit", "inspect"])
def test_bad_structures_are_refused(folder, model_file, water, tmp_path, kind, verb):
    atoms, words = BAD_STRUCTURES[kind]
    ase.io.write(tmp_path / "bad.xyz", [water, atoms], format="extxyz")
    refused(run(verb, model_file, tmp_path / "bad.xyz"), *words)
    assert names(folder) == []


@pytest.mark.parametrize(
    ("name", "content", "selection", "words"),
    [
        ("absent.xyz", None, "", ["absent.xyz does not exist"]),
        ("garbage.xyz", "this is\nno structure\n", "", ["garbage.xyz"]),
        ("unknown.kind", "?", "", ["unknown.kind"]),
        ("empty.xyz", "", "", ["empty.xyz"]),
        ("water.xyz", "1\n\nO 0 0 0\n", "@5:9", ["holds no structures"]),
        ("water.xyz", "1\n\nO 0 0 0\n", "@7", ["water.xyz@7"]),
        ("none.xyz", "0\n\n", "", ["no atoms"]),
    ],
)
def test_files_without_structures_are_refused(folder, model_file, tmp_path, name, content, selection, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    refused(run("audit", model_file, f"{tmp_path / name}{selection}"), *words)
    assert names(folder) == []


# audit: what goes wrong on the way


def fail_in_observation(monkeypatch, number, error):
    """Let the observation of this number (from 1) raise an error or a signal."""
    observe = precision_probe.probe.observer.Observer.predict
    calls = []

    def observe_or_fail(*arguments):
        calls.append(1)
        if len(calls) == number and isinstance(error, signal.Signals):
            signal.raise_signal(error)
        elif len(calls) == number:
            raise error
        return observe(*arguments)

    monkeypatch.setattr(precision_probe.probe.observer.Observer, "predict", observe_or_fail)


FAILURES = {
    "interrupted": (KeyboardInterrupt(), ["Interrupted after 1 structure"]),
    "failed": (RuntimeError("out of memory"), ["failed after 1 structure", "RuntimeError: out of memory"]),
}


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("tolerance", [[], ["--tolerance", "forces=1e-30"]])
def test_what_finished_is_kept(folder, model_file, two_file, monkeypatch, kind, tolerance):
    error, words = FAILURES[kind]
    fail_in_observation(monkeypatch, 2, error)
    result = audit(model_file, two_file, "-o", "out.h5", "-q", *tolerance)
    assert result.exit_code == FAILED
    message = result.stderr.strip().splitlines()[-1]
    assert all(word in message for word in words), message
    with pp.open_trace(folder / "out.h5") as trace:
        assert trace.structures["n_atoms"].values.tolist() == [3]
        assert trace.attributes["complete"] is False
        assert set(pp.errors(trace)["block"]) == {"model", "readouts.0", "readouts.1"}


def test_what_finished_is_kept_when_a_batch_system_terminates_the_run(model_file, two_file, monkeypatch):
    def not_taken_over(*_):
        raise AssertionError("SIGTERM was not taken for an interruption")

    before = signal.signal(signal.SIGTERM, not_taken_over)
    try:
        fail_in_observation(monkeypatch, 2, signal.SIGTERM)
        refused(audit(model_file, two_file, "-o", "out.h5", "-q"), "Interrupted after 1 structure", code=FAILED)
        assert signal.getsignal(signal.SIGTERM) is not_taken_over
    finally:
        signal.signal(signal.SIGTERM, before)
    with pp.open_trace("out.h5") as trace:
        assert trace.structures["n_atoms"].values.tolist() == [3]


@pytest.mark.parametrize(("error", "word"), [(KeyboardInterrupt(), "Interrupted"), (OSError("no luck"), "no luck")])
def test_nothing_is_written_where_nothing_finished(folder, model_file, two_file, monkeypatch, error, word):
    fail_in_observation(monkeypatch, 1, error)
    refused(audit(model_file, two_file, "-o", "out.h5", "-q"), word, code=FAILED)
    assert names(folder) == []


def test_the_traceback_is_shown_when_asked_for(model_file, water_file, monkeypatch):
    fail_in_observation(monkeypatch, 1, ValueError("deep down"))
    refused(audit(model_file, water_file, "-q"), "ValueError: deep down", "--traceback", code=FAILED)
    fail_in_observation(monkeypatch, 1, ValueError("deep down"))
    result = audit(model_file, water_file, "-q", "--traceback")
    assert result.exit_code == FAILED
    assert "Traceback (most recent call last)" in result.stderr
    assert "observe_or_fail" in result.stderr


# inspect


def test_inspect(folder, model_file, water_file):
    result = run("inspect", model_file, water_file)
    assert result.exit_code == FINE, result.output
    for expected in ("ScaleShiftMACE", "interactions.1", "water[0]", "message: [3, 4, 9]", "every number is finite"):
        assert expected in result.stdout
    assert names(folder) == []


# errors


@pytest.fixture(scope="module")
def trace_file(model, tmp_path_factory):
    with pp.attach(model, precisions="float16", device="cpu", blocks=["interactions.*", "products.*"]) as probe:
        probe.run(ase.build.molecule("H2O"), progress=False)
    return probe.trace().save(tmp_path_factory.mktemp("trace") / "trace.h5")


def assert_equal(read, table):
    assert table["noise"].isna().all()  # null, or empty: no table of it
    assert np.isfinite(table.select_dtypes("number").drop(columns="noise")).all(axis=None)
    read = read.assign(noise=read["noise"].astype(float))
    pd.testing.assert_frame_equal(read, table, check_dtype=False, rtol=1e-13, atol=0)


def test_errors_as_json(trace_file):
    with pp.open_trace(trace_file) as trace:
        table = pp.errors(trace)
    result = run("errors", trace_file, "--format", "json")
    assert result.exit_code == FINE
    assert_equal(pd.DataFrame(json.loads(result.stdout)), table)


def test_json_has_null_for_what_is_not_a_number(trace_file, tmp_path):
    with pp.open_trace(trace_file) as trace:
        broken = trace.tree.load().copy(deep=True)
    broken["propagated/float16"]["forces"].values[:] = np.nan
    Trace(broken).save(tmp_path / "broken.h5")
    result = run("errors", tmp_path / "broken.h5", "--format", "json")
    (row,) = [row for row in json.loads(result.stdout, parse_constant=pytest.fail) if row["tensor"] == "forces"]
    assert row["max_abs"] is None
    assert row["nonfinite"] == row["n"] == 9


def test_errors_as_csv_and_as_a_table(trace_file):
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


def test_errors_takes_eps(trace_file):
    with pp.open_trace(trace_file) as trace:
        expected = pp.errors(trace, eps=0.5)["mean_rel"]
    found = pd.read_csv(io.StringIO(run("errors", trace_file, "--format", "csv", "--eps", "0.5").stdout))["mean_rel"]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_errors_refuses_what_is_no_trace(water_file):
    refused(run("errors", water_file), "water.xyz is not an HDF5 file")
    refused(run("errors", "absent.h5"), "absent.h5 does not exist", "precision-probe audit")


# explain


@pytest.fixture(scope="module")
def one_layer(config, tmp_path_factory):
    """A model that is explained in seconds."""
    path = tmp_path_factory.mktemp("model") / "layer.model"
    torch.save(build(config | {"num_interactions": 1}, seed=3), path)
    return path


@pytest.fixture(scope="module")
def explained(one_layer, tmp_path_factory):
    """What audit --explain says, and its trace."""
    folder = tmp_path_factory.mktemp("explained")
    ase.io.write(folder / "water.xyz", ase.build.molecule("H2O"))
    path = folder / "trace.h5"
    options = ("--explain", "--device", "cpu", "-o", path, "--modes", "propagated")
    return run("audit", one_layer, folder / "water.xyz", "-p", "float16", *options), path


TITLES = {
    "physics": "In your units",
    "range": "Overflow, underflow, NaN",
    "noise": "Noise from run to run",
    "budget": "What the force error comes from (meV/Å)",
    "sweep": "Largest force error with so many stored bits (meV/Å)",
    "prediction": "Errors predicted, and measured",
    "equivariance": "Broken symmetry",
    "finite_differences": "Are forces the gradient of the energy?",
    "displacement": "Steps that rounding makes along a displacement",
    "digits": "Significant digits",
}


def flat(text):
    return " ".join(text.split())


def test_audit_explains_prints_and_keeps_the_tables(explained):
    result, path = explained
    assert result.exit_code == FINE, result.output
    for title in ("The model as a whole", "Block by block", *TITLES.values()):
        assert title in flat(result.stdout)
    assert "Warning" not in result.stderr
    with pp.open_trace(path) as trace:
        assert set(trace.tables) == set(TITLES) - {"physics"}
        assert trace.attributes["complete"] is True
        mae = trace.table("budget").frame.set_index("source").loc["all together", "forces_mae"]
        assert mae == pytest.approx(pp.summary(trace).loc["float16", "forces_mae"])
        assert pp.errors(trace)["noise"].notna().any()
    assert names(path.parent) == ["trace.h5", "water.xyz"]


def test_explain_prints_what_the_audit_printed(explained):
    audited, path = explained
    result = run("explain", path)
    assert (result.exit_code, result.stderr) == (FINE, "")
    assert result.stdout.strip() in audited.stdout
    for title in TITLES.values():
        assert title in flat(result.stdout)


@pytest.mark.parametrize("name", ["physics", "sweep"])
def test_explain_prints_one_table(explained, name):
    _, path = explained
    result = run("explain", path, "--table", name)
    assert (result.exit_code, result.stderr) == (FINE, "")
    assert [other for other, title in TITLES.items() if title in flat(result.stdout)] == [name]


@pytest.mark.parametrize("name", ["physics", "range", "budget"])
def test_explain_writes_one_table_as_json_and_csv(explained, name):
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


def test_explain_refuses(explained, trace_file):
    _, path = explained
    for kind in ("csv", "json"):
        refused(run("explain", path, "--format", kind), "--table", kind)
    refused(run("explain", path, "--table", "budgets"), "budgets", "physics", "budget")
    refused(run("explain", path, "--table", "budgets", "--format", "csv"), "budgets")
    refused(run("explain", trace_file, "--table", "budget"), "no table 'budget'", "--explain")
    refused(run("explain", "absent.h5"), "absent.h5 does not exist")


def test_explain_says_what_a_plain_trace_lacks(trace_file):
    result = run("explain", trace_file)
    assert result.exit_code == FINE
    assert "In your units" in result.stdout
    assert "Note: " in result.stderr
    assert "audit --explain" in flat(result.stderr)
    assert run("explain", trace_file, "--table", "physics").stderr == ""


@pytest.mark.parametrize("name", ["AtomicDipolesMACE", "AtomicDielectricMACE"])
def test_what_cannot_be_explained_is_audited_nevertheless(config, water_file, tmp_path, folder, name):
    irreps = {"hidden_irreps": "4x0e + 4x1o + 4x2e", "MLP_irreps": "4x0e + 4x1o + 4x2e"}
    more = irreps if name == "AtomicDielectricMACE" else {"MLP_irreps": "4x1o"}
    torch.save(build(config | {"model": name, "atomic_energies": None} | more), tmp_path / "dipole.model")
    result = audit(tmp_path / "dipole.model", water_file, "--explain", "-o", "out.h5", "-q")
    refused(result, "predicts no energies and forces", "in the trace")
    assert names(folder) == ["out.h5"]
    with pp.open_trace("out.h5") as trace:
        assert trace.attributes["complete"] is True
        assert "dipole" in trace.group("propagated", "float32")
        assert trace.tables == ()
    shown = audit(tmp_path / "dipole.model", water_file, "--explain", "-o", "out.h5", "--force")
    assert shown.exit_code == BAD_INPUT
    assert "The model as a whole" in shown.stdout
    result = run("explain", "out.h5")
    assert (result.exit_code, result.stdout) == (FINE, "")
    assert "Note: " in result.stderr


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_an_explanation_that_fails_leaves_the_audit(folder, model_file, water_file, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("precision_probe.diagnostics.suite.explained", fail)
    result = audit(model_file, water_file, "--explain", "-o", "out.h5", "-q")
    refused(result, "after 1 structure", code=FAILED)
    with pp.open_trace("out.h5") as trace:
        assert np.isfinite(pp.summary(trace).loc["float32", "forces"])


# sweep


def sweep(*arguments):
    return run("sweep", *arguments, "--bits", "8,12", "--blocks", "readouts.*", "--device", "cpu")


def test_sweep_writes_a_trace_and_a_figure(folder, model_file, water_file):
    result = sweep(model_file, water_file, "-o", "x.h5", "--plot", "x.png", "--format", "csv")
    assert result.exit_code == FINE, result.output
    assert names(folder) == ["x.h5", "x.png"]
    assert (folder / "x.png").read_bytes().startswith(b"\x89PNG")
    printed = pd.read_csv(io.StringIO(result.stdout))
    with pp.open_trace("x.h5") as trace:
        assert (trace.tables, trace.precisions, trace.blocks) == (("sweep",), (), ("readouts.0", "readouts.1"))
        assert np.abs(trace.group("propagated", "float64")["forces"]).max() > 0
        pd.testing.assert_frame_equal(trace.table("sweep").frame, printed, check_dtype=False, rtol=1e-13)
        assert trace.table("sweep").units["forces"] == "eV/Å"
    shown = run("explain", "x.h5")
    assert (shown.exit_code, shown.stderr) == (FINE, "")
    assert TITLES["sweep"] in flat(shown.stdout)
    assert TITLES["physics"] not in flat(shown.stdout)  # no precision to show
    assert run("errors", "x.h5").exit_code == FINE


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-o", "there.h5"], ["there.h5 exists", "--force"]),
        (["--plot", "there.png"], ["there.png exists", "--force"]),
        (["-o", "new.h5", "--plot", "there.png"], ["there.png exists", "--force"]),
        (["--plot", "new.xyz"], ["new.xyz", ".png, .svg or .pdf"]),
        (["--plot", "new", "--force"], [".png, .svg or .pdf"]),
        (["--plot", "missing/new.png"], ["missing/new.png cannot be written"]),
        (["-o", "missing/new.h5", "--force"], ["missing/new.h5 cannot be written"]),
    ],
)
def test_sweep_refuses_outputs_before_any_work(folder, water_file, options, words):
    for name in ("there.h5", "there.png"):
        (folder / name).write_bytes(b"precious")
    refused(sweep("absent.model", water_file, *options), *words)  # known before the model is looked for
    assert names(folder) == ["there.h5", "there.png"]
    assert {(folder / name).read_bytes() for name in names(folder)} == {b"precious"}


def test_sweep_replaces_its_outputs_with_force(folder, model_file, water_file):
    for name in ("there.h5", "there.svg"):
        (folder / name).write_bytes(b"old")
    result = sweep(model_file, water_file, "-o", "there.h5", "--plot", "there.svg", "--force", "-q")
    assert result.exit_code == FINE, result.output
    assert names(folder) == ["there.h5", "there.svg"]
    assert (folder / "there.svg").read_bytes().startswith(b"<?xml")
    with pp.open_trace("there.h5") as trace:
        assert trace.tables == ("sweep",)


# recommend and apply


@pytest.fixture
def waters_file(water, tmp_path):
    ase.io.write(tmp_path / "waters.xyz", rattled(water))
    return tmp_path / "waters.xyz"


def rattled(water):
    found = [water.copy() for _ in range(3)]
    for seed, atoms in enumerate(found):
        atoms.rattle(0.05, seed=seed)
    return found


@pytest.fixture
def policy_file(folder):
    return Policy.uniform("float32").save(folder / "p.json")


def recommend(*arguments):
    """A quick one."""
    return run("recommend", *arguments, "--tolerance", "forces=1e-2", "--allow", "float16", "--device", "cpu")


def test_recommended_policies_are_applied_and_keep_the_tolerance(folder, model, model_file, waters_file, water):
    result = recommend(model_file, waters_file, "-o", "p.json", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (FINE, "", "")
    assert names(folder) == ["p.json"]
    result = run("apply", model_file, "p.json", "-o", "mixed.model")
    assert result.exit_code == FINE, result.output
    assert names(folder) == ["mixed.model", "p.json"]
    mixed, exact = (
        MACECalculator(model_paths="mixed.model"),
        MACECalculator(models=[copy.deepcopy(model)]),
    )  # which freezes it
    for atoms in rattled(water):
        found, expected = (calculator.get_forces(atoms) for calculator in (mixed, exact))
        assert np.isfinite(found).all()
        assert np.abs(found - expected).max() <= 1e-2
    policy = Policy.load("p.json")
    assert policy.tolerance == {"forces": 1e-2}
    assert mixed.models[0].policy.rules == policy.rules


def test_recommend_prints_what_it_measured_and_replaces_its_output_only_with_force(folder, model_file, water_file):
    (folder / "policy.json").write_bytes(b"precious")
    (folder / "policy.json.partial").write_bytes(b"begun")
    for _ in range(2):  # with and without a search that was interrupted
        refused(recommend("absent.model", water_file), "policy.json exists", "--force")
        (folder / "policy.json.partial").unlink(missing_ok=True)
    assert (folder / "policy.json").read_bytes() == b"precious"
    result = recommend(model_file, water_file, "--force")
    assert result.exit_code == FINE, result.output
    assert all(words in flat(result.stdout) for words in ("Recommended: ", "model.to(float32)", "float16"))
    assert "Policy written to policy.json" in result.stderr
    assert Policy.load("policy.json").tolerance
    assert names(folder) == ["policy.json"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tolerance", "forces"], ["number above zero"]),
        (["--tolerance", "forces=inf"], ["finite number"]),
        (["--tolerance", "speed=1"], ["Unknown tolerance"]),
        (["--tolerance", "stress=1e-3"], ["nothing would be judged"]),
        (["--objective", "memory"], ["CUDA only"]),
        (["--allow", "float31"], ["float31"]),
        (["-o", "missing/p.json"], ["cannot be written"]),
    ],
)
def test_recommend_refuses(folder, model_file, water_file, options, words):
    refused(run("recommend", model_file, water_file, "-o", "p.json", "--device", "cpu", *options), *words)
    assert names(folder) == []


def test_an_interrupted_search_goes_on(folder, model_file, water_file, monkeypatch):
    calls = []
    original = precision_probe.variants.mixed.MixedVariant.predict

    def predict(self, sample):
        if len(calls) == 7:
            raise KeyboardInterrupt
        calls.append(self.model.policy)
        return original(self, sample)

    monkeypatch.setattr(precision_probe.variants.mixed.MixedVariant, "predict", predict)
    result = recommend(model_file, water_file, "-o", "p.json", "-q")
    refused(result, "Interrupted", "p.json.partial", "goes on from there", code=FAILED)
    assert names(folder) == ["p.json.partial"]
    again = []
    monkeypatch.setattr(
        precision_probe.variants.mixed.MixedVariant,
        "predict",
        lambda self, sample: again.append(self.model.policy) or original(self, sample),
    )
    result = recommend(model_file, water_file, "-o", "p.json", "-q")
    assert result.exit_code == FINE, result.output
    assert names(folder) == ["p.json"]
    assert again
    assert not {policy.rules for policy in again} & {policy.rules for policy in calls}


def test_apply_refuses(folder, model_file, policy_file):
    (folder / "broken.json").write_text('{"rules": ', encoding="utf-8")
    Policy((Rule("layers.*", "float32"),)).save(folder / "other.json")
    (folder / "there.model").write_bytes(b"precious")
    before = names(folder)
    refused(run("apply", model_file, "broken.json", "-o", "m.model"), "broken.json", "not JSON")
    refused(run("apply", model_file, "absent.json", "-o", "m.model"), "absent.json")
    refused(run("apply", model_file, "other.json", "-o", "m.model"), "layers.*")
    refused(run("apply", "absent.model", policy_file, "-o", "m.model"), "absent.model")
    refused(run("apply", model_file, policy_file, "-o", "there.model"), "there.model exists", "--force")
    assert names(folder) == before
    assert (folder / "there.model").read_bytes() == b"precious"
    assert run("apply", model_file, policy_file, "-o", "there.model", "--force", "-q").exit_code == FINE
    refused(run("apply", "there.model", policy_file, "-o", "m.model"), "in mixed precision already")


MISUSES = [["errors"], ["errors", "x.h5", "--format", "xml"], ["errors", "x.h5", "--eps", "-1"], ["audit", "--nope"]]
MISUSES += [["guess"], ["inspect", "a", "b", "c"], ["audit", "-p"], []]


@pytest.mark.parametrize("arguments", MISUSES)
def test_usage_errors(folder, arguments):
    result = run(*arguments)
    assert result.exit_code == BAD_INPUT
    assert result.output
    assert names(folder) == []


# In a process of its own


def seconds_of_help():
    start = time.perf_counter()
    subprocess.run(["precision-probe", "--help"], check=True, capture_output=True, timeout=60)
    return time.perf_counter() - start


def test_help_comes_at_once():
    assert min(seconds_of_help() for _ in range(3)) < 1.0


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from precision_probe.cli.main import app; app(['audit', '--help'], standalone_mode=False); "
        "print('loaded:', *sorted({'torch', 'mace', 'e3nn', 'xarray', 'pandas', 'numpy', 'ase'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "--tolerance" in done.stdout
    assert done.stdout.splitlines()[-1].strip() == "loaded:"


def test_runs_as_a_module():
    environment = {**os.environ, "COLUMNS": "100"}
    command = [sys.executable, "-m", "precision_probe", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment)
    assert all(verb in done.stdout for verb in ("audit", "inspect", "errors", "Exit codes"))


def test_dynamics_without_explain_is_refused(model_file, water, tmp_path):
    water.write(tmp_path / "water.xyz")
    done = run("audit", model_file, tmp_path / "water.xyz", "--dynamics", "10", "-o", tmp_path / "t.h5")
    assert done.exit_code == 2
    assert "needs --explain" in done.stderr
    assert not (tmp_path / "t.h5").exists()
