"""explain() as a whole; each of its tables has tests of its own."""

import ase
import numpy as np
import pandas as pd
import pytest
import torch

import precision_probe as pp
from precision_probe.analysis.views import view, views
from precision_probe.diagnostics import suite
from precision_probe.diagnostics.reference import Reference
from precision_probe.diagnostics.suite import evenly_spread, explain, explained
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.building import build
from precision_probe.models.graphs import build_graph
from precision_probe.precisions import PRECISIONS, parse_precision
from precision_probe.variants.variant import Variant

CPU = torch.device("cpu")
REDUCED = ["float32", "float16"]
NAMES = ["contributions", "range", "noise", "budget", "sweep", "prediction"]
NAMES += ["equivariance", "finite_differences", "displacement", "digits"]


def structures():
    return [
        ase.Atoms("OHH", [(0.02, 0.0, 0.11), (0.0, 0.78, -0.48), (0.05, -0.75, -0.45)]),
        ase.Atoms("OH", [(0.0, 0.1, 0.0), (0.0, 0.0, 1.0)]),
    ]


@pytest.fixture(scope="module")
def overflowing(config):
    """One layer, so that this takes seconds; the isolated carbon atom is beyond float16."""
    return build(config | {"num_interactions": 1, "atomic_energies": [-13.6, -70045.0, -2042.0]}, seed=3)


@pytest.fixture(scope="module")
def tables(overflowing):
    before = (weights_sha256(overflowing), torch.get_rng_state(), np.random.get_state()[1].copy())  # noqa: NPY002
    found = explain(overflowing, structures(), "float32,float16", device="cpu", progress=False)
    assert weights_sha256(overflowing) == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    np.testing.assert_array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002
    hooks = [h for m in overflowing.modules() for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)]
    assert not any(hooks)
    return found


@pytest.fixture(scope="module")
def measured(overflowing):
    """Δ of forces, and of the interaction energy per atom, by NumPy from what variants predict."""
    graphs = [build_graph(atoms, overflowing) for atoms in structures()]

    def predicted(precision):
        variant = Variant(overflowing, precision, CPU)
        found = [variant.predict(graph) for graph in graphs]
        forces = np.concatenate([each["forces"].double().numpy() for each in found])
        energy = [float(e["interaction_energy"].double()) / g.n_atoms for e, g in zip(found, graphs, strict=True)]
        return forces, np.asarray(energy)

    exact = predicted(PRECISIONS["float64"])
    return lambda name: [y_hat - y for y_hat, y in zip(predicted(parse_precision(name)), exact, strict=True)]


def test_every_table_is_there_and_about_the_precisions_asked_for(tables):
    assert list(tables) == NAMES
    for name in ("noise", "equivariance", "finite_differences", "displacement", "digits"):
        assert tables[name].frame["precision"].unique().tolist() == ["float64", *REDUCED], name
    for name in ("contributions", "budget", "prediction"):
        assert tables[name].frame["precision"].unique().tolist() == REDUCED, name
    assert all(table.title for table in tables.values())
    assert all(set(table.units) <= set(table.frame.columns) for table in tables.values())


@pytest.mark.parametrize("name", REDUCED)
def test_the_budgets_total_is_the_error_measured(tables, measured, name):
    table = tables["budget"].frame.query(f"precision == '{name}'").set_index("source")
    forces, energy = measured(name)
    total = table.loc["all together"]
    assert total["forces"] == np.abs(forces).max()
    assert total["forces_mae"] == pytest.approx(np.abs(forces).mean(), rel=1e-12)
    assert total["forces_rms"] == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-12)
    assert total["interaction_energy"] == pytest.approx(np.abs(energy).max(), rel=1e-12)
    parts = table.loc[["geometry", "weights", "inputs", "arithmetic", "sums"], "forces_mae"]
    assert table.loc["parts, root of squares", "forces_mae"] == pytest.approx(np.sqrt((parts**2).sum()), rel=1e-12)


