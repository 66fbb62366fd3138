"""What users of a policy get, run on structures: a file in mace-torch's calculator, or what is launched as a graph.

A model in memory may be right where its file is not: another dtype of the inputs, another neighbour list, something
lost in saving. So this, and not the model in memory, is what a search says that the tolerance was kept by.
"""

import tempfile
from pathlib import Path

import pandas as pd
import torch
from ase.calculators.calculator import Calculator

from precision_probe.diagnostics.reference import Reference
from precision_probe.fast.calculator import GraphCalculator
from precision_probe.fast.launcher import Launcher
from precision_probe.models.dtypes import default_dtype
from precision_probe.search.running.calculators import errors_of, mace_calculator
from precision_probe.search.running.calling import head_of
from precision_probe.variants.mixed import MixedModel

__all__ = ["errors_of_file", "errors_of_launched"]


def errors_of_file(mixed: MixedModel, reference: Reference) -> pd.DataFrame:
    """Save a model, load it as its users do, and compare what it predicts with float64.

    Args:
        mixed: The model, as :func:`precision_probe.variants.mixed.apply` makes it.
        reference: The model that it was made from in float64, and structures.

    Returns:
        As :meth:`precision_probe.diagnostics.reference.Reference.errors_by_structure` has them.
    """
    with tempfile.TemporaryDirectory() as folder, default_dtype(mixed.interface.dtype):
        path = Path(folder) / "mixed.model"
        torch.save(mixed, path)
        return errors_of(_loaded(path, reference), reference)


def errors_of_launched(mixed: MixedModel, reference: Reference) -> pd.DataFrame:
    """Compare what the calculator that launches a model predicts with float64; arguments and result as above."""
    return errors_of(GraphCalculator(Launcher(mixed, head_of(reference.graphs[0], mixed))), reference)


def _loaded(path: Path, reference: Reference) -> Calculator:
    """The calculator with its defaults, but for what it cannot know."""
    return mace_calculator(reference, model_paths=str(path))
