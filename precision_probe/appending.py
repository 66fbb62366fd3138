"""A trace on disk that grows: structures are added to the file as they come, so that memory stays bounded.

xarray cannot extend a file along an unlimited dimension, so the file is made by xarray and extended by h5netcdf.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import xarray as xr

from precision_probe.trace import encoding

__all__ = ["append", "set_attributes"]

_CHUNK_BYTES = 2**18


def append(tree: xr.DataTree, path: Path) -> None:
    """Add the structures of one tree to those of a file, which is made if it is not there.

    Args:
        tree: Groups whose variables grow along their first dimension: ``structure``, ``atom``, ``edge``, …. Its root
            attributes replace the file's.
        path: The file.

    A variable that only the tree or only the file has is filled up with NaN.

    Raises:
        ValueError: If a variable's rows do not count what the file says they count; the file is left as it was.
    """
    if not path.exists():
        _create(tree, path)
        return
    with h5netcdf.File(path, "r+") as file:
        grown: list[tuple[Any, str, int]] = []
        try:
            for node in tree.subtree:
                if node.data_vars:
                    _extend(file[node.path], node, grown)
        except BaseException:  # a full disk, an interruption: as it was, so that what is there stays right
            for group, dim, size in grown:
                group.resize_dimension(dim, size)
            raise
    set_attributes(path, tree.attrs)


def set_attributes(path: Path, attributes: Mapping[Any, Any]) -> None:
    """Replace root attributes of a file."""
    with h5netcdf.File(path, "r+") as file:
        for name, value in attributes.items():
            file.attrs[str(name)] = value


def _create(tree: xr.DataTree, path: Path) -> None:
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


def _extend(group: Any, node: xr.DataTree, grown: list[tuple[Any, str, int]]) -> None:
    added = {str(variable.dims[0]): variable.sizes[variable.dims[0]] for variable in node.data_vars.values()}
    before = {dim: group.dimensions[dim].size if dim in group.dimensions else 0 for dim in added}
    for name, variable in node.data_vars.items():
        if name in group.variables and group.variables[name].dimensions[0] != variable.dims[0]:
            raise ValueError(
                f"the rows of {name} count {variable.dims[0]}s now, and counted {group.variables[name].dimensions[0]}s "
                "in the structures before"
            )
    for dim, more in added.items():
        if dim not in group.dimensions:
            group.dimensions[dim] = None
        grown.append((group, dim, before[dim]))
        group.resize_dimension(dim, before[dim] + more)
    for name, variable in node.data_vars.items():
        if name not in group.variables:
            _create_variable(group, str(name), variable)
        group.variables[name][before[str(variable.dims[0])] :] = variable.values


def _create_variable(group: Any, name: str, variable: xr.DataArray) -> None:
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
