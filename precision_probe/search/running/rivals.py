"""What people run otherwise: a model as a whole in one precision, in mace-torch's calculator."""

from collections.abc import Iterator

import pandas as pd
import torch
from ase.calculators.calculator import Calculator, all_changes

from precision_probe.diagnostics.reference import Reference
from precision_probe.models.backends import backend, clone, has_cuequivariance_kernels, to_cuequivariance
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import Graph
from precision_probe.search.running.calculators import atoms_of, errors_of, mace_calculator
from precision_probe.search.running.calling import Call
from precision_probe.variants.devices import undisturbed

__all__ = ["Rival", "rivals"]


class Rival:
    """A model as a whole in one precision, in mace-torch's calculator.

    Args:
        model: The model, in that precision; it is the calculator's.
        reference: What it is compared with.
    """

    def __init__(self, model: torch.nn.Module, reference: Reference) -> None:
        self._reference = reference
        self._dtype = next(model.parameters()).dtype
        with default_dtype(self._dtype):
            dtype = str(self._dtype).removeprefix("torch.")
            self._calculator: Calculator = mace_calculator(reference, models=[model], default_dtype=dtype)

    def errors(self) -> pd.DataFrame:
        """As :meth:`precision_probe.diagnostics.reference.Reference.errors_by_structure` has them."""
        with default_dtype(self._dtype), undisturbed():
            return errors_of(self._calculator, self._reference)

    def call(self, graph: Graph) -> Call:
        """One calculation of a structure, the making of its graph included, as in a step of ASE's dynamics."""
        atoms = atoms_of(graph)
        properties = ["energy", "forces", *(["stress"] if graph.periodic.all() else [])]

        def calculate() -> None:
            with default_dtype(self._dtype), undisturbed():
                self._calculator.calculate(atoms, properties, all_changes)

        return calculate


def rivals(model: torch.nn.Module, reference: Reference) -> Iterator[tuple[str, Rival]]:
    """Rivals of whatever is launched as a graph, by what they are called.

    Args:
        model: As users have it; it is not changed.
        reference: What they are compared with.
    """
    device = reference.device
    for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        yield f"MACECalculator, {name}", Rival(clone(model, dtype, device), reference)
    if backend(model) == "e3nn" and has_cuequivariance_kernels(device):
        converted = to_cuequivariance(clone(model, torch.float32, device), device)
        yield "MACECalculator, float32, enable_cueq", Rival(converted, reference)
