"""Claims: who writes an output, so that nobody else does.

A claim is a file ``<output>.lock``, made so that only one process can make it. That works where file systems have no
locks, and on several machines that share one. It says who made it: the lock of a process that was killed is recognised
on the machine where that ran, and taken over.
"""

import contextlib
import itertools
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from precision_probe.exceptions import InputError
from precision_probe.files import check_folder, check_writable, remove_temporary, unfinished, unwritable

__all__ = ["Claim", "TakenError", "claim_free_name", "claim_output", "remove_lock"]

_LOG = logging.getLogger(__name__)

_TRIES = 20  # others may take and release a lock meanwhile, each time we look; nobody does so this often
_MOMENT = 10.0  # seconds in which a lock that was made has been written: a choice, it takes microseconds


class TakenError(InputError):
    """Somebody else writes an output."""


class Claim(os.PathLike[str]):
    """An output that nobody else writes until this is released; a path to whoever wants one.

    Attributes:
        path: The output.
        is_resumed: Whether what an earlier run left of it is to be continued.
        may_replace: Whether a file that is there is to be replaced.
    """

    def __init__(self, path: Path, owner: "Owner") -> None:
        self.path, self.is_resumed, self.may_replace = path, False, False
        self._owner: Owner | None = owner

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @contextlib.contextmanager
    def released_on_failure(self) -> Iterator[None]:
        """Release it if the ``with`` block raises; else it is handed on to who writes the output."""
        try:
            yield
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let others write the output. A forked process releases nothing: the claim is its parent's."""
        owner, self._owner = self._owner, None
        if owner is not None and owner.pid == os.getpid():
            with contextlib.suppress(OSError):  # the folder may be gone, or another lock be in its place
                if _owner_of(_lock(self.path)) == owner:
                    _lock(self.path).unlink()


@dataclass(frozen=True)
class Owner:
    """The process that made a lock.

    Attributes:
        host: Name of its machine.
        boot: What tells apart machines of one name, and their boots; where it is known.
        pid: Its number.
        namespace: Where that number counts: in a container it is another.
        start: When the process started, in ticks since the boot, so that another one of the same number is known.
        since: When it made the lock.
        token: Another one for each lock, even of one process.
    """

    host: str
    boot: str
    pid: int
    namespace: str
    start: str
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    def is_gone(self) -> bool:
        """Whether the process runs no more, as far as this machine can tell."""
        if (self.host, self.boot, self.namespace) != (socket.gethostname(), _boot(), _namespace()):
            return False
        if self.pid == os.getpid():
            return self.start != _start(self.pid)
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's
            pass
        return self.start != _start(self.pid)


def claim_output(path: str | Path, *, force: bool = False, resume: bool = False, as_folder: bool = False) -> Claim:
    """Claim an output, once it is known that a file can be put there.

    Args:
        path: The output.
        force: Replace what is there.
        resume: Continue the ``.partial`` file that an earlier run left, if it left one.
        as_folder: The output is a folder of files, and may replace one.

    Raises:
        TakenError: If somebody else is writing it.
        InputError: If its folder is missing or not writable, it is a folder and should be a file, or something is there
            that is neither to be replaced nor to be continued.
    """
    claim = _claimed(check_folder(path, as_folder=as_folder))
    if isinstance(claim, Owner):
        raise TakenError(
            f"The output {path} is being written by {claim}. Wait for it or choose another name; if it runs no more, "
            f"delete {_lock(Path(path))}."
        )
    try:
        claim.is_resumed = resume and unfinished(claim.path).exists()
        claim.may_replace = force
        _check_free(claim, as_folder=as_folder)
    except BaseException as error:
        claim.release()
        if isinstance(error, OSError):
            raise unwritable(claim.path, error) from error
        raise
    return claim


def claim_free_name(stem: str | Path, suffix: str = ".h5") -> Claim:
    """Claim the first of ``<stem>-1.h5``, ``<stem>-2.h5``, … that is not there, nor begun, nor claimed.

    Raises:
        InputError: If the folder is missing or not writable.
    """
    for number in itertools.count(1):
        path = check_folder(f"{stem}-{number}{suffix}", as_folder=True)
        if path.exists() or unfinished(path).exists():
            continue
        claim = _claimed(path)
        if isinstance(claim, Claim):
            if not (path.exists() or unfinished(path).exists()):
                return claim
            claim.release()  # another run has come and gone since we looked
    raise AssertionError("numbers do not end")


