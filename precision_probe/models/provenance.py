"""What a run was: versions, device, numerical settings and model, as the attributes of its trace."""

import datetime as dt
import importlib.metadata
import platform
from typing import Any

import torch

from precision_probe.models.attributes import cutoff, elements, heads, weights_sha256
from precision_probe.models.backends import backend
from precision_probe.version import __version__

__all__ = ["describe_device", "describe_model", "provenance"]

_PACKAGES = ("mace-torch", "e3nn", "ase", "numpy", "xarray", "h5py", "h5netcdf")
_BACKENDS = ("cuequivariance-torch", "openequivariance")


def provenance(model: torch.nn.Module, device: torch.device) -> dict[str, Any]:
    """Attributes that say what ran, on what, with which settings."""
    return {
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "versions": {
            "precision-probe": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            **{name: _version(name) for name in _PACKAGES},
            **{name: _version(name) for name in _BACKENDS if _version(name)},
        },
        "platform": f"{platform.system()} {platform.machine()}",
        "device": describe_device(device),
        "settings": {
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "float16_reduced_precision_reduction": bool(
                torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
            ),
            "bfloat16_reduced_precision_reduction": bool(
                torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
            ),
            "num_threads": torch.get_num_threads(),
            "cuda": torch.version.cuda or "",
        },
        **describe_model(model),
    }


def describe_model(model: torch.nn.Module) -> dict[str, Any]:
    """What a model is: class, dtype, parameters, hash of its weights, and of a MACE its architecture."""
    floating = (tensor for tensor in model.state_dict().values() if tensor.is_floating_point())
    dtype = str(next(floating, torch.empty(0, dtype=torch.float64)).dtype).removeprefix("torch.")
    return {
        "model_class": type(model).__name__,
        "model_dtype": dtype,
        "reference": "the model as it is"
        if dtype == "float64"
        else f"the {dtype} weights and buffers, widened to float64: what they lost when they were rounded stays lost",
        "model_sha256": weights_sha256(model),
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        **(_architecture(model) if hasattr(model, "interactions") else {}),
    }


def _architecture(model: torch.nn.Module) -> dict[str, Any]:
    """Of a MACE: cutoff (Å), elements, irreps, interaction classes, heads, and what computes its tensor products."""
    return {
        "backend": backend(model),
        "cutoff": cutoff(model),
        "atomic_numbers": elements(model),
        "hidden_irreps": str(getattr(model.get_submodule("products.0.linear"), "irreps_out", "unknown")),
        "edge_irreps": str(getattr(model.get_submodule("interactions.0"), "edge_attrs_irreps", "unknown")),
        "interactions": [type(block).__name__ for block in model.get_submodule("interactions").children()],
        "heads": heads(model),
    }


def describe_device(device: torch.device) -> str:
    """The device and its hardware, such as ``cuda:0 (NVIDIA H100 80GB HBM3)``."""
    if device.type == "cuda":
        return f"cuda:{device.index or 0} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.processor() or platform.machine()}, {torch.get_num_threads()} threads)"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
