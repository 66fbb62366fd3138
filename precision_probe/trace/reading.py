"""A trace as it is read from a file: looked at before anything in it is followed, and read when it is used.

Whatever is wrong with a file, when it is opened or later, is an ``InputError`` that says what, and where.
"""

import atexit
import contextlib
import io
import math
import os
import stat
import warnings
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5netcdf
import h5py
import numpy as np
import xarray as xr
from h5py import h5a
from numpy.typing import NDArray
from xarray.backends import BackendArray

from precision_probe.exceptions import InputError, first_line, printable
from precision_probe.files import unfinished
from precision_probe.precisions import parse_precision
from precision_probe.trace.digest import check_trailer, has_trailer
from precision_probe.trace.hdf5_check import RefusedError, check_heaps, check_texts, list_objects, without_plugins
from precision_probe.trace.journal import pending_changes, read_at
from precision_probe.trace.parts.joining import joined
from precision_probe.trace.parts.part import part_files
from precision_probe.trace.recording.signals import uninterrupted
from precision_probe.trace.schema import SCHEMA_VERSION, BrokenError, check_schema, value_checks
from precision_probe.trace.stored.lazy_tree import lazy_tree
from precision_probe.trace.stored.raw_reading import RawArray, RawError
from precision_probe.trace.trace import Trace, encoded
from precision_probe.trace.transaction import close_in_hdf5
from precision_probe.trace.variables import pop_text_checksums

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from xarray.core.indexing import ExplicitIndexer

__all__ = ["open_trace", "open_unverified"]

_TRIES = 3  # a run writes every ten seconds, and a trace is opened in a few: more than once in a row is bad luck
_SMALL = 2**24  # bytes, of which the SHA-256 takes 20 ms: a trace of this size is opened in a second
_FEW = 2**18  # bytes of rows that HDF5 reads: a choice, as finding the chunks of an array takes it a while too
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_ADVICE = "Copy it anew from where it was made, or make it anew; precision-probe validate says what is wrong with it."


def open_trace(path: str | Path) -> Trace:
    """Open a trace; arrays are read from disk when they are used, and what they say of themselves is checked then.

    Args:
        path: Of a file, or of a folder with the parts that workers wrote.

    Warns:
        UserWarning: If a file was changed since it was finished, in a way that may have removed something, or parts
            are missing.

    Raises:
        InputError: If there is no such file, it is not a trace of a schema that this version reads, it is damaged, or
            it holds what no trace holds, such as links to other files. Reading an array raises it too, if the array is
            damaged.
    """
    path = Path(path)
    return _open_parts(path) if path.is_dir() else _open_growing(path)


def _open_growing(path: Path) -> Trace:
    """Open a file that somebody may be writing to."""
    for _ in range(_TRIES - 1):
        with contextlib.suppress(_ChangedError):
            return _open(path)
    return _open(path)


def _open_parts(folder: Path) -> Trace:
    """Open what is in a folder, each part in its file."""
    files = part_files(folder)
    if not files:
        raise InputError(
            f"{printable(folder)} is a folder without parts of a trace. Give a trace, or a folder that audit --workers "
            "wrote."
        )
    with contextlib.ExitStack() as opened:
        parts = {number: opened.enter_context(_open_growing(path)) for number, path in files.items()}
        trace = Trace(joined(parts, printable(folder)), opened.pop_all())
    n_parts = trace.attributes["n_parts"]
    if missing := sorted(set(range(n_parts)) - set(parts)):
        warnings.warn(
            f"{printable(folder)} has {len(parts)} of {n_parts} parts: {', '.join(map(str, missing))} are missing, and "
            "the structures in them.",
            stacklevel=3,
        )
    return trace


def open_unverified(path: str | Path) -> Trace:
    """The same, whatever the checksum of the file as a whole says: for who wants to know what is wrong with it."""
    return _open(Path(path), is_whole=False)


