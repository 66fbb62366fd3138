"""Reads everything in a trace, and says what is wrong with what.

``python -m precision_probe.trace.validation FILE SECONDS BYTES`` does so within limits and prints JSON: what a damaged
or a hostile file does to the HDF5 library (it can crash, or go in circles for ever) happens to that process only.
"""

import datetime as dt
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr

from precision_probe.exceptions import InputError, printable
from precision_probe.trace.digest import check_trailer
from precision_probe.trace.parts.part import part_files
from precision_probe.trace.reading import open_trace, open_unverified
from precision_probe.trace.schema import REFERENCE
from precision_probe.trace.trace import Trace

__all__ = ["Finding", "validate"]

_PIECE = 2**26  # bytes of an array that are read at once: a choice, so that memory stays bounded


@dataclass
class Finding:
    """What was found.

    Attributes:
        problems: What is wrong, a clause each; none of a file that is fine.
        notes: What a reader should know of a file that is fine.
        summary: What there is in it, in a clause.
        refusal: Why it cannot be opened, in a paragraph.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    summary: str = ""
    refusal: str = ""


def validate(path: str | Path) -> Finding:
    """Read a whole trace, verify every checksum, and check what is in it against the schema.

    Args:
        path: Of a file, or of a folder with the parts that workers wrote.

    Raises:
        InputError: If the trace cannot be opened; the message says why.
    """
    path = Path(path)
    return _validate_parts(path) if path.is_dir() else _validate_file(path)


def _validate_parts(folder: Path) -> Finding:
    """The same of each part, and that they are one trace."""
    found = Finding()
    summaries = []
    for file in part_files(folder).values():
        of_part = _validate_file(file)
        summaries.append(f"{printable(file.name)}: {of_part.summary}")
        found.problems += [f"{printable(file.name)}: {problem}" for problem in of_part.problems]
        found.notes += [f"{printable(file.name)}: {note}" for note in of_part.notes]
    if not found.problems:
        with warnings.catch_warnings(record=True) as said, open_trace(folder) as trace:
            is_complete = trace.attributes["complete"]
        found.notes += [str(each.message).rstrip(".") for each in said]
        if not is_complete and not found.notes:
            found.notes.append("complete is false: its parts do not follow one another")
    found.summary = "; ".join(summaries)
    return found


def _validate_file(path: Path) -> Finding:
    """The same of one file."""
    found = Finding()
    with open_unverified(path) as trace:
        n_arrays = n_bytes = 0
        for where, variable in _arrays(trace):
            n_arrays, n_bytes = n_arrays + 1, n_bytes + variable.nbytes
            try:
                n_odd = _read(variable)
            except InputError as error:
                found.problems.append(f"{printable(where)} {_reason(error)}")
                continue
            is_untimed = where.endswith("/seconds")  # NaN says that nobody has timed it
            if n_odd and f"/{REFERENCE}/" in where and not is_untimed:
                found.notes.append(f"{printable(where)} has NaN or inf in {n_odd} rows, and is the reference")
        whole = check_trailer(path)
        _judge(found, trace, path, whole=whole)
        structures = trace.structures.sizes.get("structure", 0) if "structures" in trace.tree else 0
        checked = "every checksum agrees" if whole else "all of it can be read"
        found.summary = f"{structures} structures, {n_arrays} arrays of {n_bytes / 1e6:.1f} MB, {checked}"
    return found


def _judge(found: Finding, trace: Trace, path: Path, *, whole: bool | None) -> None:
    """What the file as a whole says: its checksum, whether it is complete, and since when it is as it is."""
    attributes = trace.attributes
    is_complete = attributes.get("complete")
    if whole is False:
        changed = dt.datetime.fromtimestamp(path.stat().st_mtime).astimezone().isoformat(timespec="seconds")
        made = printable(attributes.get("created", "an unknown time"))
        where = "" if found.problems else ", though every array can be read"
        found.problems.append(f"it is not what was written (made {made}, last changed {changed}){where}")
    if not is_complete:
        found.notes.append("complete is false: the run went on, was interrupted, or not all of it could be observed")
    elif whole is None and not found.problems:
        found.notes.append("it has no checksum of the whole file: it is of an older version, or was changed since")


def _arrays(trace: Trace) -> Iterator[tuple[str, xr.Variable]]:
    """Every variable of a trace by its path."""
    for node in trace.tree.subtree:
        for name, variable in node.to_dataset(inherit=False).variables.items():
            yield f"{node.path.rstrip('/')}/{name}", variable


def _read(variable: xr.Variable) -> int:
    """Read an array piece by piece; how many of its rows are not numbers, and not for want of a result."""
    if not variable.dims:
        _ = variable.values
        return 0
    row_bytes = max(1, variable.dtype.itemsize * int(np.prod(variable.shape[1:], dtype=np.int64)))
    rows = max(1, _PIECE // row_bytes)
    n_odd = n_without = 0
    for first in range(0, variable.shape[0], rows):
        values = variable[first : first + rows].values
        if values.dtype.kind == "f":
            is_number = np.isfinite(values).reshape(len(values), -1)
            n_without += int((~is_number.any(axis=1)).sum())
            n_odd += int((is_number.any(axis=1) & ~is_number.all(axis=1)).sum())
    # What only some structures have is NaN for the others, in whole rows; so is stress where nothing is periodic.
    is_partial = "block" in variable.attrs or variable.dims[-1] == "xyz_2"
    return n_odd if is_partial and n_without < variable.shape[0] else n_odd + n_without


def _reason(error: InputError) -> str:
    """Why an array cannot be read, as the library said it."""
    cause = error.__cause__
    return f"is damaged ({printable(cause)[:80]})" if cause is not None else "has values that cannot be"


def _limit(seconds: int, n_bytes: int) -> None:
    """Let the system end this process if it takes too long, and refuse it more memory than this."""
    try:
        import resource
    except ImportError:  # Windows has none
        return
    for kind, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, n_bytes), (resource.RLIMIT_CORE, 0)):
        allowed = resource.getrlimit(kind)[1]
        most = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
        resource.setrlimit(kind, (most, allowed))


def _main(arguments: Sequence[str]) -> None:
    path, seconds, n_bytes = arguments
    _limit(int(seconds), int(n_bytes))
    try:
        found = validate(path)
    except InputError as error:
        found = Finding(refusal=str(error))
    sys.stdout.write(json.dumps(asdict(found)))


if __name__ == "__main__":
    _main(sys.argv[1:])
