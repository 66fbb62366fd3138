"""What people run otherwise: a model as a whole in one precision, in mace-torch's calculator."""

from collections.abc import Callable
from functools import partial

import pandas as pd
import torch
from ase.calculators.calculator import Calculator, all_changes

from precision_probe.diagnostics.reference import Reference
from precision_probe.exceptions import first_line
from precision_probe.models.backends import backend, clone, has_cuequivariance_kernels, to_cuequivariance
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import Graph
from precision_probe.models.memory import attempt
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


def rivals(model: torch.nn.Module, reference: Reference) -> tuple[dict[str, Rival], list[str]]:
    """Rivals of whatever is launched as a graph, by what they are called, each tried on the first structure.

    Args:
        model: As users have it; it is not changed.
        reference: What they are compared with.

    Returns:
        Those that run, and of each other why it does not, in a sentence.
    """
    found: dict[str, Rival] = {}
    failed: list[str] = []
    for name, make in _makers(model, reference.device).items():
        try:
            rival = Rival(make(), reference)
            attempt(rival.call(reference.graphs[0]))  # that the memory does not suffice is known when all are measured
            found[name] = rival
        except Exception as error:  # of mace-torch and of cuEquivariance, which are not what is searched for
            failed.append(f"{name} cannot run this model ({type(error).__name__}: {first_line(error)}).")
    return found, failed


def _makers(model: torch.nn.Module, device: torch.device) -> dict[str, Callable[[], torch.nn.Module]]:
    """What makes the models of the calculators."""
    made: dict[str, Callable[[], torch.nn.Module]] = {
        f"MACECalculator, {name}": partial(clone, model, dtype, device)
        for name, dtype in (("float64", torch.float64), ("float32", torch.float32))
    }
    if backend(model) == "e3nn" and has_cuequivariance_kernels(device):
        made["MACECalculator, float32, enable_cueq"] = lambda: to_cuequivariance(
            clone(model, torch.float32, device), device
        )
    return made
