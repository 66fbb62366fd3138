"""The verb validate, and what other verbs do before they read a trace that is not trusted."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from precision_probe.cli.common import TraceArgument, TracebackOption, complain, exit_codes
from precision_probe.cli.console import printed
from precision_probe.exceptions import InputError, printable

__all__ = ["UntrustedOption", "validate", "validate_first"]

UntrustedOption = Annotated[
    bool,
    typer.Option(
        "--untrusted",
        help="Validate the file first, in a process of its own with limits of time and memory: see validate.",
    ),
]

_SECONDS, _BYTES_A_SECOND = 60, 2**23  # to start and for what HDF5 reads at the very least, of a slow disk
_MEMORY = 8 * 2**30  # bytes of addresses; the libraries take about one GiB of them, an array as it is read the rest
_MOST_NAMED = 5  # problems that a message names


def validate(trace: TraceArgument, traceback: TracebackOption = False) -> None:
    """Read everything in a trace, verify every checksum, and say what is wrong with which variable.

    It is read in a process of its own, with limits of time and memory: a file that makes the HDF5 library crash or go
    in circles does so there. Links and data that lead to other files, and filters that are not HDF5's own, are refused
    before they are followed. Exits with 0 and says so if the trace is fine, and with 2 if it is not.
    """
    with exit_codes(traceback):
        summary, notes = _examined(trace)
        for note in notes:
            complain(f"Note: {note}.")
        with printed():
            typer.echo(f"{printable(trace)} is fine: {summary}.")


def validate_first(untrusted: bool, *traces: Path) -> None:
    """Validate traces, if that is asked for, before they are read in this process.

    Raises:
        InputError: If one is not fine.
    """
    for trace in traces if untrusted else ():
        _examined(trace)


def _examined(trace: Path) -> tuple[str, list[str]]:
    """What a process of its own found in a trace: what there is in it, and what a reader should know.

    Raises:
        InputError: If something is wrong with it.
    """
    shown = printable(trace)
    files = trace.iterdir() if trace.is_dir() else [trace]
    size = sum(file.stat().st_size for file in files if file.is_file())
    seconds = _SECONDS + size // _BYTES_A_SECOND
    command = [sys.executable, "-m", "precision_probe.trace.validation", str(trace), str(seconds), str(_MEMORY)]
    # HDF5 reads this as it is loaded: no plug-in is ever loaded then. One thread is enough, and needs fewer addresses.
    environment = {**os.environ, "HDF5_PLUGIN_PRELOAD": "::", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False, env=environment)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{shown} could not be read within {seconds} s: it is damaged, or made to do so.") from error
    if done.returncode:
        how = "ran out of time or memory" if done.returncode > 0 else f"ended by {_name(-done.returncode)}"
        raise InputError(f"{shown} cannot be read: the process that read it {how}. It is damaged, or made to do so.")
    found = json.loads(done.stdout)
    if found["refusal"]:
        raise InputError(found["refusal"])
    problems = found["problems"]
    if problems:
        more = f"; and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
        raise InputError(
            f"{shown} is damaged: {'; '.join(problems[:_MOST_NAMED])}{more}. "
            "Copy it anew from where it was made, or make it anew."
        )
    return str(found["summary"]), [str(note) for note in found["notes"]]


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
