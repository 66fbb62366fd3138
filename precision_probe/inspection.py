"""What a model and a structure are, before anything is compared; and one block run as a smoke test."""

from dataclasses import dataclass
from typing import Any

import ase.data
import numpy as np
import torch

from precision_probe.blocks import default_blocks, select_blocks
from precision_probe.capture import capture, replay
from precision_probe.precisions import PRECISIONS
from precision_probe.structures import Graph
from precision_probe.variants import Variant

__all__ = ["SmokeTest", "describe_blocks", "describe_graph", "smoke_test"]


@dataclass(frozen=True)
class SmokeTest:
    """The first interaction block, run alone on the float64 embeddings.

    Attributes:
        block: Its name.
        shape: Of its message: [n_atoms, channels, irreps dimension].
        irreps: For each irrep of the message: its name, channels, components, and the root mean square of its values.
        finite: Whether every number of the message is.
    """

    block: str
    shape: tuple[int, ...]
    irreps: tuple[tuple[str, int, int, float], ...]
    finite: bool


def describe_graph(graph: Graph) -> dict[str, Any]:
    """What one structure is to MACE: sizes, elements, periodicity and neighbour statistics.

    Returns:
        ``neighbours`` counts the edges that end at each atom; ``distance`` (Å) is over all edges. Both are
        (smallest, mean, largest), or ``None`` where there is no atom or no edge.
    """
    numbers, counts = np.unique(graph.atomic_numbers, return_counts=True)
    neighbours = torch.bincount(graph.data["edge_index"][1], minlength=graph.n_atoms).double()
    return {
        "name": graph.names[0],
        "n_atoms": graph.n_atoms,
        "n_edges": graph.n_edges,
        "elements": {ase.data.chemical_symbols[z]: int(n) for z, n in zip(numbers, counts, strict=True)},
        "pbc": graph.pbc[0].tolist(),
        "volume": float(torch.linalg.det(graph.cells[0])) if graph.periodic[0] else None,
        "neighbours": _range(neighbours),
        "distance": _range(graph.edge_lengths()),
    }


def describe_blocks(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Each default block: name, class, parameters, and the irreps of what it returns."""
    described = []
    for block in default_blocks(model):
        module = model.get_submodule(block.name)
        described.append(
            {
                "name": block.name,
                "class": type(module).__name__,
                "n_parameters": sum(parameter.numel() for parameter in module.parameters()),
                "outputs": {port.name: str(port.irreps or "?") for port in block.outputs},
            }
        )
    return described


def smoke_test(model: torch.nn.Module, graph: Graph) -> SmokeTest:
    """Run the first interaction block alone, in float64, on the embeddings of a structure."""
    variant = Variant(model, PRECISIONS["float64"], torch.device("cpu"))
    (block,) = select_blocks(variant.model, "interactions.0")
    with variant.arithmetic(), torch.enable_grad():
        with capture(variant.model, [block]) as calls:
            variant.differentiable(graph.to("cpu"))
        outputs = replay(variant.model.get_submodule(block.name), calls[0], variant.dtype).outputs
    port, message = next((port, port.to_mul_ir(tensor.detach())) for port, tensor in outputs.items())
    irreps, start = [], 0
    for mul, ir in port.irreps or ():
        part = message[:, :, start : start + ir.dim]
        irreps.append((str(ir), mul, ir.dim, float(part.square().mean().sqrt())))
        start += ir.dim
    return SmokeTest(block.name, tuple(message.shape), tuple(irreps), bool(torch.isfinite(message).all()))


def _range(values: torch.Tensor) -> tuple[float, float, float] | None:
    return (float(values.min()), float(values.mean()), float(values.max())) if values.numel() else None
