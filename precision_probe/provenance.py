"""What a run was: versions, device, numerical settings and model, as the attributes of its trace."""

import datetime as dt
import importlib.metadata
import platform
from typing import Any

import torch

from precision_probe import __version__
from precision_probe.models import cutoff, elements, heads, weights_sha256

__all__ = ["describe_device", "describe_model", "provenance"]

_PACKAGES = ("mace-torch", "e3nn", "ase", "numpy", "xarray", "h5py", "h5netcdf")


def provenance(model: torch.nn.Module, device: torch.device) -> dict[str, Any]:
    """Attributes that say what ran, on what, with which settings."""
    return {
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "versions": {
            "precision-probe": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            **{name: _version(name) for name in _PACKAGES},
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
    """What a MACE model is: class, dtype, cutoff (Å), elements, irreps, heads, parameters, hash of its weights."""
    parameters = list(model.parameters())
    dtype = str(parameters[0].dtype).removeprefix("torch.")
    interactions = model.get_submodule("interactions")
    return {
        "model_class": type(model).__name__,
        "model_dtype": dtype,
        "reference": "the model as it is"
        if dtype == "float64"
        else f"the {dtype} weights and buffers, widened to float64: what they lost when they were rounded stays lost",
        "model_sha256": weights_sha256(model),
        "cutoff": cutoff(model),
        "atomic_numbers": elements(model),
        "hidden_irreps": str(getattr(model.get_submodule("products.0.linear"), "irreps_out", "unknown")),
        "edge_irreps": str(getattr(model.get_submodule("interactions.0"), "edge_attrs_irreps", "unknown")),
        "interactions": [type(block).__name__ for block in interactions.children()],
        "heads": heads(model),
        "n_parameters": sum(parameter.numel() for parameter in parameters),
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
