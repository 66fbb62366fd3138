"""Which arrays of a trace are compared, in which order, and how each is resolved by irrep and by element.

Arrays may be larger than memory: they are read row after row, in blocks of a bounded number of numbers.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from precision_probe.trace.trace import LOSS, Trace

__all__ = [
    "MODEL",
    "MOST_BLOCKS",
    "By",
    "Pair",
    "StoredArray",
    "arrays",
    "blocks_of_rows",
    "labels_in_order",
    "order_of_run",
    "paired",
    "read_pairs",
]

MODEL = "model"
By = Literal["irrep", "element"]

_PER_ATOM = ("energy", "interaction_energy")  # which grow with the structure
_BACKWARD = ("forces", "stress")  # made by differentiation
MOST_BLOCKS = 8  # that are compared at once: a choice, as each is in memory in every precision
_BLOCK = 2**20  # numbers that are read at once: 8 MiB in float64, many of the file's chunks


class Elements:
    """The atomic number that each row of an array belongs to, an edge's being that of the atom it ends at.

    Args:
        trace: Of atoms or not.
    """

    def __init__(self, trace: Trace) -> None:
        self._structures = trace.structures

    @cached_property
    def _numbers(self) -> NDArray[np.int64]:
        return np.asarray(self._structures["atomic_numbers"].values)

    @cached_property
    def _ends(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each structure, how many edges end with its, and its first atom."""
        n_atoms, n_edges = (self._structures[name].values.astype(np.int64) for name in ("n_atoms", "n_edges"))
        return np.cumsum(n_edges), np.cumsum(n_atoms) - n_atoms

    def of(self, what: str, rows: slice) -> NDArray[np.int64] | None:
        """Those of some rows, which count atoms or edges; ``None`` for others, or if the trace does not say."""
        if "atomic_numbers" not in self._structures or what not in ("atom", "edge"):
            return None
        if what == "atom":
            return self._numbers[rows]
        if "receiver" not in self._structures:
            return None
        receivers = self._structures["receiver"][rows].values  # counted within their structure
        ends, first_atom = self._ends
        owner = np.searchsorted(ends, np.arange(rows.start, rows.start + len(receivers)), side="right")
        return np.asarray(self._numbers[first_atom[owner] + receivers])


@dataclass(frozen=True)
class Pair:
    """Rows of a reference array, and the same of a variant's.

    Attributes:
        y: The reference.
        y_hat: The variant's.
        irreps: The irrep of each entry of the last dimension, such as ``"1o"``, where the trace knows it.
        elements: The atomic number that each row belongs to, where rows are atoms or edges and it was asked for.
    """

    y: NDArray[Any]
    y_hat: NDArray[Any]
    irreps: NDArray[np.str_] | None = None
    elements: NDArray[np.int64] | None = None

    def resolved_by(self, by: By | None) -> Iterator[tuple[str, "Pair"]]:
        """The parts for each irrep or element, in order of appearance or of atomic number; nothing if unknown."""
        if by is None:
            yield "", self
        elif by == "irrep" and self.irreps is not None:
            for irrep in dict.fromkeys(self.irreps.tolist()):
                chosen = self.irreps == irrep
                yield str(irrep), Pair(self.y[..., chosen], self.y_hat[..., chosen])
        elif by == "element" and self.elements is not None:
            import ase.data  # here alone: a trace is read without ASE too

            for number in np.unique(self.elements):
                chosen = self.elements == number
                yield ase.data.chemical_symbols[number], Pair(self.y[chosen], self.y_hat[chosen])


@dataclass(frozen=True)
class StoredArray:
    """An array of a trace as it is compared; its rows are read when they are asked for.

    Attributes:
        name: Of the variable.
        block: The block, or ``model`` for the model's own results.
        tensor: Which of its tensors.
        direction: ``forward`` or ``backward``.
        units: Of the numbers, energies of the model being taken per atom.
        rows: What the first dimension counts.
        values: As they are stored.
        elements: The trace's.
        irreps: The irrep of each entry of the last dimension, such as ``"1o"``, where the trace knows it.
        layout: How irreps lie in memory: ``mul_ir``, or the library's own ``ir_mul`` where the trace could not know.
        n_atoms: What numbers are divided by, if they are per atom.
        chosen: (n_rows,) the rows that are compared; ``None`` for all.
        order: (n_rows,) the row that stands for each, if not itself.
    """

    name: str
    block: str
    tensor: str
    direction: str
    units: str
    rows: str
    values: xr.Variable
    elements: Elements
    irreps: NDArray[np.str_] | None = None
    layout: str = "mul_ir"
    n_atoms: NDArray[np.int64] | None = None
    chosen: NDArray[np.bool_] | None = None
    order: NDArray[np.intp] | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is called in every precision: block, tensor, direction."""
        return self.block, self.tensor, self.direction

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the rows that are compared."""
        n_rows = len(self.values) if self.chosen is None else int(self.chosen.sum())
        return n_rows, *self.values.shape[1:]

    @property
    def identity(self) -> dict[str, str | int]:
        """What a table says of it."""
        names = ("block", "tensor", "direction", "units")
        return {name: getattr(self, name) for name in names} | {"n": math.prod(self.shape)}

    @property
    def is_small(self) -> bool:
        """Whether it is read at once."""
        return len(blocks_of_rows(self.values)) == 1

    def in_group(self, group: xr.Dataset) -> "StoredArray":
        """The same array, of the same rows, as another precision's group has it."""
        return dataclasses.replace(self, values=group[self.name].variable)

    def read(self, rows: slice) -> NDArray[Any]:
        """Some rows, whichever are compared."""
        if self.order is None:
            values = self.values[rows].values  # a part of what is lazy, so that xarray keeps none of it in memory
        else:
            order = self.order[rows]
            first, end = (order.min(), order.max() + 1) if order.size else (0, 0)
            values = self.values[first:end].values[order - first]
        if self.block == MODEL:
            values = values.astype(np.float64)
        return values if self.n_atoms is None else values / self.n_atoms[rows]

    def whole(self) -> NDArray[Any]:
        """All rows that are compared, in memory."""
        values = self.read(slice(0, len(self.values)))
        return values if self.chosen is None else values[self.chosen]


