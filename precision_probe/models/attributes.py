"""What a model says of itself: cutoff, elements, heads, and a hash of its weights."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["cutoff", "elements", "heads", "inputs_needed", "not_finite", "state_sha256", "weights_sha256"]

_INPUTS = {  # of the classes that take more than a geometry, by the names that mace-torch's data has
    "AtomicDipolesMACE": {"charges"},
    "AtomicDielectricMACE": {"total_charge"},
    "EnergyDipolesMACE": {"charges"},
    "PolarMACE": {"total_charge", "total_spin", "external_field"},
}


def cutoff(model: torch.nn.Module) -> float:
    """The distance within which atoms are neighbours, Å."""
    return float(_attribute(model, "r_max"))


def elements(model: torch.nn.Module) -> list[int]:
    """The atomic numbers that the model knows, in the order of its one-hot columns."""
    return [int(z) for z in _attribute(model, "atomic_numbers")]


def heads(model: torch.nn.Module) -> list[str]:
    """The names of the model's heads; a model made before mace-torch had several has the one that it calls Default."""
    return list(_attribute(model, "heads") or ["Default"])


def inputs_needed(model: torch.nn.Module) -> set[str]:
    """What the model computes with beside the geometry: charges, spin, a field, …, as mace-torch's data names them."""
    of_class = [_INPUTS.get(each.__name__, set()) for each in type(model).__mro__]  # those made of one need it too
    return set(_attribute(model, "embedding_specs") or {}).union(*of_class)


def not_finite(model: torch.nn.Module) -> list[str]:
    """The parameters and buffers that hold NaN, and parameters that hold an infinity: all that is computed is NaN then.

    A buffer may be infinite on purpose, as a bound is.
    """
    parameters = [name for name, tensor in model.named_parameters() if not torch.isfinite(tensor).all()]
    return parameters + [name for name, tensor in model.named_buffers() if torch.isnan(tensor).any()]


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 of the model's parameters and buffers: their names, dtypes, shapes and bytes, in order of name."""
    return state_sha256(model.state_dict())


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """The same of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16, but bytes
    return digest.hexdigest()


def _attribute(model: torch.nn.Module, name: str) -> Any:
    """An attribute that torch's own types say nothing of."""
    return getattr(model, name, None)
