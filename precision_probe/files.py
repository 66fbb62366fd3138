"""Files written whole or not at all: an output is checked before the work, and appears when it is complete."""

import errno
import glob
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from precision_probe.exceptions import InputError

__all__ = ["check_folder", "check_writable", "remove_temporary", "replacing", "unfinished", "unwritable"]

_LONGEST = ".partial.journal"  # of what is added to names
_TEMPORARY = ".new"


def check_writable(path: str | Path, *, force: bool = False, as_folder: bool = False) -> Path:
    """Return the path, once it is known that a file can be put there: asked before hours of work, not after.

    Args:
        path: The file.
        force: Replace what is there.
        as_folder: It is to be a folder of files, and may replace one.

    Raises:
        InputError: If its folder is missing or not writable, it is a folder and should be a file, or something is there
            without ``force``.
    """
    path = check_folder(path, as_folder=as_folder)
    try:
        if path.exists() and not force:
            raise InputError(f"The output {path} exists. Choose another name, or replace it with --force (force=True).")
        if unfinished(path).exists() and not force:
            raise InputError(
                f"{unfinished(path)} exists: what a run finished before it was killed, or one that is running. "
                "Go on with it (--resume, resume=True), choose another name, or replace it with --force (force=True)."
            )
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def check_folder(path: str | Path, *, as_folder: bool = False) -> Path:
    """Return the path of a file, once it is known that its folder is there and may be written to.

    Args:
        path: The file.
        as_folder: It may be a folder itself.

    Raises:
        InputError: If that is not so, or the path is a folder and should be a file.
    """
    path = Path(path)
    try:
        if path.is_dir() and not as_folder:
            raise InputError(f"The output {path} is a folder. Give the name of a file in it.")
        with suppress(FileNotFoundError):
            path.parent.joinpath(f"{path.name}{_LONGEST}").lstat()  # says whether there can be such a name
        if not stat.S_ISDIR(path.parent.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except (OSError, ValueError) as error:  # the second: a NUL in the name
        raise unwritable(path, error) from error
    # root may write where permissions say no, and nobody on a file system that is read-only: access() knows both
    if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise unwritable(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    return path


def unwritable(path: Path, error: Exception) -> InputError:
    """The message that a file cannot be written, and why."""
    reason = getattr(error, "strerror", None) or error
    return InputError(
        f"The output {path} cannot be written ({reason}). Choose a folder that exists, that you may write to, and that "
        "has space."
    )


def unfinished(path: Path) -> Path:
    """Where a file that is not written at once grows until it is complete."""
    return path.with_name(f"{path.name}.partial")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place at the end, and is gone if anything fails."""
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=_TEMPORARY, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)  # it cannot be read but by setting it
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's own mode shuts other users out
        temporary.replace(path)
    finally:
        with suppress(OSError):  # the folder may be gone, which is no reason to hide what went wrong
            temporary.unlink(missing_ok=True)


def remove_temporary(path: Path) -> None:
    """Remove what a process that was killed within :func:`replacing` left, if nobody else writes ``path``."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.{'?' * 8}{_TEMPORARY}"):
        with suppress(OSError):
            left.unlink()
