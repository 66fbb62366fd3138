"""Changes of an HDF5 file that are made all or none, whatever fails or is killed meanwhile.

HDF5 does not survive an error inside a file: a full disk leaves it with a cache that it cannot empty, and it ends the
process when it closes the file. So HDF5 is given a file object that never fails, and what can fail is done by ordinary
I/O outside it:

* Bytes beyond the old end of the file are written through, so that memory stays bounded, and the disk takes them while
  more are made. They are no part of the file until the old bytes say so. Where that fails, the error is kept for later,
  and the bytes are kept in memory.
* Of chunks that are made beside HDF5 it is given the size alone, and finds a place; threads make and write them.
* Bytes before the old end are changed in memory, page by page.
* When HDF5 has closed the file, an error that was kept is raised, and the file is cut back to its old end. Else the
  changed pages go to ``<path>.journal``, and then into the file; then the journal is removed.

Whoever opens a file beside which a whole journal lies takes the pages in it for those of the file: readers by
:func:`~precision_probe.trace.journal.pending_changes`, and the next writer puts them there. One that was not finished
is as good as none. So the file is at any moment what it was before or what it is after. Each step is on the disk before
the next is taken: this holds for a machine that loses power, too, and for file systems that tell of a full disk late.
"""

import contextlib
import io
import logging
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import h5netcdf
import h5py
import numpy as np
from h5py import h5f

from precision_probe.trace.digest import TRAILER_LENGTH, hdf5_end, is_trailer, trailer
from precision_probe.trace.journal import Journal, Patch, read_at, read_journal, write_at
from precision_probe.trace.recording.signals import uninterrupted
from precision_probe.trace.recording.threads import Threads
from precision_probe.trace.recording.write_behind import WriteBehind

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer
    from numpy.typing import NDArray

__all__ = ["Transaction", "changing", "changing_hdf5", "close_in_hdf5", "making", "settle", "transaction_of"]

_LOG = logging.getLogger(__name__)

_PAGE = 4096  # bytes, those of file systems: a smaller change has a page written anyway
# Versions of HDF5's format: of 1.10, in which all metadata have checksums; and no newer one, so that it is read by
# whatever reads files of the last ten years.
_FORMAT = ("v110", "v110")


@contextlib.contextmanager
def changing(path: Path, *, is_last: bool = False) -> Iterator[h5netcdf.File]:
    """Change an HDF5 file: all that is done in the ``with`` block takes effect at its end, or nothing does.

    Args:
        path: The file.
        is_last: Whether it is finished with this: then it gets the line at its end that says what it is
            (:mod:`precision_probe.trace.digest`), in the same moment.

    Raises:
        OSError: If the file cannot be read or written; it is what it was.
    """
    with _committed(Transaction(path), is_last=is_last) as transaction, _opened(transaction, "r+") as file:
        yield file


@contextlib.contextmanager
def changing_hdf5(path: Path) -> Iterator[h5py.File]:
    """The same for what h5netcdf cannot do."""
    with _committed(Transaction(path)) as transaction, h5py.File(transaction, "r+", libver=_FORMAT) as file:
        yield file


@contextlib.contextmanager
def making(path: Path, *, is_last: bool = False) -> Iterator[h5netcdf.File]:
    """Make an HDF5 file, in place of what may be there; one that could not be made is left empty.

    Args:
        path: The file.
        is_last: As for :func:`changing`.

    Raises:
        OSError: If the file cannot be written.
    """
    with _committed(Transaction(path, new=True), is_last=is_last) as transaction, _opened(transaction, "w") as file:
        yield file


def close_in_hdf5(file: object) -> None:
    """Close what HDF5 has open of a file object, whoever still has a part of it.

    What it could not close it would close as the process ends, and call what is gone by then.
    """
    for opened in h5f.get_obj_ids(h5f.OBJ_ALL, h5f.OBJ_FILE):
        if opened.valid and opened.name == repr(file).encode():  # as h5py names what is no path
            h5py.File(opened).close()


def transaction_of(dataset: h5py.Dataset) -> "Transaction | None":
    """What the file of an array is changed by; ``None`` of one that HDF5 itself writes, or that lies in memory."""
    return _OPEN.get(dataset.file.filename)


def settle(path: Path) -> None:
    """Put what a journal says into its file, so that this is whole without it.

    Raises:
        OSError: If it cannot be read or written.
    """
    Transaction(path).close()


