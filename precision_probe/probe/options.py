"""What ``attach()`` is given: gradients, modes and devices as users name them → what the probe works with."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_args

from precision_probe.exceptions import InputError
from precision_probe.trace.claim import Claim, claim_output
from precision_probe.trace.schema import MODES

if TYPE_CHECKING:
    import torch

__all__ = [
    "BatchEdges",
    "Gradients",
    "Keep",
    "Options",
    "batch_edges_on",
    "check_batch_edges",
    "default_device",
    "parse_batch_edges",
    "parse_gradients",
    "parse_keep",
    "parse_modes",
    "parse_output",
]

Gradients: TypeAlias = Literal["per_block", "shared"] | bool
BatchEdges: TypeAlias = int | Literal["auto"] | None
Keep: TypeAlias = Literal["tensors", "errors", "none"]


# Edges that keep a GPU busy: 200 molecules of 27 atoms took an H100 56.5 s one by one, 4.3 s in graphs of up to 10,000
# edges, and 2.4 s of up to 60,000. What would be best on a CPU has not been measured.
_BUSY = 60_000


class Options(TypedDict, total=False):
    """What :func:`precision_probe.attach` is given beside the model."""

    precisions: str | Sequence[str] | None
    blocks: str | Sequence[str] | None
    gradients: Gradients
    keep: Keep | None
    modes: str | Sequence[str]
    time: bool | None
    batch_edges: BatchEdges
    offload: bool
    head: str | None
    device: str | None
    configuration: Mapping[str, object] | None


def parse_gradients(gradients: Gradients) -> str:
    """Return which gradients are recorded: ``per_block``, ``shared`` or ``none``.

    Raises:
        InputError: If they are not one of those that :func:`precision_probe.attach` names.
    """
    known = {"per_block": "per_block", "shared": "shared", True: "per_block", False: "none"}
    if gradients not in known:
        raise InputError(f"gradients must be 'per_block', 'shared' or False, got {gradients!r}.")
    return known[gradients]


def parse_keep(keep: str | None) -> Keep | None:
    """Return what is kept of what blocks compute: ``tensors``, ``errors``, ``none``, or ``None`` if it is not said.

    Raises:
        InputError: If it is another word.
    """
    known: dict[str | None, Keep | None] = {None: None, **{word: word for word in get_args(Keep)}}
    if keep not in known:
        raise InputError(f"Unknown {keep!r} to keep. Choose one of {', '.join(get_args(Keep))}, or leave it out.")
    return known[keep]


def check_batch_edges(batch_edges: BatchEdges) -> None:
    """Refuse a number of edges that no graph has.

    Raises:
        InputError: If it is neither a whole number of one or more nor ``"auto"``.
    """
    if batch_edges not in (None, "auto") and (type(batch_edges) is not int or batch_edges < 1):
        raise InputError(
            "batch_edges (--batch-edges) must be a whole number above 0 or 'auto', or be left out; got "
            f"{batch_edges!r}."
        )


def parse_batch_edges(text: str | None) -> BatchEdges:
    """Read what a command line says.

    Raises:
        InputError: See :func:`check_batch_edges`.
    """
    batch_edges: Any = int(text) if text is not None and text.isdecimal() else text
    check_batch_edges(batch_edges)
    parsed: BatchEdges = batch_edges
    return parsed


def batch_edges_on(batch_edges: BatchEdges, device: "torch.device") -> int | None:
    """Up to how many edges structures are joined to one graph on a device; ``None`` where each is run by itself."""
    if batch_edges == "auto":
        return _BUSY if device.type == "cuda" else None
    return batch_edges


def parse_modes(modes: str | Sequence[str]) -> tuple[str, ...]:
    """Return the modes asked for, each once, in the order in which a trace has them.

    Args:
        modes: One name, several separated by commas, or a sequence of names.

    Raises:
        InputError: If a name is unknown or none is given.

    Example:
        >>> parse_modes("isolated, propagated")
        ('propagated', 'isolated')
    """
    names = modes.split(",") if isinstance(modes, str) else list(modes)
    names = [name.strip() for name in names if name.strip()]
    unknown = [name for name in names if name not in MODES]
    if unknown or not names:
        raise InputError(f"Unknown mode {', '.join(unknown) or 'list (empty)'}. Known: {', '.join(MODES)}.")
    return tuple(mode for mode in MODES if mode in names)


def parse_output(output: str | Path | Claim | None, *, force: bool, resume: bool) -> Claim | None:
    """Claim the output, unless a claim was given.

    Raises:
        InputError: If it cannot be written, is somebody else's, or is there and neither to be replaced nor continued.
    """
    if output is None:
        if resume:
            raise InputError("resume=True goes on from what an earlier run left of its output. Give output= too.")
        return None
    return output if isinstance(output, Claim) else claim_output(output, force=force, resume=resume)


def default_device(given: object, model: "torch.nn.Module") -> "torch.device | None":
    """Where a model in memory is; ``None`` for one from a file, which may go anywhere.

    Args:
        given: What the user gave as the model.
        model: The module that it is or holds.
    """
    if isinstance(given, str | os.PathLike):
        return None
    import torch  # here alone: a command line checks its words before it waits for torch

    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
