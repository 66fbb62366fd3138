"""The command line: one verb for each task. Nothing heavy is imported before a verb needs it."""

import typer

from precision_probe.cli.audit import audit
from precision_probe.cli.common import (
    ModelArgument,
    StructureFormatOption,
    StructuresArgument,
    TracebackOption,
    exit_codes,
    wide_console,
)
from precision_probe.cli.convert import convert
from precision_probe.cli.search import apply, recommend, sweep
from precision_probe.cli.traces import compare, errors, explain, report
from precision_probe.cli.trust import SafeOption, admit
from precision_probe.cli.validate import validate
from precision_probe.interruption import INTERRUPTIONS

__all__ = ["app", "main"]

app = typer.Typer(
    name="precision-probe",
    help="Which precision a MACE interatomic potential can be trusted in, and where the digits go.",
    epilog="Exit codes: 0 fine, 1 a tolerance was exceeded, 2 bad input or usage, 3 the run failed or was interrupted "
    "(Ctrl-C, SIGTERM; a second Ctrl-C ends at once), 141 nobody reads what is printed, as after | head.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def inspect(
    model: ModelArgument = "demo",
    structures: StructuresArgument = "demo",
    format: StructureFormatOption = None,  # noqa: A002
    safe: SafeOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Show what a model and structures are, and run the first interaction block as a smoke test."""
    with exit_codes(traceback):
        admit(model, safe=safe)
        from precision_probe.cli.inspect import print_inspection
        from precision_probe.cli.style import WIDTH
        from precision_probe.structures import read_structures

        print_inspection(model, read_structures(structures, format=format), wide_console(WIDTH))


for verb in (audit, inspect, errors, explain, compare, report, validate, sweep, recommend, apply, convert):
    app.command()(verb)


def main() -> None:
    """Run the command line; the exit code says how it went."""
    INTERRUPTIONS.take_over()
    try:
        app()
    finally:
        INTERRUPTIONS.give_up()
