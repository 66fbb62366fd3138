"""The verbs sweep, recommend and apply: what they write, print, refuse and exit with."""

import copy
import io
import warnings

import ase.io
import numpy as np
import pandas as pd
import pytest
import torch
from mace.calculators import MACECalculator

import precision_probe as pp
from precision_probe.diagnostics import bit_sweep
from precision_probe.models.building import build
from precision_probe.policy import Policy, Rule
from precision_probe.trace.claim import claim_output
from precision_probe.variants.mixed import MixedVariant

FINE, FAILED = 0, 3


# sweep


@pytest.fixture
def sweep(run):
    """A quick one."""
    return lambda *arguments: run("sweep", *arguments, "--bits", "8,12", "--blocks", "readouts.*", "--device", "cpu")


def test_sweep_prints_errors_and_bits_needed(deep_file, water_file, run):
    command = ["sweep", deep_file, water_file, "--bits", "8,23", "--blocks", "readouts.*", "-q", "--device", "cpu"]
    done = run(*command)
    assert done.exit_code == FINE, done.output
    rows = {line.split()[0]: line.split() for line in done.output.splitlines() if line.strip()}
    assert rows["readouts.1"][1] in ("8", "23")
    assert len(rows["readouts.0"]) == 4
    as_csv = run(*command, "--format", "csv")
    assert pd.read_csv(io.StringIO(as_csv.stdout))["bits"].tolist() == [23, 8] * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bits", "seven"], "whole numbers"),
        (["--bits", "99"], "cannot be emulated"),
        (["--tolerance", "forces=1e-3,energy=1e-3"], "one tolerance"),
        (["--tolerance", "stress=1e-3"], "one tolerance"),
    ],
)
def test_sweep_refuses_options(water_file, run, refused, options, words):
    refused(run("sweep", "demo", water_file, *options), words)


def test_sweep_writes_a_trace_and_a_figure(folder, deep_file, water_file, run, names, flat, sweep, titles):
    result = sweep(deep_file, water_file, "-o", "x.h5", "--plot", "x.png", "--format", "csv")
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
    assert titles["sweep"] in flat(shown.stdout)
    assert titles["physics"] not in flat(shown.stdout)  # no precision to show
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
def test_sweep_refuses_outputs_before_any_work(folder, water_file, options, words, names, refused, sweep):
    for name in ("there.h5", "there.png"):
        (folder / name).write_bytes(b"precious")
    refused(sweep("absent.model", water_file, *options), *words)  # known before the model is looked for
    assert names(folder) == ["there.h5", "there.png"]
    assert {(folder / name).read_bytes() for name in names(folder)} == {b"precious"}


def test_sweep_replaces_its_outputs_with_force(folder, model_file, water_file, names, sweep):
    for name in ("there.h5", "there.svg"):
        (folder / name).write_bytes(b"old")
    result = sweep(model_file, water_file, "-o", "there.h5", "--plot", "there.svg", "--force", "-q")
    assert result.exit_code == FINE, result.output
    assert names(folder) == ["there.h5", "there.svg"]
    assert (folder / "there.svg").read_bytes().startswith(b"<?xml")
    with pp.open_trace("there.h5") as trace:
        assert trace.tables == ("sweep",)


