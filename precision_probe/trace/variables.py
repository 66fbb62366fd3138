"""Variables of a trace → variables of an HDF5 file: encoded as netCDF has them, in chunks that have checksums."""

import zlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import h5netcdf
import h5py
import numpy as np
import xarray as xr
from h5netcdf.dimensions import Dimension
from numpy.typing import NDArray

from precision_probe.trace.recording.chunks import write_whole_chunks
from precision_probe.trace.transaction import transaction_of

__all__ = [
    "TEXT_CHECKSUM",
    "SizedOnce",
    "all_groups",
    "create",
    "encoded_dataset",
    "group_at",
    "has_dimension",
    "pop_text_checksums",
    "storable",
    "text_crc32",
    "write_dataset",
    "write_rows",
    "write_tree",
]

# Measured on a variable of 75 MB: it is read whole as fast as with chunks four times as large (those a quarter as
# large take a sixth longer), and one structure of 32 atoms is read in half their time. Where much comes at once, of a
# large structure, it is read at once, too: then chunks are larger, as far as the cache holds them that every HDF5 has.
_CHUNK_BYTES, _LARGE_CHUNK_BYTES = 2**18, 2**20
_CHUNKS_AT_ONCE = 32  # that what comes at once is divided into, before chunks grow: a choice
TEXT_CHECKSUM = "text_crc32"  # an attribute


class SizedOnce(Dimension):  # type: ignore[misc]
    """A dimension whose size is found once, as long as nobody but itself changes that.

    h5netcdf finds the size of an unlimited dimension by looking at every variable that has it, and asks for it wherever
    a variable is made; xarray asks ten times for each that it reads. With as many variables as blocks give that is most
    of the time of opening a trace, and a third of that of making them.
    """

    @classmethod
    def of_group(cls, group: h5netcdf.Group) -> None:
        """Have all dimensions of a group be such."""
        for dimension in group.dimensions.values():
            dimension.__class__ = cls

    @cached_property
    def size(self) -> int:
        """How many entries it has."""
        return int(super().size)

    @cached_property
    def _maxsize(self) -> int | None:
        return None if self.isunlimited() else self.size

    def _resize(self, size: int) -> None:
        super()._resize(size)
        self.__dict__["size"] = size


def write_tree(file: h5netcdf.File, tree: xr.DataTree) -> None:
    """Put a whole tree into an empty file."""
    for node in tree.subtree:
        write_dataset(group_at(file, node.path), node.to_dataset(inherit=False))


def write_dataset(group: h5netcdf.Group, dataset: xr.Dataset) -> None:
    """Put a dataset into a group that has no variables yet."""
    dataset = encoded_dataset(dataset)
    for dim, size in dataset.sizes.items():
        if not has_dimension(group, str(dim)):
            group.dimensions[str(dim)] = size
    for name, variable in dataset.variables.items():
        write_rows(create(group, str(name), variable), variable, 0)
    for key, value in dataset.attrs.items():
        group.attrs[str(key)] = storable(value)


def encoded_dataset(dataset: xr.Dataset) -> xr.Dataset:
    """The same with what netCDF lacks put in its terms, by xarray: truth values, fill values, coordinates."""
    variables, attributes = xr.conventions.encode_dataset_coordinates(dataset)
    variables, attributes = xr.conventions.cf_encoder(variables, attributes)
    return xr.Dataset({name: _with_text(each) for name, each in variables.items()}, attrs=dict(attributes))


def group_at(file: h5netcdf.File, path: str) -> h5netcdf.Group:
    """The group at a path, made with those above it where it is not there."""
    group = file
    for name in path.strip("/").split("/") if path.strip("/") else ():
        group = group.groups[name] if name in group.groups else group.create_group(name)
    return group


def all_groups(group: h5netcdf.Group) -> Iterator[h5netcdf.Group]:
    """A group and all below it."""
    yield group
    for child in group.groups.values():
        yield from all_groups(child)


def has_dimension(group: h5netcdf.Group, dim: str) -> bool:
    """Whether a group, or one that it is in, has a dimension."""
    while dim not in group.dimensions:
        if group.name == "/":
            return False
        group = group.parent
    return True


