"""Collects the arrays of a run, structure by structure, and lays them out as a trace."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from precision_probe.precisions import PRECISIONS
from precision_probe.trace import SCHEMA_VERSION, Trace, encoded

__all__ = ["Captured", "Recorder", "Sizes"]

_MODEL_VARIABLES = {
    "energy": ("eV", "total energy", ("structure",)),
    "interaction_energy": ("eV", "total energy less the energies of the isolated atoms", ("structure",)),
    "forces": ("eV/Å", "forces", ("atom", "xyz")),
    "stress": ("eV/Å³", "stress; NaN for structures that are not periodic", ("structure", "xyz", "xyz_2")),
    "seconds": ("s", "wall-clock time of one unhooked energy and force evaluation, after warm-up", ("structure",)),
}


@dataclass(frozen=True)
class Captured:
    """One array of one block.

    Attributes:
        block: The block's name.
        tensor: The name of the output, or of the input whose gradient this is.
        values: NumPy array, half precisions widened to float32; first dimension atoms, edges or structures.
        native_dtype: The dtype that computed it.
        gradient: Whether it is the gradient with respect to an input.
        rows: What the first dimension counts, where known.
        components: The irrep of each entry of the last dimension, such as ``"1o"``, where known.
        irreps: All of them, as e3nn writes them.
        unit: Unit of the values.
    """

    block: str
    tensor: str
    values: NDArray[Any]
    native_dtype: str
    gradient: bool = False
    rows: str = ""
    components: tuple[str, ...] = ()
    irreps: str = ""
    unit: str = "1"

    @property
    def name(self) -> str:
        """The variable's name in the trace."""
        return f"{self.block}.{self.tensor}" + (".grad" if self.gradient else "")


@dataclass(frozen=True)
class Sizes:
    """How many of each first dimension one graph has."""

    structure: int
    atom: int
    edge: int

    def fitting(self, captured: Captured) -> set[str]:
        """What the first dimension of an array may count: what it says, else what has as many."""
        n_rows = len(captured.values)
        if captured.rows:
            return {captured.rows}
        return {name for name in ("structure", "atom", "edge") if getattr(self, name) == n_rows}


@dataclass
class _Column:
    """One variable while it grows."""

    first: Captured
    parts: list[NDArray[Any]] = field(default_factory=list)
    rows: set[str] = field(default_factory=lambda: {"structure", "atom", "edge"})


class Recorder:
    """Grows by one graph at a time; :meth:`trace` lays out what is complete so far."""

    def __init__(self) -> None:
        self._structures: dict[str, list[NDArray[Any]]] = {}
        self._columns: dict[str, dict[str, _Column]] = {}
        self._model: dict[str, dict[str, list[NDArray[Any]]]] = {}
        self.n_structures = 0

    def add(
        self,
        structures: Mapping[str, NDArray[Any]],
        sizes: Sizes,
        predictions: Mapping[str, Mapping[str, NDArray[Any]]],
        blocks: Mapping[str, Sequence[Captured]],
    ) -> None:
        """Add what every variant gave for one graph: all of it, or, if this raises, nothing.

        Args:
            structures: The variables of ``/structures``.
            sizes: Of this graph.
            predictions: For each precision, the model's energy, forces, ….
            blocks: For each group (``propagated/float32``), what its blocks gave.
        """
        staged = [(group, item, sizes.fitting(item)) for group, captured in blocks.items() for item in captured]
        for name, array in structures.items():
            self._structures.setdefault(name, []).append(array)
        for precision, values in predictions.items():
            variables = self._model.setdefault(f"propagated/{precision}", {})
            for name, array in values.items():
                variables.setdefault(name, []).append(array)
        for group, item, rows in staged:
            column = self._columns.setdefault(group, {}).setdefault(item.name, _Column(item))
            column.parts.append(item.values)
            column.rows &= rows
        self.n_structures += sizes.structure

    def trace(self, attributes: Mapping[str, Any]) -> Trace:
        """Lay out everything as a trace with these root attributes."""
        root = {"schema_version": SCHEMA_VERSION, **{key: encoded(value) for key, value in attributes.items()}}
        irreps: dict[str, xr.Variable] = {}
        groups = {"/structures": self._structures_dataset()}
        for name in dict.fromkeys((*self._model, *self._columns)):
            blocks = _block_variables(self._columns.get(name, {}), irreps)
            groups[f"/{name}"] = xr.Dataset(self._model_variables(name, self._model.get(name, {})) | blocks)
        groups["/"] = xr.Dataset(coords=irreps, attrs=root)  # the groups inherit the coordinates
        return Trace(xr.DataTree.from_dict(groups))

    def _model_variables(self, group: str, values: Mapping[str, list[NDArray[Any]]]) -> dict[str, xr.Variable]:
        made = {}
        native_dtype = PRECISIONS[group.rsplit("/", 1)[1]].dtype
        for name, parts in values.items():
            if name == "stress" and not np.concatenate(self._structures["pbc"]).all(axis=1).any():
                continue
            unit, long_name, dims = _MODEL_VARIABLES[name]
            attributes = {"units": unit, "long_name": long_name}
            if name in ("energy", "interaction_energy", "forces"):  # the others are made in float64
                attributes["native_dtype"] = native_dtype
            made[name] = xr.Variable(dims, np.concatenate(parts), attributes)
        return made

    def _structures_dataset(self) -> xr.Dataset:
        made = {}
        for name, (dims, unit, long_name) in _STRUCTURE_VARIABLES.items():
            values = np.concatenate(self._structures.get(name, [[]]))
            if name in _LABELS and not np.isfinite(values).any():
                continue  # no input file had any
            if self.n_structures:
                made[name] = xr.Variable(dims, values, {"units": unit, "long_name": long_name})
        if "n_atoms" in made:
            owner = np.repeat(np.arange(self.n_structures), made["n_atoms"].values)
            attributes = {"units": "1", "long_name": "index of the structure that each atom belongs to"}
            made["structure_of_atom"] = xr.Variable("atom", owner, attributes)
        return xr.Dataset(made)


