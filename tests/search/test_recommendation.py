"""What is chosen, against brute force and policies applied by hand. Costs are made up, and so exact."""

import json
import warnings

import ase
import numpy as np
import pandas as pd
import pytest
import torch

from precision_probe.exceptions import InputError
from precision_probe.models.building import build
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import build_graph
from precision_probe.policy import Policy, Rule
from precision_probe.search.measuring import CAST, Candidates
from precision_probe.search.proposals import DO_NOTHING
from precision_probe.search.recommendation import recommend
from precision_probe.search.timing import Timed

N = 4  # structures, half of them held out
WORSE = {"float64": 0.0, "float32": -0.1, "bfloat16": -0.2, "float16": -0.3}

pytestmark = pytest.mark.usefixtures("times")


@pytest.fixture
def search(model, waters, tolerance, log):
    def run(limits=None, **options):
        return recommend(model, waters(N), limits or tolerance, device="cpu", log=log, progress=False, **options)

    return run


@pytest.fixture
def patch_errors(monkeypatch):
    """Change what is measured."""
    original = Candidates.errors

    def patch(change):
        def errors(self, policy):
            return change(self.reference, policy, original(self, policy).copy())

        monkeypatch.setattr(Candidates, "errors", errors)

    return patch


def text_of(recommended):
    return " ".join(recommended.notes)


def shares_by_hand(policy, model, structures, limits):
    """The largest error in tolerances of each structure, from plain calls."""
    mixed = policy.apply(model)
    shares = []
    for atoms in structures:
        graph = build_graph(atoms, model)
        with default_dtype(torch.float64):
            for _ in range(3):
                exact, other = (network(graph.cast(torch.float64)) for network in (model, mixed))
        forces = float((other["forces"] - exact["forces"]).detach().abs().max())
        energy = float((other["energy"] - exact["energy"]).detach().abs().max()) / len(atoms)
        shares.append(max(forces / limits["forces"], energy / limits["energy"]))
    return shares


# what is chosen


def test_the_policy_keeps_the_tolerance_on_structures_held_out(model, recommended, tolerance, waters):
    searched = recommended.policy.evidence["searched"]
    held_out = [atoms for atoms in waters(N) if atoms.info["name"] not in searched]
    assert (len(searched), len(held_out), recommended.policy.evidence["held_out"]) == (2, 2, 2)
    assert recommended.policy.rules
    for policy in (recommended.policy, Policy.from_json(recommended.policy.to_json())):
        assert max(shares_by_hand(policy, model, held_out, tolerance)) <= 1
    assert max(shares_by_hand(Policy.uniform("float16"), model, held_out, tolerance)) > 1  # so there was a choice
    row = recommended.candidates.loc[recommended.policy.evidence["chosen"]]
    assert row["held_out"] == 1
    inside = [atoms for atoms in waters(N) if atoms.info["name"] in searched]
    assert max(shares_by_hand(recommended.policy, model, inside, tolerance)) == pytest.approx(row["share"], rel=0.02)


def test_the_policy_is_the_cheapest_that_was_measured_within_the_tolerance(recommended, tolerance):
    table = recommended.candidates
    share = pd.concat([table[name] / limit for name, limit in tolerance.items()], axis=1).max(axis=1)
    pd.testing.assert_series_equal(share, table["share"], check_names=False)
    policies = table[table["rules"] != ""]
    feasible = policies[share[policies.index] <= 0.8]
    chosen = recommended.policy.evidence["chosen"]
    assert table.loc[chosen, "seconds"] == feasible["seconds"].min()
    assert table.loc[chosen, "seconds"] < table.loc["float32", "seconds"]
    assert chosen.startswith("mixed")
    assert table["seconds"].is_monotonic_increasing
    assert table.loc[chosen, "rules"] == ", ".join(f"{rule.blocks} {rule.compute}" for rule in recommended.policy.rules)


def test_nothing_is_done_if_nothing_keeps_the_tolerance(search):
    recommended = search({"forces": 1e-13})
    assert recommended.policy.rules == ()
    assert recommended.policy.evidence["chosen"] == DO_NOTHING
    assert "No other policy keeps the tolerance and is faster: run the model in float64." in recommended.notes


