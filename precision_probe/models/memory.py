"""Whether a structure fits into the memory: estimated before it runs, and noticed where it did not.

On a CPU a process that runs out of memory is mostly just killed; a GPU says so.
"""

import gc
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import torch

from precision_probe.exceptions import InputError
from precision_probe.models._mace import o3
from precision_probe.models.graphs import Graph
from precision_probe.models.inputs import Inputs

__all__ = ["attempt", "available_bytes", "check_memory", "described", "estimated_bytes", "fitting_edges"]

T = TypeVar("T")
Args = TypeVarTuple("Args")

# Bytes of a float64, twice: what an interaction computes is kept for the backward pass, which makes its like.
_BYTES = 16
_OUT_OF_MEMORY = "out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED"  # CUDA, a CPU, cuBLAS
_REFUSED = 2.0  # times the memory there is: clearly too much, for an estimate that is good to about a third


def attempt(function: Callable[[*Args], T], *args: *Args) -> T | None:
    """Call a function; ``None`` if the memory did not suffice. Nothing of the failed call is kept alive."""
    try:
        return function(*args)
    except MemoryError:
        pass
    except RuntimeError as error:  # TorchScript turns torch.OutOfMemoryError into a plain RuntimeError
        if not re.search(_OUT_OF_MEMORY, str(error)):
            raise
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def estimated_bytes(model: torch.nn.Module, graph: Graph) -> int:
    """About what energy and forces of one graph take at their peak, in float64; 0 where that is not known.

    Nearly all of it are numbers that each interaction has for every edge: the weights of its tensor product, the
    features of the sender and the message. Their sum over the interactions, times 16 bytes and the number of edges, was
    0.63 to 1.39 of the memory measured on a CPU with the demo, the two models of 64 channels trained on 3BPA and on
    ANI-500k, and one of 128x0e+128x1o with l ≤ 3: 200 to 8,000 atoms with 18 to 80 edges each. What hooks capture, and
    what other precisions compute, comes on top. Not known are models converted to other backends, which keep less.
    """
    return _bytes_of_edge(model) * graph.n_edges


def fitting_edges(model: torch.nn.Module, device: torch.device) -> float:
    """With about how many edges a graph takes the memory that is free; infinite where that is not known."""
    n_bytes = _bytes_of_edge(model)
    return available_bytes(device) // n_bytes if n_bytes else math.inf


def _bytes_of_edge(model: torch.nn.Module) -> int:
    """What :func:`estimated_bytes` takes each edge for."""
    sizes = 0
    for interaction in getattr(model, "interactions", ()):
        product = getattr(interaction, "conv_tp", None)
        if not isinstance(product, o3.TensorProduct):
            return 0
        sizes += product.weight_numel + product.irreps_in1.dim + product.irreps_out.dim
    return _BYTES * sizes


def available_bytes(device: torch.device) -> int:
    """The memory that a process can still have: of a GPU, or of the machine."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    meminfo = Path("/proc/meminfo")  # Linux; it alone knows what of the memory in use it would give back
    lines = meminfo.read_text(encoding="ascii").splitlines() if meminfo.is_file() else []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def described(sample: Graph | Inputs) -> str:
    """Which sample, and how large."""
    if not isinstance(sample, Graph):
        return sample.name
    others = f" and {sample.n_structures - 1} more" if sample.n_structures > 1 else ""
    return f"{sample.names[0]}{others}: {sample.n_atoms} atoms with {sample.n_edges} edges"


def check_memory(samples: Sequence[Graph | Inputs], model: torch.nn.Module, device: torch.device) -> list[str]:
    """Notes of structures that are about as large as the memory.

    Raises:
        InputError: If one is clearly larger.
    """
    free, notes = available_bytes(device), []
    for sample in samples:
        needed = estimated_bytes(model, sample) if isinstance(sample, Graph) else 0
        if needed <= free or not isinstance(sample, Graph):
            continue
        about = f"take about {needed / 1e9:.3g} GB in float64, and {device} has {free / 1e9:.3g} GB free"
        said = f"{described(sample)} {about}"
        if needed > _REFUSED * free:
            raise InputError(f"Structure {said}. Take a smaller structure, or another device.")
        notes.append(f"{said}.")
    return notes
