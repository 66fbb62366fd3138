"""What users of a policy get: the file that ``apply`` writes, loaded by mace-torch's calculator and run on structures.

A model in memory may be right where its file is not: another dtype of the inputs, another neighbour list, something
lost in saving. So this, and not the model in memory, is what a search says that the tolerance was kept by.
"""

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np
import pandas as pd
import torch
from ase.calculators.calculator import Calculator
from ase.stress import voigt_6_to_full_3x3_stress

from precision_probe.diagnostics.reference import Reference
from precision_probe.models.attributes import heads
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.evaluation import Prediction
from precision_probe.models.graphs import Graph
from precision_probe.variants.mixed import MixedModel

__all__ = ["errors_of_file"]

_MODEL_TYPES = {"EnergyDipolesMACE": "EnergyDipoleMACE", "PolarMACE": "PolarMACE"}  # which users must name


def errors_of_file(mixed: MixedModel, reference: Reference) -> pd.DataFrame:
    """Save a model, load it as its users do, and compare what it predicts with float64.

    Args:
        mixed: The model, as :func:`precision_probe.variants.mixed.apply` makes it.
        reference: The model that it was made from in float64, and structures.

    Returns:
        As :meth:`precision_probe.diagnostics.reference.Reference.errors_by_structure` has them.
    """
    graph = reference.graphs[0]
    names = heads(reference.model)
    options = {"model_type": _MODEL_TYPES.get(type(reference.model).__name__, "MACE")}
    if len(names) > 1:
        options["head"] = names[int(graph.data["head"][0])]
    with tempfile.TemporaryDirectory() as folder, default_dtype(mixed.interface.dtype), _silent():
        path = Path(folder) / "mixed.model"
        torch.save(mixed, path)
        calculator = _loaded(path, reference.device, options)
        quantities = {quantity.name: quantity for quantity in reference.exact[0].values}

        def predict(graph: Graph) -> Prediction:
            results = _results(calculator, graph)
            return Prediction({quantities[name]: tensor for name, tensor in results.items()}, np.nan)

        return reference.errors_by_structure(predict)


def _loaded(path: Path, device: torch.device, options: dict[str, str]) -> Calculator:
    """The calculator with its defaults, but for what it cannot know."""
    from mace.calculators import MACECalculator  # slow to import, and only a search needs it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's notice that mace-torch lets files run code, which this one may
        return MACECalculator(model_paths=str(path), device=str(device), **options)


def _results(calculator: Calculator, graph: Graph) -> dict[str, torch.Tensor]:
    """Energy (1,) eV, forces (n_atoms, 3) eV/Å and, where it is periodic, stress (1, 3, 3) eV/Å³ of one structure."""
    atoms = _atoms(graph)
    results = {
        "energy": np.asarray([calculator.get_property("energy", atoms)]),
        "forces": calculator.get_property("forces", atoms),
        "stress": np.full((1, 3, 3), np.nan),
    }
    if graph.periodic.all():
        results["stress"] = voigt_6_to_full_3x3_stress(calculator.get_property("stress", atoms))[None]
    device = graph.data["positions"].device
    return {name: torch.as_tensor(values, device=device) for name, values in results.items()}


def _atoms(graph: Graph) -> ase.Atoms:
    """One structure as users give it to a calculator, which makes a graph of its own from it."""
    data = {name: tensor.cpu().numpy() for name, tensor in graph.data.items()}
    atoms = ase.Atoms(graph.atomic_numbers, data["positions"], cell=data["cell"].reshape(3, 3), pbc=graph.pbc[0])
    for ours, theirs in (("total_charge", "charge"), ("total_spin", "spin"), ("external_field", "external_field")):
        if ours in data:
            atoms.info[theirs] = data[ours].reshape(-1) if data[ours].size > 1 else float(data[ours].item())
    if "charges" in data:
        atoms.arrays["Qs"] = data["charges"]
    return atoms


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
