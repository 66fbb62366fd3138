"""Errors against policies applied by hand, and the log that keeps them."""

import ase
import numpy as np
import pandas as pd
import pytest
import torch
from runs import molecule

import precision_probe.search.measuring
from precision_probe.diagnostics.reference import Reference
from precision_probe.exceptions import InputError
from precision_probe.models.building import build
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import build_graph
from precision_probe.policy import Policy, Rule
from precision_probe.search.measuring import CAST, Candidates
from precision_probe.search.running.calling import Launches
from precision_probe.search.running.rivals import rivals
from precision_probe.search.timing import Timed
from precision_probe.variants.mixed import MixedVariant

HALF = Policy((Rule("interactions.*", "float16"), Rule("products.*", "float16")))
SINGLE = Policy.uniform("float32")


def cell():
    return ase.Atoms("CO", [(0, 0, 0), (0.1, 0.2, 1.2)], cell=[2.6, 2.9, 3.1], pbc=True)


@pytest.fixture(scope="module")
def reference(model):
    return Reference(model, [molecule(1), cell()], device="cpu")


@pytest.fixture
def log(tmp_path):
    return tmp_path / "policy.json.partial"


def by_hand(network, atoms, model, dtype=torch.float64):
    """Errors of one structure, from plain calls of the model and of another."""
    graph = build_graph(atoms, model)

    def call(network, dtype):
        with default_dtype(dtype):
            results = [network(graph.cast(dtype), compute_stress=atoms.pbc.all()) for _ in range(3)][-1]
        return {name: tensor.detach().double() for name, tensor in results.items() if tensor is not None}

    exact, found = call(model, torch.float64), call(network, dtype)
    delta = {name: (found[name] - exact[name]).numpy() for name in ("energy", "forces", "stress") if name in found}
    return {
        "energy": abs(delta["energy"][0]) / len(atoms),
        "forces": np.abs(delta["forces"]).max(),
        "stress": np.abs(delta["stress"]).max() if "stress" in delta else np.nan,
        "forces_l2": np.sqrt((delta["forces"] ** 2).sum()),
        "forces_norm": np.sqrt((exact["forces"].numpy() ** 2).sum()),
    }


def same(found, expected):
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


# errors


@pytest.mark.parametrize("policy", [SINGLE, HALF])
def test_errors_are_those_of_the_policy_applied(model, reference, policy):
    found = Candidates(reference).errors(policy)
    expected = pd.DataFrame([by_hand(policy.apply(model), atoms, model) for atoms in (molecule(1), cell())])
    pd.testing.assert_frame_equal(found, expected, rtol=0.02, atol=1e-12)
    assert found["forces"].min() > 0


def test_errors_of_casts_are_those_of_the_model_cast(model, config, reference):
    found = Candidates(reference).cast_errors("float32")
    network = build(config, seed=3).float()
    expected = pd.DataFrame([by_hand(network, atoms, model, torch.float32) for atoms in (molecule(1), cell())])
    pd.testing.assert_frame_equal(found[["energy", "forces"]], expected[["energy", "forces"]], rtol=0.3, atol=1e-7)


def test_doing_nothing_is_exact(reference):
    found = Candidates(reference).errors(Policy(()))
    assert (found[["energy", "forces", "forces_l2"]] == 0).all(axis=None)
    assert found["stress"].isna().tolist() == [True, False]


def test_each_policy_is_run_once(reference):
    candidates = Candidates(reference)
    first = candidates.errors(HALF)
    same(candidates.errors(Policy(HALF.rules, {"forces": 1e-3})), first)
    assert candidates.n_runs == len(reference.graphs)
    candidates.errors(SINGLE)
    assert candidates.n_runs == 2 * len(reference.graphs)
    for _ in range(2):
        candidates.cast_errors("float32")
        assert candidates.n_runs == 3 * len(reference.graphs)


# the log


@pytest.fixture
def written(reference, log):
    """A log of two policies, and their errors."""
    candidates = Candidates(reference, log)
    return {policy.rules: candidates.errors(policy) for policy in (HALF, SINGLE)}


