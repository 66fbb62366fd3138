"""What an HDF5 file may hold, if it is to be a trace: asked before anything in it is followed or read.

HDF5 opens what a file names (other files, devices, libraries that undo a filter) and believes the sizes that it gives.
So the objects are listed one after another, without recursion, and each is judged by its description alone.
"""

import contextlib
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5o, h5pl, h5t, h5z

from precision_probe.exceptions import InputError, printable
from precision_probe.trace.variables import TEXT_CHECKSUM

__all__ = ["RefusedError", "Stored", "check_heaps", "check_texts", "list_objects", "without_plugins"]

_DEEPEST = 8  # a trace has three levels: mode, precision, variable
_MOST_OBJECTS = 200_000  # a thousand blocks with ten arrays each, in nine groups, are half of it
_MOST_ATTRIBUTES = 256  # of one object; a trace has about 30
_DEFLATE_RATIO = 1032  # the most that deflate can make of one byte: zlib's own bound
_FILTERS = {h5z.FILTER_DEFLATE: "deflate", h5z.FILTER_SHUFFLE: "shuffle", h5z.FILTER_FLETCHER32: "Fletcher-32"}
_TEXTS_AT_ONCE = 256
_HEAP, _LEAST_HEAP = b"GCOL\1\0\0\0", 4096  # how a global heap begins, and its least length in bytes
_NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable"
_LINKS = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "a link to another file"}
_NUMBERS = (
    *(h5t.STD_I8LE, h5t.STD_I16LE, h5t.STD_I32LE, h5t.STD_I64LE),
    *(h5t.STD_U8LE, h5t.STD_U16LE, h5t.STD_U32LE, h5t.STD_U64LE),
    *(h5t.IEEE_F16LE, h5t.IEEE_F32LE, h5t.IEEE_F64LE, h5t.IEEE_F32BE),  # the last is of dimensions without variable
)


class RefusedError(InputError):
    """A file that holds what no trace holds; the message is of the object, and does not name the file."""


class Stored(NamedTuple):
    """A variable as it is in the file.

    Attributes:
        shape: Its own shape, whatever its dimensions say.
        is_text: Whether its elements are strings of any length.
        is_dimension: Whether it stands for a dimension only, and is never read.
        has_checksum: Whether HDF5 verifies its data when they are read.
    """

    shape: tuple[int, ...]
    is_text: bool
    is_dimension: bool
    has_checksum: bool


@contextlib.contextmanager
def without_plugins() -> Iterator[None]:
    """Let HDF5 find no library to undo a filter with while a file is looked at that is not known yet."""
    folders = [h5pl.get(index) for index in range(h5pl.size())]
    for _ in folders:
        h5pl.remove(0)
    try:
        yield
    finally:
        for folder in folders:
            h5pl.append(folder)


def list_objects(file: h5py.File, size: int) -> dict[str, Stored | None]:
    """Every group (None) and variable of a file by its path, once each is known to be harmless.

    Args:
        file: Open for reading.
        size: Of the file, in bytes, which the sizes that it declares are judged by.

    Raises:
        RefusedError: If it holds links other than hard ones, a second link to an object, data kept in other files,
            filters that are not HDF5's own, types that no trace has, or more and larger objects than can be in it.
        OSError, RuntimeError, …: Whatever h5py raises where the file is damaged.
    """
    found: dict[str, Stored | None] = {}
    seen = {h5o.get_info(file.id).addr}
    _check_attributes(file.id, "/", size)
    waiting: list[tuple[h5g.GroupID, str]] = [(h5g.open(file.id, b"/"), "")]
    while waiting:
        group, path = waiting.pop()
        for name in _children(group, path, _MOST_OBJECTS - len(found)):
            child = f"{path}/{name.decode('utf-8', 'surrogateescape')}"
            opened = h5o.open(group, name)
            address = h5o.get_info(opened).addr
            if address in seen:
                raise RefusedError(f"{printable(child)} is a second link to an object")
            seen.add(address)
            if isinstance(opened, h5g.GroupID):
                if child.count("/") > _DEEPEST:
                    raise RefusedError(f"{printable(child)} lies deeper than {_DEEPEST} groups")
                waiting.append((opened, child))
                _check_attributes(opened, child, size)
                found[child] = None
            elif isinstance(opened, h5d.DatasetID):
                found[child] = _variable(opened, child, size)
            else:
                raise RefusedError(f"{printable(child)} is neither a group nor a variable")
    return found


