"""The command line: one verb for each task. Nothing heavy is imported before a verb needs it."""

import typer

from precision_probe.cli.audit import audit, inspect
from precision_probe.cli.search import apply, recommend, sweep
from precision_probe.cli.traces import compare, errors, explain

__all__ = ["app", "main"]

app = typer.Typer(
    name="precision-probe",
    help="Which precision a MACE interatomic potential can be trusted in, and where the digits go.",
    epilog="Exit codes: 0 fine, 1 a tolerance was exceeded, 2 bad input or usage, 3 the run failed or was interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for verb in (audit, inspect, errors, explain, compare, sweep, recommend, apply):
    app.command()(verb)


def main() -> None:
    """Run the command line; the exit code says how it went."""
    app()
