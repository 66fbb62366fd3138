"""The verbs audit and inspect: what they write, print, refuse and exit with."""

import json
import signal
from xml.etree import ElementTree as ET

import ase.build
import ase.io
import numpy as np
import pytest
import torch
from runs import molecule, out_of_memory

import precision_probe as pp
import precision_probe.probe.observing.observer
import precision_probe.structures
from precision_probe.analysis.errors import exceeded
from precision_probe.analysis.whole_model import main_causes
from precision_probe.models.building import build

FINE, EXCEEDED, BAD_INPUT, FAILED = 0, 1, 2, 3


@pytest.fixture
def two_file(water, tmp_path):
    ase.io.write(tmp_path / "two.xyz", [water, ase.build.molecule("CH4")])
    return tmp_path / "two.xyz"


@pytest.fixture(scope="module")
def audited(model, run, tmp_path_factory):
    """What an audit in three precisions says, and its trace."""
    folder = tmp_path_factory.mktemp("audited")
    torch.save(model, folder / "small.model")
    ase.io.write(folder / "water.xyz", molecule())
    output = folder / "trace.h5"
    options = ("-p", "fp32,half,bf16", "--device", "cpu", "-o", output)
    result = run("audit", folder / "small.model", folder / "water.xyz", *options)
    with pp.open_trace(output) as trace:
        return result, pp.summary(trace)


# what audit writes


def test_audit_counts_up_its_default_name(folder, model_file, water_file, audit, names):
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


def test_audit_prints_both_tables(audited):
    result, _ = audited
    assert result.exit_code == FINE
    for expected in ("The model as a whole", "Block by block", "float32", "float16", "bfloat16", "products.1"):
        assert expected in result.stdout
    assert "float64, float32, float16, bfloat16" in " ".join(result.stderr.split())


def test_audit_replaces_its_output_only_with_force(folder, model_file, water_file, audit, names, refused):
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
def test_audit_in_one_mode(model_file, water_file, mode, audit):
    result = audit(model_file, water_file, "--modes", mode, "-o", "out.h5")
    assert result.exit_code == FINE, result.output
    assert "Block by block" in result.stdout
    with pp.open_trace("out.h5") as trace:
        assert trace.modes == (mode,)


@pytest.mark.parametrize("keep", ["errors", "none"])
def test_audit_that_keeps_no_tensors(model_file, water_file, keep, audit, run):
    result = audit(model_file, water_file, "--keep", keep, "--no-time", "-o", "out.h5")
    assert result.exit_code == FINE, result.output
    assert "The model as a whole" in result.stdout
    assert "× float64" not in result.stdout  # no times
    assert ("Block by block" in result.stdout) == (keep == "errors")
    with pp.open_trace("out.h5") as trace:
        assert trace.attributes["keep"] == keep
        assert np.isnan(trace.group("propagated", "float32")["seconds"]).all()
    for verb in ("errors", "explain", "validate"):
        done = run(verb, "out.h5")
        assert done.exit_code == FINE
        assert "seconds" not in done.output  # times that were not taken are no fault


def test_audit_times_what_it_is_asked_to(model_file, tmp_path, audit):
    ase.io.write(tmp_path / "six.xyz", [molecule(seed) for seed in range(6)])
    for options, is_timed in (((), False), (("--time",), True)):
        result = audit(model_file, tmp_path / "six.xyz", *options, "-o", "out.h5", "--force")
        assert ("× float64" in result.stdout) == is_timed
        with pp.open_trace("out.h5") as trace:
            assert np.isfinite(trace.group("propagated", "float32")["seconds"]).all() == is_timed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--keep", "all"), "Unknown 'all' to keep"),
        (("--modes", "both"), "Unknown mode both"),
        (("--precisions", "fp8"), "Unknown precision 'fp8'"),
    ],
)
def test_words_are_checked_before_the_model_is_looked_for(run, options, says):
    result = run("audit", "absent.model", "absent.xyz", *options)
    assert result.exit_code == BAD_INPUT
    assert says in " ".join(result.output.split())


