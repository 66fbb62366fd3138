"""Tensors of a run → the NumPy arrays that a trace holds."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from precision_probe.blocks import Block, Port
from precision_probe.recorder import Captured
from precision_probe.structures import Graph
from precision_probe.variants import Prediction

__all__ = ["captured_arrays", "prediction_arrays", "structure_arrays"]


def structure_arrays(graph: Graph) -> dict[str, NDArray[Any]]:
    """The variables of ``/structures`` for one graph; reference labels that it lacks are NaN."""
    n_structures, n_atoms = graph.n_structures, graph.n_atoms
    missing = {
        "energy": np.full(n_structures, np.nan),
        "forces": np.full((n_atoms, 3), np.nan),
        "stress": np.full((n_structures, 3, 3), np.nan),
    }
    return {
        "name": np.asarray(graph.names, dtype=object),
        "n_atoms": np.diff(graph.data["ptr"].cpu().numpy()),
        "n_edges": graph.edges_per_structure(),
        "atomic_numbers": graph.atomic_numbers,
        "positions": _to_numpy(graph.data["positions"]),
        "cell": _to_numpy(graph.cells),
        "pbc": graph.pbc,
        **missing,
        **graph.labels,
    }


def prediction_arrays(graph: Graph, prediction: Prediction, seconds: float) -> dict[str, NDArray[Any]]:
    """What a model predicts for one graph; stress is NaN where there is none."""
    stress = prediction.stress
    return {
        "energy": _to_numpy(prediction.energy),
        "interaction_energy": _to_numpy(prediction.interaction_energy),
        "forces": _to_numpy(prediction.forces),
        "stress": np.full((graph.n_structures, 3, 3), np.nan) if stress is None else _to_numpy(stress),
        "seconds": np.full(graph.n_structures, seconds / graph.n_structures),
    }


def captured_arrays(
    block: Block,
    outputs: Mapping[Port, torch.Tensor],
    grads: Mapping[Port, torch.Tensor],
    cotangent_unit: str = "eV",
) -> list[Captured]:
    """One call's arrays. The unit of a gradient is that of what was differentiated, over that of the input."""
    found = []
    for tensors, is_gradient in ((outputs, False), (grads, True)):
        for port, tensor in tensors.items():
            per_input = "" if port.unit == "1" else f"/{port.unit}"
            unit = f"{cotangent_unit}{per_input}" if is_gradient else port.unit
            components = _components(port, tensor)
            found.append(
                Captured(
                    block=block.name,
                    tensor=port.name,
                    values=_to_numpy(tensor),
                    native_dtype=str(tensor.dtype).removeprefix("torch."),
                    gradient=is_gradient,
                    rows=port.rows,
                    components=components,
                    irreps=str(port.irreps) if components else "",
                    unit=unit,
                )
            )
    return found


def _components(port: Port, tensor: torch.Tensor) -> tuple[str, ...]:
    """The irrep of each entry of the last dimension; nothing if the sizes contradict the irreps."""
    if port.irreps is None or tensor.ndim < 2:
        return ()
    per_channel = tensor.ndim == 3  # [rows, channels, components]: each irrep once, not times its multiplicity
    entries = tuple(str(ir) for mul, ir in port.irreps for _ in range(ir.dim * (1 if per_channel else mul)))
    return entries if len(entries) == tensor.shape[-1] else ()


def _to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """On the CPU, half precisions widened exactly to float32: neither NumPy nor netCDF has bfloat16."""
    tensor = tensor.detach()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    array: NDArray[Any] = tensor.cpu().numpy()
    return array