def _open(path: Path, *, is_whole: bool = True) -> Trace:
    """Open a file once."""
    file = TraceFile(path)
    try:
        if is_whole:
            file.check_whole()
        trace = Trace(file.tree(), file)
        try:
            check_schema(trace.tree, trace.attributes)
            _check_precisions(trace.attributes["precisions"])
            _check_values(trace.tree)
        except BrokenError as error:
            raise _damaged(path, str(error)) from error
        except InputError:
            raise
        except Exception as error:  # what is no JSON, or is of a type that nobody thought of
            raise _damaged(path, error) from error
        if unfinished(path.with_suffix("")) == path:  # whatever it says: it may have been all but moved
            trace.tree.attrs["complete"] = encoded(False)
        if is_whole and trace.attributes.get("complete") and file.lacks_checksum():
            warnings.warn(
                f"{printable(path)} was changed since it was finished: the checksum at its end is gone. Whether it "
                "still says what was recorded cannot be known.",
                stacklevel=3,
            )
    except BaseException as error:
        is_growing = isinstance(error, InputError) and file.has_changed
        file.close()
        if is_growing:
            raise _ChangedError(*error.args) from error
        raise
    return trace


class _ChangedError(InputError):
    """A file was written to while it was opened."""


class TraceFile(io.RawIOBase):
    """A file that HDF5 reads a trace from: through ordinary reads, so no file system needs to have locks for it.

    Args:
        path: Of a regular file. What a writer has changed and not yet put in its place is read as changed.

    Raises:
        InputError: If there is none, or it cannot be read, or is something else.
    """

    mode = "rb"

    def __init__(self, path: Path) -> None:
        self._fd, self._position, self._changed = -1, 0, None
        self._opened: h5netcdf.File | None = None
        self._raw: dict[str, RawArray] = {}
        self.path = path
        shown = printable(path)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for a writer
            is_regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
            if is_regular and path.with_name(f"{path.name}.journal").is_file():
                self._changed = pending_changes(path)
        except FileNotFoundError as error:
            made = "Make one with: precision-probe audit -o"
            raise InputError(f"The trace {shown} does not exist. {made} {shown}") from error
        except (OSError, ValueError) as error:  # the second: a path with a NUL
            reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
            raise InputError(
                f"The trace {shown} cannot be read ({reason}). See who may read it, and its disk."
            ) from error
        if not is_regular:
            raise InputError(f"{shown} is not a file but a pipe or a device. Give the file of a trace.")
        self._state = self._now()
        _OPEN.add(self)

    def _now(self) -> tuple[int, int]:
        about = os.fstat(self._fd)
        return about.st_size, about.st_mtime_ns

    @property
    def size(self) -> int:
        """In bytes."""
        return self._state[0] if self._changed is None else self._changed.seek(0, os.SEEK_END)

    @property
    def has_changed(self) -> bool:
        """Whether someone has written to it since it was opened."""
        return self._fd >= 0 and self._now() != self._state

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a place."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        return self._position

    def tell(self) -> int:
        """The place."""
        return self._position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Read what there is from the place on; beyond the end zeros, of which HDF5 finds out itself."""
        into = memoryview(buffer).cast("B")
        if self._changed is None:
            read_at(self._fd, into, self._position)
        else:
            self._changed.seek(self._position)
            n_read = self._changed.readinto(into) or 0
            into[n_read:] = bytes(len(into) - n_read)
        self._position += len(into)
        return len(into)

    def read_raw(self, where: str, first: int, end: int) -> NDArray[Any]:
        """Some rows of a variable, past HDF5, which would let other threads wait.

        Raises:
            RawError: If they cannot be had so.
        """
        if self._opened is None or self._changed is not None or self._fd < 0:
            raise RawError("it is not all in the file")
        if where not in self._raw:
            try:
                self._raw[where] = RawArray(self._opened._h5file[where])
            except Exception as error:  # whatever h5py raises of what is damaged
                raise RawError(str(error)) from error
        return self._raw[where].read(self._fd, first, end)

    def close(self) -> None:
        """Close it, and what HDF5 has open of it."""
        if self._fd >= 0:
            if self._opened is not None:
                self._opened.close()
            close_in_hdf5(self)
            os.close(self._fd)
            self._fd = -1
        if self._changed is not None:
            self._changed.close()
        super().close()

    def tree(self) -> xr.DataTree:
        """What is in the file; arrays are read when they are used.

        Raises:
            InputError: If it is not a trace of this schema, holds what no trace holds, or is damaged.
        """
        try:
            self._check_contents()
            # kept, so that the two are let go together: neither may close the other while that is being closed
            with uninterrupted():  # h5netcdf could not finalise what it had begun
                self._opened = h5netcdf.File(self, "r", decode_vlen_strings=True)
            tree = lazy_tree(self._opened)
            pop_text_checksums(tree)  # verified above
            for node in tree.subtree:
                for name, variable in node.to_dataset(inherit=False).variables.items():
                    self._report(variable, f"{node.path.rstrip('/')}/{name}")
        except InputError:
            raise
        except Exception as error:  # h5py, h5netcdf and xarray raise many kinds for what is damaged
            raise self.failure(error) from error
        return tree

    def _report(self, variable: xr.Variable, where: str) -> None:
        """Have errors that come of reading a variable later said with its name, once it is as long as it says."""
        if variable.shape != (stored := self._shapes[where]):  # h5netcdf fills up what is shorter than its dimensions
            raise _damaged(self.path, f"{where} has the shape {stored}, its dimensions {variable.shape}")
        holder: Any = variable._data  # layers: what is cached, decoded, indexed, and innermost what is read
        while (inner := getattr(holder, "array", None)) is not None and not isinstance(inner, BackendArray):
            holder = inner
        if inner is not None:
            holder.array = _Reported(inner, self, where)

    def check_whole(self) -> None:
        """Compare a file with the checksum at its end, where that takes no time beside opening it.

        Raises:
            InputError: If it is another.
        """
        if self._changed is None and self.size <= _SMALL and check_trailer(self.path) is False:
            raise _damaged(self.path, "it is not what was written, as the checksum at its end says")

    def lacks_checksum(self) -> bool:
        """Whether its arrays have checksums, and the checksum of the whole, which came last, is gone."""
        return self._has_checksums and not has_trailer(self.path)

    def failure(self, error: Exception, where: str = "") -> InputError:
        """What is said if something cannot be read."""
        if self._fd < 0:
            return InputError(f"{printable(self.path)} is closed: read {printable(where)} before, or open it again.")
        if self.has_changed:
            return InputError(
                f"{printable(self.path)} was written to while it was read, as a run that goes on does: open it again."
            )
        return _damaged(self.path, error, where)

    def _check_contents(self) -> None:
        """What HDF5 would follow, the version, and all texts."""
        head = bytearray(len(_SIGNATURE))
        read_at(self._fd, memoryview(head), 0)
        if head != _SIGNATURE:
            raise InputError(f"{printable(self.path)} is not an HDF5 file, so it is no trace.")
        try:
            if self.size <= _SMALL:
                data = bytearray(self.size)
                self.seek(0)
                self.readinto(data)
                check_heaps(bytes(data))
        except RefusedError as error:
            raise _damaged(self.path, str(error)) from error
        with without_plugins(), h5py.File(self, "r") as file:
            _check_version(file, self.path)
            try:
                found = list_objects(file, self.size)
                check_texts(file, found, self.size)
            except RefusedError as error:
                raise InputError(f"{printable(self.path)} is no trace that can be read: {error}.") from error
            self._has_checksums = any(stored is not None and stored.has_checksum for stored in found.values())
            self._shapes = {path: stored.shape for path, stored in found.items() if stored is not None}


_OPEN: "weakref.WeakSet[TraceFile]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close what is open while Python is there: HDF5 does so as the process ends, and would call what is gone."""
    for file in tuple(_OPEN):
        file.close()