def create(group: h5netcdf.Group, name: str, variable: xr.Variable) -> h5netcdf.Variable:
    """Make an encoded variable, whose rows have its fill value until they are written.

    Its chunks have Fletcher-32 checksums, so that HDF5 itself refuses those that were damaged. Text has none, as HDF5
    keeps it elsewhere: its checksum is in an attribute.
    """
    attributes = dict(variable.attrs)
    fill = attributes.pop("_FillValue", None)
    is_text = variable.dtype.kind in "OU"
    created = group.create_variable(
        name,
        tuple(map(str, variable.dims)),
        dtype=h5py.string_dtype() if is_text else variable.dtype,
        fillvalue=fill,
        chunks=_chunks(variable) if variable.dims else None,
        **({"fletcher32": True, **_compression(variable)} if variable.dims and not is_text else {}),
    )
    stored = created.attrs  # which h5netcdf looks up in the file whenever it is asked for it
    for key, value in attributes.items():
        stored[str(key)] = storable(value)
    return created


def write_rows(stored: h5netcdf.Variable, variable: xr.Variable, first: int) -> None:
    """Write what a variable has into one of a file, from a row on, which is where that ended."""
    if variable.size and not variable.dims:
        stored[...] = variable.values
    elif variable.size:
        values, dataset = variable.values, stored._h5ds
        writer = transaction_of(dataset)
        done = slice(0, 0) if writer is None else write_whole_chunks(dataset, values, first, writer)
        for rows in (slice(0, done.start), slice(done.stop, len(values))):
            if rows.start < rows.stop:
                dataset[first + rows.start : first + rows.stop] = values[rows]
    if variable.dtype.kind in "OU":
        before = int(stored.attrs[TEXT_CHECKSUM]) if TEXT_CHECKSUM in stored.attrs else 0
        stored.attrs[TEXT_CHECKSUM] = np.uint32(text_crc32(variable.values, before))


def text_crc32(values: NDArray[Any], before: int = 0) -> int:
    """The checksum of text: CRC-32 of each string in UTF-8 with a zero byte behind it.

    Args:
        values: The text.
        before: The checksum of what stands before it.
    """
    return zlib.crc32(b"".join(str(value).encode() + b"\0" for value in values.ravel()), before)


def pop_text_checksums(tree: xr.DataTree) -> dict[str, int]:
    """Take the checksums of text out of what was read from a file: of each path such as ``/structures/name``."""
    found = {}
    for node in tree.subtree:
        for name, variable in node.to_dataset(inherit=False).variables.items():
            if TEXT_CHECKSUM in variable.attrs:
                found[f"{node.path.rstrip('/')}/{name}"] = int(node[str(name)].attrs.pop(TEXT_CHECKSUM))
    return found


def _compression(variable: xr.Variable) -> Mapping[str, Any]:
    """Compress what was widened from a half precision (2.5 times smaller); other floats do not compress."""
    # Shuffled, bytes of one significance lie together, and of widened numbers the lowest are all zero.
    is_half = variable.attrs.get("native_dtype") in ("float16", "bfloat16") and variable.size
    return {"compression": "gzip", "compression_opts": 1, "shuffle": True} if is_half else {}


def _chunks(variable: xr.Variable) -> tuple[int, ...]:
    """As many rows as there are now, within what is quick to read."""
    row_bytes = max(1, variable.dtype.itemsize * int(np.prod(variable.shape[1:], dtype=int)))
    chunk_bytes = min(max(_CHUNK_BYTES, variable.nbytes // _CHUNKS_AT_ONCE), _LARGE_CHUNK_BYTES)
    rows = max(1, min(variable.shape[0], chunk_bytes // row_bytes))
    return (rows, *(max(1, size) for size in variable.shape[1:]))


def _with_text(variable: xr.Variable) -> xr.Variable:
    """The same with any text such that HDF5 can hold it."""
    if variable.dtype.kind not in "OU":
        return variable
    values = np.array([storable(value) for value in variable.values.ravel()], dtype=object)
    return xr.Variable(variable.dims, values.reshape(variable.shape), variable.attrs)


def storable(value: Any) -> Any:
    r"""Text with what HDF5 cannot hold escaped as Python escapes it, NUL as ``\x00``; anything else as it is.

    Example:
        >>> print(storable("a\0b\ud800"))
        a\x00b\ud800
    """
    if not isinstance(value, str):
        return value
    return value.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