def _children(group: h5g.GroupID, path: str, most: int) -> list[bytes]:
    """The names in a group, none of which leads elsewhere; listing ends where a damaged index would go in circles."""
    names: list[tuple[bytes, int]] = []

    def add(name: bytes, info: h5py.h5l.LinkInfo) -> bool | None:
        names.append((name, info.type))
        return True if len(names) > most else None  # anything but None ends it; nothing must be raised in here

    group.links.iterate(add, info=True)
    if len(names) > most:
        raise RefusedError(f"it has more than {_MOST_OBJECTS} groups and variables")
    for name, kind in names:
        if kind != h5py.h5l.TYPE_HARD:
            shown = printable(f"{path}/{name.decode('utf-8', 'surrogateescape')}")
            raise RefusedError(f"{shown} is {_LINKS.get(kind, 'a link of an unknown kind')}")
    return [name for name, _ in names]


def _variable(dataset: h5d.DatasetID, path: str, size: int) -> Stored:
    """Judge how a variable is stored, first of all: asking a virtual one for its shape opens other files."""
    properties = dataset.get_create_plist()
    layout = properties.get_layout()
    if layout not in (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED) or properties.get_external_count():
        raise RefusedError(f"the data of {printable(path)} are kept in other files")
    filters = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
    if unknown := [code for code in filters if code not in _FILTERS]:
        raise RefusedError(
            f"{printable(path)} has the filter {unknown[0]}; a trace has {', '.join(_FILTERS.values())} only"
        )
    attributes = _check_attributes(dataset, path, size)
    kind = dataset.get_type()
    if not _is_allowed(kind) or dataset.shape is None:
        raise RefusedError(f"{printable(path)} holds neither text nor numbers of 8 to 64 bits")
    is_dimension = b"NAME" in attributes and _is_no_variable(dataset)
    if not is_dimension:
        _check_size(dataset, path, size)
    is_text = isinstance(kind, h5t.TypeStringID) and kind.is_variable_str()
    return Stored(dataset.shape, is_text, is_dimension, h5z.FILTER_FLETCHER32 in filters)


def _is_no_variable(dataset: h5d.DatasetID) -> bool:
    """Whether netCDF keeps a dimension in it, of which only the length counts."""
    name = np.empty((), dtype=h5a.open(dataset, b"NAME").dtype)
    if name.dtype.kind != "S":
        return False
    h5a.open(dataset, b"NAME").read(name)
    return bytes(name[()]).startswith(_NO_VARIABLE)


