"""Where an audit writes: the output it was given or the first free name, and what an interrupted run left there."""

import glob
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from precision_probe.cli.common import say
from precision_probe.exceptions import InputError
from precision_probe.files import unfinished
from precision_probe.interruption import INTERRUPTIONS

if TYPE_CHECKING:
    from precision_probe.trace.claim import Claim

__all__ = ["claimed", "kept"]


@contextmanager
def claimed(
    output: Path | None, model: str, structures: str, *, force: bool, resume: bool, quiet: bool, as_folder: bool
) -> "Iterator[Claim]":
    """The output, which nobody else writes meanwhile: by default the first free name, or what is to be resumed.

    Args:
        output: As the user gave it.
        model: Likewise; by default names are made of these two.
        structures: Likewise.
        force: Replace an output that is there.
        resume: Go on from what an interrupted run left.
        quiet: Say nothing of what interrupted runs left.
        as_folder: The output is a folder, to which several workers write.

    Raises:
        InputError: If it cannot be used, or it is not clear what is to be resumed.
        ProbeError: If the work is interrupted.
    """
    from precision_probe.trace.claim import claim_free_name, claim_output

    stem = f"{Path(model).stem.replace(':', '-')}-{Path(structures.split('@')[0]).stem}"
    suffix = "" if as_folder else ".h5"
    places: list[Path] = []
    with INTERRUPTIONS.working(lambda: kept(*places)):
        left = _interrupted(stem, suffix) if output is None else []
        if resume and output is None:
            if len(left) != 1:
                found = ", ".join(str(unfinished(path)) for path in left) or "none"
                raise InputError(f"Say with --output what --resume is to go on with. Interrupted runs left: {found}.")
            (output,) = left
        elif left:
            say(quiet, f"{unfinished(left[0])} is what an interrupted run left: --resume --output {left[0]} goes on.")
        with (
            warnings.catch_warnings(),
            claim_free_name(stem, suffix)
            if output is None
            else claim_output(output, force=force, resume=resume, as_folder=as_folder) as claim,
        ):
            warnings.filterwarnings(
                "ignore", "precision_probe: The run did not come", RuntimeWarning
            )  # an error says it
            places.append(claim.path)
            yield claim


def _interrupted(stem: str, suffix: str) -> list[Path]:
    """The outputs STEM-N.h5, or folders STEM-N, that an interrupted run began and that no run is writing now."""
    from precision_probe.trace.claim import claim_output

    outputs = []
    for part in sorted(Path().glob(f"{glob.escape(stem)}-*{suffix}.partial")):
        output = part.with_suffix("")
        if re.fullmatch(rf"\d+{re.escape(suffix)}", output.name.removeprefix(f"{stem}-")):
            with suppress(InputError), claim_output(output, resume=True, as_folder=not suffix):
                outputs.append(output)
    return outputs


def kept(output: Path | None = None) -> str:
    """What an interrupted audit leaves."""
    if output is None or not unfinished(output).exists():
        return "Nothing was written."
    return f"What was finished is in {unfinished(output)}; the same command with --resume goes on from there."