def remove_lock(path: Path) -> None:
    """Remove the lock of an output whose owner is known to have ended, though this machine cannot tell."""
    _lock(path).unlink(missing_ok=True)


def _check_free(claim: Claim, *, as_folder: bool) -> None:
    """Refuse an output that is there, unless it is to be replaced or continued."""
    if not claim.is_resumed:
        check_writable(claim.path, force=claim.may_replace, as_folder=as_folder)
        return
    if unfinished(claim.path).is_dir() != as_folder:
        raise InputError(
            f"{unfinished(claim.path)} is of a run {'without' if as_folder else 'with'} --workers, and this one is "
            f"{'with' if as_folder else 'without'}. Go on as it was begun, or choose another output."
        )
    if claim.path.exists() and not claim.may_replace:
        raise InputError(
            f"The output {claim.path} exists, beside {unfinished(claim.path)}, which is to replace it. Go on with that "
            "by --resume with --force (resume=True, force=True), or delete one of them."
        )


def _claimed(path: Path) -> Claim | Owner:
    """A claim, or who has it."""
    me, lock = _me(), _lock(path)
    for _ in range(_TRIES):
        try:
            _make(lock, me)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):  # released meanwhile
                owner = _owner_of(lock)
                if owner is not None and not owner.is_gone():
                    return owner
                if owner is None and time.time() - lock.stat().st_mtime < _MOMENT:
                    time.sleep(_MOMENT / 100)  # it is being written
                    continue
                _LOG.info("%s was left by %s, which runs no more", lock, owner or "nobody known")
                _remove_stale(lock, owner)
                remove_temporary(path)  # which the one that is gone may have been writing
        except OSError as error:
            raise unwritable(path, error) from error
        else:
            return Claim(path, me)
    raise InputError(f"The output {path} is being claimed by others again and again. Choose another name.")


def _make(lock: Path, owner: Owner) -> None:
    """Make a lock, which only one process can, or none."""
    fd = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(json.dumps(asdict(owner)).encode())
            file.flush()  # which goes on where a disk that becomes full has taken a part, and so is told that it is
            os.fsync(file.fileno())  # some file systems say only now that there is no space
    except BaseException:
        with contextlib.suppress(OSError):
            lock.unlink()
        raise


def _remove_stale(lock: Path, owner: Owner | None) -> None:
    """Remove a lock whose owner is gone, but not one that somebody else has put in its place since.

    A second lock, held for a moment, lets one at a time look and remove.
    """
    removing = lock.with_name(f"{lock.name}.stale")
    try:
        os.close(os.open(removing, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    except FileExistsError:
        if time.time() - removing.stat().st_mtime > _MOMENT:  # who made it was killed
            removing.unlink()
        time.sleep(_MOMENT / 100)
        return
    try:
        if _owner_of(lock) == owner:
            lock.unlink()
    finally:
        removing.unlink(missing_ok=True)


def _owner_of(lock: Path) -> Owner | None:
    """Who made a lock; nobody if it is not written, or not yet."""
    try:
        found = json.loads(lock.read_bytes())
        return Owner(**{field.name: found[field.name] for field in fields(Owner)})
    except (ValueError, TypeError, KeyError):
        return None


def _lock(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _me() -> Owner:
    """This process."""
    since, pid = time.strftime("%Y-%m-%d %H:%M:%S"), os.getpid()
    return Owner(socket.gethostname(), _boot(), pid, _namespace(), _start(pid), since, os.urandom(8).hex())


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _namespace() -> str:
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def _start(pid: int) -> str:
    """When a process started; nothing for one that has ended, and where that cannot be known, as without Linux."""
    with contextlib.suppress(OSError):
        state, *after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # its name may hold anything
        return "" if state in "ZX" else after[18]  # a zombie has a number until its parent has asked for it
    return ""
