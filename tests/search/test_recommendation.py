"""What is chosen, against brute force and policies applied by hand. Costs are made up, and so exact."""

import copy
import json
import warnings

import ase
import numpy as np
import pandas as pd
import pytest
import torch
from mace.calculators import MACECalculator

import precision_probe.search.recommendation
from precision_probe.exceptions import InputError
from precision_probe.models.building import build
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import build_graph
from precision_probe.policy import Policy, Rule
from precision_probe.search.measuring import CAST, Candidates
from precision_probe.search.proposals import DO_NOTHING
from precision_probe.search.recommendation import recommend
from precision_probe.search.running.delivered import errors_of_file
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


@pytest.fixture
def patch_files(monkeypatch):
    """Change what files do to structures."""

    def patch(change):
        def errors(mixed, reference):
            return change(mixed.policy, errors_of_file(mixed, reference).copy())

        monkeypatch.setattr(precision_probe.search.recommendation, "errors_of_file", errors)

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
    words = "No other policy keeps the tolerance and is known to be faster: run the model in float64."
    assert words in recommended.notes


def test_nothing_is_done_if_nothing_is_faster(search, times):
    times(WORSE)
    recommended = search({"forces": 1.0})
    assert recommended.policy.rules == ()
    assert recommended.policy.evidence["chosen"] == DO_NOTHING


def test_a_policy_slower_than_the_model_as_it_is_is_not_chosen(search, monkeypatch, gains, fake_times):
    def timed(self, policies, casts=(), **options):
        times = fake_times(gains)(self, policies, casts, **options)  # as if putting the model together cost much
        return {
            name: Timed((5 * each.median,) * 11, None) if name in policies else each for name, each in times.items()
        }

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

    fake = timed_as(lambda policy: (pick(seconds, policy),) * 11, lambda policy: peak and pick(peak, policy) * 2**20)
    monkeypatch.setattr(Candidates, "timed", fake)
    recommended = search({"forces": 1.0}, allow="float16")
    assert recommended.policy.evidence["chosen"] == chosen


@pytest.mark.parametrize(("own", "chosen"), [(0.01, "float16"), (0.3, DO_NOTHING)])
def test_a_gain_counts_if_it_is_resolved_within_rounds(search, monkeypatch, own, chosen):
    """On a machine that other work slows down by up to four times, all calls of a round alike."""
    rng = np.random.default_rng(3)
    common = rng.lognormal(sigma=0.4, size=11)

    def seconds(policy):
        speed = 0.85 if policy == Policy.uniform("float16") else 1.0
        return tuple(speed * common * rng.lognormal(sigma=own, size=11))

    monkeypatch.setattr(Candidates, "timed", timed_as(seconds, lambda policy: None))
    recommended = search({"forces": 1.0}, allow="float16")
    assert recommended.policy.evidence["chosen"] == chosen
    assert ("differences are not resolved in 11 interleaved rounds" in text_of(recommended)) == (own == 0.3)


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


def test_what_fails_on_structures_held_out_gives_way_to_the_next(recommended, search, patch_files):
    first = recommended
    best = first.policy.evidence["chosen"]

    def change(policy, table):
        if policy.rules == first.policy.rules:
            table.loc[0, "forces"] = 1.0
        return table

    patch_files(change)
    second = search()
    chosen = second.policy.evidence["chosen"]
    assert chosen != best
    assert second.candidates.loc[best, "held_out"] == 0.5
    assert second.candidates.loc[chosen, "held_out"] == 1
    assert f"{best} was within the margin" in text_of(second)
    assert "kept the tolerance on only 1 of 2 held out" in text_of(second)
    assert "number 2 of those tried" in text_of(second)
    assert second.policy.evidence["tested"]["policies_tried"] == 2
    # of two structures the second one tried is right about both: share² is 2.5 % for this bound
    assert second.candidates.loc[chosen, "held_out_at_least"] == pytest.approx(0.025**0.5)
    table = second.candidates
    others = table[(table["rules"] != "") & (table["share"] <= 0.8)].drop(best)
    assert table.loc[chosen, "seconds"] <= 1.01 * others["seconds"].min()


def test_if_all_fail_on_structures_held_out_nothing_is_done(search, patch_files):
    def change(policy, table):
        if policy.rules:
            table["forces"] = np.nan
        return table

    patch_files(change)
    other = search()
    assert other.policy.rules == ()
    assert other.candidates.loc[DO_NOTHING, "held_out"] == 1


def test_what_is_only_right_in_memory_is_given_up_though_nothing_is_held_out(one_layer, waters, patch_files):
    def change(policy, table):
        return table + (1.0 if policy.rules else 0.0)

    patch_files(change)
    recommended = recommend(one_layer, waters(1), {"forces": 1e-2}, allow="float32", device="cpu", progress=False)
    assert recommended.policy.rules == ()
    assert recommended.candidates.loc["float32", "share"] < 0.8
    assert "as users get it kept the tolerance on only 0 of 1 searched on" in text_of(recommended)


