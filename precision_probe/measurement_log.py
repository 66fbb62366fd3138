"""A log of what was measured, one line for each: from which an interrupted run goes on.

Lines are only ever added, each with a checksum. So whatever ends the writer costs the line that it was writing, and a
line that was damaged since is measured again.
"""

import json
import os
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from precision_probe.exceptions import InputError

__all__ = ["MeasurementLog"]


class MeasurementLog:
    """Values that were measured, by key, and the file that keeps them.

    Args:
        path: The file, which is read if it is there, and not touched before something is added; ``None`` for no file.
        of: What the values depend on, by its name in a sentence: ``{"model": "<SHA-256>", …}``.
        force: Begin anew where the file is of something else, or no log, which otherwise is refused.

    Raises:
        InputError: If the file cannot be read, is no log, or is of something else.
    """

    def __init__(self, path: Path | None, of: Mapping[str, str], *, force: bool = False) -> None:
        self._path = path
        self._header = _line(dict(of))
        self._values: dict[str, Any] = {}
        self._n_bytes = 0  # of the file, as far as it is used
        if path is not None and path.exists():
            self._read(path, dict(of), force)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def add(self, key: str, value: Any) -> None:
        """Keep a value, as JSON has it: whatever happens next, but for a disk that takes nothing more."""
        self._values[key] = value
        if self._path is None:
            return
        try:
            self._write(self._path, key)
        except OSError as error:
            warnings.warn(
                f"precision_probe: {self._path} cannot be written ({error.strerror or error}). The run goes on, but if "
                "it is interrupted, what it measures from here on is lost.",
                RuntimeWarning,
                stacklevel=2,
            )
            self._path = None

    def _write(self, path: Path, key: str) -> None:
        """Put a line at the end of what is used of the file: all of it, or, if this raises, nothing."""
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            at = self._n_bytes if os.fstat(handle).st_size >= self._n_bytes else 0  # somebody may have deleted it
            lines = [_line({"key": each, "value": self._values[each]}) for each in ((key,) if at else self._values)]
            text = b"".join([b"" if at else self._header, *lines])
            os.ftruncate(handle, at)
            os.lseek(handle, at, os.SEEK_SET)
            try:
                rest = memoryview(text)
                while rest:  # a disk that becomes full takes a part
                    rest = rest[os.write(handle, rest) :]
            except OSError:
                os.ftruncate(handle, at)
                raise
            self._n_bytes = at + len(text)
        finally:
            os.close(handle)

    def _read(self, path: Path, of: dict[str, str], force: bool) -> None:
        """Take over what a file has, if it is of the same things."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"The log {path} cannot be read ({error.strerror or error}).") from error
        if self._header.startswith(content):
            return  # its writer was killed before anything was measured
        whole = content[: content.rfind(b"\n") + 1]  # it may have been killed in the middle of a line
        first, *lines = whole.split(b"\n")
        differs = _differences(_parsed(first), of)
        if not differs:
            entries = [entry for entry in map(_parsed, lines) if entry is not None and entry.keys() == {"key", "value"}]
            self._values = {entry["key"]: entry["value"] for entry in entries}
            self._n_bytes = len(whole)
        elif not force:
            raise InputError(
                f"{path} is what an interrupted run left, and {differs}. Choose another output, run that one again, or "
                "give up what it measured with --force (force=True)."
            )


def _line(content: Mapping[str, Any]) -> bytes:
    """Content as JSON, after its checksum."""
    text = json.dumps(content).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The content of a whole line, ``None`` if it is not what was written."""
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _differences(found: Mapping[str, Any] | None, of: Mapping[str, str]) -> str:
    """What is wrong with the first line of a log, as a sentence has it; nothing if it is as expected."""
    if found is None or not found.keys() >= {"log"} or found.get("log") != of.get("log"):
        return "no log of such a run, or damaged"
    names = [name for name in dict.fromkeys((*of, *found)) if found.get(name) != of.get(name)]
    return f"of another {' and another '.join(names)}" if names else ""