def test_audit_of_chosen_blocks(deep_file, water_file, run):
    blocks = ("--blocks", "products.*", "--blocks", "interactions.0.linear_up")
    assert run("audit", deep_file, water_file, *blocks, "-p", "float32", "-o", "out.h5").exit_code == FINE
    with pp.open_trace("out.h5") as trace:
        assert trace.blocks == ("products.0", "products.1", "interactions.0.linear_up")


def test_quiet_audit_prints_nothing(folder, model_file, water_file, audit, names):
    result = audit(model_file, water_file, "-o", "out.h5", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (FINE, "", "")
    assert names(folder) == ["out.h5"]


def test_structures_without_edges_run_and_are_reported(model_file, tmp_path, audit):
    ase.io.write(tmp_path / "far.xyz", ase.Atoms("OH", [(0, 0, 0), (9, 0, 0)], info={"name": "apart"}))
    result = audit(model_file, tmp_path / "far.xyz")
    assert result.exit_code == FINE, result.output
    assert "apart: no two atoms are within the cutoff of 3 Å" in " ".join(result.stdout.split())


# inputs as people have them


XYZ = """3
Properties=species:S:1:pos:R:3{} pbc="F F F" {}
O 0.0 0.0 0.119 {}
H 0.0 0.763 -0.477 {}
H 0.0 -0.763 -0.477 {}
"""


@pytest.mark.parametrize(
    ("column", "info", "per_atom", "key", "why"),
    [
        ("", "REF_energy=None", "", "REF_energy", "is text"),
        ("", 'REF_energy="-1.0 -2.0"', "", "REF_energy", "shape (2,)"),
        (":REF_forces:S:1", "", "a", "REF_forces", "is text"),
        ("", 'REF_stress="1 2 3"', "", "REF_stress", "shape (3,)"),
        ("", "charge=neutral", "", "charge", "is text"),
        ("", 'charge="0 0 1"', "", "charge", "shape (3,)"),
        ("", "config_weight=abc", "", "config_weight", "is text"),
        ("", "energy=None", "", "energy", "is text"),
    ],
)
def test_a_label_that_cannot_be_read_is_left_out_with_a_note(
    model_file, tmp_path, audit, flat, column, info, per_atom, key, why
):
    (tmp_path / "odd.xyz").write_text(XYZ.format(column, info, *[per_atom] * 3))
    result = audit(model_file, tmp_path / "odd.xyz", "-o", "out.h5")
    assert result.exit_code == FINE, result.output
    (note,) = [line for line in flat(result.stdout).split("Note: ") if line.startswith("odd[0]: ")]
    assert f"{key!r}" in note
    assert why in note
    with pp.open_trace("out.h5") as trace:
        assert not {"energy", "forces", "stress"} & set(trace.structures.data_vars)
        assert np.isfinite(pp.summary(trace).loc["float32", "forces"])


def test_a_charge_that_the_model_needs_is_bad_input(config, tmp_path, audit, refused):
    specs = {"total_charge": {"type": "categorical", "per": "graph", "num_classes": 5, "offset": 2, "emb_dim": 4}}
    torch.save(build(config | {"embedding_specs": specs}), tmp_path / "ions.model")
    (tmp_path / "odd.xyz").write_text(XYZ.format("", "charge=neutral", "", "", ""))
    refused(
        audit(tmp_path / "ions.model", tmp_path / "odd.xyz", "-q"), "Structure odd[0]", "'charge' is text", "neutral"
    )


def test_labels_under_other_keys_are_hinted_at_and_read_when_named(model_file, tmp_path, audit, flat):
    (tmp_path / "dft.xyz").write_text(XYZ.format(":dft_forces:R:3", "dft_energy=-7.5", "1 2 3", "4 5 6", "7 8 9"))
    result = audit(model_file, tmp_path / "dft.xyz", "-o", "without.h5")
    assert "say so: --energy-key dft_energy --forces-key dft_forces" in flat(result.stdout)
    options = ("--energy-key", "dft_energy", "--forces-key", "dft_forces", "-o", "with.h5")
    result = audit(model_file, tmp_path / "dft.xyz", *options)
    assert result.exit_code == FINE, result.output
    assert "dft_energy" not in result.stdout
    with pp.open_trace("with.h5") as trace:
        assert trace.structures["energy"].values.tolist() == [-7.5]
        np.testing.assert_array_equal(trace.structures["forces"].values, np.arange(1.0, 10.0).reshape(3, 3))
    with pp.open_trace("without.h5") as trace:
        assert not {"energy", "forces"} & set(trace.structures.data_vars)


def test_a_key_that_is_not_there_is_bad_input(model_file, water_file, audit, refused):
    refused(audit(model_file, water_file, "-q", "--energy-key", "dft_energy"), "'dft_energy'", "no labels at all")


def test_a_format_that_the_file_does_not_tell(model_file, water, tmp_path, audit, run, refused):
    ase.io.write(tmp_path / "water.txt", water, format="xyz")
    assert audit(model_file, tmp_path / "water.txt", "--structures-format", "xyz", "-q").exit_code == FINE
    assert run("inspect", model_file, tmp_path / "water.txt", "--structures-format", "xyz").exit_code == FINE
    refused(audit(model_file, tmp_path / "water.txt", "--structures-format", "cif", "-q"), "read as 'cif'")


def test_a_part_of_the_demo(audit, names, folder):
    assert audit("demo", "demo@:2", "-q").exit_code == FINE
    assert names(folder) == ["demo-demo-1.h5"]
    with pp.open_trace("demo-demo-1.h5") as trace:
        assert trace.structures.sizes["structure"] == 2


# tolerances


def test_audit_names_what_exceeds_the_tolerance(folder, deep_file, tmp_path, audited, audit, names):
    ase.io.write(tmp_path / "water.xyz", molecule())
    _, summary = audited
    fine, coarse = summary.loc["float32", "forces"], summary.loc["float16", "forces"]
    limit = (fine * coarse) ** 0.5
    options = ("--tolerance", f"forces={limit},energy=1e9", "-q")
    result = audit(deep_file, tmp_path / "water.xyz", *options, precisions="float32,float16")
    assert result.exit_code == EXCEEDED
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("float16: forces error ")
    assert f"{coarse:.2e}" in line
    assert f"{limit:.2e} eV/Å" in line
    assert f"({coarse / limit:.1f} times)" in line
    assert "small-water-1.h5" in names(folder)


def test_an_audit_is_one_json_document_and_a_junit_report(model_file, water_file, audit, folder, refused):
    options = ("--tolerance", "forces=1e-30,energy=1e9", "-o", "a.h5", "--junit", "a.xml", "--format", "json")
    result = audit(model_file, water_file, *options)
    assert result.exit_code == EXCEEDED
    found = json.loads(result.stdout, parse_constant=pytest.fail)
    assert found["exit"] == {"code": EXCEEDED, "reason": "Exceeded: float32 forces."}
    with pp.open_trace(found["trace"]) as trace:
        (row,) = found["precisions"]
        summary = pp.summary(trace).loc["float32"]
        assert row["errors"] == pytest.approx(summary[list(row["errors"])].to_dict(), rel=1e-15)
        assert {quantity: part["part"] for quantity, part in row["worst_parts"].items()} == {
            quantity: main_causes(trace).loc["float32", f"{quantity}_part"] for quantity in ("energy", "forces")
        }
        assert row["worst_block"] == "readouts.0"  # the only one
    suite = ET.parse(folder / "a.xml").getroot()
    assert [test.get("name") for test in suite if test.find("failure") is not None] == ["forces"]
    refused(audit(model_file, water_file, "--tolerance", "forces=1", "--junit", "a.xml"), "a.xml exists", "--force")
    refused(audit(model_file, water_file, "--junit", "b.xml"), "--junit", "needs a --tolerance")


def test_audit_within_the_tolerance_is_fine(model_file, water_file, audit):
    result = audit(model_file, water_file, "--tolerance", "forces=1e3,energy=1e3")
    assert result.exit_code == FINE
    assert "ok: within forces 1000 eV/Å" in " ".join(result.stdout.split())


def test_a_tolerance_that_cannot_be_judged_is_said(model_file, water_file, audit):
    result = audit(model_file, water_file, "--tolerance", "stress=1e-9", "-q")
    assert result.exit_code == FINE
    assert "stress" in result.stderr


def test_an_overflow_is_a_result(config, water_file, tmp_path, audit):
    torch.save(build(config | {"atomic_energies": [-13.6, -1029.5, -70000.0]}), tmp_path / "heavy.model")
    result = audit(tmp_path / "heavy.model", water_file, precisions="float16")
    assert result.exit_code == FINE
    assert any(line.split()[:2] == ["float16", "nan"] for line in result.stdout.splitlines())
    assert "NaN/inf)" in result.stdout
    judged = audit(tmp_path / "heavy.model", water_file, "--tolerance", "energy=1e9", "-q", precisions="float16")
    assert judged.exit_code == EXCEEDED
    assert "float16: energy error nan exceeds" in judged.stderr


def test_a_precision_without_memory_is_a_result_and_a_failure(model, model_file, two_file, audit, monkeypatch):
    out_of_memory(monkeypatch, model, {"float32": 6})
    result = audit(model_file, two_file, "-o", "a.h5", "--device", "cpu", "--offload", "--batch-edges", "auto")
    assert result.exit_code == FAILED
    said = "two[1]: 5 atoms with 20 edges did not fit into the memory in float32"
    assert f"Note: {said}" in " ".join(result.stdout.split())
    assert f"Error: {said}" in result.stderr
    with pp.open_trace("a.h5") as trace:
        assert np.isnan(trace.group("propagated", "float32")["energy"].values).tolist() == [False, True]
        assert not trace.attributes["complete"]


@pytest.mark.parametrize("batch_edges", ["0", "-3", "many", "2.5"])
def test_batches_of_no_edges_are_refused(model_file, water_file, audit, refused, batch_edges):
    refused(audit(model_file, water_file, "--batch-edges", batch_edges), "--batch-edges")


def test_a_tolerance_is_judged_once_for_the_table_and_the_exit_code(model_file, water_file, audit, monkeypatch):
    judged, shown = [], []

    def count(summary, tolerance):
        judged.append(exceeded(summary, tolerance))
        return judged[-1]

    def show(rows, units, limits, *, is_guide):
        shown.append(({row.precision: row.exceeded for row in rows}, limits, is_guide))
        return ""

    monkeypatch.setattr("precision_probe.analysis.errors.exceeded", count)
    monkeypatch.setattr("precision_probe.cli.tables.errors.model_table", show)
    result = audit(model_file, water_file, "--tolerance", "forces=1e-30,energy=1e9,stress=1.0")
    assert result.exit_code == EXCEEDED
    assert len(judged) == 1
    ((over, limits, is_guide),) = shown
    assert judged[0]["quantity"].tolist() == ["forces"]
    assert over == {"float64": (), "float32": ("forces",)}
    assert limits == {"forces": 1e-30, "energy": 1e9}  # what the summary has
    assert not is_guide


# explanations


def test_audit_explains_prints_and_keeps_the_tables(explained, names, flat, titles):
    result, path = explained
    assert result.exit_code == FINE, result.output
    for title in ("The model as a whole", "Block by block", *titles.values()):
        assert title in flat(result.stdout)
    assert "Warning" not in result.stderr
    with pp.open_trace(path) as trace:
        assert set(trace.tables) == set(titles) - {"physics"}
        assert trace.attributes["complete"] is True
        mae = trace.table("budget").frame.set_index("source").loc["all together", "forces_mae"]
        assert mae == pytest.approx(pp.summary(trace).loc["float16", "forces_mae"])
        assert pp.errors(trace)["noise"].notna().any()
    assert names(path.parent) == ["trace.h5", "water.xyz"]


@pytest.mark.parametrize("name", ["AtomicDipolesMACE", "AtomicDielectricMACE"])
def test_what_cannot_be_explained_is_audited_nevertheless(
    config, water_file, tmp_path, folder, name, run, audit, names, refused
):
    irreps = {"hidden_irreps": "4x0e + 4x1o + 4x2e", "MLP_irreps": "4x0e + 4x1o + 4x2e"}
    more = irreps if name == "AtomicDielectricMACE" else {"MLP_irreps": "4x1o"}
    torch.save(build(config | {"model": name, "atomic_energies": None} | more), tmp_path / "dipole.model")
    result = audit(tmp_path / "dipole.model", water_file, "--explain", "-o", "out.h5", "-q")
    refused(result, "predicts no energies and forces", "complete, and in out.h5")
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
def test_an_explanation_that_fails_leaves_the_audit(folder, model_file, water_file, monkeypatch, error, audit, refused):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("precision_probe.diagnostics.suite.explained", fail)
    result = audit(model_file, water_file, "--explain", "-o", "out.h5", "-q")
    refused(result, "after 1 structure", code=FAILED)
    with pp.open_trace("out.h5") as trace:
        assert np.isfinite(pp.summary(trace).loc["float32", "forces"])


def test_dynamics_without_explain_is_refused(model_file, water_file, tmp_path, run):
    done = run("audit", model_file, water_file, "--dynamics", "10", "-o", tmp_path / "t.h5")
    assert done.exit_code == BAD_INPUT
    assert "needs --explain" in done.stderr
    assert not (tmp_path / "t.h5").exists()


@pytest.mark.parametrize("options", [[], ["--explain", "--dynamics", "3"]])
def test_structures_are_read_from_their_file_once(model_file, two_file, audit, monkeypatch, options):
    read, explained = [], []
    original = precision_probe.structures._read_file
    monkeypatch.setattr(
        precision_probe.structures, "_read_file", lambda path, named: read.append(path) or original(path, named)
    )
    monkeypatch.setattr(pp.Probe, "explain", lambda self, atoms, **options: explained.append((atoms, options)))
    assert audit(model_file, two_file, "-q", *options).exit_code == FINE
    assert read == [str(two_file)]
    (([first, second], given),) = explained  # the same structures, which are in memory
    assert (len(first), len(second)) == (3, 5)
    assert given.get("steps") == (3 if options else None)
    assert given.get("only") == (None if options else ("contributions",))


# what is refused, before anything is written


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
def test_audit_refuses_options(folder, model_file, water_file, options, words, run, names, refused):
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
def test_bad_models_are_refused(folder, model, water_file, tmp_path, kind, verb, run, names, refused):
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
}