def test_nothing_is_done_if_nothing_is_faster(search, times):
    times(WORSE)
    recommended = search({"forces": 1.0})
    assert recommended.policy.rules == ()
    assert recommended.policy.evidence["chosen"] == DO_NOTHING


def test_a_policy_slower_than_the_model_as_it_is_is_not_chosen(search, monkeypatch, gains, fake_times):
    def timed(self, policies, casts=(), **options):
        times = fake_times(gains)(self, policies, casts, **options)  # as if putting the model together cost much
        return {name: Timed((5 * each.median,), None) if name in policies else each for name, each in times.items()}

    monkeypatch.setattr(Candidates, "timed", timed)
    recommended = search({"forces": 1.0})
    assert recommended.policy.rules == ()
    assert "cast to float32 as a whole is faster" in text_of(recommended)


def timed_as(seconds, peak):
    """Instead of measuring: times and memory from functions of the policy, or of the precision of a cast."""

    def timed(self, policies, casts=(), **_):
        times = {name: Timed(seconds(policy), peak(policy)) for name, policy in policies.items()}
        return times | {CAST.format(name): Timed(seconds(name), peak(name)) for name in casts}

    return timed


@pytest.mark.parametrize(
    ("seconds", "peak", "chosen"),
    [
        ((0.5, 1.0), None, "float16"),
        ((0.995, 1.0), None, DO_NOTHING),  # as fast within 1 %: the most accurate
        ((0.995, 1.0), (10, 20), "float16"),  # as fast, but smaller
        ((0.995, 1.0), (196, 200), DO_NOTHING),  # as fast, and hardly smaller
        ((0.9, 1.0), (200, 100), "float16"),  # time comes first
    ],
)
def test_of_policies_as_fast_the_smallest_then_the_most_accurate_is_chosen(search, monkeypatch, seconds, peak, chosen):
    def low(policy):
        return policy == Policy.uniform("float16")

    def pick(pair, policy):
        return pair[0] if low(policy) else pair[1]

    fake = timed_as(lambda policy: (pick(seconds, policy),) * 3, lambda policy: peak and pick(peak, policy) * 2**20)
    monkeypatch.setattr(Candidates, "timed", fake)
    recommended = search({"forces": 1.0}, allow="float16")
    assert recommended.policy.evidence["chosen"] == chosen


@pytest.mark.parametrize(("spread", "chosen"), [(0.001, "float16"), (0.2, DO_NOTHING)])
def test_a_gain_within_the_spread_of_repetitions_is_none(search, monkeypatch, spread, chosen):
    def seconds(policy):
        middle = 0.95 if policy == Policy.uniform("float16") else 1.0
        return (middle - spread, middle, middle + spread)

    monkeypatch.setattr(Candidates, "timed", timed_as(seconds, lambda policy: None))
    recommended = search({"forces": 1.0}, allow="float16")
    assert recommended.policy.evidence["chosen"] == chosen
    assert ("Repetitions differ by 20%" in text_of(recommended)) == (spread == 0.2)


def test_that_the_cast_model_is_faster_is_said_with_both_errors(recommended, search):
    assert "float32 as a whole" not in text_of(recommended)  # what was recommended is faster
    other = search({"forces": 1e-10})
    (note,) = [note for note in other.notes if "float32 as a whole is faster" in note]
    share = other.candidates.loc[CAST.format("float32"), "share"]
    assert share > 1
    assert note.endswith(f"reach {share:.2g} of the tolerance, here 0.")


@pytest.mark.parametrize(("limits", "broken"), [({"forces": 1.0}, "forces"), ({"energy": 1.0}, "forces")])
def test_what_gives_nan_is_never_chosen(search, patch_errors, limits, broken):
    def change(reference, policy, table):
        if "float16" in {rule.compute for rule in policy.rules}:
            table.loc[0, broken] = np.nan
        return table

    patch_errors(change)
    recommended = search(limits)
    assert {rule.compute for rule in recommended.policy.rules} == {"bfloat16"}
    assert np.isinf(recommended.candidates.loc["float16", "share"])
    json.loads(recommended.policy.to_json())


