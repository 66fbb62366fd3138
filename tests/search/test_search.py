"""The steps of a search: what each gives, with costs that are made up, and so exact."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from precision_probe.diagnostics.reference import Reference
from precision_probe.exceptions import InputError
from precision_probe.policy import Policy, Rule
from precision_probe.search.margin import learnt_margin
from precision_probe.search.measuring import CAST, Candidates
from precision_probe.search.proposals import raised, uniform
from precision_probe.search.search import Search
from precision_probe.search.timing import Timed

PRECISIONS = ("float32", "bfloat16", "float16")
BUSY = (1.0, 2.0, 2.0, 2.0, 9.0, 4.0)  # seconds of rounds that other work slows down; their median is 2

pytestmark = pytest.mark.usefixtures("times")


@pytest.fixture(scope="module")
def reference(model, waters, recommended):
    """The structures that were searched on before, so that the log has their errors."""
    by_name = {atoms.info["name"]: atoms for atoms in waters(4)}
    return Reference(model, [by_name[name] for name in recommended.policy.evidence["searched"]], device="cpu")


@pytest.fixture
def search(reference, tolerance, log):
    return Search(Candidates(reference, log), tolerance)


@pytest.fixture
def blocks(search):
    return search.alone(PRECISIONS, progress=False)


# what it is made of


def test_memory_is_refused_without_a_gpu(reference, tolerance):
    with pytest.raises(InputError, match="Memory is measured on CUDA only"):
        Search(Candidates(reference), tolerance, "memory")


def test_a_stress_that_nothing_has_is_not_judged(reference, tolerance):
    assert Search(Candidates(reference), tolerance | {"stress": 1e-3}).judged == list(tolerance)
    with pytest.raises(InputError, match="nothing would be judged"):
        Search(Candidates(reference), {"stress": 1e-3})


# errors in tolerances


def table(**columns):
    n = len(next(iter(columns.values())))
    return pd.DataFrame({name: [0.0] * n for name in ("energy", "forces", "stress")} | columns, dtype=float)


def graphs(*periodic):
    return [SimpleNamespace(periodic=np.asarray([each])) for each in periodic]


def test_shares_are_errors_in_tolerances(reference):
    search = Search(Candidates(reference), {"forces": 0.5, "energy": 0.1})
    found = search.shares(table(energy=[0.2, 0.0], forces=[0.25, 2.0]))
    np.testing.assert_allclose(found, [[0.5, 2.0], [4.0, 0.0]])  # in the order of the tolerance


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["energy", "forces"])
def test_shares_are_infinite_where_a_result_is_not_finite_though_it_has_no_tolerance(reference, name, bad):
    search = Search(Candidates(reference), {"forces": 1.0})
    assert search.shares(table(**{name: [bad, 0.5]}))[:, 0].tolist() == [np.inf, 0.5 if name == "forces" else 0.0]


def test_shares_of_stress_are_zero_without_one_and_infinite_where_it_is_nan(reference):
    search = Search(Candidates(reference), {"forces": 1.0, "stress": 0.1})
    search.judged = ["forces", "stress"]  # as if one of the structures were periodic
    shares = search.shares(table(stress=[np.nan, np.nan, 0.2]), graphs(False, True, True))
    np.testing.assert_allclose(shares[:, 1], [0, np.inf, 2])
    assert not shares[:, 0].any()


# each block alone


def test_blocks_alone_save_what_they_cost(model, recommended, blocks, blocks_of, gains, tolerance):
    pd.testing.assert_frame_equal(blocks, recommended.blocks)
    names = blocks_of(model)
    assert len(blocks) == 3 * len(names)
    for row in blocks.to_dict("records"):
        assert row["saves"] == pytest.approx(gains[row["precision"]] / len(names))
        assert row["share"] == pytest.approx(max(row[name] / limit for name, limit in tolerance.items()))
    assert (blocks["predicted"] >= 0).all()


@pytest.mark.parametrize(
    ("whole", "part", "saves", "saves_gib"),
    [
        (Timed(BUSY, None), Timed(tuple(0.75 * each for each in BUSY), None), 0.5, np.nan),
        (Timed(BUSY, None), Timed(tuple(1.5 * each for each in BUSY), None), -1.0, np.nan),
        (Timed(BUSY, None), Timed((*BUSY[:5], 2 * BUSY[5]), None), 0.0, np.nan),  # not in every round
        (Timed(BUSY, None), Timed(BUSY[::-1], None), 0.0, np.nan),
        (Timed((2.0,) * 6, 3 * 2**30), Timed((3.0,) * 6, 2**30), -1.0, 2.0),
        (Timed((2.0,) * 6, 3 * 2**30), Timed((), None), 0.0, 0.0),  # the memory did not suffice for the block
        (Timed((), None), Timed((2.0,) * 6, 2**30), 0.0, 0.0),  # nor for the whole
    ],
)
def test_a_block_saves_what_is_resolved_in_rounds_that_differ_among_themselves(
    search, monkeypatch, whole, part, saves, saves_gib
):
    def timed(self, policies, **_):
        return {name: part if policy.rules else whole for name, policy in policies.items()}

    monkeypatch.setattr(Candidates, "timed", timed)
    blocks = search.alone(["float16"], progress=False)
    np.testing.assert_array_equal(blocks["saves"], saves)
    np.testing.assert_array_equal(blocks["saves_gib"], saves_gib)


# what is proposed


def test_what_is_proposed_is_uniform_or_saves(model, search, blocks, blocks_of, gains):
    names = blocks_of(model)
    policies = search.proposals(blocks, PRECISIONS)
    simple = uniform(names, PRECISIONS)
    assert dict(list(policies.items())[: len(simple)]) == simple
    mixed = list(policies)[len(simple) :]
    assert mixed == [f"mixed {n}" for n in range(1, len(mixed) + 1)]
    saved = [sum(gains[policies[name].precision_of(block).name] for block in names) for name in mixed]
    assert min(saved) > 0
    assert saved == sorted(saved, reverse=True)


# parts of blocks


def test_parts_of_blocks_may_have_a_precision_of_their_own(model, recommended, search, blocks):
    policies = search.proposals(blocks, PRECISIONS)
    refined = search.refined(policies, 0.8, progress=False)
    assert refined
    for name, policy in refined.items():
        assert name.endswith(" raised")
        n = int(name.split()[-2])
        assert policy.rules[n:] == policies[name.rpartition(",")[0]].rules
        low = policies[name.rpartition(",")[0]]
        for rule in policy.rules[:n]:
            was = low.precision_of(rule.blocks).significand_bits
            assert rule.precision.significand_bits == (53 if was >= 24 or low.matmul_mode == "tf32" else 24)
            assert rule.blocks.count(".") >= 1
            assert model.get_submodule(rule.blocks) is not None
    assert not any(name.endswith(" raised") for name in recommended.candidates.index)


def test_the_part_that_costs_most_digits_is_raised_first(model, search):
    low = Policy((Rule("interactions.*", "float16"),))
    share = np.max(search.shares(search.candidates.errors(low)))
    tight = Search(search.candidates, {name: limit * share / 2 for name, limit in search.tolerance.items()})
    refined = tight.refined({"low": low}, 0.8, progress=False)
    parts = [part for i in (0, 1) for part in tight._parts(f"interactions.{i}")]
    assert {"interactions.0.linear", "interactions.1.conv_tp_weights"} <= set(parts)
    errors = {part: np.max(tight.shares(search.candidates.errors(raised(low, [part])))) for part in parts}
    assert refined["low, 1 raised"].rules[0].blocks == min(errors, key=errors.get)
    assert len(refined) <= 3
    assert errors[refined["low, 1 raised"].rules[0].blocks] < 2


def test_what_float32_loses_is_brought_back_by_a_part_in_float64(search):
    low = Policy((Rule("interactions.*", "float32"), Rule("products.*", "float32")))
    share = np.max(search.shares(search.candidates.errors(low)))
    tight = Search(search.candidates, {name: limit * share / 1.2 for name, limit in search.tolerance.items()})
    refined = tight.refined({"low": low}, 0.8, progress=False)
    assert refined
    shares = {name: np.max(tight.shares(search.candidates.errors(policy))) for name, policy in refined.items()}
    assert min(shares.values()) < 1
    assert refined["low, 1 raised"].rules[0].compute == "float64"


@pytest.mark.parametrize(("share", "margin"), [(0.8, 0.8), (0.6, 0.6), (21.0, 0.8)])
def test_what_holds_or_is_far_from_it_is_not_refined(search, share, margin):
    low = Policy((Rule("products.*", "float16"),))
    measured = np.max(search.shares(search.candidates.errors(low)))
    limits = {name: limit * measured / share * (1 + 1e-9) for name, limit in search.tolerance.items()}
    assert Search(search.candidates, limits).refined({"low": low}, margin, progress=False) == {}


# the margin


def test_the_margin_is_learnt_from_the_errors_of_policies(search, monkeypatch):
    rng = np.random.default_rng(0)
    errors = {name: table(forces=np.exp(0.3 * rng.normal(size=8)) * limit) for name, limit in (("a", 1), ("b", 9))}
    policies = {"a": Policy.uniform("float16"), "b": Policy.uniform("float32"), "float64": Policy(())}
    by_rules = {policies[name].rules: each for name, each in errors.items()} | {(): table(forces=[0.0] * 8)}
    monkeypatch.setattr(search.candidates, "errors", lambda policy: by_rules[policy.rules])
    search.judged, search.tolerance = ["forces"], {"forces": 0.5}
    monkeypatch.setattr(search.reference, "graphs", graphs(*[False] * 8), raising=False)
    expected = learnt_margin(each["forces"].to_numpy() / 0.5 for each in errors.values())
    margin = search.margin(policies, progress=False)
    assert margin.value == pytest.approx(expected.value)
    assert 0.5 < margin.value < 0.95


# proposals as they are


def test_the_table_says_how_candidates_compare(recommended, gains):
    table = recommended.candidates
    np.testing.assert_allclose(table["vs_float64"], 1 / table["seconds"])
    np.testing.assert_allclose(table["vs_float32"], 0.7 / table["seconds"])
    for cast in ("vs_float64", "vs_float32"):  # times that do not differ between rounds
        np.testing.assert_array_equal(table[f"{cast}_low"], table[cast])
        np.testing.assert_array_equal(table[f"{cast}_high"], table[cast])
    for name, row in table.iterrows():
        assert set(row["rounds"]) == {row["seconds"]}
        others = table.drop(name)
        no_worse = (others["seconds"] <= row["seconds"]) & (others["share"] <= row["share"])
        better = (others["seconds"] < row["seconds"]) | (others["share"] < row["share"])
        assert row["pareto"] == (not (no_worse & better).any())
    assert {CAST.format(name) for name in gains} <= set(table.index)


def test_measured_are_the_policies_and_the_casts(search):
    policies = {"nothing": Policy(()), "half": Policy((Rule("products.*", "float16"), Rule("*", "float32")))}
    table = search.measured(policies, ["float16"], progress=False)
    casts = [CAST.format(name) for name in ("float64", "float32", "float16")]
    assert sorted(table.index) == sorted([*policies, *casts])
    assert table["rules"].to_dict() == dict.fromkeys(casts, "") | {
        "nothing": "no rules",
        "half": "products.* float16, * float32",
    }
    assert table["seconds"].is_monotonic_increasing
    assert table["held_out"].isna().all()
    errors = search.candidates.errors(policies["half"])
    l2 = np.linalg.norm(errors["forces_l2"]) / np.linalg.norm(errors["forces_norm"])
    assert table.loc["half", "forces_rel_l2"] == pytest.approx(l2)
    assert table.loc["half", "forces"] == errors["forces"].max()