def _opened(transaction: "Transaction", mode: str) -> h5netcdf.File:
    """The file, opened without an interruption, after which h5netcdf could not finalise what it had begun."""
    with uninterrupted():
        return h5netcdf.File(transaction, mode, libver=_FORMAT)


@contextlib.contextmanager
def _committed(transaction: "Transaction", *, is_last: bool = False) -> Iterator["Transaction"]:
    """Let HDF5 work on a file object, and make the changes once it has closed it."""
    with contextlib.closing(transaction):
        try:
            yield transaction
        except Exception:
            close_in_hdf5(transaction)
            if transaction.failure is not None:  # what HDF5 says of bytes that it could not read is not the reason
                raise transaction.failure from None
            raise
        if is_last and transaction.failure is None:
            transaction.add_trailer()
        transaction.commit()


class Transaction(io.RawIOBase):
    """The file object that HDF5 is given: it reads and writes as HDF5 wants it, and never raises meanwhile.

    Args:
        path: The file.
        new: Begin with an empty one.

    Attributes:
        failure: The first error, which HDF5 was not told of.

    Raises:
        OSError: If the file cannot be opened.
    """

    def __init__(self, path: Path, *, new: bool = False) -> None:
        self._path = path
        self._position = 0
        self._has_appended = False  # since the last commit
        self._room: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._lent, self._place = 0, -1
        self._trailer = b""
        self._pages: dict[int, bytearray] = {}
        self.failure: BaseException | None = None
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if new else 0), 0o666)
        self._behind = WriteBehind(self._fd)
        try:
            self._old = 0 if new else self._repaired()
        except BaseException:
            os.close(self._fd)
            raise
        self._end = self._old
        _OPEN[repr(self)] = self

    def _repaired(self) -> int:
        """Apply or remove the journal of a writer that was killed; the size of the file without what it left behind."""
        journal = read_journal(self._path)
        if journal is not None:
            _LOG.info("%s gets the changes that an interrupted writer left in its journal", self._path)
            journal.apply(self._fd)
        Journal.remove(self._path)
        end, line = hdf5_end(self._fd), bytearray(TRAILER_LENGTH)
        read_at(self._fd, memoryview(line), end)
        return end + (len(line) if is_trailer(bytes(line)) else 0)

    # What HDF5 calls

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a place."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        return self._position

    def tell(self) -> int:
        """The place."""
        return self._position

    def readable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Read as many bytes as asked for: zeros where there are none, as in a file with holes."""
        into = memoryview(buffer).cast("B")
        try:
            self._read(into, self._position)
        except BaseException as error:
            self._keep(error)
        self._position += len(into)
        return len(into)

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write all bytes, to the disk or to memory."""
        given = memoryview(data).cast("B")
        first, self._position = self._position, self._position + len(given)
        self._end = max(self._end, self._position)
        if self._lent and len(given) == self._lent and _address(given) == _address(self._room.data):
            self._place = first
            return len(given)
        n_old = min(max(self._old - first, 0), len(given))
        try:
            if n_old:
                self._change(given[:n_old], first)
            if n_old < len(given):
                self._append(given[n_old:], first + n_old)
        except BaseException as error:
            self._keep(error)
        return len(given)

    def truncate(self, size: int | None = None, /) -> int:
        """Say where the file is to end."""
        self._end = self._position if size is None else size
        return self._end

    def flush(self) -> None:
        """Do nothing: that is for :meth:`commit`."""

    # What is done with it

    @property
    def threads(self) -> Threads:
        """That write what is written later; they may help to make it."""
        return self._behind.threads

    def write_later(
        self, size: int, write: "Callable[[NDArray[np.uint8]], object]", make: "Callable[[], Iterable[memoryview]]"
    ) -> None:
        """Have HDF5 find a place for so many bytes, and threads make and write them there.

        Args:
            size: How many.
            write: Has HDF5 write what it is given, directly; of this it writes nothing.
            make: The bytes, in pieces.

        Raises:
            RuntimeError: If HDF5 did not write what it was given as it was given, which it always does.
        """
        if len(self._room) < size:
            self._room = np.empty(size, np.uint8)  # never touched, so it takes no memory
        self._lent, self._place = size, -1
        write(self._room[:size])
        self._lent = 0
        if self._place < 0:
            raise RuntimeError(f"HDF5 made no room in {self._path} for {size} bytes")
        self._has_appended = True
        try:
            if self._place < self._old:  # where other bytes were given up, which the file has until this is committed
                self.seek(self._place)
                self.write(b"".join(make()))
            elif self.failure is None:
                self._behind.begin(self._place, size, make)
        except BaseException as error:
            self._keep(error)

    def _keep(self, error: BaseException) -> None:
        """Remember the first error, which means that nothing of all this is to be kept."""
        self.failure = self.failure or error

    def _read(self, into: memoryview, first: int) -> None:
        """What the disk has, and over it what is in memory."""
        self._behind.wait_for(first, len(into))
        read_at(self._fd, into, first)
        if not self._pages:
            return
        for number in range(first // _PAGE, (first + len(into) - 1) // _PAGE + 1):
            if (page := self._pages.get(number)) is not None:
                begin = max(first, number * _PAGE)
                # behind the old end the disk has all that was written, as long as it could be
                most = self._old if self.failure is None else self._end
                end = max(begin, min(first + len(into), (number + 1) * _PAGE, most))
                into[begin - first : end - first] = page[begin - number * _PAGE : end - number * _PAGE]

    def _change(self, given: memoryview, first: int) -> None:
        """Change bytes in memory."""
        for number in range(first // _PAGE, (first + len(given) - 1) // _PAGE + 1):
            page = self._pages.get(number)
            if page is None:
                page = bytearray(_PAGE)
                read_at(self._fd, memoryview(page), number * _PAGE)
                self._pages[number] = page
            begin, end = max(first, number * _PAGE), min(first + len(given), (number + 1) * _PAGE)
            page[begin - number * _PAGE : end - number * _PAGE] = given[begin - first : end - first]

    def _append(self, given: memoryview, first: int) -> None:
        """Write bytes beyond the old end to the disk; into memory too where they share a page that is there."""
        if self.failure is None:
            self._has_appended = True
            try:
                self._behind.wait_for(first, len(given))
                write_at(self._fd, given, first)
                self._behind.wrote(len(given))
            except BaseException as error:
                self._keep(error)
        shared = self._pages.get(first // _PAGE)
        if self.failure is not None:
            self._change(given, first)
        elif shared is not None:
            begin = first % _PAGE
            n_shared = min(_PAGE - begin, len(given))
            shared[begin : begin + n_shared] = given[:n_shared]

    def add_trailer(self) -> None:
        """Write the line that says what the file is, as it is to be, behind it."""
        self._behind.wait()
        line = trailer(self._read, self._end, self.threads)
        if self._old:
            self._trailer = line  # not on the disk before the rest is: there it would be that of another file
        else:
            self.seek(0, os.SEEK_END)
            self.write(line)

    def commit(self) -> None:
        """Make the changes that HDF5 has made, or none: then the file is as it was.

        Raises:
            OSError: If something failed, now or when HDF5 wrote.
        """
        if self.failure is not None:
            raise self.failure
        self._behind.wait()
        if self._end > self._old:
            os.ftruncate(self._fd, self._end)
        os.fsync(self._fd)  # a file system may say only now that there is no space
        journal = Journal.of_pages(self._pages, _PAGE, self._old, self._end)
        if self._trailer:
            journal = Journal(self._end + len(self._trailer), [*journal.parts, Patch(self._end, self._trailer)])
            self._end = journal.size
        if journal.parts:
            journal.write(self._path, self._fd)
        self._old = self._end
        self._pages = {}
        self._has_appended = False
        with contextlib.suppress(OSError):  # if this fails, the journal stays, and stands for the changes
            journal.apply(self._fd)
            Journal.remove(self._path)

    def close(self) -> None:
        """Close the file; what was written behind its end and not committed is cut off."""
        fd, self._fd = self._fd, -1  # first, as whatever comes between would have it done again, when others write
        if fd >= 0:
            try:
                self._behind.close()
                if self._has_appended:
                    with contextlib.suppress(OSError):  # what lies behind the end of an HDF5 file does no harm
                        os.ftruncate(fd, self._old)
            finally:
                with contextlib.suppress(OSError):  # all that was committed is synced: it is not to be done once more
                    os.close(fd)
        super().close()


_OPEN: "weakref.WeakValueDictionary[str, Transaction]" = weakref.WeakValueDictionary()


def _address(data: memoryview) -> int:
    """Where bytes lie in memory."""
    address, _ = np.frombuffer(data, np.uint8).__array_interface__["data"]
    return int(address)
