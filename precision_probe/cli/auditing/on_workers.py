"""An audit by workers, as the command line has it: with its progress, and what was kept where it fails."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from precision_probe.cli.common import say
from precision_probe.files import unfinished
from precision_probe.interruption import INTERRUPTIONS

if TYPE_CHECKING:
    import ase

    from precision_probe.parallel.audit import Audit
    from precision_probe.probe.options import Options
    from precision_probe.trace.claim import Claim

__all__ = ["audit_on_workers"]


def audit_on_workers(
    model: str,
    structures: "Sequence[ase.Atoms]",
    claim: "Claim",
    options: "Options",
    *,
    n_workers: int | None,
    scheduler: str | None,
    steps: int | None,
    quiet: bool,
) -> "Audit":
    """Run an audit on workers that are started here or are there already.

    Args:
        model: As the user gave it.
        structures: What to run.
        claim: Of the output.
        options: As :func:`precision_probe.attach` takes them.
        n_workers: How many workers.
        scheduler: The address of theirs, if they are not to be started here.
        steps: Of dynamics, where errors are to be explained; ``None`` if not.
        quiet: Say nothing.
    """
    from precision_probe.parallel.audit import audit
    from precision_probe.parallel.cluster import connected, n_workers_of
    from precision_probe.progress import counted

    with connected(n_workers, scheduler) as client:
        say(quiet, f"Auditing {len(structures)} structure(s) with {n_workers_of(client)} worker(s)")
        with counted(len(structures), "structures", progress=not quiet) as told:
            explain = ("contributions",) if steps is None else None
            done = audit(
                model, structures, claim, client, options=options, explain=explain, steps=steps or 0, told=told
            )
    if done.n_resumed:
        say(quiet, f"{done.n_resumed} structure(s) had been done already, in {unfinished(claim.path)}.")
    INTERRUPTIONS.keep(f"The trace is in {done.path}.")
    return done
