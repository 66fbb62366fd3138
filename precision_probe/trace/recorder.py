"""What a run records, in memory and in a file that grows with it: whatever befalls the file, the run goes on.

What cannot be written is written later, and waits in memory until then; only if that becomes too much does recording
stop. A user's dynamics are worth more than their record, so nothing is raised meanwhile: what is wrong is said once, in
a warning, and stays in :attr:`Recorder.problem`.
"""

import contextlib
import errno
import importlib
import io
import logging
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5netcdf
import xarray as xr
from numpy.typing import NDArray

from precision_probe.exceptions import first_line
from precision_probe.files import unfinished
from precision_probe.trace.arrays import BlockArray, ModelArray, Sizes
from precision_probe.trace.claim import Claim
from precision_probe.trace.growing_file import append, append_to, check_counts, finish, remove_tables
from precision_probe.trace.journal import pending_changes
from precision_probe.trace.reading import open_trace
from precision_probe.trace.recording.layout import Collected
from precision_probe.trace.recording.resumed import Resumed
from precision_probe.trace.recording.signals import uninterrupted
from precision_probe.trace.tables import StoredTable
from precision_probe.trace.trace import SCHEMA_VERSION, Trace, encoded
from precision_probe.trace.transaction import settle
from precision_probe.trace.variables import pop_text_checksums

__all__ = ["Recorder"]

_LOG = logging.getLogger(__name__)

# When to write: a choice between what is lost if the process is killed, and the time of writing. With the default
# blocks in four precisions an append takes 0.7 s of CPU time for ten atoms, and 0.8 s for 50 MB: so no more often than
# every ten seconds, unless what has come together would begin to crowd the memory of a laptop.
_MANY_BYTES = 64 * 2**20
_LONG = 10.0  # seconds
_TOO_MANY_BYTES = 512 * 2**20  # that wait for a disk which cannot be written: a choice, less than models take