def arrays(trace: Trace, group: xr.Dataset, mode: str) -> Iterator[StoredArray]:
    """Each array of a group of a trace that is compared: the model's results, then the blocks' in the order they run.

    Energies of the model are divided by the number of atoms.
    """
    elements = Elements(trace)
    if mode == "propagated":
        for array in group.data_vars.values():
            if "block" not in array.attrs and array.name != "seconds":
                yield _of_model(trace, array, elements)
    if mode in trace.modes:
        for array in order_of_run(trace, group):
            yield _of_block(array, elements, only_seen=mode == LOSS)


def paired(reference: StoredArray, variants: Sequence[StoredArray]) -> Iterator[list[Pair]]:
    """Rows of a reference beside those of each variant, block after block; each number is read once."""
    return (read_pairs(reference, variants, rows) for rows in blocks_of_rows(reference.values))


def read_pairs(
    reference: StoredArray, variants: Sequence[StoredArray], rows: slice, *, with_elements: bool = False
) -> list[Pair]:
    """Some rows of a reference beside those of each variant, read by the thread that asks."""
    chosen = slice(None) if reference.chosen is None else reference.chosen[rows]
    elements = reference.elements.of(reference.rows, rows) if with_elements else None
    elements = None if elements is None else elements[chosen]
    y = reference.read(rows)[chosen]
    return [Pair(y, variant.read(rows)[chosen], reference.irreps, elements) for variant in variants]


def blocks_of_rows(array: xr.Variable) -> list[slice]:
    """The rows of an array, so many at once as hold about :data:`_BLOCK` numbers; one block of none if it has none."""
    n_rows = max(1, _BLOCK // max(1, math.prod(array.shape[1:])))
    return [slice(first, min(first + n_rows, len(array))) for first in range(0, max(1, len(array)), n_rows)]


def labels_in_order(labels: Iterable[str], by: By | None) -> list[str]:
    """Irreps in the order in which they are given, elements in that of atomic numbers."""
    if by != "element":
        return list(labels)
    import ase.data

    return sorted(labels, key=ase.data.atomic_numbers.__getitem__)


def order_of_run(trace: Trace, group: xr.Dataset) -> list[xr.DataArray]:
    """The arrays of blocks in a group, in the order in which the model runs them, gradients after outputs."""
    order = {block: index for index, block in enumerate(trace.blocks)}
    of_blocks = [array for array in group.data_vars.values() if "block" in array.attrs]
    return sorted(of_blocks, key=lambda array: (order[array.attrs["block"]], array.attrs["direction"] == "backward"))


def _of_model(trace: Trace, array: xr.DataArray, elements: Elements) -> StoredArray:
    """A result of the model, in the unit in which it is compared; stress of the periodic structures alone."""
    name, units = str(array.name), array.attrs["units"]
    direction = "backward" if name in _BACKWARD else "forward"
    result = StoredArray(name, MODEL, name, direction, units, str(array.dims[0]), array.variable, elements)
    if name in _PER_ATOM:
        return dataclasses.replace(result, units=f"{units}/atom", n_atoms=trace.structures["n_atoms"].values)
    if name == "stress":
        return dataclasses.replace(result, chosen=np.asarray(trace.structures["pbc"].values.astype(bool).all(axis=1)))
    return result


def _of_block(array: xr.DataArray, elements: Elements, *, only_seen: bool) -> StoredArray:
    """A tensor of a block, as it was stored; if ``only_seen``, without rows that are all NaN."""
    last = array.dims[-1]
    irreps = array.coords[last].values if last in array.coords else None
    about = {key: array.attrs[key] for key in ("block", "tensor", "direction", "units")}
    layout = array.attrs.get("layout", "mul_ir")
    result = StoredArray(
        str(array.name),
        **about,
        rows=str(array.dims[0]),
        values=array.variable,
        elements=elements,
        irreps=irreps,
        layout=layout,
    )
    # calls that no loss was made of have no gradients of one
    return dataclasses.replace(result, chosen=_seen(array.variable)) if only_seen else result


def _seen(array: xr.Variable) -> NDArray[np.bool_]:
    """Which rows have any number that is not NaN."""
    n_columns = math.prod(array.shape[1:])
    are_nan = (np.isnan(array[rows].values).reshape(-1, n_columns) for rows in blocks_of_rows(array))
    return np.asarray(~np.concatenate([rows.all(axis=1) for rows in are_nan]))