def test_a_stress_that_is_nan_is_never_chosen(one_layer, patch_errors):
    def change(reference, policy, table):
        if "float16" in {rule.compute for rule in policy.rules}:
            table["stress"] = np.nan
        return table

    patch_errors(change)
    cell = ase.Atoms("CO", [(0, 0, 0), (0.1, 0.2, 1.2)], cell=[2.6, 2.9, 3.1], pbc=True)
    options = {"allow": "float16,bfloat16", "device": "cpu", "progress": False}
    recommended = recommend(one_layer, [cell], {"stress": 1.0}, **options)
    assert {rule.compute for rule in recommended.policy.rules} == {"bfloat16"}


def test_what_fails_on_structures_held_out_gives_way_to_the_next(recommended, search, patch_errors):
    first = recommended
    best = first.policy.evidence["chosen"]

    def change(reference, policy, table):
        names = {graph.names[0] for graph in reference.graphs}
        if policy.rules == first.policy.rules and names.isdisjoint(first.policy.evidence["searched"]):
            table.loc[0, "forces"] = 1.0
        return table

    patch_errors(change)
    second = search()
    chosen = second.policy.evidence["chosen"]
    assert chosen != best
    assert second.candidates.loc[best, "held_out"] == 0.5
    assert second.candidates.loc[chosen, "held_out"] == 1
    assert f"{best} was within the tolerance" in text_of(second)
    assert "only on 50% of those held out" in text_of(second)
    table = second.candidates
    others = table[(table["rules"] != "") & (table["share"] <= 0.8)].drop(best)
    assert table.loc[chosen, "seconds"] <= 1.01 * others["seconds"].min()


def test_if_all_fail_on_structures_held_out_nothing_is_done(recommended, search, patch_errors):
    searched = recommended.policy.evidence["searched"]

    def change(reference, policy, table):
        if policy.rules and {graph.names[0] for graph in reference.graphs}.isdisjoint(searched):
            table["forces"] = np.nan
        return table

    patch_errors(change)
    other = search()
    assert other.policy.rules == ()
    assert other.candidates.loc[DO_NOTHING, "held_out"] == 1


def test_the_choice_of_structures_is_the_seeds(model, recommended, search, tolerance, waters):
    first, again = recommended, search(seed=0)
    other = recommend(model, waters(N), tolerance, allow="float32", device="cpu", seed=1, progress=False)
    assert again.policy.rules == first.policy.rules
    pd.testing.assert_frame_equal(again.candidates, first.candidates)
    pd.testing.assert_frame_equal(again.blocks, first.blocks)
    assert again.policy.evidence["searched"] == first.policy.evidence["searched"]
    assert other.policy.evidence["searched"] != first.policy.evidence["searched"]


def test_a_log_saves_the_runs(one_layer, tmp_path, tolerance, waters):
    options = {"allow": "float32", "device": "cpu", "progress": False, "log": tmp_path / "log"}
    first, again = (recommend(one_layer, waters(1), tolerance, **options) for _ in range(2))
    assert first.policy.evidence["runs"] > again.policy.evidence["runs"] == 0
    assert again.policy.rules == first.policy.rules


# structures


def test_a_single_structure_is_verified_on_nothing_else(one_layer, waters):
    recommended = recommend(one_layer, waters(1), {"forces": 1.0}, allow="float32", device="cpu", progress=False)
    assert "verified on none but these" in text_of(recommended)
    assert recommended.policy.evidence["held_out"] == 0
    assert recommended.candidates["held_out"].isna().all()
    assert recommended.policy.rules == (Rule("*", "float32"),)


def test_a_structure_without_forces(one_layer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="The TorchScript type system")
        options = {"allow": "float32", "device": "cpu", "progress": False}
        recommended = recommend(one_layer, [ase.Atoms("O")], {"forces": 1e-3}, **options)
    assert np.isnan(recommended.candidates["forces_rel_l2"]).all()
    assert "nan" not in text_of(recommended)
    json.loads(recommended.policy.to_json())