@pytest.mark.parametrize("kind", BAD_STRUCTURES)
@pytest.mark.parametrize("verb", ["audit", "inspect"])
def test_bad_structures_are_refused(folder, model_file, water, tmp_path, kind, verb, run, names, refused):
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
def test_files_without_structures_are_refused(
    folder, model_file, tmp_path, name, content, selection, words, run, names, refused
):
    if content is not None:
        (tmp_path / name).write_text(content)
    refused(run("audit", model_file, f"{tmp_path / name}{selection}"), *words)
    assert names(folder) == []


# what goes wrong on the way


def fail_in_observation(monkeypatch, number, error):
    """Let the observation of this number (from 1) raise an error or a signal."""
    observe = precision_probe.probe.observing.observer.Observer.predict
    calls = []

    def observe_or_fail(*arguments, **options):
        calls.append(1)
        if len(calls) == number and isinstance(error, signal.Signals):
            signal.raise_signal(error)
        elif len(calls) == number:
            raise error
        return observe(*arguments, **options)

    monkeypatch.setattr(precision_probe.probe.observing.observer.Observer, "predict", observe_or_fail)


FAILURES = {
    "interrupted": (KeyboardInterrupt(), ["Interrupted after 1 structure"]),
    "failed": (RuntimeError("out of memory"), ["failed after 1 structure", "RuntimeError: out of memory"]),
}


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("tolerance", [[], ["--tolerance", "forces=1e-30"]])
def test_what_finished_is_kept(folder, model_file, two_file, monkeypatch, kind, tolerance, audit, names):
    error, words = FAILURES[kind]
    fail_in_observation(monkeypatch, 2, error)
    result = audit(model_file, two_file, "-o", "out.h5", "-q", *tolerance)
    assert result.exit_code == FAILED
    message = result.stderr.strip().splitlines()[-1]
    assert all(word in message for word in [*words, "out.h5.partial", "--resume"]), message
    assert names(folder) == ["out.h5.partial"]
    with pp.open_trace(folder / "out.h5.partial") as trace:
        assert trace.structures["n_atoms"].values.tolist() == [3]
        assert trace.attributes["complete"] is False
        assert set(pp.errors(trace)["block"]) == {"model", "readouts.0"}


