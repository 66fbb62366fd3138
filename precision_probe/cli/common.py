"""What the verbs of the command line share: arguments, exit codes, printing."""

import contextlib
import json
import math
import sys
import traceback as traceback_module
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from precision_probe.cli.console import CLOSED, ClosedError, PlainConsole, csv_cell, json_text, printed
from precision_probe.exceptions import InputError, ProbeError
from precision_probe.interruption import INTERRUPTIONS

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "BAD_INPUT",
    "EXCEEDED",
    "FAILED",
    "BlocksOption",
    "DeviceOption",
    "EnergyKeyOption",
    "ForcesKeyOption",
    "Format",
    "FormatOption",
    "HeadOption",
    "ModelArgument",
    "Resolved",
    "SchedulerOption",
    "Shape",
    "ShapeOption",
    "StressKeyOption",
    "StructureFormatOption",
    "StructuresArgument",
    "TraceArgument",
    "TracebackOption",
    "WideOption",
    "complain",
    "exit_codes",
    "say",
    "table_console",
    "write",
    "write_json",
]

EXCEEDED, BAD_INPUT, FAILED = 1, 2, 3  # exit codes; 2 is also what typer gives to usage errors

ModelArgument = Annotated[
    str,
    typer.Argument(
        help="A MACE checkpoint (.model), a file that convert wrote (.safetensors), 'demo', or a foundation model "
        "(mace-mp:small, mace-off:medium, …), which mace-torch downloads. A checkpoint is a pickle: loading it runs "
        "code from the file, so use only files whose source you trust, or --safe.",
        show_default=True,
    ),
]
StructuresArgument = Annotated[
    str, typer.Argument(help="Any file that ASE reads, with ASE's own file@0:16 to select from it, or 'demo'.")
]
StructureFormatOption = Annotated[
    str | None,
    typer.Option(
        "--structures-format",
        help="ASE's name of the structure file's format, where the file does not tell: lammps-data, lammps-dump-text, "
        "… ASE takes the elements of a LAMMPS file from its masses or type numbers: check them with inspect.",
    ),
]
EnergyKeyOption = Annotated[
    str | None, typer.Option(help="Key of the reference energy (eV). Default: where ASE has it, or REF_energy.")
]
ForcesKeyOption = Annotated[
    str | None, typer.Option(help="Key of the reference forces (eV/Å). Default: where ASE has them, or REF_forces.")
]
StressKeyOption = Annotated[
    str | None, typer.Option(help="Key of the reference stress (eV/Å³). Default: where ASE has it, or REF_stress.")
]
TraceArgument = Annotated[Path, typer.Argument(help="A trace that audit wrote.")]
TracebackOption = Annotated[bool, typer.Option("--traceback", help="Show the Python traceback of an error.")]
WideOption = Annotated[
    bool,
    typer.Option("--wide", help="Tables with all columns, also where a terminal is too narrow: it breaks their lines."),
]
BlocksOption = Annotated[
    list[str] | None,
    typer.Option(help="Glob over module names: 'interactions.*', or '!readouts.*' to leave out; may be repeated."),
]
HeadOption = Annotated[str | None, typer.Option(help="Which head of a multi-head model.")]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        help="Use the workers of a dask scheduler, its address (tcp://10.0.0.1:8786) or its --scheduler-file."
    ),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N. Default: a GPU if there is one.")]


class Resolved(StrEnum):
    """What errors are resolved by: the values of :data:`precision_probe.analysis.pairs.By`, as typer takes them."""

    irrep = "irrep"
    element = "element"


class Format(StrEnum):
    """How errors are printed."""

    table = "table"
    csv = "csv"
    json = "json"


class Shape(StrEnum):
    """How what is no single table is printed."""

    table = "table"
    json = "json"


ShapeOption = Annotated[
    Shape, typer.Option("--format", help="Tables to read, or one JSON document: docs/command-line.md has its keys.")
]
FormatOption = Annotated[
    Format,
    typer.Option(
        help="How to print the table. In CSV, text that a spreadsheet would take for a formula has an apostrophe "
        "before it."
    ),
]


def write(table: "pd.DataFrame", format: Format, file: IO[str] | None = None) -> None:  # noqa: A002
    """Write a table to a file, or to stdout, as CSV or JSON.

    Texts come from files: what a terminal would obey is escaped, and what a spreadsheet would take for a formula gets
    an apostrophe before it in CSV.
    """
    if format is Format.json:
        write_json(table.to_dict("records"), file)
    else:
        _write(table.rename(columns=csv_cell).map(csv_cell).to_csv(index=False), file)


def write_json(document: object, file: IO[str] | None = None) -> None:
    """Write a JSON document to a file, or to stdout; inf and NaN are null, what a terminal would obey is escaped."""
    text = json.dumps(_finite(document), indent=1, ensure_ascii=False, default=int)
    _write(json_text(text) + "\n", file)


def _write(text: str, file: IO[str] | None) -> None:
    if file is not None:
        file.write(text)
        return
    with printed():
        sys.stdout.write(text)


def _finite(value: object) -> object:
    """The same with ``None`` for every number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def exit_codes(traceback: bool) -> Iterator[None]:
    """Turn an error into one short paragraph on stderr and its exit code."""
    try:
        yield
    except typer.Exit:
        raise
    except ClosedError as error:
        raise typer.Exit(CLOSED) from error
    except (InputError, ImportError) as error:  # the second: a package that is missing, or too old
        code, message = BAD_INPUT, str(error)
    except ProbeError as error:
        code, message = FAILED, str(error)
    except KeyboardInterrupt:
        code, message = FAILED, INTERRUPTIONS.message
    except Exception as error:
        code, message = FAILED, f"The run failed: {type(error).__name__}: {error}. See --traceback for where."
    else:
        return
    if traceback:
        complain(traceback_module.format_exc())
    complain(f"Error: {message}")
    raise typer.Exit(code)


def table_console(width: int, *, wide: bool) -> Console:
    """A console for tables: a terminal, which they are fitted to, or one at least so wide, where no digit is cut off.

    Args:
        width: That the tables need, in a pipe or a file.
        wide: Whether a terminal, too, is given all that there is, and breaks lines as it likes.
    """
    if sys.stdout.isatty() and not wide:
        return PlainConsole(fits_tables=True)
    return PlainConsole(width=max(width, PlainConsole().width))


def say(quiet: bool, message: str) -> None:
    """Write a line to stderr, unless asked to be quiet."""
    if not quiet:
        PlainConsole(stderr=True).print(message, highlight=False)


def complain(message: object) -> None:
    """Write what went wrong to stderr, quiet or not."""
    PlainConsole(stderr=True).print(message, highlight=False, soft_wrap=True)