@pytest.mark.parametrize("name", REDUCED)
def test_predictions_stand_beside_the_error_measured(tables, measured, name):
    row = tables["prediction"].frame.set_index("precision").loc[name]
    forces, energy = measured(name)
    assert row["forces"] == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-12)
    assert row["energy"] == pytest.approx(np.abs(energy).max(), rel=1e-12)


def test_the_sweeps_whole_model_is_the_error_of_the_format(tables, measured):
    rows = tables["sweep"].frame.query("block == 'whole model'").set_index("bits")
    for bits in (23, 10):
        assert rows.loc[bits, "forces"] == np.abs(measured(f"m{bits}")[0]).max()


def test_an_overflow_is_named(tables):
    found = tables["range"].frame
    assert set(found["precision"]) == {"float16"}
    (row,) = found[found["pass"] == "weights"].to_dict("records")
    assert (row["kind"], row["where"], row["value"]) == ("overflow", "C", -70045.0)
    assert "|E0| of C, 70,045 eV, exceeds 65,504" in row["message"]


def test_a_trace_keeps_and_shows_them(overflowing, tables, tmp_path):
    with pp.attach(overflowing, precisions="float32,float16", device="cpu", modes="propagated") as probe:
        probe.run(structures(), progress=False)
    with pp.open_trace(probe.trace().with_tables(tables).save(tmp_path / "trace.h5")) as trace:
        assert set(views(trace)) == {"physics", *NAMES}
        for name in NAMES:
            assert len(view(trace, name).frame), name
        noise = pp.errors(trace).query("mode == 'propagated'")["noise"]
        assert noise.notna().sum() > 20
        digits = view(trace, "digits").frame
        assert digits.columns.tolist() == ["float64", *REDUCED]
        assert np.isnan(digits.loc["energy", "float16"])


# Which structures, and what is refused


@pytest.fixture
def looked_at(monkeypatch):
    """The formulas of the structures that would be used, and the precisions, without the work."""
    seen = []
    monkeypatch.setattr(
        suite,
        "_questions",
        lambda reference, variants, structures: (
            seen.append(([g.n_atoms for g in reference.graphs], [str(v.precision) for v in variants])) or []
        ),
    )
    return seen


@pytest.mark.parametrize(
    ("n", "more", "sizes"),
    [
        (9, {}, [1, 5, 9]),
        (2, {}, [1, 2]),
        (1, {}, [1]),
        (5, {"n_structures": 1}, [1]),
        (4, {"n_structures": 2}, [1, 4]),
    ],
)
def test_structures_are_picked_evenly(model, looked_at, n, more, sizes):
    chains = [ase.Atoms("H" * k, [(0, 0, 0.9 * i) for i in range(k)]) for k in range(1, n + 1)]
    assert explain(model, chains, "float16,m10", device="cpu", progress=False, **more) == {}
    assert looked_at == [(sizes, ["float64", "float16", "m10"])]


