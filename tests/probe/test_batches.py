"""batches.py: batches that come down to what fits, and what is recorded where the memory does not suffice."""

import ase
import ase.build
import numpy as np
import pytest
import torch
import xarray as xr
from runs import check_same_trace, data_of, molecule, out_of_memory, trace_of

import precision_probe as pp
from precision_probe.exceptions import ProbeError
from precision_probe.models import memory
from precision_probe.models.graphs import build_graph
from precision_probe.models.inputs import Inputs
from precision_probe.probe.batches import Batches
from precision_probe.probe.observing.observer import DoesNotFitError

CPU = torch.device("cpu")
EDGES = 6  # of a molecule
OPTIONS = {"precisions": "float32,float16", "device": "cpu", "time": False, "blocks": "readouts.*"}
QUICK = OPTIONS | {"modes": "propagated", "gradients": False}


@pytest.fixture(scope="module", autouse=True)
def compiled(model):
    """TorchScript has compiled what it will: the first run of a process rounds otherwise."""
    trace_of(model, [molecule()] * 2, **QUICK)


@pytest.fixture(scope="module")
def molecules():
    return [molecule(seed) for seed in range(7)]


@pytest.fixture(scope="module")
def graphs(model, molecules):
    return [build_graph(atoms, model) for atoms in molecules]


def sizes_of(batches, fits):
    """How many structures each batch has that fits, in the order in which they come."""
    sizes = []
    for sample in batches:
        if sample.n_edges <= fits:
            sizes.append(sample.n_structures)
        else:
            batches.halve(DoesNotFitError("float32"))
    return sizes


# Batches


@pytest.mark.parametrize(
    ("most_edges", "fits", "sizes"),
    [
        (None, 99, [1] * 7),
        (18, 99, [3, 3, 1]),
        (99, 99, [7]),
        (99, 40, [3, 3, 1]),
        (99, 13, [1] * 7),
        (24, 23, [1] * 7),
    ],
)
def test_batches_are_halved_until_they_fit(graphs, most_edges, fits, sizes):
    """7 × 6 edges that do not fit become batches of up to 20; 3 × 6 that do not, of up to 8."""
    batches = Batches(graphs, most_edges, np.inf, CPU)
    assert sizes_of(batches, fits) == sizes
    assert ("did not fit" in batches.note) == (fits < min(most_edges or 0, 42))


def test_the_order_is_kept_and_nothing_comes_twice(graphs):
    batches, names = Batches(graphs, 99, np.inf, CPU), []
    for sample in batches:
        if sample.n_structures > 2:
            batches.halve(DoesNotFitError("float16"))
        else:
            names += sample.names
    assert names == [graph.names[0] for graph in graphs]
    assert "a batch of 42 edges did not fit into the memory of cpu" in batches.note


def test_a_structure_that_does_not_fit_by_itself_is_said_with_the_largest_that_did(graphs, model):
    batches = Batches([*graphs[:2], build_graph(ase.build.bulk("C"), model)], None, np.inf, CPU)
    with pytest.raises(ProbeError, match=r"C2: 2 atoms .* in float32; .* The largest that did is OH2: 3 atoms with 6"):
        sizes_of(batches, EDGES)
    batches = Batches([Inputs("input 3", ())], None, np.inf, CPU)
    next(iter(batches))
    with pytest.raises(ProbeError, match=r"^input 3 did not fit into the memory of cpu in float64; .* recorded. Leave"):
        batches.halve(DoesNotFitError("float64"))


def test_atoms_without_edges_are_halved_too(model):
    lonely = [build_graph(ase.Atoms("C"), model) for _ in range(3)]
    batches = Batches(lonely, 10, np.inf, CPU)
    sizes = []
    for sample in batches:
        if sample.n_structures > 1:
            batches.halve(DoesNotFitError("float32"))
        else:
            sizes.append(1)
    assert sizes == [1, 1, 1]