def _check_version(file: h5py.File, path: Path) -> None:
    """Tell other files, and those of other versions, from those that are damaged."""
    shown = printable(path)
    if not h5a.exists(file.id, b"schema_version"):
        raise InputError(f"{shown} is an HDF5 file but not a trace of precision_probe: it has no schema_version.")
    attribute = h5a.open(file.id, b"schema_version")
    version = file.attrs["schema_version"] if attribute.shape in ((), (1,)) else f"{attribute.shape} numbers"
    version = np.ravel(version)[0]  # netCDF stores a number as an array of one
    if version == SCHEMA_VERSION:
        return
    is_newer = isinstance(version, int | np.integer) and version > SCHEMA_VERSION
    advice = "Open it with a newer precision_probe" if is_newer else "Open it with the version that wrote it"
    raise InputError(
        f"{shown} has schema version {printable(version)[:20]}; this precision_probe reads version {SCHEMA_VERSION}. "
        f"{advice}, or make it anew."
    )


def _damaged(path: Path, reason: object, where: str = "") -> InputError:
    """What is said of a damaged file: what is wrong with what in it."""
    said = first_line(reason) if isinstance(reason, Exception) else str(reason)
    kind = f"{type(reason).__name__}: " if isinstance(reason, Exception) and not isinstance(reason, OSError) else ""
    what = f"{where} cannot be read, " if where else ""
    return InputError(f"{printable(path)} is damaged: {printable(what + kind + said)}. {_ADVICE}")