def test_what_finished_is_kept_when_a_batch_system_terminates_the_run(
    model_file, two_file, monkeypatch, audit, refused
):
    def not_taken_over(*_):
        raise AssertionError("SIGTERM was not taken for an interruption")

    before = signal.signal(signal.SIGTERM, not_taken_over)
    try:
        fail_in_observation(monkeypatch, 2, signal.SIGTERM)
        refused(audit(model_file, two_file, "-o", "out.h5", "-q"), "Interrupted after 1 structure", code=FAILED)
        assert signal.getsignal(signal.SIGTERM) is not_taken_over
    finally:
        signal.signal(signal.SIGTERM, before)
    with pp.open_trace("out.h5.partial") as trace:
        assert trace.structures["n_atoms"].values.tolist() == [3]


# going on


@pytest.fixture
def interrupted(monkeypatch, model_file, two_file, audit):
    """An audit of two structures that was interrupted in the second, with other options where given."""

    def interrupt(*options):
        with monkeypatch.context() as patch:
            fail_in_observation(patch, 2, KeyboardInterrupt())
            result = audit(model_file, two_file, "-q", *options)
        assert result.exit_code == FAILED
        return result

    return interrupt


def numbers(path):
    """All that a trace has, but for when and how fast it was made."""
    with pp.open_trace(path) as trace:
        arrays = {
            f"{node.path}/{name}": variable.values
            for node in trace.tree.subtree
            for name, variable in node.to_dataset(inherit=False).variables.items()
            if name != "seconds"
        }
        return arrays, {key: value for key, value in trace.attributes.items() if key not in ("created", "resumed")}


