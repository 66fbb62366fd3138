"""What the command line does before it loads a model: refuses pickles if it is asked to, and says once what they do."""

import hashlib
import os
from pathlib import Path
from typing import Annotated

import typer

from precision_probe.cli.common import say
from precision_probe.exceptions import InputError

__all__ = ["SafeOption", "admit"]

SafeOption = Annotated[
    bool,
    typer.Option("--safe", help="Load no pickle: only 'demo' and files that convert wrote, which run no code."),
]
_SAFE_SUFFIXES = (".safetensors", ".json")  # by which load_model knows what it must not take for a pickle


def admit(model: str, *, safe: bool = False, quiet: bool = False) -> None:
    """Refuse what is no model, say once for each file that loading it runs code from it, and that it is being loaded.

    That comes first: what loads models takes seconds to be imported.

    Args:
        model: What the user gave.
        safe: Whether models that run code are refused instead.
        quiet: Whether to say nothing.

    Raises:
        InputError: If there is no such model, or it is a pickle, and only safe ones are allowed.
    """
    from precision_probe.spelling import check_model_name
    from precision_probe.structures import DEMO

    path = Path(model)
    is_safe = model == DEMO or path.suffix in _SAFE_SUFFIXES
    if safe and not is_safe:
        raise InputError(
            f"{model} is a pickle, and --safe loads none: loading it would run code from the file. Where you trust its "
            f"source, convert it: precision-probe convert {model} -o {path.stem.replace(':', '-')}.safetensors."
        )
    check_model_name(model)
    if not (quiet or is_safe) and path.is_file() and _is_new(path):
        say(
            False,
            f"{model} is a pickle, and loading it runs code from the file: use only models whose source you trust. "
            "precision-probe convert turns it into one that runs none, once and for all. This is said once a file.",
        )
    say(quiet, f"Loading {model}…")


def _is_new(path: Path) -> bool:
    """Whether a file was not seen before, by its content; it is remembered, if that can be."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        seen = _state_folder() / "models-seen"
        if seen.is_file() and digest in seen.read_text(encoding="ascii").split():
            return False
        seen.parent.mkdir(parents=True, exist_ok=True)
        with seen.open("a", encoding="ascii") as file:
            file.write(f"{digest}\n")
    except (OSError, RuntimeError, ValueError):  # no permission, no home, or not what was written
        pass
    return True


def _state_folder() -> Path:
    """Where the XDG base directory specification has what a program remembers between its runs."""
    given = os.environ.get("XDG_STATE_HOME", "")
    base = Path(given) if Path(given).is_absolute() else Path.home() / ".local" / "state"  # relative ones are invalid
    return base / "precision-probe"
