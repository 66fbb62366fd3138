"""The command line: one verb for each task. Nothing heavy is imported before a verb needs it."""

from typing import Annotated

import typer

from precision_probe.cli.audit import audit
from precision_probe.cli.common import (
    ModelArgument,
    Shape,
    ShapeOption,
    StructureFormatOption,
    StructuresArgument,
    TracebackOption,
    WideOption,
    exit_codes,
    table_console,
    write_json,
)
from precision_probe.cli.configuration import ConfigOption, use_configuration
from precision_probe.cli.console import printed
from precision_probe.cli.convert import convert
from precision_probe.cli.logs import LogLevelOption, logged
from precision_probe.cli.plot import plot
from precision_probe.cli.search import apply, recommend, sweep
from precision_probe.cli.traces import compare, errors, explain, report
from precision_probe.cli.trust import SafeOption, admit
from precision_probe.cli.validate import validate
from precision_probe.interruption import INTERRUPTIONS
from precision_probe.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    name="precision-probe",
    help="Which precision a MACE interatomic potential can be trusted in, and where the digits go.",
    epilog="Exit codes: 0 fine, 1 a tolerance was exceeded, 2 bad input or usage, 3 the run failed or was interrupted "
    "(Ctrl-C, SIGTERM; a second Ctrl-C ends at once), 141 nobody reads what is printed, as after | head.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        with printed():
            typer.echo(f"precision-probe {__version__}")
        raise typer.Exit


@app.callback()
def _before_verbs(
    context: typer.Context,
    config: ConfigOption = None,
    log_level: LogLevelOption = None,
    version: Annotated[  # noqa: ARG001  # its callback does it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
) -> None:
    """What stands before a verb."""
    with exit_codes(traceback=False):
        level = log_level or use_configuration(context, config)
        if level is not None:
            context.with_resource(logged(level))


def inspect(
    model: ModelArgument = "demo",
    structures: StructuresArgument = "demo",
    structures_format: StructureFormatOption = None,
    format: ShapeOption = Shape.table,  # noqa: A002
    wide: WideOption = False,
    safe: SafeOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Show what a model and structures are, and run the first interaction block as a smoke test."""
    with exit_codes(traceback):
        admit(model, safe=safe)
        from precision_probe.cli.inspect import inspection, print_inspection
        from precision_probe.cli.tables.style import WIDTH
        from precision_probe.structures import read_structures

        atoms = read_structures(structures, format=structures_format)
        if format is Shape.json:
            write_json(inspection(model, atoms))
        else:
            print_inspection(model, atoms, table_console(WIDTH, wide=wide))


for verb in (audit, inspect, errors, explain, compare, plot, report, validate, sweep, recommend, apply, convert):
    app.command()(verb)


def main() -> None:
    """Run the command line; the exit code says how it went."""
    INTERRUPTIONS.take_over()
    try:
        app()
    finally:
        INTERRUPTIONS.give_up()