class _Reported(BackendArray):
    """An array on disk; if it cannot be read, or its values cannot be, an ``InputError`` says so with its name."""

    def __init__(self, array: Any, file: TraceFile, where: str) -> None:
        self._array, self._file, self._where = array, file, where
        self.shape, self.dtype = array.shape, array.dtype
        self.holds: Callable[[NDArray[Any]], bool] | None = None

    def __getitem__(self, key: "ExplicitIndexer") -> NDArray[Any]:
        """The values that an indexer of xarray's asks for."""
        values = self._raw(key.tuple)
        if values is None:
            try:
                values = np.asarray(self._array[key])
            except Exception as error:  # HDF5's own errors, a checksum that does not agree among them; lack of memory
                raise self._file.failure(error, self._where) from error
        if self.holds is not None and not self.holds(values):
            raise _damaged(self._file.path, f"{self._where} has values that cannot be")
        return values

    def _raw(self, key: tuple[Any, ...]) -> NDArray[Any] | None:
        """Many whole rows one after another, from their chunks; nothing where these are not to be had, or not whole."""
        if not self.shape or key[1:] != (slice(None),) * (len(self.shape) - 1) or not isinstance(key[0], slice):
            return None
        first, end, step = key[0].indices(self.shape[0])
        if step != 1 or (end - first) * math.prod(self.shape[1:]) * self.dtype.itemsize < _FEW:
            return None
        with contextlib.suppress(RawError):
            return self._file.read_raw(self._where, first, end)
        return None


def _check_values(tree: xr.DataTree) -> None:
    """Have the values of arrays that say where others belong checked when they are read."""
    for path, holds in value_checks(tree):
        _, group, name = path.split("/")
        holder: Any = tree.children[group].to_dataset(inherit=False).variables[name]._data
        while holder is not None and not isinstance(holder, _Reported):
            holder = getattr(holder, "array", None)
        if holder is not None:
            holder.holds = holds


def _check_precisions(names: Sequence[str]) -> None:
    """Refuse names that are no precision's; emulated formats have no list."""
    for name in names:
        try:
            parse_precision(name)
        except InputError as error:
            raise BrokenError(f"the attribute precisions is {printable(names)[:60]}") from error
