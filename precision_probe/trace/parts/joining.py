"""The parts of a trace → one trace, whose arrays are read from their files when they are used."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from precision_probe.exceptions import InputError
from precision_probe.trace.recording.resumed import OF_RUN
from precision_probe.trace.schema import COUNTED, TABLES
from precision_probe.trace.trace import Trace, encoded

if TYPE_CHECKING:
    from xarray.core.indexing import ExplicitIndexer

__all__ = ["joined"]

_OWNER = "structure_of_atom"  # counts structures, which in each part begin anew


def joined(parts: Mapping[int, Trace], name: str) -> xr.DataTree:
    """The tree of one trace of several parts, which must stay open as long as it is used.

    Args:
        parts: By their numbers, in order.
        name: What they are called together, for messages.

    Raises:
        InputError: If they are not of one run.
    """
    attributes = _attributes(parts, name)
    sizes = [_sizes(trace) for trace in parts.values()]
    groups = [{node.path: node.to_dataset(inherit=False) for node in trace.tree.subtree} for trace in parts.values()]
    paths = dict.fromkeys(path for of_part in groups for path in of_part)
    tree = xr.DataTree.from_dict(
        {path: _group(path, [of_part.get(path, xr.Dataset()) for of_part in groups], sizes) for path in paths}
    )
    tree.attrs = {key: encoded(value) for key, value in attributes.items()}
    return tree


def _attributes(parts: Mapping[int, Trace], name: str) -> dict[str, Any]:
    """What is true of the run as a whole: complete if each part is, and none is missing.

    Raises:
        InputError: If what must be the same in all parts is not, or a part does not say which it is.
    """
    all_attributes = [trace.attributes for trace in parts.values()]
    first = all_attributes[0]
    for number, attributes in zip(parts, all_attributes, strict=True):
        if attributes.get("part") != number:
            raise InputError(f"{name} has a part {number} whose file says that it is part {attributes.get('part')}.")
        for key in ("n_parts", *OF_RUN):
            if attributes.get(key) != first.get(key):
                raise InputError(
                    f"{name} has parts of different runs: {key} of part {number} is {attributes.get(key)}, and of part "
                    f"{next(iter(parts))} it is {first.get(key)}. Make the trace anew."
                )
    devices = dict.fromkeys(attributes.get("device") for attributes in all_attributes)
    is_whole = list(parts) == list(range(first["n_parts"])) and _follow(parts)
    return {
        **{key: value for key, value in first.items() if key not in ("part", "first_structure")},
        "created": min(attributes["created"] for attributes in all_attributes),
        "device": ", ".join(map(str, devices)),
        "failures": [each for attributes in all_attributes for each in attributes.get("failures", [])],
        "complete": is_whole and all(attributes.get("complete") for attributes in all_attributes),
    }


def _follow(parts: Mapping[int, Trace]) -> bool:
    """Whether each part begins where the one before it ends."""
    counts = [int(trace.structures.sizes.get("structure", 0)) for trace in parts.values()]
    begins = [trace.attributes.get("first_structure") for trace in parts.values()]
    return begins == [0, *itertools.accumulate(counts[:-1])]


def _sizes(trace: Trace) -> dict[str, int]:
    """How many structures, atoms, edges and species a part has."""
    return {dim: int(size) for dim, size in trace.structures.sizes.items() if dim in COUNTED}


def _group(path: str, datasets: Sequence[xr.Dataset], sizes: Sequence[Mapping[str, int]]) -> xr.Dataset:
    """One group of all parts, row after row; tables and names of irreps are those of the first that has them."""
    attributes = next((dataset.attrs for dataset in datasets if dataset.attrs), {})
    names = dict.fromkeys(str(name) for dataset in datasets for name in dataset.variables)
    variables: dict[str, xr.Variable] = {}
    for name in names:
        parts = [dataset.variables.get(name) for dataset in datasets]
        if path == "/" or path.startswith(f"/{TABLES}"):
            variables[name] = next(part for part in parts if part is not None)
        else:
            variables[name] = _variable(f"{path}/{name}", parts, sizes)
    return xr.Dataset(variables, attrs=attributes)


def _variable(path: str, parts: Sequence[xr.Variable | None], sizes: Sequence[Mapping[str, int]]) -> xr.Variable:
    """One variable of all parts; of those that lack it, NaN.

    Raises:
        InputError: If its rows differ.
    """
    like = next(part for part in parts if part is not None)
    for part in parts:
        if part is not None and (part.dims, part.shape[1:]) != (like.dims, like.shape[1:]):
            raise InputError(
                f"{path} has rows of the shape {part.shape[1:]} along {part.dims} in one part, and {like.shape[1:]} "
                f"along {like.dims} in another. Make the trace anew, with all structures in one file."
            )
    n_rows = [
        len(part) if part is not None else size.get(str(like.dims[0]), 0)
        for part, size in zip(parts, sizes, strict=True)
    ]
    before = itertools.accumulate((size.get("structure", 0) for size in sizes[:-1]), initial=0)
    array = _Rows(parts, n_rows, list(before) if path.endswith(f"/{_OWNER}") else [0] * len(parts), like)
    lazy: Any = indexing.LazilyIndexedArray(array)
    return xr.Variable(like.dims, lazy, like.attrs, fastpath=True)


class _Rows(BackendArray):
    """Rows of several arrays one after another.

    Args:
        parts: The arrays; ``None`` for rows of NaN.
        n_rows: Of each.
        shifts: What is added to the numbers of each.
        like: One of them.
    """

    def __init__(
        self, parts: Sequence[xr.Variable | None], n_rows: Sequence[int], shifts: Sequence[int], like: xr.Variable
    ) -> None:
        self._parts, self._n_rows, self._shifts = parts, n_rows, shifts
        self.shape = (sum(n_rows), *like.shape[1:])
        self.dtype = like.dtype
        for part in parts:
            if part is not None and part.dtype != self.dtype and part.size:
                self.dtype = np.result_type(self.dtype, part.dtype)

    def __getitem__(self, key: "ExplicitIndexer") -> NDArray[Any]:
        """The values that an indexer of xarray's asks for."""
        return np.asarray(
            indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._values)
        )

    def _values(self, key: tuple[int | slice, ...]) -> NDArray[Any]:
        """What a number or a slice of rows, and numbers or slices of what is in them, ask for."""
        rows, inner = key[0], key[1:]
        if not isinstance(rows, slice):
            (row,) = next(self._pieces(slice(int(rows), int(rows) + 1), inner))
            return np.asarray(row)
        pieces = list(self._pieces(rows, inner))
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else self._without(0, inner)

    def _pieces(self, rows: slice, inner: tuple[int | slice, ...]) -> Iterator[NDArray[Any]]:
        """What each part that has any has of some rows, whose step is positive."""
        start, stop, step = rows.indices(self.shape[0])
        first = 0
        for part, n_rows, shift in zip(self._parts, self._n_rows, self._shifts, strict=True):
            begin = start if start >= first else start - (start - first) // step * step  # the first that is wanted
            end = min(stop, first + n_rows)
            if begin < end:
                local = slice(begin - first, end - first, step)
                if part is None:
                    yield self._without(len(range(begin, end, step)), inner)
                else:
                    values = np.asarray(part[(local, *inner)].values)
                    yield values + shift if shift else values
            first += n_rows

    def _without(self, n_rows: int, inner: tuple[int | slice, ...]) -> NDArray[Any]:
        """So many rows that nobody has."""
        like = np.empty((n_rows, *self.shape[1:]), np.bool_)[(slice(None), *inner)]
        return np.full(like.shape, np.nan, self.dtype) if n_rows else np.empty(like.shape, self.dtype)
