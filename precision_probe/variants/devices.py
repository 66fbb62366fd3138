"""Where a model runs, and in which precisions it can there."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from precision_probe.exceptions import InputError
from precision_probe.models.backends import KERNEL_DTYPES, Architecture, backend
from precision_probe.precisions import PRECISIONS, Precision, parse_precisions
from precision_probe.spelling import check_device_name

__all__ = ["check_device", "check_precisions", "current", "default_precisions", "matmul_mode", "undisturbed"]


def check_device(device: str | torch.device | None) -> torch.device:
    """Return the device, once it is known to be there.

    Args:
        device: Its name; ``None`` is a GPU if there is one.

    Raises:
        InputError: If the device's name is unknown, or CUDA is asked for and absent.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    check_device_name(str(device))
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"Device {device!r} was asked for, but torch {torch.__version__} sees no CUDA device here. "
            "Use --device cpu, or a CUDA build of torch on a machine with a GPU."
        )
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise InputError(f"There is no device {device!r}: torch sees {torch.cuda.device_count()} CUDA device(s).")
    return place


def check_precisions(
    precisions: Sequence[Precision], device: torch.device, model: torch.nn.Module | None = None
) -> None:
    """Refuse precisions that the device, or the library that computes the model's tensor products, does not have.

    Args:
        precisions: Which.
        device: Where.
        model: Without one, the device alone is asked.

    Raises:
        InputError: If a precision needs another device, or mace-torch cannot build a converted model anew in it there.
    """
    for precision in precisions:
        if precision.needs_cuda and device.type != "cuda":
            raise InputError(
                f"{precision} is arithmetic of NVIDIA tensor cores and needs --device cuda; the device is {device}. "
                "Leave it out, or run on a GPU."
            )
        if precision.needs_cuda and not _has_tensor_cores(device):
            raise InputError(f"{precision} needs a GPU of compute capability 8.0 or newer; leave it out on this one.")
    if model is not None:
        _check_backend(precisions, device, model)


def _check_backend(precisions: Sequence[Precision], device: torch.device, model: torch.nn.Module) -> None:
    """Refuse what a converted model cannot be built anew for: its variants are built, not cast."""
    library = backend(model)
    if library == "e3nn":
        return
    Architecture(model)  # raises if mace-torch cannot tell it, now and not in the middle of a run
    if "OpenEquivariance" not in library:
        return
    if device.type != "cuda":
        raise InputError(f"The model is converted to {library}, which computes on CUDA only; the device is {device}.")
    narrow = [str(precision) for precision in precisions if not _supports(model, precision)]
    if narrow:
        raise InputError(
            f"The model is converted to {library}, which computes in float64 and float32 only. "
            f"Leave out {', '.join(narrow)}, or give the e3nn model that it was converted from."
        )


def default_precisions(device: str | torch.device, model: torch.nn.Module | None = None) -> tuple[Precision, ...]:
    """The precisions compared when none are named: on CUDA also tf32, where the GPU has it; what the model can do."""
    place = torch.device(device)
    has_tensor_cores = place.type == "cuda" and torch.cuda.is_available() and _has_tensor_cores(place)
    there = [precision for precision in parse_precisions(PRECISIONS) if has_tensor_cores or not precision.needs_cuda]
    return tuple(precision for precision in there if model is None or _supports(model, precision))


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Compute as nothing around says: without autocast, with ordinary tensors, which autograd follows."""
    with (
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


def current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make a GPU the current one: on another, kernels that TorchScript compiles for it fail (illegal memory access)."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def matmul_mode(mode: str) -> Iterator[None]:
    """Set how float32 matrix products are computed, on the CPU always exactly, and restore what was set."""
    # by getattr, and as Any: torch makes both at run time, unknown to its own types
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul"))  # noqa: B009
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend, value in zip(backends, (mode, "ieee"), strict=True):
            backend.fp32_precision = value
        if torch.backends.cuda.matmul.fp32_precision != mode:
            raise RuntimeError(f"torch did not accept the matmul mode {mode!r}.")
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = "none"  # inherit torch's global setting, as it may have been
            if backend.fp32_precision != value:
                backend.fp32_precision = value


def _supports(model: torch.nn.Module, precision: Precision) -> bool:
    """Whether a precision is one that the model's backend has."""
    return "OpenEquivariance" not in backend(model) or getattr(torch, precision.dtype) in KERNEL_DTYPES


def _has_tensor_cores(device: torch.device) -> bool:
    """Whether a CUDA device computes in tf32, which came with the Ampere architecture."""
    return torch.cuda.get_device_capability(device)[0] >= 8
