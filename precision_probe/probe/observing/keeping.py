"""What is kept of the tensors that blocks compute: the tensors themselves, or their errors, made where they are."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from numpy.typing import NDArray

from precision_probe.exceptions import ProbeError
from precision_probe.models.evaluation import Sample
from precision_probe.models.graphs import Graph
from precision_probe.precisions import Precision
from precision_probe.probe.observing.reduction import Owners, reduced
from precision_probe.probe.observing.to_numpy import on_host
from precision_probe.trace.arrays import BlockArray
from precision_probe.trace.schema import ERRORS, REFERENCE

__all__ = ["Captured", "Groups", "Kept", "KeptErrors", "KeptTensors"]

Captured = Sequence[BlockArray[torch.Tensor]]
Groups = dict[str, list[BlockArray[NDArray[Any]]]]


class Kept(Protocol):
    """What is kept of one sample; of each mode the reference is added first."""

    def add(self, mode: str, precision: Precision, captured: Captured) -> None:
        """Keep what the blocks of one variant computed in one mode."""

    def groups(self) -> Groups:
        """What was kept, for each group of the trace."""


class KeptTensors:
    """Every tensor, taken to the host."""

    def __init__(self) -> None:
        self._groups: Groups = {}

    def add(self, mode: str, precision: Precision, captured: Captured) -> None:
        """Keep the tensors."""
        self._groups[f"{mode}/{precision}"] = [on_host(each) for each in captured]

    def groups(self) -> Groups:
        """The tensors as arrays."""
        return self._groups


class KeptErrors:
    """Statistics of the errors, by element of each structure and by irrep; tensors stay where they are, and go.

    The device is waited for once, in :meth:`groups`.

    Args:
        sample: What is run, on its device.
    """

    def __init__(self, sample: Sample) -> None:
        self._references: dict[tuple[str, str], torch.Tensor] = {}
        self._found: list[tuple[str, BlockArray[torch.Tensor]]] = []
        self._sizes: dict[str, int] = {}
        self._owners: dict[str, tuple[str, Owners]] = {}
        if isinstance(sample, Graph):
            of_atom = torch.as_tensor(sample.species.of_atom, device=sample.data["positions"].device)
            of_edge = of_atom[sample.data["edge_index"][1]]
            of_structure = torch.arange(sample.n_structures, device=of_atom.device)
            self._sizes = {"atom": sample.n_atoms, "edge": sample.n_edges, "structure": sample.n_structures}
            n_species = len(sample.species.atomic_numbers)
            self._owners = {
                "atom": ("species", Owners(n_species, of_atom)),
                "edge": ("species", Owners(n_species, of_edge)),
                "structure": ("structure", Owners(sample.n_structures, of_structure)),
            }

    def add(self, mode: str, precision: Precision, captured: Captured) -> None:
        """Keep the reference's tensors; of a variant's, what :func:`reduced` makes of them.

        Raises:
            ProbeError: If the reference has no tensor of that name and shape.
        """
        for each in captured:
            values = each.values if each.values.ndim else each.values[None]
            if precision.name == REFERENCE:
                self._references[mode, each.name] = values
                continue
            reference = self._references.get((mode, each.name))
            if reference is None or reference.shape != values.shape:
                shape = "none" if reference is None else f"one of shape {tuple(reference.shape)}"
                raise ProbeError(
                    f"{each.name} has the shape {tuple(values.shape)} in {precision}, and the reference has {shape}: "
                    "they cannot be compared. Leave its block out, or keep the tensors."
                )
            rows, owners = self._rows_and_owners(each.rows, values)
            parts, statistics = reduced(reference, values, owners, each.components, precision)
            found = each.with_values(statistics, rows=rows or f"{each.name}.row", parts=parts)
            self._found.append((f"{ERRORS}/{mode}/{precision}", found))

    def _rows_and_owners(self, rows: str, values: torch.Tensor) -> tuple[str, Owners]:
        """What the rows of statistics are, and which of them each row of a tensor adds to."""
        if not self._sizes:
            return "structure", Owners(1)
        fitting = [rows] if rows else [name for name, size in self._sizes.items() if size == len(values)]
        return self._owners[fitting[0]] if len(fitting) == 1 and fitting[0] in self._owners else ("", Owners(1))

    def groups(self) -> Groups:
        """The statistics as arrays."""
        groups: Groups = {}
        if not self._found:
            return groups
        numbers = torch.cat([each.values.reshape(-1) for _, each in self._found]).cpu()
        parts = torch.split(numbers, [each.values.numel() for _, each in self._found])
        for (group, each), part in zip(self._found, parts, strict=True):
            array = on_host(each.with_values(part.reshape(each.values.shape)))
            groups.setdefault(group, []).append(array)
        return groups