@pytest.fixture
def interrupted_sweep(monkeypatch, deep_file, waters_file, sweep, refused):
    """A sweep over three blocks with two numbers of bits that was interrupted as it measured the fourth of the six."""
    works, calls = bit_sweep._errors, []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == 7:  # each case is of structures searched on, and of others held out
            raise KeyboardInterrupt
        return works(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(bit_sweep, "_errors", fail)
        result = sweep(deep_file, waters_file, "-o", "x.h5", "-q")
    refused(result, "Interrupted", "x.h5.partial", "goes on from there", code=FAILED)


def test_an_interrupted_sweep_goes_on_to_the_same_numbers(
    folder, deep_file, waters_file, monkeypatch, interrupted_sweep, names, sweep
):
    assert names(folder) == ["x.h5.partial"]
    calls, works = [], bit_sweep._errors
    monkeypatch.setattr(bit_sweep, "_errors", lambda *each: calls.append(each) or works(*each))
    options = ("-q", "--format", "json")
    done = sweep(deep_file, waters_file, "-o", "x.h5", *options)
    assert done.exit_code == FINE, done.output
    assert len(calls) == 2 * 3
    assert names(folder) == ["x.h5"]
    assert sweep(deep_file, waters_file, *options).stdout == done.stdout
    assert len(calls) == 2 * (3 + 6)


def test_an_interrupted_sweep_of_something_else_is_refused(
    folder, model, config, waters_file, water_file, deep_file, interrupted_sweep, names, sweep, refused
):
    left = (folder / "x.h5.partial").read_bytes()
    torch.save(build(config, seed=4), "other.model")
    refused(sweep("other.model", waters_file, "-o", "x.h5"), "x.h5.partial", "of another model", "--force")
    refused(sweep(deep_file, water_file, "-o", "x.h5"), "x.h5.partial", "another choice of structures", "--force")
    assert (folder / "x.h5.partial").read_bytes() == left
    (folder / "x.h5.partial").write_bytes(b"something that is no log")
    refused(sweep(deep_file, water_file, "-o", "x.h5"), "x.h5.partial", "no log", "--force")
    assert sweep(deep_file, water_file, "-o", "x.h5", "--force", "-q").exit_code == FINE
    assert names(folder) == ["other.model", "x.h5"]


def test_two_searches_do_not_share_an_output(folder, model_file, waters_file, names, sweep, recommend, refused):
    for output, search in (("x.h5", sweep), ("p.json", recommend)):
        with claim_output(output):
            refused(search(model_file, waters_file, "-o", output), f"{output} is being written by process")
    assert names(folder) == []


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


@pytest.fixture
def recommend(run):
    """A quick one."""
    usual = ("--tolerance", "forces=1e-2", "--allow", "float16")
    return lambda *arguments, options=usual: run("recommend", *arguments, *options, "--device", "cpu")


def test_recommended_policies_are_applied_and_keep_the_tolerance(
    folder, shallow, model_file, waters_file, water, run, names, recommend
):
    result = recommend(model_file, waters_file, "-o", "p.json", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (FINE, "", "")
    assert names(folder) == ["p.json"]
    result = run("apply", model_file, "p.json", "-o", "mixed.model")
    assert result.exit_code == FINE, result.output
    assert names(folder) == ["mixed.model", "p.json"]
    mixed, exact = (
        MACECalculator(model_paths="mixed.model"),
        MACECalculator(models=[copy.deepcopy(shallow)]),
    )  # which freezes it
    for atoms in rattled(water):
        found, expected = (calculator.get_forces(atoms) for calculator in (mixed, exact))
        assert np.isfinite(found).all()
        assert np.abs(found - expected).max() <= 1e-2
    policy = Policy.load("p.json")
    assert policy.tolerance == {"forces": 1e-2}
    assert mixed.models[0].policy.rules == policy.rules


def test_the_file_of_a_float32_checkpoint_keeps_what_was_tested(folder, model, water, run, recommend):
    """In a box whose middle is at 110 Å, where the model cast to float32 breaks the tolerance by rounding alone."""
    single = copy.deepcopy(model).float()
    torch.save(single, "single.model")
    structures = rattled(water)
    for atoms in structures:
        atoms.positions += 110
    ase.io.write("far.xyz", structures)
    limit = ("--tolerance", "forces=1e-5", "--allow", "float32")
    assert recommend("single.model", "far.xyz", "-o", "p.json", "-q", options=limit).exit_code == FINE
    assert Policy.load("p.json").evidence["interface"] == "float64"
    done = run("apply", "single.model", "p.json", "-o", "mixed.model")
    assert done.exit_code == FINE, done.output
    exact = MACECalculator(models=[copy.deepcopy(single).double()], default_dtype="float64")
    for options in ({}, {"default_dtype": "float64"}):
        mixed = MACECalculator(model_paths="mixed.model", device="cpu", **options)
        for atoms in ase.io.read("far.xyz", ":"):
            delta = mixed.get_property("forces", atoms) - exact.get_property("forces", atoms)
            assert np.abs(delta).max() <= 1e-5


def test_an_interface_is_chosen_and_a_change_of_it_is_warned_of(folder, model_file, waters_file, run, recommend):
    options = ("--tolerance", "forces=1e-2", "--allow", "float16", "--interface", "float32")
    assert recommend(model_file, waters_file, "-o", "p.json", "-q", options=options).exit_code == FINE
    assert Policy.load("p.json").evidence["interface"] == "float32"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        done = run("apply", model_file, "p.json", "-o", "narrow.model", "--interface", "float32")
    assert done.exit_code == FINE, done.output
    assert MACECalculator(model_paths="narrow.model", device="cpu").default_dtype == "float32"
    with pytest.warns(UserWarning, match="tested with a float32 interface and is applied with a float64 one"):
        assert run("apply", model_file, "p.json", "-o", "wide.model").exit_code == FINE
    assert run("apply", model_file, "p.json", "-o", "half.model", "--interface", "float16").exit_code == 2


def test_recommend_prints_what_it_measured_and_replaces_its_output_only_with_force(
    folder, model_file, water_file, names, refused, flat, recommend
):
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


def test_what_was_timed_as_a_graph_is_said_how_to_run(folder, model_file, water_file, flat, recommend, monkeypatch):
    """As on a GPU; here the same code calls the model."""
    monkeypatch.setattr("precision_probe.search.recommendation._checked_run", lambda *_: "graph")
    result = recommend(model_file, water_file)
    assert result.exit_code == FINE, result.output
    said = f"Policy.load('policy.json').calculator('{model_file}', device='cpu')"
    assert said.replace(" ", "") in flat(result.stderr).replace(" ", "")
    assert "MACECalculator, float32" in flat(result.stdout)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--backend", "cuEquivariance"], ["is chosen for what is launched"]),
        (["--tolerance", "forces"], ["number above zero"]),
        (["--tolerance", "forces=inf"], ["finite number"]),
        (["--tolerance", "speed=1"], ["Unknown tolerance"]),
        (["--tolerance", "stress=1e-3"], ["nothing would be judged"]),
        (["--objective", "memory"], ["CUDA only"]),
        (["--allow", "float31"], ["float31"]),
        (["-o", "missing/p.json"], ["cannot be written"]),
    ],
)
def test_recommend_refuses(folder, model_file, water_file, options, words, run, names, refused):
    refused(run("recommend", model_file, water_file, "-o", "p.json", "--device", "cpu", *options), *words)
    assert names(folder) == []


def test_an_interrupted_search_goes_on(folder, model_file, water_file, monkeypatch, names, refused, recommend):
    calls = []
    original = MixedVariant.predict

    def predict(self, sample):
        if len(calls) == 7:
            raise KeyboardInterrupt
        calls.append(self.model.policy)
        return original(self, sample)

    monkeypatch.setattr(MixedVariant, "predict", predict)
    result = recommend(model_file, water_file, "-o", "p.json", "-q")
    refused(result, "Interrupted", "p.json.partial", "goes on from there", code=FAILED)
    assert names(folder) == ["p.json.partial"]
    again = []
    monkeypatch.setattr(
        MixedVariant,
        "predict",
        lambda self, sample: again.append(self.model.policy) or original(self, sample),
    )
    result = recommend(model_file, water_file, "-o", "p.json", "-q")
    assert result.exit_code == FINE, result.output
    assert names(folder) == ["p.json"]
    assert again
    assert not {policy.rules for policy in again} & {policy.rules for policy in calls}


def test_apply_refuses(folder, model_file, policy_file, run, names, refused):
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
