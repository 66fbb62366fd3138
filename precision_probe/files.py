"""Files written whole or not at all: an output is checked before the work, and appears when it is complete."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from precision_probe.exceptions import InputError

__all__ = ["check_writable", "replacing", "unfinished"]


def check_writable(path: str | Path, *, force: bool = False) -> Path:
    """Return the path, once it is known that a file can be put there: asked before hours of work, not after.

    Raises:
        InputError: If its folder is missing or not writable, it is a folder, or a file is there without ``force``.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"The output {path} is a folder. Give the name of a file in it.")
        if path.exists() and not force:
            raise InputError(f"The output {path} exists. Choose another name, or replace it with --force (force=True).")
        if unfinished(path).exists() and not force:
            raise InputError(
                f"{unfinished(path)} exists: what a run finished before it was killed, or one that is running. "
                "Choose another name, or replace it with --force (force=True)."
            )
        with replacing(path, commit=False):
            pass
    except OSError as error:
        raise InputError(
            f"The output {path} cannot be written ({error.strerror or error}). "
            "Choose a folder that exists and that you may write to."
        ) from error
    return path


def unfinished(path: Path) -> Path:
    """Where a file that is not written at once grows until it is complete."""
    return path.with_name(f"{path.name}.partial")


@contextmanager
def replacing(path: Path, *, commit: bool = True) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place at the end, and is gone if anything fails."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if commit:
            umask = os.umask(0)  # it cannot be read but by setting it
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp's own mode shuts other users out
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