def test_a_stress_that_nothing_has_is_not_judged(recommended, search, tolerance):
    other = search(tolerance | {"stress": 1e-30})
    assert "The tolerance of stress was not judged" in text_of(other)
    assert other.policy.rules == recommended.policy.rules
    with pytest.raises(InputError, match="nothing would be judged"):
        search({"stress": 1e-3})


def test_a_stress_is_judged_where_there_is_one(one_layer, crystal, waters):
    options = {"allow": "float16", "device": "cpu", "progress": False}
    recommended = recommend(one_layer, [crystal, *waters(1)], {"stress": 1e-30}, seed=0, **options)
    other = recommend(one_layer, [crystal], {"stress": 1.0}, **options)
    assert other.policy.rules == (Rule("*", "float16"),)
    assert other.candidates.loc["float16", "stress"] > 0
    assert recommended.policy.rules == ()


def test_a_model_that_gives_nan_is_refused_before_anything_is_measured(mine, tmp_path, tolerance, waters):
    with torch.no_grad():
        next(mine.readouts.parameters()).fill_(np.nan)
    with pytest.raises(InputError, match=r"In float64 the model predicts NaN or infinity for the structure water 0"):
        recommend(mine, waters(1), tolerance, device="cpu", progress=False, log=tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_a_tolerance_below_what_a_float32_model_can_say(mine, waters):
    options = {"allow": "float32", "device": "cpu", "progress": False}
    recommended = recommend(mine.float(), waters(1), {"energy": 1e-9}, **options)
    assert recommended.policy.rules == ()
    assert "Not even that keeps the tolerance: the model gives its results in torch.float32." in recommended.notes


# what is refused


REFUSED = [
    ({"forces_mae": 1e-3}, {}, "energy .*forces .*stress .*forces_mae"),
    ({}, {}, "needs tolerances"),
    ({"forces": 0}, {}, "finite number above zero"),
    ({"forces": -1.0}, {}, "finite number above zero"),
    ({"forces": np.nan}, {}, "finite number above zero"),
    ({"forces": np.inf}, {}, "finite number above zero"),
    ({"forces": "1e-3"}, {}, "finite number above zero"),
    ({"forces": 1e-4}, {"objective": "speed"}, "time or memory; got 'speed'"),
    ({"forces": 1e-4}, {"objective": "memory"}, "Memory is measured on CUDA only"),
    ({"forces": 1e-4}, {"granularity": "atom"}, "block or module; got 'atom'"),
    ({"forces": 1e-4}, {"allow": "float31"}, "float31"),
    ({"forces": 1e-4}, {"allow": "float64"}, "one or more of float32, tf32, bfloat16, float16"),
    ({"forces": 1e-4}, {"allow": "m10"}, "one or more of float32, tf32, bfloat16, float16"),
    ({"forces": 1e-4}, {"allow": "tf32"}, "needs --device cuda"),
]


@pytest.mark.parametrize(("limits", "options", "message"), REFUSED)
def test_refuses(model, tmp_path, limits, options, message, waters):
    with pytest.raises(InputError, match=message):
        recommend(model, waters(2), limits, device="cpu", progress=False, log=tmp_path / "log", **options)
    assert not (tmp_path / "log").exists()


def test_a_structure_held_out_that_cannot_be_used_is_refused_at_once(model, tmp_path, tolerance, waters):
    structures = [*waters(1), ase.Atoms("Au")]
    for seed in range(4):
        with pytest.raises(InputError, match="Au"):
            recommend(model, structures, tolerance, device="cpu", seed=seed, log=tmp_path / "log", progress=False)
    assert not (tmp_path / "log").exists()


# what is made of it


def test_the_policy_is_that_of_its_file_and_model(model, config, recommended, tmp_path, tolerance):
    path = recommended.policy.save(tmp_path / "policy.json")
    assert Policy.load(path) == recommended.policy
    assert recommended.policy.tolerance == tolerance
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="The TorchScript type system")
        Policy.load(path).apply(model)
    with pytest.warns(UserWarning, match="other weights"):
        Policy.load(path).apply(build(config, seed=4))
