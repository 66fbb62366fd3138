"""What a pickle imports, looked at before it is loaded, by picklescan where that is installed (the extra ``scan``).

A scan finds what is known to be dangerous. It proves nothing of the rest: the code that torch.fx keeps in every MACE
checkpoint is run when one is loaded, whatever it is.
"""

import importlib
import logging
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Collection
from pathlib import Path
from typing import Any

from precision_probe.exceptions import InputError, first_line

__all__ = ["check_pickle"]

_ALSO = ("builtins.__import__", "importlib.import_module")  # which picklescan 1.0 takes for suspicious at most
_SHOWN = 5  # imports in a message


def check_pickle(path: Path, guarded: Collection[str] = ()) -> bool:
    """Refuse a checkpoint whose pickle imports what is known to be dangerous; without picklescan, do nothing.

    Args:
        path: Of the checkpoint.
        guarded: What it may import all the same, as what loads it replaces that by something harmless.

    Returns:
        Whether it was scanned.

    Raises:
        InputError: If it imports such a thing, which is named, or cannot be scanned.
    """
    try:
        scanner: Any = importlib.import_module("picklescan.scanner")
    except ImportError:
        return False
    logger = logging.getLogger("picklescan")  # logs what it finds, which is said here
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    try:
        with path.open("rb") as file:  # by its ending a file is known to it as torch's, zipped or not
            result = scanner.scan_bytes(file, str(path), ".pt")
    except Exception as error:  # whatever a pickle that is damaged, or made to be unreadable, makes of a parser
        raise InputError(
            f"{path} cannot be read as a torch checkpoint: the scan of its pickle failed ({type(error).__name__}: "
            f"{first_line(error)}). It may be truncated, of another kind, or made to mislead scanners."
        ) from error
    found = {_today(each.module, each.name): each.safety is scanner.SafetyLevel.Dangerous for each in result.globals}
    dangerous = sorted(name for name, is_known in found.items() if (is_known or name in _ALSO) and name not in guarded)
    if dangerous:
        more = f" and {len(dangerous) - _SHOWN} more" if len(dangerous) > _SHOWN else ""
        raise InputError(
            f"{path} was not loaded: its pickle imports {', '.join(map(ascii, dangerous[:_SHOWN]))}{more}, with which "
            "loading it could run any command, and which no MACE needs. Do not use this file; get the model from its "
            "makers."
        )
    return True


def _today(module: str, name: str) -> str:
    """What Python 3 imports by a name that torch's pickles have as Python 2 had it, such as ``commands``."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"