def _check_size(dataset: h5d.DatasetID, path: str, size: int) -> None:
    """Refuse more data than the file can hold, or less than it says."""
    n_bytes = math.prod(dataset.shape) * dataset.get_type().get_size()
    stored = dataset.get_storage_size()
    if stored > size or n_bytes > _DEFLATE_RATIO * size:
        raise RefusedError(f"{printable(path)} is said to have {n_bytes:,} bytes, in a file of {size:,}")
    properties = dataset.get_create_plist()
    if properties.get_layout() != h5d.CHUNKED:
        is_whole = stored >= n_bytes
    else:
        n_chunks = math.prod(-(-rows // each) for rows, each in zip(dataset.shape, properties.get_chunk(), strict=True))
        is_whole = dataset.get_num_chunks() == n_chunks or _is_nan_where_missing(dataset)
    if not is_whole:
        raise RefusedError(f"a part of the data of {printable(path)} is missing, or all of it")


def _is_nan_where_missing(dataset: h5d.DatasetID) -> bool:
    """Whether what is not stored reads as NaN: so are rows that only some structures have, for the others."""
    if dataset.dtype.kind != "f":
        return False
    fill = np.zeros((), dtype=dataset.dtype)
    dataset.get_create_plist().get_fill_value(fill)
    return bool(np.isnan(fill))


def check_heaps(data: bytes) -> None:
    """See that HDF5 gets to the end of each heap, where texts and references lie: they are all that has no checksum.

    An object in a heap says how long it is, and HDF5 goes on behind it: from one of no length for ever.

    Args:
        data: Of the whole file.

    Raises:
        RefusedError: If it does not.
    """
    heap = data.find(_HEAP)
    while heap >= 0:
        (length,) = struct.unpack_from("<Q", data, heap + 8) if heap + 16 <= len(data) else (0,)
        end = heap + length if _LEAST_HEAP <= length <= len(data) - heap else 0  # else HDF5 finds out itself
        at = heap + 16
        while end - at >= 16:
            index, size = struct.unpack_from("<H6xQ", data, at)
            taken = size if index == 0 else 16 + (size + 7) // 8 * 8  # what is free counts its own head
            if not 16 <= taken <= end - at:
                raise RefusedError(f"the heap at byte {heap} is damaged, where texts and dimensions are named")
            at += taken
        heap = data.find(_HEAP, heap + 1)


def check_texts(file: h5py.File, found: Mapping[str, Stored | None], size: int) -> None:
    """Read all texts piece by piece: each points somewhere, and many may point to the same, of any length.

    Raises:
        RefusedError: If together they are longer than the file.
        OSError, RuntimeError, …: Whatever h5py raises where the file is damaged.
    """
    length = 0
    for path, stored in found.items():
        if stored is None or not stored.is_text:
            continue
        values = h5py.Dataset(h5o.open(file.id, path.encode("utf-8", "surrogateescape")))
        expected = values.attrs.get(TEXT_CHECKSUM)
        checksum = 0
        for first in range(0, len(values) if stored.shape else 1, _TEXTS_AT_ONCE):
            piece = np.atleast_1d(values[first : first + _TEXTS_AT_ONCE] if stored.shape else values[()]).ravel()
            checksum = zlib.crc32(b"".join(each + b"\0" for each in piece), checksum)  # as it was written: in UTF-8
            length += sum(map(len, piece))
            if length > size:
                raise RefusedError(f"the texts up to {printable(path)} are longer than the file")
        if expected is not None and not np.array_equal(np.ravel(expected), [checksum]):
            raise RefusedError(f"the text of {printable(path)} is damaged: its checksum is another")


def _check_attributes(located: h5d.DatasetID | h5g.GroupID, path: str, size: int) -> set[bytes]:
    """The names of an object's attributes, none of which is larger than the file or of a type that no trace has."""
    names: list[bytes] = []

    def add(name: bytes, *_: object) -> bool | None:
        names.append(name)
        return True if len(names) > _MOST_ATTRIBUTES else None

    h5a.iterate(located, add)
    if len(names) > _MOST_ATTRIBUTES:
        raise RefusedError(f"{printable(path)} has more than {_MOST_ATTRIBUTES} attributes")
    for name in names:
        attribute = h5a.open(located, name)
        kind = attribute.get_type()
        shape = attribute.shape  # none of an attribute without value
        if shape is None or math.prod(shape) * kind.get_size() > size or not _is_allowed(kind, name):
            what = printable(f"the attribute {name.decode('utf-8', 'surrogateescape')} of {path}")
            raise RefusedError(f"{what} is neither text nor numbers that the file can hold")
    return set(names)


def _is_allowed(kind: h5t.TypeID, attribute: bytes = b"") -> bool:
    """Whether a trace may hold values of a type: text, numbers, and netCDF's own attributes of dimensions."""
    if isinstance(kind, h5t.TypeStringID) or attribute in (b"DIMENSION_LIST", b"REFERENCE_LIST"):
        return True
    return any(kind.equal(number) for number in _NUMBERS)