def test_a_resumed_audit_is_that_of_an_uninterrupted_run(folder, model_file, two_file, interrupted, audit, names):
    assert audit(model_file, two_file, "-q", "-o", "whole.h5").exit_code == FINE
    interrupted("-o", "out.h5")
    result = audit(model_file, two_file, "-o", "out.h5", "--resume")
    assert result.exit_code == FINE, result.output
    assert "1 structure(s) are done already, in out.h5.partial" in " ".join(result.stderr.split())
    assert names(folder) == ["out.h5", "whole.h5"]
    (found, about), (expected, about_whole) = numbers("out.h5"), numbers("whole.h5")
    assert about == about_whole
    assert about["complete"] is True
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)


def test_what_an_interrupted_audit_left_is_not_overwritten(folder, model_file, two_file, interrupted, audit, refused):
    interrupted("-o", "out.h5")
    left = (folder / "out.h5.partial").read_bytes()
    refused(audit(model_file, two_file, "-q", "-o", "out.h5"), "out.h5.partial", "--resume", "--force")
    assert (folder / "out.h5.partial").read_bytes() == left
    assert audit(model_file, two_file, "-q", "-o", "out.h5", "--force").exit_code == FINE


def test_an_interrupted_audit_of_something_else_is_not_gone_on_with(
    folder, model_file, config, two_file, water_file, interrupted, audit, refused, names
):
    interrupted("-o", "out.h5")
    left, _ = numbers("out.h5.partial")
    torch.save(build(config, seed=4), "other.model")
    for arguments, options in [
        (("other.model", two_file), {}),
        ((model_file, two_file), {"precisions": "float16"}),
        ((model_file, two_file, "--blocks", "products.*"), {}),
        ((model_file, two_file, "--modes", "isolated"), {}),
        ((model_file, water_file.with_name("crystal.xyz")), {}),
    ]:
        ase.io.write(water_file.with_name("crystal.xyz"), crystal_with(4 * np.eye(3)))
        refused(audit(*arguments, "-q", "-o", "out.h5", "--resume", **options), "out.h5.partial")
        assert names(folder) == ["other.model", "out.h5.partial"]
        found, _ = numbers("out.h5.partial")
        assert found.keys() == left.keys()
        for name, array in left.items():
            np.testing.assert_array_equal(found[name], array, strict=True)


