"""A trace on disk that grows: structures are added to the file as they come, so that memory stays bounded.

xarray cannot extend a file along an unlimited dimension, so this is done by h5netcdf. Each function here changes the
file as a whole or, if it raises, not at all.
"""

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path

import h5netcdf
import h5py
import numpy as np
import xarray as xr

from precision_probe.trace.recording.chunks import begin_to_check_chunks
from precision_probe.trace.recording.threads import Threads
from precision_probe.trace.schema import COUNTED, TABLES
from precision_probe.trace.tables import StoredTable, to_dataset
from precision_probe.trace.transaction import changing, changing_hdf5, making
from precision_probe.trace.variables import (
    TEXT_CHECKSUM,
    SizedOnce,
    create,
    encoded_dataset,
    group_at,
    has_dimension,
    storable,
    text_crc32,
    write_dataset,
    write_rows,
)

__all__ = ["append", "append_to", "check_counts", "finish", "remove_tables"]


def append(tree: xr.DataTree, path: Path, *, new: bool = False) -> None:
    """Add the structures of one tree to those of a file.

    Args:
        tree: Groups whose variables grow along their first dimension: ``structure``, ``atom``, ``edge``, …. Its root
            attributes replace the file's.
        path: The file.
        new: Make it, in place of what may be there.

    A variable that only the tree or only the file has is filled up with NaN. The file is not locked: someone who reads
    it meanwhile must not stop a run.

    Raises:
        OSError: If the file cannot be read or written.
        ValueError: If a variable's rows do not count what the file says they count.
    """
    if not new:
        with changing(path) as file:
            append_to(file, tree)
        return
    made = path.with_name(f"{path.name}.new")  # so that the file is never there half made
    try:
        with making(made) as file:
            append_to(file, tree)
        made.replace(path)
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone, which is no reason to hide what went wrong
            made.unlink(missing_ok=True)


def append_to(file: h5netcdf.File, tree: xr.DataTree) -> None:
    """Add the structures of one tree to those of an open file, which may be empty."""
    rows = _rows(file, tree)
    nodes = {node.path: node.to_dataset(inherit=False) for node in tree.subtree if node.data_vars}
    _add_coordinates(file, tree)
    for name in dict.fromkeys((*nodes, *_groups_with(file, rows))):
        _extend(group_at(file, name), nodes.get(name, xr.Dataset()), rows)
    for key, value in tree.attrs.items():
        file.attrs[str(key)] = storable(value)


def _rows(file: h5netcdf.File, tree: xr.DataTree) -> dict[str, tuple[int, int]]:
    """How many rows of each kind the file has, and how many more the tree: the same in every group."""
    if "structures" not in file.groups or "structures" not in tree:
        return {}
    before, more = file["structures"].dimensions, tree["structures"].sizes
    return {name: (before[name].size, more.get(name, 0)) for name in COUNTED if name in before}


def _groups_with(group: h5netcdf.Group, rows: Mapping[str, tuple[int, int]], path: str = "") -> Iterator[str]:
    """The paths of all groups below one that have rows: they grow even where a tree adds nothing to them."""
    for name, child in group.groups.items():
        if any(dim in child.dimensions for dim in rows):
            yield f"{path}/{name}"
        yield from _groups_with(child, rows, f"{path}/{name}")


def _add_coordinates(file: h5netcdf.File, tree: xr.DataTree) -> None:
    """Put the coordinates of the root, which all groups share, into the file, but for those that it has."""
    dataset = encoded_dataset(tree.to_dataset(inherit=False).drop_attrs(deep=False))
    for name, variable in dataset.variables.items():
        if name not in file.dimensions:
            file.dimensions[str(name)] = variable.size
            write_rows(create(file, str(name), variable), variable, 0)
    SizedOnce.of_group(file)


