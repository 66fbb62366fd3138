"""The verb that turns a checkpoint into a file that runs no code: convert."""

from pathlib import Path
from typing import Annotated

import typer

from precision_probe.cli.common import TracebackOption, exit_codes, say
from precision_probe.cli.trust import admit

__all__ = ["convert"]


def convert(
    model: Annotated[
        str, typer.Argument(help="A MACE checkpoint (.model) whose source you trust, or a foundation model.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write; it ends in .safetensors.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an output that exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing.")] = False,
    traceback: TracebackOption = False,
) -> None:
    """Write a model as architecture and tensors, which load without running code, and check that it is the same."""
    with exit_codes(traceback):
        admit(model, quiet=quiet)
        import precision_probe as pp

        written = pp.convert(model, output, force=force)
        say(
            quiet,
            f"{output}: SHA-256 of the tensors {written.sha256}. Read back, it is the same bit for bit, and so is what "
            f"it predicts ({', '.join(written.compared)}).",
        )
