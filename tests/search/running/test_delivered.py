"""The file that apply writes, as its users run it: against MACECalculator called by hand."""

import copy
import logging

import ase
import numpy as np
import pytest
import torch
from mace.calculators import MACECalculator
from runs import molecule

import precision_probe.search.running.delivered
from precision_probe.diagnostics.reference import Reference
from precision_probe.models.building import build
from precision_probe.policy import Policy, Rule
from precision_probe.search.running.delivered import errors_of_file, errors_of_launched
from precision_probe.variants.mixed import MixedModel, apply

LAYERS = Policy((Rule("interactions.*", "float32"), Rule("products.*", "float32")))
HEADS = {
    "heads": ["pbe", "r2scan"],
    "atomic_energies": [[-13.6, -1029.5, -2042.0], [-13.0, -1020.0, -2040.0]],
    "atomic_inter_scale": [0.8, 0.9],
    "atomic_inter_shift": [0.1, 0.2],
}


def cell():
    return ase.Atoms("CO", [(0, 0, 0), (0.1, 0.2, 1.2)], cell=[2.6, 2.9, 3.1], pbc=True)


def slab():
    return ase.Atoms("CO", [(0, 0, 0), (0.1, 0.2, 1.2)], cell=[2.6, 2.9, 0], pbc=[True, True, False])


def by_hand(path, model, structures, **options):
    """The largest differences of energy per atom, forces and stress from the float64 model, both in a calculator."""
    mixed = MACECalculator(model_paths=str(path), device="cpu", **options)
    wide = copy.deepcopy(model).double()
    exact = MACECalculator(models=[wide], device="cpu", default_dtype="float64", **options)
    rows = []
    for atoms in structures:
        names = ["energy", "forces", *(["stress"] if atoms.pbc.all() else [])]
        delta = [np.abs(mixed.get_property(name, atoms) - exact.get_property(name, atoms)).max() for name in names]
        rows.append([delta[0] / len(atoms), *delta[1:], *([] if atoms.pbc.all() else [np.nan])])
    return np.asarray(rows)


@pytest.mark.parametrize(
    ("stored", "interface"),
    [
        (torch.float64, "float32"),
        (torch.float32, "float64"),
        pytest.param(torch.float64, "float64", marks=pytest.mark.slow),
        pytest.param(torch.float32, "float32", marks=pytest.mark.slow),
    ],
)
def test_errors_are_those_of_the_file_in_a_calculator(mine, tmp_path, stored, interface):
    model = mine.to(stored)
    structures = [molecule(1), cell(), slab()]
    for atoms in structures:
        atoms.positions += 110  # where float32 positions are 4e-6 Å apart
    mixed = apply(LAYERS, model, interface=interface)
    found = errors_of_file(mixed, Reference(model, structures, device="cpu"))
    torch.save(mixed, tmp_path / "mixed.model")
    expected = by_hand(tmp_path / "mixed.model", model, structures)
    np.testing.assert_allclose(found[["energy", "forces", "stress"]], expected, rtol=0.05, atol=1e-10)
    assert (found["forces"].max() > 1e-6) == (interface == "float32")


@pytest.mark.parametrize("head", ["pbe", "r2scan", None])
def test_a_head_is_named_where_there_are_several(config, tmp_path, head):
    model = build(config | HEADS, seed=3)
    mixed = apply(LAYERS, model)
    found = errors_of_file(mixed, Reference(model, [molecule(1)], head=head, device="cpu"))
    torch.save(mixed, tmp_path / "mixed.model")
    expected = by_hand(tmp_path / "mixed.model", model, [molecule(1)], head=head or "r2scan")
    np.testing.assert_allclose(found[["energy", "forces"]], expected[:, :2], rtol=0.05, atol=1e-12)
    assert found["energy"].max() < 1e-4  # those of the other head are off by eV


def test_models_whose_kind_callers_must_name(config):
    model = build(config | {"model": "EnergyDipolesMACE", "MLP_irreps": "4x0e + 4x1o"}, seed=3)
    found = errors_of_file(apply(LAYERS, model), Reference(model, [molecule(1)], device="cpu"))
    assert 0 < found["forces"].max() < 1e-4


def test_a_file_that_loses_something_is_seen(model, monkeypatch):
    """In memory the model is right."""

    def broken(*args):
        loaded = calculator_of(*args)
        with torch.no_grad():
            next(loaded.models[0].model.readouts.parameters()).mul_(2)
        return loaded

    calculator_of = precision_probe.search.running.delivered._loaded
    monkeypatch.setattr(precision_probe.search.running.delivered, "_loaded", broken)
    reference = Reference(model, [molecule(1)], device="cpu")
    assert errors_of_file(apply(Policy(()), model), reference)["forces"].max() > 1e-3


def test_it_is_loaded_from_a_file_with_the_defaults_and_nothing_is_left(model, monkeypatch, tmp_path, capfd):
    made = []
    original = MACECalculator.__init__

    def init(self, *args, **options):
        made.append((args, options))
        original(self, *args, **options)

    monkeypatch.setattr(MACECalculator, "__init__", init)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    root = logging.getLogger()
    before = (list(root.handlers), root.manager.disable)
    errors_of_file(apply(LAYERS, model), Reference(model, [molecule(1)], device="cpu"))
    ((args, options),) = made
    assert args == ()
    assert sorted(options) == ["device", "model_paths", "model_type"]
    assert (options["device"], options["model_type"]) == ("cpu", "MACE")
    assert list(tmp_path.iterdir()) == []
    assert (list(root.handlers), root.manager.disable) == before
    assert "dtype" not in capfd.readouterr().err
    assert not isinstance(model, MixedModel)


def test_errors_of_what_is_launched_are_those_of_its_calculator(mine):
    structures = [molecule(1), cell(), slab()]
    mixed = apply(LAYERS, mine)
    found = errors_of_launched(mixed, Reference(mine, structures, device="cpu"))
    exact = MACECalculator(models=[copy.deepcopy(mine)], device="cpu", default_dtype="float64")
    for (_, row), atoms in zip(found.iterrows(), structures, strict=True):
        names = ["energy", "forces", *(["stress"] if atoms.pbc.all() else [])]
        launched = Policy.calculator(LAYERS, mine, "cpu", run="graph")
        delta = [np.abs(launched.get_property(name, atoms) - exact.get_property(name, atoms)).max() for name in names]
        expected = [delta[0] / len(atoms), *delta[1:]]
        np.testing.assert_allclose(row[names], expected, rtol=0.05, atol=1e-12)
    assert found["forces"].min() > 1e-9


def test_what_predicts_nan_has_errors_of_nan(mine):
    mixed = apply(LAYERS, mine)
    with torch.no_grad():
        next(mixed.model.readouts.parameters()).fill_(torch.nan)
    found = errors_of_launched(mixed, Reference(mine, [cell()], device="cpu"))
    assert found[["energy", "forces", "stress"]].isna().all(axis=None)
