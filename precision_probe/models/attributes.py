"""What a model says of itself: cutoff, elements, heads, and a hash of its weights."""

import hashlib
from typing import Any

import torch

__all__ = ["cutoff", "elements", "heads", "weights_sha256"]


def cutoff(model: torch.nn.Module) -> float:
    """The distance within which atoms are neighbours, Å."""
    return float(_attribute(model, "r_max"))


def elements(model: torch.nn.Module) -> list[int]:
    """The atomic numbers that the model knows, in the order of its one-hot columns."""
    return [int(z) for z in _attribute(model, "atomic_numbers")]


def heads(model: torch.nn.Module) -> list[str]:
    """The names of the model's heads; a model made before mace-torch had several has the one that it calls Default."""
    return list(_attribute(model, "heads") or ["Default"])


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 of the model's parameters and buffers: their names, dtypes, shapes and bytes, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16, but bytes
    return digest.hexdigest()


def _attribute(model: torch.nn.Module, name: str) -> Any:
    """An attribute that torch's own types say nothing of."""
    return getattr(model, name, None)
