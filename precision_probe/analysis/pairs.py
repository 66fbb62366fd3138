"""Which arrays of a trace are compared, in which order, and how each is resolved by irrep and by element."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from precision_probe.analysis.metrics import EPS, compare
from precision_probe.analysis.rounding_floor import representation_floor
from precision_probe.precisions import Precision
from precision_probe.trace.trace import LOSS, Trace

__all__ = ["MODEL", "By", "Pair", "order_of_run", "pairs"]

MODEL = "model"
By = Literal["irrep", "element"]

_PER_ATOM = ("energy", "interaction_energy")  # which grow with the structure
_BACKWARD = ("forces", "stress")  # made by differentiation
_Elements = dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Pair:
    """A reference array and a variant's.

    Attributes:
        block: The block, or ``model`` for the model's own results.
        tensor: Which of its tensors.
        direction: ``forward`` or ``backward``.
        units: Unit of both.
        rows: What the first dimension counts.
        y: The reference.
        y_hat: The variant's.
        irreps: The irrep of each entry of the last dimension, such as ``"1o"``, where the trace knows it.
        layout: How irreps lie in memory: ``mul_ir``, or the library's own ``ir_mul`` where the trace could not know.
        elements: The atomic number that each row belongs to, an edge's being the receiver's, where rows are atoms or
            edges.
    """

    block: str
    tensor: str
    direction: str
    units: str
    rows: str
    y: NDArray[Any]
    y_hat: NDArray[Any]
    irreps: NDArray[np.str_] | None = None
    elements: NDArray[np.int64] | None = None
    layout: str = "mul_ir"

    @property
    def identity(self) -> dict[str, str | int]:
        """What a table says of it."""
        names = ("block", "tensor", "direction", "units")
        return {name: getattr(self, name) for name in names} | {"n": self.y.size}

    def numbers(self, precision: Precision, eps: float = EPS) -> dict[str, float]:
        """Every metric, and the floor of rel_l2."""
        floor = representation_floor(self.y, precision)
        return compare(self.y, self.y_hat, precision, eps=eps) | {"floor": floor}

    def resolved_by(self, by: By) -> Iterator[tuple[str, "Pair"]]:
        """The parts for each irrep or element, in order of appearance or of atomic number; nothing if unknown."""
        if by == "irrep" and self.irreps is not None:
            for irrep in dict.fromkeys(self.irreps.tolist()):
                chosen = self.irreps == irrep
                yield str(irrep), dataclasses.replace(self, y=self.y[..., chosen], y_hat=self.y_hat[..., chosen])
        elif by == "element" and self.elements is not None:
            import ase.data  # here alone: a trace is read without ASE too

            for number in np.unique(self.elements):
                chosen = self.elements == number
                symbol = ase.data.chemical_symbols[number]
                yield symbol, dataclasses.replace(self, y=self.y[chosen], y_hat=self.y_hat[chosen])


def pairs(trace: Trace, reference: xr.Dataset, variant: xr.Dataset, mode: str) -> Iterator[Pair]:
    """Each pair of arrays of two groups of a trace: the model's results, then the blocks' in the order they run.

    Energies of the model are divided by the number of atoms.
    """
    elements = _elements(trace)
    if mode == "propagated":
        for array in reference.data_vars.values():
            if "block" not in array.attrs and array.name != "seconds":
                yield _of_model(trace, array, variant[array.name].values, elements)
    if mode in trace.modes:
        for array in order_of_run(trace, reference):
            yield _of_block(array, variant[array.name].values, elements, only_seen=mode == LOSS)


def order_of_run(trace: Trace, group: xr.Dataset) -> list[xr.DataArray]:
    """The arrays of blocks in a group, in the order in which the model runs them, gradients after outputs."""
    order = {block: index for index, block in enumerate(trace.blocks)}
    arrays = [array for array in group.data_vars.values() if "block" in array.attrs]
    return sorted(arrays, key=lambda array: (order[array.attrs["block"]], array.attrs["direction"] == "backward"))


def _of_model(trace: Trace, array: xr.DataArray, y_hat: NDArray[Any], elements: _Elements) -> Pair:
    """A result of the model, in the unit in which it is compared; stress of the periodic structures alone."""
    name, units, y, rows = str(array.name), array.attrs["units"], array.values, str(array.dims[0])
    y_hat = y_hat.astype(np.float64)
    if name in _PER_ATOM:
        n_atoms, units = trace.structures["n_atoms"].values, f"{units}/atom"
        y, y_hat = y / n_atoms, y_hat / n_atoms
    elif name == "stress":
        periodic = trace.structures["pbc"].values.astype(bool).all(axis=1)
        y, y_hat = y[periodic], y_hat[periodic]
    direction = "backward" if name in _BACKWARD else "forward"
    return Pair(MODEL, name, direction, units, rows, y, y_hat, elements=elements.get(rows))


def _of_block(array: xr.DataArray, y_hat: NDArray[Any], elements: _Elements, *, only_seen: bool) -> Pair:
    """A tensor of a block, as it was stored; if ``only_seen``, without rows that are all NaN in the reference."""
    y, rows, last = array.values, str(array.dims[0]), array.dims[-1]
    numbers = elements.get(rows)
    if only_seen:  # calls that no loss was made of have no gradients of one
        seen = ~np.isnan(y.reshape(len(y), -1)).all(axis=1)
        y, y_hat, numbers = y[seen], y_hat[seen], None if numbers is None else numbers[seen]
    irreps = array.coords[last].values if last in array.coords else None
    block, tensor, direction, units = (array.attrs[key] for key in ("block", "tensor", "direction", "units"))
    layout = array.attrs.get("layout", "mul_ir")
    return Pair(block, tensor, direction, units, rows, y, y_hat, irreps, numbers, layout)


def _elements(trace: Trace) -> _Elements:
    """The atomic number of each atom, and of the atom that each edge ends at; nothing if the trace is not of atoms."""
    structures = trace.structures
    if "atomic_numbers" not in structures:
        return {}
    numbers = structures["atomic_numbers"].values
    if "receiver" not in structures:
        return {"atom": numbers}
    n_atoms, n_edges = structures["n_atoms"].values, structures["n_edges"].values
    first_atom = np.repeat(np.cumsum(n_atoms) - n_atoms, n_edges)  # receivers are counted within their structure
    return {"atom": numbers, "edge": numbers[first_atom + structures["receiver"].values]}
