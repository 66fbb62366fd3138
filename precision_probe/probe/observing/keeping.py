"""What is kept of the tensors that blocks compute: the tensors themselves, or their errors, made where they are."""

import dataclasses
import mmap
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from precision_probe.exceptions import ProbeError
from precision_probe.models.evaluation import Sample
from precision_probe.models.graphs import Graph
from precision_probe.precisions import Precision
from precision_probe.probe.observing.reduction import Columns, Owners, errors_of_nan, reduced, side_by_side
from precision_probe.probe.observing.to_host import ToHost
from precision_probe.probe.observing.to_numpy import nan
from precision_probe.trace.arrays import BlockArray
from precision_probe.trace.schema import ERRORS, REFERENCE

__all__ = ["Captured", "Groups", "Kept", "KeptErrors", "KeptTensors"]

Captured = Sequence[BlockArray[torch.Tensor]]
Groups = dict[str, list[BlockArray[NDArray[Any]]]]
# Numbers that are reduced at once. A choice: on a GPU far more than keep it busy, and copies of 128 MiB.
_TOGETHER = 2**24


class Kept(Protocol):
    """What is kept of one sample; of each mode the reference is added first."""

    def add(self, mode: str, precision: Precision, captured: Captured) -> None:
        """Keep what the blocks of one variant computed in one mode: all of it, or, if this raises, nothing."""

    def add_nothing(self, mode: str, precision: Precision) -> None:
        """Keep NaN for a variant that computed nothing, under the names that the reference's tensors have."""

    def groups(self) -> Groups:
        """What was kept, for each group of the trace."""


class KeptTensors:
    """Every tensor, taken to the host while the next variant runs."""

    def __init__(self) -> None:
        self._to_host = ToHost()
        self._groups: dict[str, tuple[list[BlockArray[None]], Future[list[NDArray[Any]]]]] = {}

    def add(self, mode: str, precision: Precision, captured: Captured) -> None:
        """Keep the tensors, which must not be changed any more."""
        arrays = self._to_host.begin([each.values for each in captured])
        self._groups[f"{mode}/{precision}"] = [each.with_values(None) for each in captured], arrays

    def add_nothing(self, mode: str, precision: Precision) -> None:
        """Keep NaN."""
        like, arrays = self._groups[f"{mode}/{REFERENCE}"]
        nothing: Future[list[NDArray[Any]]] = Future()
        nothing.set_result([nan(array.shape, precision) for array in arrays.result()])
        renamed = [each.with_values(None, native_dtype=precision.dtype) for each in like]
        self._groups[f"{mode}/{precision}"] = renamed, nothing

    def groups(self) -> Groups:
        """The tensors as arrays."""
        return {
            group: [each.with_values(array) for each, array in zip(captured, arrays.result(), strict=True)]
            for group, (captured, arrays) in self._groups.items()
        }


