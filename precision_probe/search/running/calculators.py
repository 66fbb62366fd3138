"""ASE calculators as users have them: mace-torch's, and what any of them makes of a structure, beside float64."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

import ase
import numpy as np
import pandas as pd
import torch
from ase.calculators.calculator import CalculationFailed, Calculator
from ase.stress import voigt_6_to_full_3x3_stress

from precision_probe.diagnostics.reference import Reference
from precision_probe.models.evaluation import Prediction
from precision_probe.models.graphs import Graph
from precision_probe.search.running.calling import head_of

__all__ = ["atoms_of", "errors_of", "mace_calculator"]

_MODEL_TYPES = {"EnergyDipolesMACE": "EnergyDipoleMACE", "PolarMACE": "PolarMACE"}  # which users must name


def mace_calculator(reference: Reference, **options: object) -> Calculator:
    """mace-torch's calculator on the device of a reference, told what it cannot know of its model.

    Args:
        reference: Of the same class and head.
        options: What makes the model: ``models`` or ``model_paths``, and others of ``MACECalculator``.
    """
    from mace.calculators import MACECalculator  # slow to import, and only a search needs it

    known = {"model_type": _MODEL_TYPES.get(type(reference.model).__name__, "MACE")}
    if (head := head_of(reference.graphs[0], reference.model)) is not None:
        known["head"] = head
    with warnings.catch_warnings(), _silent():
        warnings.simplefilter("ignore")  # torch's notice that mace-torch lets files run code, which this one may
        return MACECalculator(device=str(reference.device), **known, **options)


def errors_of(calculator: Calculator, reference: Reference) -> pd.DataFrame:
    """Compare what a calculator predicts with float64.

    Args:
        calculator: Of energy, forces and stress.
        reference: The model in float64, and structures.

    Returns:
        As :meth:`precision_probe.diagnostics.reference.Reference.errors_by_structure` has them.
    """
    quantities = {quantity.name: quantity for quantity in reference.exact[0].values}

    def predict(graph: Graph) -> Prediction:
        results = _results(calculator, graph)
        return Prediction({quantities[name]: tensor for name, tensor in results.items()}, np.nan)

    with _silent():
        return reference.errors_by_structure(predict)


def atoms_of(graph: Graph) -> ase.Atoms:
    """One structure as users give it to a calculator, which makes a graph of its own from it."""
    data = {name: tensor.cpu().numpy() for name, tensor in graph.data.items()}
    atoms = ase.Atoms(graph.atomic_numbers, data["positions"], cell=data["cell"].reshape(3, 3), pbc=graph.pbc[0])
    for ours, theirs in (("total_charge", "charge"), ("total_spin", "spin"), ("external_field", "external_field")):
        if ours in data:
            atoms.info[theirs] = data[ours].reshape(-1) if data[ours].size > 1 else float(data[ours].item())
    if "charges" in data:
        atoms.arrays["Qs"] = data["charges"]
    return atoms


def _results(calculator: Calculator, graph: Graph) -> dict[str, torch.Tensor]:
    """Energy (1,) eV, forces (n_atoms, 3) eV/Å and, where it is periodic, stress (1, 3, 3) eV/Å³ of one structure."""
    atoms = atoms_of(graph)
    results = {
        "energy": np.full(1, np.nan),
        "forces": np.full((graph.n_atoms, 3), np.nan),
        "stress": np.full((1, 3, 3), np.nan),
    }
    with contextlib.suppress(CalculationFailed):  # as what is predicted is not finite
        results["energy"] = np.asarray([calculator.get_property("energy", atoms)])
        results["forces"] = calculator.get_property("forces", atoms)
        if graph.periodic.all():
            results["stress"] = voigt_6_to_full_3x3_stress(calculator.get_property("stress", atoms))[None]
    device = graph.data["positions"].device
    return {name: torch.as_tensor(values, device=device) for name, values in results.items()}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Drop what mace-torch logs when it is given no dtype, which would also set up Python's logging."""
    root, handler = logging.getLogger(), logging.NullHandler()
    before = root.manager.disable
    root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)