def test_no_batch_has_more_edges_than_fill_the_memory(graphs):
    batches = Batches(graphs, 99, 20.5, CPU)
    assert "batches have up to 20 edges and not 99" in batches.note
    assert sizes_of(batches, 99) == [3, 3, 1]
    assert Batches(graphs[:3], 99, 20.5, CPU).note == ""  # all of them fit


# What is recorded


@pytest.mark.parametrize(("keep", "precision"), [("tensors", "float64"), ("errors", "float16")])
def test_a_run_that_halves_its_batches_is_one_of_smaller_batches(
    model, molecules, monkeypatch, tmp_path, keep, precision
):
    def trace(batch_edges, most_edges, output=None):
        probe = pp.attach(model, batch_edges=batch_edges, output=output, **OPTIONS | {"keep": keep})
        with monkeypatch.context() as limited, probe:
            out_of_memory(limited, model, most_edges)
            probe.run(molecules, progress=False)
        return probe.trace(), probe.notes

    (ours, notes), (smaller, _) = trace(10**6, {precision: 20}, tmp_path / "a.h5"), trace(20, {})
    check_same_trace(ours, smaller)
    (note,) = (note for note in notes if "did not fit" in note)
    assert note.startswith("a batch of 42 edges")
    assert (ours.attributes["batch_edges"], ours.attributes["batch_edges_fitting"]) == (10**6, 20)
    assert (ours.attributes["complete"], ours.attributes["failures"]) == (True, [])
    assert smaller.attributes["batch_edges_fitting"] is None


@pytest.mark.parametrize(("keep", "is_one_run"), [("tensors", False), ("errors", True), ("none", False)])
def test_a_precision_without_memory_has_nan_and_all_else_is_as_it_would_be(
    model, crystal, monkeypatch, tmp_path, keep, is_one_run
):
    structures = [molecule(0), crystal, molecule(1)]
    options = OPTIONS | {"keep": keep} | ({"gradients": "shared", "modes": "propagated"} if is_one_run else {})
    whole = trace_of(model, structures, **options)
    out_of_memory(monkeypatch, model, {"float16": 20})
    with (
        pytest.warns(RuntimeWarning, match="C8: 8 atoms with .* did not fit into the memory in float16"),
        pp.attach(model, output=tmp_path / "a.h5", **options) as probe,
    ):
        probe.run(structures, progress=False)
    trace = probe.trace()
    assert not trace.attributes["complete"]
    (failure,) = trace.attributes["failures"]
    assert failure in probe.notes
    for name in ("float64", "float32"):
        xr.testing.assert_identical(trace.group("propagated", name), whole.group("propagated", name))
    ours, theirs = (each.group("propagated", "float16") for each in (trace, whole))
    assert ours.keys() == theirs.keys()
    of_crystal = trace.structures["structure_of_atom"].values == 1
    assert np.isnan(ours["forces"].values[of_crystal]).all()
    np.testing.assert_array_equal(ours["forces"].values[~of_crystal], theirs["forces"].values[~of_crystal])
    assert np.isnan(ours["energy"].values).tolist() == [False, True, False]
    assert {name: each.dtype for name, each in ours.items()} == {name: each.dtype for name, each in theirs.items()}
    assert pp.summary(trace).loc["float16", "nonfinite"] == 3 * len(crystal) + 2 + 9  # forces, two energies, stress
    assert (tmp_path / "a.h5").exists()
    pp.open_trace(tmp_path / "a.h5").close()  # which checks the schema