_STRUCTURE_VARIABLES = {
    "name": (("structure",), "1", "name of the structure"),
    "n_atoms": (("structure",), "1", "number of atoms"),
    "n_edges": (("structure",), "1", "number of directed edges within the cutoff"),
    "atomic_numbers": (("atom",), "1", "atomic number"),
    "positions": (("atom", "xyz"), "Å", "positions"),
    "cell": (("structure", "cell_vector", "xyz"), "Å", "cell vectors, as mace-torch uses them"),
    "pbc": (("structure", "cell_vector"), "1", "whether periodic along each cell vector"),
    "energy": (("structure",), "eV", "reference energy of the input file; NaN where it has none"),
    "forces": (("atom", "xyz"), "eV/Å", "reference forces of the input file; NaN where it has none"),
    "stress": (("structure", "xyz", "xyz_2"), "eV/Å³", "reference stress of the input file; NaN where it has none"),
}
_LABELS = ("energy", "forces", "stress")


def _block_variables(columns: Mapping[str, _Column], irreps: dict[str, xr.Variable]) -> dict[str, xr.Variable]:
    """The variables of one group; the coordinates of their dimensions are added to ``irreps``."""
    variables: dict[str, xr.Variable] = {}
    taken: dict[str, tuple[int, str]] = {}
    for name, column in columns.items():
        values = np.concatenate(column.parts)
        rows = next((row for row in ("atom", "edge", "structure") if row in column.rows), f"{name}.row")
        dims = (rows, *_trailing_dims(column.first, values.shape[1:], taken))
        taken.update({dim: (size, column.first.irreps) for dim, size in zip(dims[1:], values.shape[1:], strict=True)})
        variables[name] = xr.Variable(dims, values, _attributes(column.first))
        if column.first.components:
            attributes = {"units": "1", "long_name": "irrep: order l, and parity e (even) or o (odd)"}
            irreps[dims[-1]] = xr.Variable(dims[-1], list(column.first.components), attributes)
    return variables


def _trailing_dims(captured: Captured, shape: Sequence[int], taken: Mapping[str, tuple[int, str]]) -> tuple[str, ...]:
    """Names for all dimensions but the first: ``<block>.feature``, …; a gradient's say which input they are of.

    Where a name is taken by a dimension of another size or other irreps, the tensor's own name is put in.
    """
    axes = {1: ("feature",), 2: ("channel", "component")}.get(len(shape), tuple(f"axis{i}" for i in range(len(shape))))
    prefix = f"{captured.block}.{captured.tensor}" if captured.gradient else captured.block
    names = tuple(f"{prefix}.{axis}" for axis in axes)
    wanted = [(size, captured.irreps) for size in shape]
    if any(taken.get(name, want) != want for name, want in zip(names, wanted, strict=True)):
        names = tuple(f"{captured.block}.{captured.tensor}.{axis}" for axis in axes)
    return names


def _attributes(captured: Captured) -> dict[str, str]:
    what = f"gradient with respect to {captured.tensor} of" if captured.gradient else f"{captured.tensor} of"
    attributes = {
        "units": captured.unit,
        "long_name": f"{what} {captured.block}",
        "block": captured.block,
        "tensor": captured.tensor,
        "direction": "backward" if captured.gradient else "forward",
        "native_dtype": captured.native_dtype,
    }
    return attributes | ({"irreps": captured.irreps} if captured.irreps else {})
