"""How users write a model and a device: what is wrong is said before torch is imported, which takes seconds."""

import re
from pathlib import Path

from precision_probe.exceptions import InputError
from precision_probe.structures import DEMO

__all__ = ["FAMILIES", "check_device_name", "check_model_file", "check_model_name", "is_foundation"]

FAMILIES = ("mace-mp", "mace-off")  # of foundation models
_DEVICE = re.compile(r"(cpu|cuda)(:(0|[1-9]\d?))?")


def is_foundation(model: str) -> bool:
    """Whether a model is named as a foundation model, such as ``mace-mp:small``."""
    family, colon, _ = model.partition(":")
    return bool(colon) and family in FAMILIES


def check_model_name(model: str) -> None:
    """Refuse what is neither the demo, nor named as a foundation model, nor a file.

    Raises:
        InputError: If it is none of them.
    """
    if model != DEMO and not is_foundation(model):
        check_model_file(Path(model))


def check_model_file(path: Path) -> None:
    """Refuse a path where there is no file.

    Raises:
        InputError: If there is none.
    """
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise InputError(f"The model file {path} {what}. Give a MACE checkpoint (.model) or {DEMO!r}.")


def check_device_name(device: str) -> None:
    """Refuse what is no name of a device that models run on; whether the device is there is another question.

    Raises:
        InputError: If it is none.

    Example:
        >>> check_device_name("cuda:1")
    """
    if not _DEVICE.fullmatch(device):
        raise InputError(f"Unknown device {device!r}. Give cpu, cuda or cuda:N.")