def test_resume_without_anything_left_begins(model_file, two_file, audit):
    assert audit(model_file, two_file, "-q", "-o", "out.h5", "--resume").exit_code == FINE
    with pp.open_trace("out.h5") as trace:
        assert trace.structures.sizes["structure"] == 2


def test_a_complete_output_is_not_resumed(folder, model_file, two_file, audit, refused):
    assert audit(model_file, two_file, "-q", "-o", "out.h5").exit_code == FINE
    before = (folder / "out.h5").read_bytes()
    refused(audit(model_file, two_file, "-q", "-o", "out.h5", "--resume"), "out.h5 exists")
    assert (folder / "out.h5").read_bytes() == before


def test_an_interrupted_run_that_was_to_replace_leaves_the_complete_one(
    folder, model_file, two_file, water_file, interrupted, audit, names
):
    assert audit(model_file, water_file, "-q", "-o", "out.h5").exit_code == FINE
    before = (folder / "out.h5").read_bytes()
    interrupted("-o", "out.h5", "--force")
    assert (folder / "out.h5").read_bytes() == before
    assert names(folder) == ["out.h5", "out.h5.partial"]
    assert audit(model_file, two_file, "-q", "-o", "out.h5", "--force", "--resume").exit_code == FINE
    with pp.open_trace("out.h5") as trace:
        assert trace.structures.sizes["structure"] == 2