class KeptErrors:
    """Statistics of the errors, by element of each structure and by irrep; tensors stay where they are, and go.

    The device is waited for once, in :meth:`groups`.

    Args:
        sample: What is run, on its device.
        offload: Let the reference's tensors wait in the host's memory; each comes back where it is compared.
    """

    def __init__(self, sample: Sample, *, offload: bool = False) -> None:
        self._offload = offload
        self._references: dict[str, list[_Beside]] = {}
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
            ProbeError: If the reference has no tensors of the same names and shapes.
        """
        shaped = {each.name: each if each.values.ndim else each.with_values(each.values[None]) for each in captured}
        if precision.name == REFERENCE:
            self._references[mode] = [self._beside(group) for group in self._groups_of_rows(list(shaped.values()))]
            return
        references = self._references.get(mode, [])
        _check_same(references, shaped, precision)
        found: list[BlockArray[torch.Tensor]] = []
        for beside in references:
            tensors = [shaped[name] for name in beside.arrays]
            y_hat = beside.owners.in_order(side_by_side([each.values for each in tensors]))
            y = beside.y.to(y_hat.device, non_blocking=True)
            statistics = reduced(y, y_hat, beside.owners, beside.columns, precision)
            found += beside.found(tensors, statistics)
        self._found += [(f"{ERRORS}/{mode}/{precision}", each) for each in found]

    def add_nothing(self, mode: str, precision: Precision) -> None:
        """Keep the errors of NaN."""
        for beside in self._references.get(mode, []):
            arrays = [dataclasses.replace(each, native_dtype=precision.dtype) for each in beside.arrays.values()]
            statistics = errors_of_nan(beside.y.shape, beside.owners, beside.columns)
            self._found += [(f"{ERRORS}/{mode}/{precision}", each) for each in beside.found(arrays, statistics)]

    def _groups_of_rows(self, captured: Captured) -> list[Captured]:
        """Tensors whose rows count the same and that can be put side by side, no more at once than memory is for."""
        groups: list[list[BlockArray[torch.Tensor]]] = []
        open_groups: dict[tuple[str, int], list[BlockArray[torch.Tensor]]] = {}
        for each in captured:
            key = self._rows(each), len(each.values)
            group = open_groups.get(key)
            if group is None or sum(other.values.numel() for other in group) + each.values.numel() > _TOGETHER:
                group = open_groups[key] = []
                groups.append(group)
            group.append(each)
        return list(groups)

    def _beside(self, captured: Captured) -> "_Beside":
        """The reference's tensors of one group, side by side."""
        tensors = [each.values for each in captured]
        rows, owners = self._owners.get(self._rows(captured[0]), ("" if self._sizes else "structure", Owners(1)))
        columns = Columns.of(tensors, [each.components for each in captured])
        arrays = {each.name: each.with_values(each.values.shape) for each in captured}
        y = owners.in_order(side_by_side(tensors))
        return _Beside(arrays, _offloaded(y) if self._offload else y, rows, owners, columns)

    def _rows(self, captured: BlockArray[torch.Tensor]) -> str:
        """What the rows of a tensor are, of a graph; nothing if that cannot be told."""
        n_rows = len(captured.values)
        fitting = [captured.rows] if captured.rows else [name for name, n in self._sizes.items() if n == n_rows]
        return fitting[0] if len(fitting) == 1 else ""

    def groups(self) -> Groups:
        """The statistics as arrays."""
        groups: Groups = {}
        if not self._found:
            return groups
        found = torch.cat([each.values.reshape(-1) for _, each in self._found])
        # What stays must not lie among what comes and goes: small arrays there kept 1 MiB of heap each from its reuse.
        numbers = np.frombuffer(mmap.mmap(-1, max(1, 8 * found.numel())), dtype=np.float64, count=found.numel())
        numbers[:] = found.cpu().numpy()
        ends = np.cumsum([each.values.numel() for _, each in self._found])
        for (group, each), part in zip(self._found, np.split(numbers, ends[:-1]), strict=True):
            groups.setdefault(group, []).append(each.with_values(part.reshape(each.values.shape)))
        return groups


@dataclass(frozen=True)
class _Beside:
    """Tensors of the reference, side by side.

    Attributes:
        arrays: By their names, each with its shape.
        y: In float64, in the order that the owners give them; on the device, or on the host.
        rows: What the rows of statistics are: ``species``, ``structure``, or nothing that is known.
        owners: Which of them each row adds to.
        columns: What the columns are.
    """

    arrays: dict[str, BlockArray[torch.Size]]
    y: torch.Tensor
    rows: str
    owners: Owners
    columns: Columns

    def found(self, arrays: Sequence[BlockArray[Any]], statistics: torch.Tensor) -> Iterable[BlockArray[torch.Tensor]]:
        """The statistics of each array of a variant, out of those of all of them side by side."""
        for each, (parts, own) in zip(arrays, self.columns.each(statistics), strict=True):
            yield each.with_values(own, rows=self.rows or f"{each.name}.row", parts=parts)


def _offloaded(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in the memory of the host, from where it is copied back without waiting for the GPU."""
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _check_same(
    references: Sequence[_Beside], shaped: Mapping[str, BlockArray[torch.Tensor]], precision: Precision
) -> None:
    """Refuse tensors of a variant that the reference has not, or has of another shape."""
    known = {name: each.values for beside in references for name, each in beside.arrays.items()}
    own = {name: each.values.shape for name, each in shaped.items()}
    for name in {**known, **own}:
        if known.get(name) != own.get(name):
            shapes = [str(tuple(shape)) if shape is not None else "none" for shape in (own.get(name), known.get(name))]
            raise ProbeError(
                f"{name} has the shape {shapes[0]} in {precision}, and {shapes[1]} in {REFERENCE}: they cannot be "
                "compared. Leave its block out, or keep the tensors (--keep tensors, keep='tensors')."
            )
