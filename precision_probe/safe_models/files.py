"""One safetensors file for a model: its description as JSON in the header's metadata, and its tensors."""

import hashlib
import itertools
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from precision_probe.exceptions import InputError, first_line
from precision_probe.models._mace import o3
from precision_probe.models.attributes import state_sha256
from precision_probe.safe_models.description import Description
from precision_probe.safe_models.rebuilding import rebuilt
from precision_probe.safe_models.schema import UnfitError

__all__ = ["load", "read", "write"]

_LAYER = re.compile(r"(?:model\.)?interactions\.(\d+)\.")
# Of the description among the metadata, which are texts; its last line is the SHA-256 of what stands above. It is the
# only one: the library writes several in any order, and the same model should make the same file.
_KEY = "precision_probe_model"


def write(description: Description, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a model.

    Args:
        description: What it is built from.
        state: Its tensors.
        path: A file that is replaced.
    """
    # copies, as some tensors are one in memory, which the format does not know
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    text = description.to_json()
    safetensors.torch.save_file(copies, path, metadata={_KEY: f"{text}\n{_sha256(text)}"})


def load(path: Path) -> torch.nn.Module:
    """Build the model that a file holds. No code from the file is run.

    Args:
        path: Of a file that :func:`write` wrote.

    Returns:
        The model, on the CPU and in evaluation mode.

    Raises:
        InputError: If the file is damaged, holds something else, or its tensors do not fit its architecture.
    """
    try:
        return read(path)
    except (UnfitError, InputError) as error:  # the second of a policy
        raise InputError(
            f"{path} cannot be read as a model: {str(error).rstrip('.')}. Expected is what precision-probe convert "
            "wrote: write it again from the checkpoint."
        ) from error


def read(path: Path) -> torch.nn.Module:
    """The same, where what is wrong is said of a file that is not named.

    Raises:
        UnfitError: If the file cannot be used.
        InputError: If its policy cannot.
    """
    description, state = _contents(path)
    if state_sha256(state) != description.sha256:
        raise UnfitError("it is damaged: its tensors have another SHA-256 than when they were written")
    _check_sizes(description.architecture, state)
    return rebuilt(description, state)


def _contents(path: Path) -> tuple[Description, dict[str, torch.Tensor]]:
    """The description and the tensors; the library checks the header against the file's length before it reads."""
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is not a mapping
    except Exception as error:  # of the library's own kinds, and of the system's
        raise UnfitError(f"it is no whole safetensors file ({type(error).__name__}: {first_line(error)})") from error
    if _KEY not in metadata:
        raise UnfitError("it holds tensors alone, and no architecture")
    text, _, written = metadata[_KEY].rpartition("\n")
    if written != _sha256(text):
        raise UnfitError("it is damaged: its description has another SHA-256 than when it was written")
    return Description.from_json(text), tensors


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_sizes(config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> None:
    """Refuse architectures that would be larger than the tensors beside them, before memory is taken for one."""
    layers = {found[1] for name in state if (found := _LAYER.match(name))}
    if len(layers) != config["num_interactions"]:
        raise UnfitError(
            f"its architecture has {config['num_interactions']} interactions, and its tensors are of {len(layers)}"
        )
    n_numbers = sum(tensor.numel() for tensor in state.values())
    for name, size in _sizes(config).items():
        if size > n_numbers:
            raise UnfitError(f"the {name} of its architecture take {size:,} numbers, and it holds {n_numbers:,}")


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """How many numbers some of the tensors of a model have at least, by what their sizes are made of."""
    channels = max(o3.Irreps(config["hidden_irreps"]).count("0e"), 1)
    widths = [config["num_bessel"], *config["radial_MLP"], channels]
    correlation = config["correlation"]
    order = max(correlation) if isinstance(correlation, list) else correlation
    components = (config["max_ell"] + 1) ** 2
    # Of the table of couplings of each path. How many paths there are is not known before they are found, which takes
    # most of the memory; this is fewer than there are: with max_ell 3 and correlation 4, 16 of some 160.
    couplings = components**order * max(components ** (order - 2) // 16, 1) if order > 1 else components
    return {
        "atomic_numbers and hidden_irreps": len(config["atomic_numbers"]) * channels,
        "hidden_irreps": o3.Irreps(config["hidden_irreps"]).num_irreps,
        "MLP_irreps": o3.Irreps(config["MLP_irreps"]).num_irreps,
        "num_bessel and radial_MLP": max(prod(pair) for pair in itertools.pairwise(widths)),
        "max_ell and correlation": couplings,
    }