def test_what_was_interrupted_under_a_default_name_is_offered_and_gone_on_with(
    folder, model_file, two_file, interrupted, audit, refused, names
):
    stem = f"small-{two_file.stem}"
    interrupted()
    assert names(folder) == [f"{stem}-1.h5.partial"]
    result = audit(model_file, two_file)
    assert result.exit_code == FINE
    said = " ".join(result.stderr.split())
    assert f"{stem}-1.h5.partial is what an interrupted run left: --resume --output {stem}-1.h5 goes on." in said
    assert names(folder) == [f"{stem}-1.h5.partial", f"{stem}-2.h5"]
    assert audit(model_file, two_file, "-q", "--resume").exit_code == FINE
    assert names(folder) == [f"{stem}-1.h5", f"{stem}-2.h5"]
    refused(audit(model_file, two_file, "-q", "--resume"), "--output", "none")
    interrupted()
    interrupted()
    refused(audit(model_file, two_file, "-q", "--resume"), f"{stem}-3.h5.partial, {stem}-4.h5.partial")


def test_an_output_that_cannot_be_written_is_said_with_what_there_is(folder, model_file, two_file, monkeypatch, audit):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("precision_probe.trace.recorder.append", full)
    result = audit(model_file, two_file, "-o", "out.h5")
    assert result.exit_code == FAILED
    assert "The model as a whole" in result.stdout
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("Error: out.h5.partial could not be written (No space left on device)")
    assert "2 nowhere. Nothing was written." in message


@pytest.mark.parametrize(("error", "word"), [(KeyboardInterrupt(), "Interrupted"), (OSError("no luck"), "no luck")])
def test_nothing_is_written_where_nothing_finished(
    folder, model_file, two_file, monkeypatch, error, word, audit, names, refused
):
    fail_in_observation(monkeypatch, 1, error)
    refused(audit(model_file, two_file, "-o", "out.h5", "-q"), word, code=FAILED)
    assert names(folder) == []


def test_the_traceback_is_shown_when_asked_for(model_file, water_file, monkeypatch, audit, refused):
    fail_in_observation(monkeypatch, 1, ValueError("deep down"))
    refused(audit(model_file, water_file, "-q"), "ValueError: deep down", "--traceback", code=FAILED)
    fail_in_observation(monkeypatch, 1, ValueError("deep down"))
    result = audit(model_file, water_file, "-q", "--traceback")
    assert result.exit_code == FAILED
    assert "Traceback (most recent call last)" in result.stderr
    assert "observe_or_fail" in result.stderr


# inspect


def test_inspect(folder, deep_file, water_file, run, names):
    result = run("inspect", deep_file, water_file)
    assert result.exit_code == FINE, result.output
    for expected in ("ScaleShiftMACE", "interactions.1", "water[0]", "message: [3, 4, 9]", "every number is finite"):
        assert expected in result.stdout
    assert names(folder) == []
