"""Arrays of a run, structure by structure → the groups and variables of a trace."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from precision_probe.exceptions import InputError
from precision_probe.trace.arrays import BlockArray, ModelArray, Sizes

__all__ = ["Collected"]

_ROWS = ("atom", "edge", "species", "structure")


@dataclass
class _Column:
    """One variable while it grows: its part of each observation that has one."""

    first: BlockArray[NDArray[Any]]
    parts: dict[int, NDArray[Any]] = field(default_factory=dict)
    rows: set[str] = field(default_factory=lambda: set(_ROWS))


class Collected:
    """What came of some structures, in memory.

    Attributes:
        n_structures: How many there are.
        n_bytes: How much memory the arrays of blocks take, by far the most.
    """

    def __init__(self) -> None:
        self._shapes: dict[tuple[str, str], tuple[int, ...]] = {}
        self.clear()

    def clear(self) -> None:
        """Begin anew; only the shapes that variables have had are remembered."""
        self._structures: dict[str, list[NDArray[Any]]] = {}
        self._columns: dict[str, dict[str, _Column]] = {}
        self._sizes: list[Sizes] = []
        self._model: dict[str, dict[str, list[ModelArray]]] = {}
        self.n_structures = self.n_bytes = 0

    def add(
        self,
        structures: Mapping[str, NDArray[Any]],
        sizes: Sizes,
        predictions: Mapping[str, Sequence[ModelArray]],
        blocks: Mapping[str, Sequence[BlockArray[NDArray[Any]]]],
    ) -> None:
        """Add what every variant gave for one graph: see :meth:`precision_probe.trace.recorder.Recorder.add`."""
        staged = [(group, item, sizes.fitting(item)) for group, captured in blocks.items() for item in captured]
        for group, captured, _ in staged:
            self._check_shape(group, captured)
        for name, array in structures.items():
            self._structures.setdefault(name, []).append(array)
        for precision, values in predictions.items():
            variables = self._model.setdefault(f"propagated/{precision}", {})
            for item in values:
                variables.setdefault(item.name, []).append(item)
        for group, captured, rows in staged:
            column = self._columns.setdefault(group, {}).setdefault(captured.name, _Column(captured))
            column.parts[len(self._sizes)] = captured.values
            column.rows &= rows
            self._shapes[group, captured.name] = captured.values.shape[1:]
        self._sizes.append(sizes)
        self.n_structures += sizes.structure
        self.n_bytes += sum(captured.values.nbytes for _, captured, _ in staged)

    def _check_shape(self, group: str, captured: BlockArray[NDArray[Any]]) -> None:
        """Refuse rows of another shape than a variable has: they could not be joined when the trace is laid out."""
        shape = captured.values.shape[1:]
        earlier = self._shapes.get((group, captured.name), shape)
        if earlier != shape:
            raise InputError(
                f"{captured.name} has rows of shape {shape} here and had {earlier} before; one trace holds rows of one "
                "shape. Put these inputs into a trace of their own."
            )

    def tree(self, n_before: int, attributes: Mapping[str, object]) -> xr.DataTree:
        """The groups of a trace.

        Args:
            n_before: How many structures of the trace come before these.
            attributes: Of its root.
        """
        irreps: dict[str, xr.Variable] = {}
        groups = {"/structures": self._structures_dataset(n_before)}
        for name in dict.fromkeys((*self._model, *self._columns)):
            blocks = _block_variables(self._columns.get(name, {}), self._sizes, irreps)
            groups[f"/{name}"] = xr.Dataset(self._model_variables(self._model.get(name, {})) | blocks)
        groups["/"] = xr.Dataset(coords=irreps, attrs=dict(attributes))  # the groups inherit the coordinates
        return xr.DataTree.from_dict(groups)

    def _model_variables(self, values: Mapping[str, list[ModelArray]]) -> dict[str, xr.Variable]:
        """What one precision predicts of all structures; no stress, which would be NaN, where none is periodic."""
        variables = {}
        for name, parts in values.items():
            if name == "stress" and not np.concatenate(self._structures["pbc"]).all(axis=1).any():
                continue
            first = parts[0]
            attributes = {"units": first.unit, "long_name": first.long_name, "native_dtype": first.native_dtype}
            array = np.concatenate([part.values for part in parts])
            variables[name] = xr.Variable(first.dims, array, {key: value for key, value in attributes.items() if value})
        return variables

    def _structures_dataset(self, n_before: int) -> xr.Dataset:
        """The group ``/structures``; atoms are told which structure of the whole trace they belong to."""
        variables = {}
        for name, (dims, unit, long_name) in _STRUCTURE_VARIABLES.items():
            values = np.concatenate(self._structures.get(name, [[]]))
            if name not in self._structures or (name in _LABELS and not np.isfinite(values).any()):
                continue  # not a graph; or no input file had any
            variables[name] = xr.Variable(dims, values, {"units": unit, "long_name": long_name})
        if "n_atoms" in variables:
            numbers = np.arange(n_before, n_before + self.n_structures)
            owner = np.repeat(numbers, variables["n_atoms"].values)
            attributes = {"units": "1", "long_name": "index of the structure that each atom belongs to"}
            variables["structure_of_atom"] = xr.Variable("atom", owner, attributes)
        return xr.Dataset(variables)


_STRUCTURE_VARIABLES = {
    "name": (("structure",), "1", "name of the structure"),
    "n_atoms": (("structure",), "1", "number of atoms"),
    "n_edges": (("structure",), "1", "number of directed edges within the cutoff"),
    "sender": (("edge",), "1", "atom that an edge starts from, counted within its structure"),
    "receiver": (("edge",), "1", "atom that an edge ends at, counted within its structure"),
    "image": (("edge", "cell_vector"), "1", "cell vectors added to the receiver's position"),
    "n_species": (("structure",), "1", "number of elements"),
    "species_numbers": (("species",), "1", "atomic number of each element of each structure"),
    "atomic_numbers": (("atom",), "1", "atomic number"),
    "positions": (("atom", "xyz"), "Å", "positions"),
    "cell": (("structure", "cell_vector", "xyz"), "Å", "cell vectors, as mace-torch uses them"),
    "pbc": (("structure", "cell_vector"), "1", "whether periodic along each cell vector"),
    "energy": (("structure",), "eV", "reference energy of the input file; NaN where it has none"),
    "forces": (("atom", "xyz"), "eV/Å", "reference forces of the input file; NaN where it has none"),
    "stress": (("structure", "xyz", "xyz_2"), "eV/Å³", "reference stress of the input file; NaN where it has none"),
}
_LABELS = ("energy", "forces", "stress")


def _block_variables(
    columns: Mapping[str, _Column], sizes: Sequence[Sizes], irreps: dict[str, xr.Variable]
) -> dict[str, xr.Variable]:
    """The variables of one group; the coordinates of their dimensions are added to ``irreps``."""
    variables: dict[str, xr.Variable] = {}
    taken: dict[str, tuple[int, str]] = {}
    for name, column in columns.items():
        rows = next((row for row in _ROWS if row in column.rows), f"{name}.row")
        parts = _filled(column, rows, sizes)
        values = np.concatenate(parts) if len(parts) > 1 else parts[0]  # one may be large, and is not copied
        dims = (rows, *_trailing_dims(column.first, values.shape[1:], taken))
        taken.update({dim: (size, column.first.irreps) for dim, size in zip(dims[1:], values.shape[1:], strict=True)})
        variables[name] = xr.Variable(dims, values, _attributes(column.first))
        if column.first.components and not column.first.parts:
            attributes = {"units": "1", "long_name": "irrep: order l, and parity e (even) or o (odd)"}
            irreps[dims[-1]] = xr.Variable(dims[-1], list(column.first.components), attributes)
    return variables


def _filled(column: _Column, rows: str, sizes: Sequence[Sizes]) -> list[NDArray[Any]]:
    """The parts of all observations: NaN for those without one, such as a training call that saw no loss."""
    if len(column.parts) == len(sizes) or rows not in _ROWS:
        return list(column.parts.values())
    like = column.first.values
    return [
        column.parts.get(number, np.full((getattr(size, rows), *like.shape[1:]), np.nan, like.dtype))
        for number, size in enumerate(sizes)
    ]


def _trailing_dims(
    captured: BlockArray[NDArray[Any]], shape: Sequence[int], taken: Mapping[str, tuple[int, str]]
) -> tuple[str, ...]:
    """Names for all dimensions but the first: ``<block>.feature``, …; a gradient's say which input they are of.

    Where a name is taken by a dimension of another size or other irreps, the tensor's own name is put in. Errors have
    parts and statistics.
    """
    if captured.parts:
        return f"{captured.name}.part", "statistic"
    axes = {1: ("feature",), 2: ("channel", "component")}.get(len(shape), tuple(f"axis{i}" for i in range(len(shape))))
    prefix = f"{captured.block}.{captured.tensor}" if captured.gradient else captured.block
    names = tuple(f"{prefix}.{axis}" for axis in axes)
    wanted = [(size, captured.irreps) for size in shape]
    if any(taken.get(name, want) != want for name, want in zip(names, wanted, strict=True)):
        names = tuple(f"{captured.block}.{captured.tensor}.{axis}" for axis in axes)
    return names


def _attributes(captured: BlockArray[NDArray[Any]]) -> dict[str, str]:
    """The attributes of a variable, as ``docs/trace-schema.md`` lists them."""
    what = f"gradient with respect to {captured.tensor} of" if captured.gradient else f"{captured.tensor} of"
    what = f"errors of the {what}" if captured.parts else what
    attributes = {
        "units": captured.unit,
        "long_name": f"{what} {captured.block}",
        "block": captured.block,
        "tensor": captured.tensor,
        "direction": "backward" if captured.gradient else "forward",
        "pass": captured.computed_in,
        "native_dtype": captured.native_dtype,
    }
    attributes |= {"irreps": captured.irreps} if captured.irreps else {}
    attributes |= {"parts": " ".join(captured.parts)} if captured.parts else {}
    return attributes | ({"layout": captured.layout} if captured.layout != "mul_ir" else {})