def _extend(group: h5netcdf.Group, dataset: xr.Dataset, rows: Mapping[str, tuple[int, int]]) -> None:
    """Make room in a group for more variables, or, where there are none, for as many rows of NaN, and write them.

    Args:
        group: The group of the file.
        dataset: The variables to add.
        rows: How many structures, atoms, edges and species the file has, and how many more come.

    Raises:
        ValueError: If a variable's rows do not count what they counted before.
    """
    variables = {str(name): variable for name, variable in encoded_dataset(dataset).variables.items()}
    added = {dim: more for dim, (_, more) in rows.items() if dim in group.dimensions}
    added |= {str(variable.dims[0]): variable.shape[0] for variable in variables.values()}
    for name, variable in variables.items():
        before = group.variables[name].dimensions[0] if name in group.variables else variable.dims[0]
        if before != variable.dims[0]:
            raise ValueError(f"the rows of {name} count {variable.dims[0]}s now, and counted {before}s before")
    first = {dim: group.dimensions[dim].size if dim in group.dimensions else rows.get(dim, (0, 0))[0] for dim in added}
    for dim in added:
        if dim not in group.dimensions:
            group.dimensions[dim] = None  # without a limit
    SizedOnce.of_group(group)
    for dim, more in added.items():
        group.resize_dimension(dim, first[dim] + more)
    for label, variable in variables.items():
        for other, size in zip(variable.dims[1:], variable.shape[1:], strict=True):
            if not has_dimension(group, str(other)):
                group.dimensions[str(other)] = size
        stored = group.variables[label] if label in group.variables else create(group, label, variable)
        write_rows(stored, variable, first[str(variable.dims[0])])


def finish(
    path: Path, tables: Mapping[str, StoredTable], attributes: Mapping[str, object], *, is_last: bool = True
) -> None:
    """Put tables into a file, beside what it holds, and replace root attributes.

    Args:
        path: The file.
        tables: The tables.
        attributes: The attributes.
        is_last: Whether nothing more is to come: then it gets the line at its end that says what it is.

    Raises:
        OSError: If the file cannot be read or written.
    """
    with changing(path, is_last=is_last) as file:
        for name, table in tables.items():
            write_dataset(group_at(file, f"{TABLES}/{name}"), to_dataset(name, table))
        for key, value in attributes.items():
            file.attrs[key] = storable(value)


def remove_tables(path: Path) -> None:
    """Remove the tables of a file that was all but finished, as it is to grow further."""
    with changing_hdf5(path) as file:
        if TABLES in file:
            del file[TABLES]


def check_counts(path: Path, n_structures: int) -> None:
    """Read a file as it is on the disk, and check that all that was recorded is in it.

    Args:
        path: The file.
        n_structures: How many structures were.

    Raises:
        OSError: If it cannot be read, or a checksum is not that of what it is of.
        ValueError: If a variable has not one row for each structure, atom, edge or species.
    """
    with path.open("rb") as opened, h5py.File(opened, "r") as file, Threads() as threads:
        structures = file["structures"]
        expected = {"structure": n_structures}
        expected |= {
            dim: int(np.sum(structures[count]))
            for dim, count in (("atom", "n_atoms"), ("edge", "n_edges"), ("species", "n_species"))
            if count in structures
        }
        arrays: list[h5py.Dataset] = []
        file.visititems(lambda _, item: arrays.append(item) if isinstance(item, h5py.Dataset) and item.shape else None)
        begun: list[Future[None]] = []
        for array in arrays:
            _check_rows(array, expected)
            if TEXT_CHECKSUM in array.attrs:
                _check_text(array)
            elif array.fletcher32:
                begun += begin_to_check_chunks(array, opened.fileno(), threads)
        for each in begun:
            each.result()


def _check_rows(array: h5py.Dataset, expected: Mapping[str, int]) -> None:
    """Check the number of rows."""
    # h5netcdf would show a variable that is shorter than its dimension as long as that
    rows = str(array.dims[0][0].name).rpartition("/")[2] if len(array.dims[0]) else ""
    if len(array) != expected.get(rows, len(array)):
        raise ValueError(f"{array.name} has {len(array)} rows, and there are {expected[rows]} {rows}s")


def _check_text(array: h5py.Dataset) -> None:
    """Check text against its checksum."""
    if text_crc32(array.asstr()[()]) != int(np.ravel(array.attrs[TEXT_CHECKSUM])[0]):
        raise OSError(f"{array.name} holds another text than was written")
