"""A trace on disk that grows: structures are added to the file as they come, so that memory stays bounded.

xarray cannot extend a file along an unlimited dimension, so the file is made by xarray and extended by h5netcdf.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import h5netcdf
import numpy as np
import xarray as xr

from precision_probe.trace.tables import StoredTable, to_dataset
from precision_probe.trace.trace import TABLES, encoding

__all__ = ["add_tables", "append", "set_attributes"]

# Measured on a variable of 75 MB: it is read whole as fast as with chunks four times as large (those a quarter as
# large take a sixth longer), and one structure of 32 atoms is read in half their time.
_CHUNK_BYTES = 2**18
_ROWS = ("structure", "atom", "edge")


class _Grown(NamedTuple):
    """A dimension of a group that was made longer, and how long it was before."""

    group: h5netcdf.Group
    dim: str
    size: int


def append(tree: xr.DataTree, path: Path) -> None:
    """Add the structures of one tree to those of a file, which is made if it is not there.

    Args:
        tree: Groups whose variables grow along their first dimension: ``structure``, ``atom``, ``edge``, …. Its root
            attributes replace the file's.
        path: The file.

    A variable that only the tree or only the file has is filled up with NaN. The file is not locked: someone who reads
    it meanwhile must not stop a run.

    Raises:
        ValueError: If a variable's rows do not count what the file says they count.

    If this raises, the file has the rows that it had; a variable that was new to it may stay, with NaN in all of them.
    """
    if not path.exists():
        _create(tree, path)
        return
    with h5netcdf.File(path, "r+", locking=False) as file:
        rows = _rows(file, tree)
        nodes = {node.path: node for node in tree.subtree if node.data_vars}
        grown: list[_Grown] = []
        try:
            for name in dict.fromkeys((*nodes, *_groups_with(file, rows))):
                _extend(_group(file, name), nodes.get(name), rows, grown)
        except BaseException:  # a full disk, an interruption: as it was, so that what is there stays right
            for before in grown:
                before.group.resize_dimension(before.dim, before.size)
            raise
    set_attributes(path, {str(name): value for name, value in tree.attrs.items()})


def _rows(file: h5netcdf.File, tree: xr.DataTree) -> dict[str, tuple[int, int]]:
    """How many structures, atoms and edges the file has, and how many more the tree: the same in every group."""
    if "structures" not in file.groups or "structures" not in tree:
        return {}
    before, more = file["structures"].dimensions, tree["structures"].sizes
    return {name: (before[name].size, more.get(name, 0)) for name in _ROWS if name in before}


def _groups_with(group: h5netcdf.Group, rows: Mapping[str, tuple[int, int]], path: str = "") -> Iterator[str]:
    """The paths of all groups below one that have rows: they grow even where a tree adds nothing to them."""
    for name, child in group.groups.items():
        if any(dim in child.dimensions for dim in rows):
            yield f"{path}/{name}"
        yield from _groups_with(child, rows, f"{path}/{name}")


def _group(file: h5netcdf.File, path: str) -> h5netcdf.Group:
    """The group at a path, made with those above it where it is not there."""
    group = file
    for name in path.strip("/").split("/"):
        group = group.groups[name] if name in group.groups else group.create_group(name)
    return group


def add_tables(tables: Mapping[str, StoredTable], path: Path) -> None:
    """Put tables into a file, beside what it holds."""
    for name, table in tables.items():
        to_dataset(name, table).to_netcdf(path, mode="a", group=f"{TABLES}/{name}", engine="h5netcdf")


def set_attributes(path: Path, attributes: Mapping[str, object]) -> None:
    """Replace root attributes of a file."""
    with h5netcdf.File(path, "r+", locking=False) as file:
        for name, value in attributes.items():
            file.attrs[name] = value


def _create(tree: xr.DataTree, path: Path) -> None:
    """Make the file beside its place and move it there, so that it is never there half made."""
    growing = {node.path: {str(v.dims[0]) for v in node.data_vars.values()} for node in tree.subtree if node.data_vars}
    chunked = {
        node.path: {
            str(name): {"chunksizes": _chunks(variable), **encoding(tree).get(node.path, {}).get(str(name), {})}
            for name, variable in node.data_vars.items()
        }
        for node in tree.subtree
    }
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        made = Path(folder) / path.name
        tree.to_netcdf(made, engine="h5netcdf", encoding=chunked, unlimited_dims=growing)
        made.replace(path)


def _extend(
    group: h5netcdf.Group,
    node: xr.DataTree | None,
    rows: Mapping[str, tuple[int, int]],
    grown: list[_Grown],
) -> None:
    """Make room in a group for what a node adds, or, where there is none, for as many rows of NaN.

    Args:
        group: The group of the file.
        node: The variables to add.
        rows: How many structures, atoms and edges the file has, and how many more come.
        grown: Each dimension is put here before it is made longer, so that this can be undone.

    Raises:
        ValueError: If a variable's rows do not count what they counted before.
    """
    variables = {} if node is None else {str(name): variable for name, variable in node.data_vars.items()}
    added = {dim: more for dim, (_, more) in rows.items() if dim in group.dimensions}
    added |= {str(variable.dims[0]): variable.shape[0] for variable in variables.values()}
    for name, variable in variables.items():
        before = group.variables[name].dimensions[0] if name in group.variables else variable.dims[0]
        if before != variable.dims[0]:
            raise ValueError(f"the rows of {name} count {variable.dims[0]}s now, and counted {before}s before")
    first = {dim: group.dimensions[dim].size if dim in group.dimensions else rows.get(dim, (0, 0))[0] for dim in added}
    for dim, more in added.items():
        if dim not in group.dimensions:
            group.dimensions[dim] = None  # without a limit
        grown.append(_Grown(group, dim, first[dim]))
        group.resize_dimension(dim, first[dim] + more)
    for name, variable in variables.items():
        if name not in group.variables:
            _create_variable(group, name, variable)
        group.variables[name][first[str(variable.dims[0])] :] = variable.values


def _create_variable(group: h5netcdf.Group, name: str, variable: xr.DataArray) -> None:
    """Make a variable whose rows, those of earlier structures too, are NaN until they are written."""
    for dim, size in zip(variable.dims[1:], variable.shape[1:], strict=True):
        if dim not in group.dimensions:
            group.dimensions[str(dim)] = size
    made = group.create_variable(name, variable.dims, dtype=variable.dtype, fillvalue=np.nan, chunks=_chunks(variable))
    for key, value in variable.attrs.items():
        made.attrs[key] = value


def _chunks(variable: xr.DataArray) -> tuple[int, ...]:
    """As many rows as there are now, within what is quick to read."""
    row_bytes = max(1, variable.dtype.itemsize * int(np.prod(variable.shape[1:], dtype=int)))
    rows = max(1, min(variable.shape[0], _CHUNK_BYTES // row_bytes))
    return (rows, *(max(1, size) for size in variable.shape[1:]))
