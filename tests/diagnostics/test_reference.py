"""The reference: what mace-torch gives for each structure, and errors from it by NumPy."""

import ase.build
import numpy as np
import pytest
import torch
from runs import data_of, molecule

import precision_probe as pp
from precision_probe.diagnostics.reference import Reference
from precision_probe.models.evaluation import Prediction
from precision_probe.precisions import PRECISIONS
from precision_probe.variants.variant import Variant

CPU = torch.device("cpu")


def structures():
    cell = ase.build.bulk("C")
    cell.rattle(0.05, seed=1)
    return [molecule(), cell]


@pytest.fixture(scope="module")
def reference(model):
    return Reference(model, structures(), device="cpu")


@pytest.fixture(scope="module")
def off(reference):
    """Known errors of every quantity of each structure, and a way to predict with them."""
    rng = np.random.default_rng(0)
    errors = [
        {quantity: rng.normal(scale=1e-3, size=tensor.shape) for quantity, tensor in exact.values.items()}
        for exact in reference.exact
    ]

    def predict(graph):
        index = next(i for i, own in enumerate(reference.graphs) if own is graph)
        exact = reference.exact[index]
        return Prediction({q: y + torch.as_tensor(errors[index][q]) for q, y in exact.values.items()}, 0.0)

    return [{q.name: delta for q, delta in each.items()} for each in errors], predict


def test_what_is_exact_is_what_mace_gives(model, reference):
    for atoms, exact in zip(structures(), reference.exact, strict=True):
        out = model(data_of(atoms, model), compute_stress=True)
        for name in ("energy", "interaction_energy", "forces"):
            np.testing.assert_allclose(exact[name], out[name].detach(), rtol=0, atol=1e-11)
    np.testing.assert_allclose(reference.exact[1]["stress"], out["stress"].detach(), rtol=0, atol=1e-12)
    assert (reference.name, reference.device, reference.model) == ("ScaleShiftMACE", CPU, model)
    assert [graph.names for graph in reference.graphs] == [("H2O",), ("C2",)]


def test_errors_over_all_structures(reference, off):
    deltas, predict = off
    found = reference.errors(predict)
    for name in ("energy", "interaction_energy"):
        per_atom = [abs(delta[name][0]) / n for delta, n in zip(deltas, (3, 2), strict=True)]
        assert found[name] == pytest.approx(max(per_atom), rel=1e-8)
    delta = np.concatenate([each["forces"] for each in deltas])
    y = np.concatenate([exact["forces"].numpy() for exact in reference.exact])
    assert found["forces"] == pytest.approx(np.abs(delta).max(), rel=1e-8)
    assert found["forces_mae"] == pytest.approx(np.abs(delta).mean(), rel=1e-8)
    assert found["forces_rms"] == pytest.approx(np.sqrt((delta**2).mean()), rel=1e-8)
    assert found["forces_rel_l2"] == pytest.approx(np.sqrt((delta**2).sum() / (y**2).sum()), rel=1e-8)
    assert set(reference.errors(reference.variant.predict).values()) == {0.0}


def test_errors_structure_by_structure(reference, off):
    deltas, predict = off
    table = reference.errors_by_structure(predict)
    for (_, row), delta, exact, n in zip(table.iterrows(), deltas, reference.exact, (3, 2), strict=True):
        assert row["energy"] == pytest.approx(abs(delta["energy"][0]) / n, rel=1e-8)
        assert row["forces"] == pytest.approx(np.abs(delta["forces"]).max(), rel=1e-8)
        assert row["forces_l2"] == pytest.approx(np.linalg.norm(delta["forces"]), rel=1e-8)
        assert row["forces_norm"] == pytest.approx(np.linalg.norm(exact["forces"]), rel=1e-8)
    assert np.isnan(table.loc[0, "stress"])  # a molecule has none
    assert table.loc[1, "stress"] == pytest.approx(np.abs(deltas[1]["stress"]).max(), rel=1e-8)


def test_other_structures_of_the_same_variant(reference):
    other = reference.on(molecule(seed=5))
    assert other.variant is reference.variant
    assert (len(other.graphs), len(other.exact)) == (1, 1)
    assert len(reference.graphs) == len(reference.exact) == 2
    assert not torch.equal(other.exact[0]["forces"], reference.exact[0]["forces"])


def test_a_variant_that_is_there_already_is_used(model):
    variant = Variant(model, PRECISIONS["float64"], CPU)
    reference = Reference(model, molecule(), device="no such device", variant=variant)
    assert reference.variant is variant
    assert reference.device == CPU


def test_what_float64_cannot_give_is_named(reference, mine):
    assert reference.not_finite() == []
    with torch.no_grad():
        mine.products[0].linear.weight.fill_(1e200)
        mine.readouts[0].linear.weight.fill_(1e300)
    assert Reference(mine, molecule(), device="cpu").not_finite() == [("H2O", ["energy", "forces"])]


def test_what_cannot_be_a_reference_is_refused(model, mine):
    with pytest.raises(pp.InputError, match="Unknown device"):
        Reference(model, molecule(), device="no such device")
    with pytest.raises(pp.InputError, match="does not know"):
        Reference(model, ase.Atoms("Xe"), device="cpu")
    del mine.atomic_energies_fn
    with pytest.raises(pp.InputError, match="predicts no energies and forces"):
        Reference(mine, molecule(), device="cpu")
