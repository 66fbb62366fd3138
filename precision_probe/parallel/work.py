"""What a worker does: run one part of an audit, and for the first of them find out where errors come from."""

import contextlib
import logging
import shutil
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ase

from precision_probe.exceptions import ProbeError, first_line
from precision_probe.files import unfinished
from precision_probe.interruption import INTERRUPTIONS
from precision_probe.probe.options import Options
from precision_probe.trace.claim import Claim, TakenError, claim_output, remove_lock
from precision_probe.trace.parts.part import Part

if TYPE_CHECKING:
    from precision_probe.probe.probe import Probe

__all__ = ["Explained", "PartDone", "run_part"]

_LOG = logging.getLogger(__name__)

_INTERVAL = 0.5  # seconds between the events that tell how far a worker is


@dataclass(frozen=True)
class Explained:
    """Of what structures it is found out where errors come from, and which tables say so.

    Attributes:
        structures: Those that were chosen.
        only: Names of tables; ``None`` for all.
        steps: Of dynamics.
    """

    structures: Sequence[ase.Atoms]
    only: Collection[str] | None
    steps: int


@dataclass(frozen=True)
class PartDone:
    """What came of one part.

    Attributes:
        notes: What a reader of the results should know.
        problem: Why its file is not finished; empty if it is.
        not_explained: Why errors could not be explained; empty if they were, or nobody asked.
    """

    notes: tuple[str, ...] = ()
    problem: str = ""
    not_explained: str = ""


def run_part(
    model: str,
    structures: Sequence[ase.Atoms],
    part: Part,
    folder: Path,
    options: Options,
    run: str,
    explained: Explained | None = None,
) -> PartDone:
    """Run the structures of one part, and finish its file; go on from what an earlier worker left of it.

    Args:
        model: As :func:`precision_probe.attach` takes it.
        structures: Of the part.
        part: Which it is.
        folder: Where its file goes.
        options: As :func:`precision_probe.attach` takes them.
        run: Name of the topic under which it tells how far it is, and of the event at which it stops between two
            structures.
        explained: What is to be explained, with the variants that are compiled by then.

    Raises:
        InputError: If the model, a structure or an option cannot be used.
        ProbeError: If it was stopped.
    """
    from precision_probe.probe.probe import attach

    path = folder / part.file_name
    if path.exists():  # an earlier run finished it: it is compared with what this one is to run, and finished again
        path.replace(unfinished(path))
    try:
        with (
            attach(model, **options, output=_claimed(path), resume=True, part=part) as probe,
            _told(probe, part, run),
        ):
            probe.run(structures, progress=False)
            not_explained = "" if explained is None else _explain(probe, explained)
    except KeyboardInterrupt as error:
        raise ProbeError(f"Part {part.number} was stopped.") from error
    return PartDone(tuple(probe.notes), "" if probe.written_to == path else probe.output_problem, not_explained)


def _explain(probe: "Probe", explained: Explained) -> str:
    """Find out where errors come from, if there are energies and all had memory; why that failed, if it did."""
    atoms = explained.structures
    if explained.only is not None and (not probe.predicts_energies or probe.failures):
        return ""
    try:
        probe.explain(atoms, n_structures=len(atoms), steps=explained.steps, only=explained.only, progress=False)
    except ProbeError as error:
        return str(error)
    except Exception as error:
        return f"Errors could not be explained ({type(error).__name__}: {first_line(error)})."
    return ""


def _claimed(path: Path) -> Claim:
    """The file of a part. A worker that had it before us has been given up by the scheduler, and runs it no more."""
    try:
        return claim_output(path, resume=True)
    except TakenError:
        # It may be on another machine, where nobody here can see whether it has ended. If it has not, it finds a file
        # that is not its own, and writes nothing more.
        left = unfinished(path)
        _LOG.warning("%s was left by another worker, which the scheduler has given up", left)
        if left.exists():
            shutil.copy2(left, left.with_name(f"{left.name}.new"))
            left.with_name(f"{left.name}.new").replace(left)
        remove_lock(path)
        return claim_output(path, resume=True)


@contextlib.contextmanager
def _told(probe: "Probe", part: Part, run: str) -> Iterator[None]:
    """Tell the client now and then how many structures of a part are done, and stop if it says so."""
    from distributed import Event, get_client, get_worker

    worker, is_stopped, is_done = get_worker(), Event(run, client=get_client()), threading.Event()

    def tell() -> None:
        while not is_done.wait(_INTERVAL):
            worker.log_event(run, {"part": part.number, "n_structures": probe.n_structures, "worker": worker.address})
            if is_stopped.is_set():
                INTERRUPTIONS.interrupt()

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()
        INTERRUPTIONS.told()