class Recorder:
    """Grows by one graph at a time; :meth:`trace` lays out what is complete so far.

    Args:
        claim: Of the file that the trace goes to. What was added is moved to ``<path>.partial`` now and then, so that
            memory stays bounded and little is lost if the process is killed. Without one, everything stays in memory.

    Attributes:
        attributes: Of the root of the trace.
        tables: What explains the errors.
        n_structures: How many were added.
        is_interrupted: Whether the run has not come to its end: then its file stays the ``.partial`` that it is.
        problem: What went wrong with the file, and where the data are; empty while nothing has.
        resumed: What an earlier run left in the ``.partial``, if this one goes on from there.
        written_to: The file that has what was recorded, the ``.partial`` or the finished one; ``None`` without any.

    Raises:
        InputError: If the file that is to be continued cannot be read.
    """

    def __init__(self, claim: Claim | None = None) -> None:
        self._claim = claim
        self._process = os.getpid()
        self._partial = unfinished(claim.path) if claim is not None else Path()
        self._identity: tuple[int, int] | None = None  # of the file that this recorder has made, as long as it is there
        self._collected = Collected()
        self._saved: Trace | None = None
        self._has_stopped = self._is_closed = self._has_warned = False
        self._n_lost = 0
        self.attributes: Mapping[str, object] = {}
        self.tables: dict[str, StoredTable] = {}
        self.n_structures = 0
        self.is_interrupted = False
        self.problem = ""
        self.resumed: Resumed | None = None
        self.written_to: Path | None = None
        if claim is not None:
            with contextlib.suppress(ImportError):
                importlib.import_module("dask.array")  # xarray asks for it when it encodes: too late as Python exits
        if claim is not None and claim.is_resumed:
            with open_trace(self._partial) as left:
                self.resumed = Resumed(self._partial, left.attributes, left.structures)
            remove_tables(self._partial)
            self._remember_file()
            self.n_structures = self.resumed.n_structures
            _LOG.info("going on after %d structures of %s", self.n_structures, self._partial)
        self._wait_anew()

    @property
    def has_file(self) -> bool:
        """Whether the trace goes to a file."""
        return self._claim is not None

    @property
    def has_stopped(self) -> bool:
        """Whether nothing more is recorded, as the file cannot be written and memory must not fill up."""
        return self._has_stopped

    def add(
        self,
        structures: Mapping[str, NDArray[Any]],
        sizes: Sizes,
        predictions: Mapping[str, Sequence[ModelArray]],
        blocks: Mapping[str, Sequence[BlockArray[NDArray[Any]]]],
    ) -> None:
        """Add what every variant gave for one graph: all of it, or, if this raises, nothing.

        Args:
            structures: The variables of ``/structures``.
            sizes: Of this graph.
            predictions: For each precision, the model's energy, forces, ….
            blocks: For each group (``propagated/float32``), what its blocks gave.
        """
        if self._has_stopped or self._is_forked:
            self._n_lost += sizes.structure
            return
        with uninterrupted():
            self._collected.add(structures, sizes, predictions, blocks)
            self.n_structures += sizes.structure

    def write_if_due(self) -> None:
        """Move what was added to the unfinished file, if there is to be one and enough has come together."""
        if self._may_write and (self._collected.n_bytes > self._many_bytes or time.monotonic() - self._since > _LONG):
            self._write()

    def trace(self) -> Trace:
        """Everything so far: in memory, or from the file once that is in use."""
        if self._claim is not None and self.written_to == self._claim.path:
            self._saved = self._saved or open_trace(self._claim.path)
            return self._saved
        if self._identity is None:
            tree = self._tree()
        elif self._may_write and self._write():
            with open_trace(self._partial) as opened:  # read whole, as the file goes on growing
                tree = opened.tree.load()
        else:
            tree = self._tree_without_writing()
        tree.attrs = dict(self._root())
        return Trace(tree).with_tables(self.tables)

    def save(self) -> None:
        """Put the finished file in its place, if there is to be one and anything was added; or say why it is not.

        Of a run that was interrupted, or of whose structures some are lost, the file stays ``<path>.partial``, beside
        an earlier one that was complete.
        """
        if self._claim is None or self._is_closed or self._is_forked:
            return
        self._is_closed = True
        if self.n_structures:
            with uninterrupted():
                self._finish(self._claim)
        self._claim.release()

    def _finish(self, claim: Claim) -> None:
        """Write what is left, check the file, and move it."""
        if not self._write() or self._identity is None:
            return
        try:
            if self.is_interrupted or self._n_lost:
                finish(self._partial, self.tables, self._root(is_finished=False), is_last=False)
                n_lost = f"{self._n_lost} structure(s) are not in the trace" if self._n_lost else ""
                why = n_lost or "The run did not come to its end"
                self._tell(f"{why}: what it has recorded is in {self._partial}, which is not complete.")
                return
            settle(self._partial)
            check_counts(self._partial, self.n_structures)
            finish(self._partial, self.tables, self._root())
            settle(self._partial)
            if claim.path.exists() and not claim.may_replace:
                raise FileExistsError(errno.EEXIST, f"meanwhile somebody else has made {claim.path}")
            self._partial.replace(claim.path)
        except Exception as error:
            self._report(error)
            return
        self.written_to = claim.path
        _LOG.info("%s is finished, with %d structures", claim.path, self.n_structures)

    # Whether the file can be written

    @property
    def _is_forked(self) -> bool:
        """Whether this is a copy of a recorder whose file belongs to another process."""
        return self._claim is not None and self._process != os.getpid()

    @property
    def _may_write(self) -> bool:
        return self._claim is not None and not (self._is_forked or self._is_closed or self._has_stopped)

    def _write(self) -> bool:
        """Move what was added to the file, which is made if it is not there; whether all is in it now."""
        if not self._is_in_place():
            return False
        try:
            with uninterrupted():
                if self._collected.n_structures:
                    n, n_bytes, start = self._collected.n_structures, self._collected.n_bytes, time.monotonic()
                    append(self._tree(), self._partial, new=self._identity is None)
                    seconds = time.monotonic() - start
                    _LOG.info("%s: %d structures, %.3g MB, in %.3g s", self._partial, n, n_bytes / 1e6, seconds)
                    self._remember_file()
                    self._wait_anew()
                    if not self._n_lost:
                        self.problem = ""
        except Exception as error:
            self._report(error)
            return False
        return True

    def _wait_anew(self) -> None:
        """Begin to collect anew, in memory."""
        self._collected.clear()
        self._many_bytes = _MANY_BYTES
        self._since = time.monotonic()

    def _remember_file(self) -> None:
        """Note which file has what was written, so that another in its place is noticed."""
        about = self._partial.stat()
        self._identity = about.st_dev, about.st_ino
        self.written_to = self._partial

    def _is_in_place(self) -> bool:
        """Whether what was written is where it was written to; if it is not, say so, and what is done now."""
        if self._identity is None:
            return True
        try:
            about = self._partial.stat()
        except FileNotFoundError:
            if not self._partial.parent.is_dir():
                return True  # the folder is gone, perhaps for a moment: writing will fail, and be tried again
            n_gone = self.n_structures - self._collected.n_structures
            self._n_lost += n_gone
            self.n_structures -= n_gone
            self._identity = self.written_to = None
            self._tell(
                f"{self._partial} was deleted while it was being written, and {n_gone} structure(s) with it. The run "
                "goes on, and what follows goes to a new file of that name."
            )
            return True
        except OSError:
            return True
        if (about.st_dev, about.st_ino) == self._identity:
            return True
        self._has_stopped = True
        self.written_to = None
        self._tell(
            f"{self._partial} was replaced by another file while it was being written. That is left as it is, and "
            f"nothing more is recorded; {self._collected.n_structures} structure(s) are in memory: "
            "probe.trace().save(…) keeps them."
        )
        return False

    def _report(self, error: Exception) -> None:
        """Say that the file cannot be written, once, and when that is tried again; stop if too much waits for it."""
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {first_line(error)}"
        n_waiting = self._collected.n_structures
        in_file = f"{self.n_structures - n_waiting} structure(s) are in {self._partial}, and " if self._identity else ""
        where = f"{in_file}{n_waiting} in memory: probe.trace().save(…) keeps all of them elsewhere."
        self._since = time.monotonic()
        self._many_bytes = 2 * max(self._collected.n_bytes, _MANY_BYTES // 2)
        self._has_stopped |= self._collected.n_bytes > _TOO_MANY_BYTES
        if self._is_closed:
            goes_on = ""
        else:
            goes_on = " Nothing more is recorded." if self._has_stopped else " The run goes on, and it is tried again."
        self._tell(
            f"{self._partial} could not be written ({reason}).{goes_on} {where}",
            warn=self._is_closed or self._has_stopped or not self._has_warned,
        )

    def _tell(self, problem: str, *, warn: bool = True) -> None:
        """Keep what is wrong for who asks, and warn of it."""
        self.problem = problem
        _LOG.warning(problem)
        if warn:
            self._has_warned = True
            warnings.warn(f"precision_probe: {problem}", RuntimeWarning, stacklevel=2)

    # What is in memory

    def _root(self, *, is_finished: bool = True) -> dict[str, str | int | float]:
        """The attributes of the trace as netCDF can hold them."""
        attributes = dict(self.attributes)
        if not is_finished or self._n_lost:
            attributes["complete"] = False
        return {"schema_version": SCHEMA_VERSION, **{key: encoded(value) for key, value in attributes.items()}}

    def _tree(self) -> xr.DataTree:
        """What is in memory, laid out in the groups of a trace that is not finished."""
        n_before = self.n_structures - self._collected.n_structures
        return self._collected.tree(n_before, self._root(is_finished=False))

    def _tree_without_writing(self) -> xr.DataTree:
        """What the file has, and behind it what it will never have."""
        with pending_changes(self._partial) or self._partial.open("rb") as opened:
            image = io.BytesIO(opened.read())
        if self._collected.n_structures:
            with h5netcdf.File(image, "r+") as file:
                append_to(file, self._tree())
        with xr.open_datatree(image, engine="h5netcdf") as tree:
            tree.load()
        pop_text_checksums(tree)
        return tree