def test_so_many_structures_or_all_that_there_are():
    chains = [ase.Atoms("H" * k) for k in range(1, 8)]
    for n in range(1, 10):
        sizes = [len(atoms) for atoms in evenly_spread(chains, n)]
        assert sizes == [1 + i * 6 // max(min(n, 7) - 1, 1) for i in range(min(n, 7))]


def test_tables_are_made_one_by_one_of_the_variants_given(model, water, monkeypatch):
    asked = []

    def questions(reference, variants, structures):
        return [
            suite._Question(name, name.title(), lambda name=name: asked.append(name) or pd.DataFrame({"n": [1.0]}))
            for name in ("first", "second")
            if variants == [reference.variant, *own] and structures == [water]
        ]

    monkeypatch.setattr(suite, "_questions", questions)
    reference = Reference(model, water, device="cpu")
    own = [Variant(model, PRECISIONS["float16"], CPU)]
    tables = explained(reference, own, [water])
    name, table = next(tables)
    assert (name, table.title, asked) == ("first", "First", ["first"])
    assert [name for name, _ in tables] == ["second"]
    assert asked == ["first", "second"]
    with pytest.raises(pp.InputError, match="below zero; got -2"):
        next(explained(reference, own, [water], steps=-2))


@pytest.fixture
def cloned(monkeypatch):
    """The precisions of the variants that are made."""
    made, original = [], Variant.__init__

    def init(self, model, precision, *args, **kwargs):
        made.append(str(precision))
        original(self, model, precision, *args, **kwargs)

    monkeypatch.setattr(Variant, "__init__", init)
    return made


def test_a_probe_explains_with_the_variants_that_it_has(model, water, looked_at, cloned):
    """Only those that round at random are cloned anew, so that what a run has drawn does not matter."""
    with pp.attach(model, precisions="float16,m10,m7sr", device="cpu", modes="propagated") as probe:
        probe.run(water, progress=False)
        assert cloned == ["float64", "float16", "m10", "m7sr"]
        cloned.clear()
        probe.explain([water, water], progress=False)
    assert looked_at == [([3, 3], ["float64", "float16", "m10", "m7sr"])]
    assert cloned == ["m7sr"]


def test_without_a_reduced_precision_only_float64_is_explained(model, water, monkeypatch):
    made = []
    monkeypatch.setattr(suite, "shown", lambda questions, *_, **__: made.extend(q.name for q in questions) or [])
    explain(model, water, "float64", device="cpu", progress=False)
    assert made == [name for name in NAMES if name not in ("contributions", "range", "budget", "prediction")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precisions": "float23"}, "float23"),
        ({"precisions": "tf32"}, "tf32"),
        ({"n_structures": 0}, "At least one structure"),
        ({"n_structures": -2}, "got n_structures=-2"),
        ({"structures": "absent.xyz"}, r"absent\.xyz does not exist"),
    ],
)
def test_what_cannot_be_explained_is_refused(model, water, looked_at, options, words):
    options = {"structures": water, "precisions": "float16"} | options
    with pytest.raises(pp.InputError, match=words):
        explain(model, device="cpu", progress=False, **options)
    assert looked_at == []


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("AtomicDipolesMACE", {"MLP_irreps": "4x1o"}),
        ("AtomicDielectricMACE", {"hidden_irreps": "4x0e + 4x1o + 4x2e", "MLP_irreps": "4x0e + 4x1o + 4x2e"}),
    ],
)
def test_a_model_without_forces_is_refused(config, water, name, more):
    dipoles = build(config | {"model": name, "atomic_energies": None} | more)
    with pp.attach(dipoles, precisions="float16", device="cpu", modes="propagated") as probe:
        probe.run(water, progress=False)
        with pytest.raises(pp.InputError, match=f"{name} predicts no energies and forces"):
            probe.explain(water, progress=False)
        assert probe.trace().tables == ()


def test_an_interruption_keeps_the_tables_that_were_made(model, water, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("precision_probe.diagnostics.suite.budget", interrupted)
    with pp.attach(model, precisions="float16", device="cpu") as probe:
        probe.run(water, progress=False)
        with pytest.raises(KeyboardInterrupt):
            probe.explain(water, progress=False)
    assert probe.trace().tables == ("contributions", "range", "noise")


def test_dynamics_are_run_where_steps_are_asked_for(overflowing, water, monkeypatch):
    monkeypatch.setattr(suite, "_questions", lambda *_: [])  # other tests answer these
    model = overflowing  # though not without carbon
    with pp.attach(model, precisions="float32", device="cpu") as probe:
        probe.run(water, progress=False)
        for table in ("sweep", "budget"):
            assert table not in probe.trace().tables
        probe.explain(water, steps=4, progress=False)
    trace = probe.trace()
    expected = pp.energy_drift(model, water, "float32", steps=4)
    found = trace.table("drift").frame.set_index("precision")
    assert found.index.tolist() == ["float64", "float32"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    shown = view(trace, "drift").frame
    assert shown.loc["drift, meV/atom/ps", "float32"] == expected.loc["float32", "drift"]
    with pytest.raises(pp.InputError, match="below zero"):
        explain(model, water, "float32", steps=-1)
