"""What people run otherwise, against MACECalculator made by hand."""

import copy

import ase
import numpy as np
import pytest
import torch
from mace.calculators import MACECalculator
from runs import molecule

import precision_probe.search.running.rivals
from precision_probe.diagnostics.reference import Reference
from precision_probe.exceptions import InputError
from precision_probe.search.running.rivals import rivals


def cell():
    return ase.Atoms("CO", [(0, 0, 0), (0.1, 0.2, 1.2)], cell=[2.6, 2.9, 3.1], pbc=True)


def test_errors_are_those_of_a_calculator_made_by_hand(model):
    structures = [molecule(1), cell()]
    found = rivals(model, Reference(model, structures, device="cpu"))[0]
    assert list(found) == ["MACECalculator, float64", "MACECalculator, float32"]  # on a CPU
    exact, single = (
        MACECalculator(models=[copy.deepcopy(model).to(getattr(torch, name))], device="cpu", default_dtype=name)
        for name in ("float64", "float32")
    )
    expected = [
        np.abs(single.get_property("forces", atoms) - exact.get_property("forces", atoms)).max() for atoms in structures
    ]
    np.testing.assert_allclose(found["MACECalculator, float32"].errors()["forces"], expected, rtol=0.3)
    assert found["MACECalculator, float64"].errors()["forces"].max() < 1e-12
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


def test_a_call_calculates_anew_each_time(model):
    reference = Reference(model, [cell()], device="cpu")
    rival = rivals(model, reference)[0]["MACECalculator, float64"]
    call = rival.call(reference.graphs[0])
    call()
    results = rival._calculator.results
    assert results["energy"] == pytest.approx(float(reference.exact[0]["energy"]), rel=1e-14)
    assert "stress" in results
    results.clear()
    call()
    assert "forces" in rival._calculator.results


def test_a_rival_that_cannot_run_is_left_out_and_named(model, monkeypatch):
    made = MACECalculator.__init__

    def init(self, *args, **options):
        if options["default_dtype"] == "float32":
            raise ImportError("no such library\nand more")
        made(self, *args, **options)

    monkeypatch.setattr(MACECalculator, "__init__", init)
    found, failed = rivals(model, Reference(model, [cell()], device="cpu"))
    assert list(found) == ["MACECalculator, float64"]
    assert failed == ["MACECalculator, float32 cannot run this model (ImportError: no such library)."]


def test_a_model_that_cannot_be_converted_has_the_other_rivals(model, monkeypatch):
    def refuse(model, device):
        raise InputError("This cannot be converted.")

    monkeypatch.setattr(precision_probe.search.running.rivals, "has_cuequivariance_kernels", lambda device: True)
    monkeypatch.setattr(precision_probe.search.running.rivals, "to_cuequivariance", refuse)
    found, failed = rivals(model, Reference(model, [cell()], device="cpu"))
    assert list(found) == ["MACECalculator, float64", "MACECalculator, float32"]
    (why,) = failed
    assert why.startswith("MACECalculator, float32, enable_cueq cannot run this model (InputError: This cannot")