def test_an_interrupted_search_goes_on(reference, log, written, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the model was run")

    text = log.read_text(encoding="utf-8")
    monkeypatch.setattr(MixedVariant, "predict", refuse)
    again = Candidates(reference, log)
    for rules, table in written.items():
        same(again.errors(Policy(rules)), table)
    assert again.n_runs == 0
    assert log.read_text(encoding="utf-8") == text
    assert text.count("\n") == 3


def test_what_others_measure_is_kept_as_it_comes_and_asked_of_them_once(reference, log, written):
    quarter = Policy.uniform("bfloat16")
    asked = []

    def elsewhere(policies):
        asked.append(list(policies.values()))
        for name, policy in policies.items():
            yield name, Candidates(reference).errors(policy)

    def failing(policies):
        yield next(elsewhere(policies))
        raise ConnectionError

    with pytest.raises(ConnectionError):
        Candidates(reference, log, elsewhere=failing).errors_of(
            {"half": HALF, "none": Policy(()), "quarter": quarter}, "", progress=False
        )
    assert asked == [[Policy(()), quarter]]
    candidates = Candidates(reference, log, elsewhere=elsewhere)
    for _ in range(2):
        found = candidates.errors_of({"quarter": quarter, "none": Policy(()), "half": HALF}, "", progress=False)
    assert asked[1:] == [[quarter]]
    assert candidates.n_runs == len(reference.graphs)
    assert list(found) == ["quarter", "none", "half"]
    same(found["half"], written[HALF.rules])
    for name, policy in (("quarter", quarter), ("none", Policy(()))):
        same(found[name], Candidates(reference).errors(policy))


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_line_that_was_cut_off_is_measured_again(reference, log, written, cut):
    whole = log.read_bytes()
    log.write_bytes(whole[:-cut])  # of 2, a line that ends in a brace nevertheless
    for n_runs in (2, 0):  # what is added makes the log whole for the next one
        again = Candidates(reference, log)
        for rules, table in written.items():
            same(again.errors(Policy(rules)), table)
        assert again.n_runs == n_runs
        again.errors(Policy(()))
    assert log.read_bytes().startswith(whole)
    assert log.read_bytes().count(b"\n") == 4


def test_a_log_of_something_else_is_refused_and_begun_anew_with_force(config, reference, log, written):
    before = log.read_bytes()
    others = [
        (reference.on([molecule(2), cell()]), "of another choice of structures"),
        (reference.on([molecule(1)]), "of another choice of structures"),
        (Reference(build(config, seed=4), [molecule(1), cell()], device="cpu"), "of another model"),
    ]
    for other, words in others:
        log.write_bytes(before)
        with pytest.raises(InputError, match=words):
            Candidates(other, log)
        candidates = Candidates(other, log, force=True)
        assert log.read_bytes() == before  # until something is measured
        candidates.errors(SINGLE)
        assert candidates.n_runs == len(other.graphs)
        lines = log.read_text(encoding="utf-8").splitlines()
        assert len(lines) == 2
        assert lines[0] != before.decode().splitlines()[0]


def test_a_log_of_another_head_is_refused(config, log):
    heads = {
        "heads": ["pbe", "r2scan"],
        "atomic_energies": [[-13.6, -1029.5, -2042.0], [-13.0, -1020.0, -2040.0]],
        "atomic_inter_scale": [0.8, 0.9],
        "atomic_inter_shift": [0.1, 0.2],
    }
    reference = Reference(build(config | heads, seed=3), [molecule(1)], head="pbe", device="cpu")
    Candidates(reference, log).errors(SINGLE)
    with pytest.raises(InputError, match="of another choice of structures"):
        Candidates(reference.on([molecule(1)], head="r2scan"), log)


def test_what_is_not_finite_survives_the_log(reference, log, monkeypatch):
    table = pd.DataFrame(
        {name: [np.nan, np.inf] for name in ("energy", "forces", "stress", "forces_l2", "forces_norm")}
    )
    monkeypatch.setattr(reference, "errors_by_structure", lambda predict: table, raising=False)
    same(Candidates(reference, log).errors(HALF), table)
    again = Candidates(reference, log)
    same(again.errors(HALF), table)
    assert again.n_runs == 0


# times


def test_times_are_of_the_largest_structure(reference, monkeypatch):
    seen = []

    def side_by_side(calls, device, rounds):
        seen.extend(call()["forces"].shape[0] for call in calls.values())
        return {name: Timed((1.0,) * rounds, None) for name in calls}

    monkeypatch.setattr(precision_probe.search.measuring, "side_by_side", side_by_side)
    found = Candidates(reference).timed({"half": HALF}, ("float64", "float32"), stress=True, rounds=3)
    assert list(found) == ["half", CAST.format("float64"), CAST.format("float32")]
    assert seen == [3, 3, 3]
    assert {each.seconds for each in found.values()} == {(1.0, 1.0, 1.0)}


# the interface


def test_a_float32_interface_rounds_structures_before_anything_is_computed(model, log):
    far = molecule(1)
    far.positions += 110
    reference = Reference(model, [far], device="cpu")
    wide = Candidates(reference, log)
    assert wide.errors(Policy(()))["forces"].max() < 1e-10
    with pytest.raises(InputError, match="of another interface"):
        Candidates(reference, log, "float32")
    narrow = Candidates(reference, log, "float32", force=True)
    rounded = far.copy()
    rounded.positions = far.positions.astype(np.float32)
    with default_dtype(torch.float64):
        exact, found = (model(build_graph(atoms, model).cast(torch.float64))["forces"] for atoms in (far, rounded))
    expected = float((found.detach().float().double() - exact.detach()).abs().max())
    assert narrow.errors(Policy(()))["forces"].max() == pytest.approx(expected, rel=1e-3)  # and not what the log says
    assert expected > 1e-7
    assert narrow.model(Policy(())).interface.dtype is torch.float32


def test_times_are_of_the_interface(reference, monkeypatch):
    seen = {}

    def side_by_side(calls, device, rounds):
        seen.update({name: call()["forces"].dtype for name, call in calls.items()})
        return {name: Timed((1.0,) * rounds, None) for name in calls}

    monkeypatch.setattr(precision_probe.search.measuring, "side_by_side", side_by_side)
    Candidates(reference, interface="float32").timed({"half": HALF}, ("float64",))
    assert seen == {"half": torch.float32, CAST.format("float64"): torch.float64}


@pytest.mark.parametrize("stress", [False, True])
def test_what_is_launched_is_timed_beside_what_people_run(model, reference, stress):
    candidates = Candidates(reference, run="graph", rivals=rivals(model, reference)[0])
    timed = candidates.timed({"half": HALF}, ("float64", "float32"), stress=stress, rounds=2)
    casts = [CAST.format(name) for name in ("float64", "float32")]
    assert list(timed) == ["half", *casts, "MACECalculator, float64", "MACECalculator, float32"]
    assert all(len(each.seconds) == 2 and each.peak_bytes is None for each in timed.values())
    assert list(candidates.timed({"half": HALF}, rounds=2)) == ["half"]  # blocks one at a time need no rivals


def test_errors_of_rivals_are_remembered_too(model, reference, log):
    found = Candidates(reference, log, rivals=rivals(model, reference)[0]).rival_errors("MACECalculator, float32")
    again = Candidates(reference, log)
    assert again.n_runs == 0
    same(again._errors_of("MACECalculator, float32", lambda: pytest.fail("measured again")), found)


def test_a_rival_that_does_not_fit_has_no_errors(model, reference, monkeypatch):
    made = rivals(model, reference)[0]

    def errors():
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(made["MACECalculator, float32"], "errors", errors)
    found = Candidates(reference, rivals=made).rival_errors("MACECalculator, float32")
    assert found.shape == (2, 5)
    assert found.isna().all(axis=None)


@pytest.mark.parametrize("run", ["eager", "graph"])
def test_a_cast_is_timed_with_nothing_about_it(reference, run, monkeypatch):
    """Random numbers of a GPU are read and set again in a millisecond, of which policies know nothing."""
    candidates = Candidates(reference, run=run)

    def unexpected(*_, **__):
        raise AssertionError("The random state is read while a model is timed.")

    monkeypatch.setattr(torch.random, "fork_rng", unexpected)
    timed = candidates.timed({"no rules": Policy(())}, casts=("float64",), rounds=2)
    assert len(timed["model.to(float64)"].seconds) == 2


def test_a_launched_call_computes_what_the_model_does(reference, model):
    graph = reference.graphs[1]
    found = Launches(graph, stress=True, device=torch.device("cpu")).launched(Candidates(reference).model(Policy(())))()
    exact = reference.exact[1]
    np.testing.assert_allclose(found.forces, exact["forces"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.stress, exact["stress"], rtol=0, atol=1e-12)
    assert float(found.energy) == pytest.approx(float(exact["energy"]), rel=1e-14)