def test_errors_of_nan_are_those_of_kept_tensors(model, monkeypatch):
    """Where every structure lacks a precision; blocks alone do fit."""
    out_of_memory(monkeypatch, model, {"float16": 0})
    tables = []
    for keep in ("tensors", "errors"):
        with pytest.warns(RuntimeWarning, match="did not fit"):
            trace = trace_of(model, molecule(), **OPTIONS | {"keep": keep, "precisions": "float16"})
        tables.append(pp.errors(trace)[lambda table: table["block"] != "model"].set_index("mode"))
    whole, alone = ([table.loc[mode] for table in tables] for mode in ("propagated", "isolated"))
    for table in whole:
        assert table["rel_l2"].isna().all()
        assert (table["nonfinite"] == table["n"]).all()
    assert whole[0]["n"].tolist() == whole[1]["n"].tolist()
    assert all(np.isfinite(table["rel_l2"]).all() for table in alone)


def test_the_reference_without_memory_ends_the_run_and_what_was_done_stays(model, crystal, monkeypatch, tmp_path):
    out_of_memory(monkeypatch, model, {"float64": 20})
    with (
        pytest.warns(RuntimeWarning, match="did not come to its end"),
        pp.attach(model, output=tmp_path / "a.h5", **QUICK) as probe,
        pytest.raises(
            ProbeError, match=r"C8: 8 atoms .* in float64; nothing of it .* largest that did is H2O: 3 atoms"
        ),
    ):
        probe.run([molecule(0), crystal, molecule(1)], progress=False)
    assert probe.n_structures == 1
    monkeypatch.undo()
    with pp.attach(model, output=tmp_path / "a.h5", resume=True, **QUICK) as probe:
        probe.run([molecule(0), molecule(1)], progress=False)  # without it
    assert (probe.n_resumed, probe.n_structures, probe.trace().attributes["complete"]) == (1, 2, True)


def test_a_resumed_run_goes_on_within_a_batch(model, molecules, monkeypatch, tmp_path):
    """The first came down to batches of 3, and ended after one."""
    options = QUICK | {"output": tmp_path / "a.h5", "batch_edges": 99}
    out_of_memory(monkeypatch, model, {"float32": 20})
    probe = pp.attach(model, **options)
    probe.run(molecules[:3], progress=False)
    probe.run(molecules[3:4], progress=False)
    with pytest.warns(RuntimeWarning, match="did not come to its end"):
        probe.__exit__(KeyboardInterrupt)
    with pp.attach(model, resume=True, **options) as probe:
        probe.run(molecules, progress=False)
    names = probe.trace().structures["n_atoms"].values
    assert (probe.n_resumed, len(names)) == (4, 7)
    np.testing.assert_array_equal(
        probe.trace().structures["positions"].values, np.concatenate([atoms.positions for atoms in molecules])
    )


def test_a_call_that_a_precision_has_no_memory_for_has_nan(mine, monkeypatch):
    probe = pp.attach(mine, **QUICK)
    mine(data_of(molecule(), mine))
    out_of_memory(monkeypatch, mine, {"float16": 0})
    with pytest.warns(RuntimeWarning, match="call 2: 3 atoms .* did not fit into the memory in float16"):
        mine(data_of(molecule(), mine))
    probe.detach()
    energies = {name: probe.trace().group("propagated", name)["energy"].values for name in ("float32", "float16")}
    assert np.isfinite(energies["float32"]).all()
    assert np.isnan(energies["float16"]).tolist() == [False, True]


def test_batches_of_a_device_s_own_size(model, molecules):
    with pp.attach(model, batch_edges="auto", **QUICK) as probe:
        probe.run(molecules[:2], progress=False)
    assert probe.trace().attributes["batch_edges"] is None  # on a CPU


def test_a_batch_that_would_fill_the_memory_is_not_begun(model, molecules, graphs, monkeypatch):
    needed = memory.estimated_bytes(model, graphs[0])
    monkeypatch.setattr(memory, "available_bytes", lambda device: 3 * needed)
    with pp.attach(model, batch_edges=99, **QUICK) as probe:
        probe.run(molecules, progress=False)
    assert probe.trace().attributes["batch_edges_fitting"] == 18
    assert any("batches have up to 18 edges" in note for note in probe.notes)