def test_the_evidence_says_what_was_tested_and_what_follows(recommended):
    tested = recommended.policy.evidence["tested"]
    assert tested["what"] == "the file that apply writes, loaded by MACECalculator with its defaults"
    assert (tested["on"], tested["within"], tested["structures"], tested["kinds"]) == ("structures held out", 2, 2, 1)
    assert tested["at_least"] == pytest.approx(0.05**0.5, rel=1e-3)  # 0.224
    assert (tested["confidence"], tested["policies_tried"]) == (0.95, 1)
    row = recommended.candidates.loc[recommended.policy.evidence["chosen"]]
    assert row["held_out_at_least"] == pytest.approx(0.05**0.5)
    assert recommended.policy.evidence["interface"] == "float64"
    assert recommended.policy.evidence["margin"] == 0.8
    assert "2 structures are too few to learn" in text_of(recommended)
    assert "kept the tolerance on 2 of 2 structures held out, of 1 trajectory or composition" in text_of(recommended)
    assert "at least 22.4% of structures" in text_of(recommended)


@pytest.mark.parametrize("interface", ["float64", "float32"])
def test_what_was_tested_is_what_the_file_of_a_float32_checkpoint_does(mine, waters, tmp_path, interface):
    """Far from the origin, where rounded positions alone make a larger error than the policy."""
    single = mine.float()
    structures = waters(2)
    for atoms in structures:
        atoms.positions += 110
    options = {"allow": "float32", "device": "cpu", "progress": False, "interface": interface}
    recommended = recommend(single, structures, {"forces": 1e-3}, **options)
    assert recommended.policy.rules
    path = tmp_path / "mixed.model"
    torch.save(recommended.policy.apply(single, interface=interface), path)
    (held_out,) = [a for a in structures if a.info["name"] not in recommended.policy.evidence["searched"]]
    exact = MACECalculator(models=[copy.deepcopy(single).double()], default_dtype="float64")
    delta = MACECalculator(model_paths=str(path), device="cpu").get_property("forces", held_out)
    delta = delta - exact.get_property("forces", held_out)
    tested = recommended.policy.evidence["tested"]["largest_error_in_tolerances"]
    assert tested == pytest.approx(np.abs(delta).max() / 1e-3, rel=0.05)
    assert (tested > 5e-4) == (interface == "float32")
    assert recommended.policy.evidence["interface"] == interface


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
    assert "too few structures to hold any out, so nothing is known of others" in text_of(recommended)
    assert "on 1 of 1 structure searched on" in text_of(recommended)
    assert recommended.policy.evidence["tested"]["at_least"] is None
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
    recommended = recommend(one_layer, [crystal, *waters(1)], {"stress": 1e-30}, seed=1, **options)
    other = recommend(one_layer, [crystal], {"stress": 1.0}, **options)
    assert other.policy.rules == (Rule("*", "float16"),)
    assert other.candidates.loc["float16", "stress"] > 0
    assert recommended.policy.rules == ()


def test_a_model_that_gives_nan_is_refused_before_anything_is_measured(mine, tmp_path, tolerance, waters):
    with torch.no_grad():
        next(mine.readouts.parameters()).fill_(torch.finfo(torch.float64).max)  # finite, unlike its products
    with pytest.raises(InputError, match=r"In float64 the model predicts NaN or infinity for the structure water 0"):
        recommend(mine, waters(1), tolerance, device="cpu", progress=False, log=tmp_path / "log")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("interface", ["float64", "float32"])
def test_a_tolerance_below_what_a_float32_interface_can_say(mine, waters, interface):
    options = {"allow": "float32", "device": "cpu", "progress": False, "interface": interface}
    recommended = recommend(mine.float(), waters(1), {"energy": 1e-9}, **options)
    words = "Not even that keeps the tolerance: a float32 interface rounds positions and results."
    assert (words in recommended.notes) == (interface == "float32")
    assert (recommended.candidates.loc[DO_NOTHING, "energy"] > 1e-9) == (interface == "float32")


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
    ({"forces": 1e-4}, {"interface": "float16"}, "takes and gives float64 or float32; got the interface 'float16'"),
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


@pytest.mark.parametrize(
    ("run", "words"), [("graph", "needs a GPU.*got cpu"), ("compile", "graph, eager; got 'compile'")]
)
def test_how_it_is_run_is_one_of_those_that_are_there(model, waters, tolerance, run, words):
    with pytest.raises(InputError, match=words):
        recommend(model, waters(2), tolerance, run=run, device="cpu", progress=False)


# what is launched


def test_a_search_of_what_is_launched(one_layer, waters, monkeypatch):
    """As on a GPU, where graphs are captured; here the same code calls the model."""
    monkeypatch.setattr(precision_probe.search.recommendation, "_checked_run", lambda *_: "graph")
    found = recommend(one_layer, waters(2), {"forces": 1e-2}, allow="float32", device="cpu", progress=False)
    evidence = found.policy.evidence
    assert (evidence["run"], evidence["backend"]) == ("graph", "e3nn")
    assert evidence["tested"]["what"] == "what Policy.calculator launches as a graph"
    rivals = ["MACECalculator, float64", "MACECalculator, float32"]
    assert found.candidates.loc[rivals, "seconds"].eq(10.0).all()
    assert set(rivals) <= set(evidence["candidates"])
    assert evidence["chosen"] not in rivals
    assert found.candidates.loc[rivals[0], "share"] < 1e-8 < found.candidates.loc[rivals[1], "share"]
    assert "MACECalculator, float32 takes 1e+04 ms" in text_of(found)


def test_a_backend_is_for_what_is_launched(one_layer, waters):
    with pytest.raises(InputError, match="'cuEquivariance' is chosen for what is launched"):
        recommend(one_layer, waters(2), {"forces": 1e-2}, device="cpu", backend="cuEquivariance", progress=False)
