"""Tensors of a run → the NumPy arrays that a trace holds."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from e3nn import o3
from numpy.typing import NDArray

from precision_probe.models.blocks import Port
from precision_probe.models.evaluation import Prediction
from precision_probe.models.graphs import Graph
from precision_probe.models.inputs import Inputs
from precision_probe.precisions import Precision
from precision_probe.probe.observing.to_host import to_numpy
from precision_probe.trace.arrays import BlockArray, ModelArray
from precision_probe.trace.variables import storable
from precision_probe.variants.hooks import Call

__all__ = [
    "captured_tensors",
    "lacking_arrays",
    "nan",
    "predicted_arrays",
    "sample_arrays",
    "structure_arrays",
]


def structure_arrays(graph: Graph) -> dict[str, NDArray[Any]]:
    """The variables of ``/structures`` for one graph; reference labels that it lacks are NaN."""
    n_structures, n_atoms = graph.n_structures, graph.n_atoms
    missing = {
        "energy": np.full(n_structures, np.nan),
        "forces": np.full((n_atoms, 3), np.nan),
        "stress": np.full((n_structures, 3, 3), np.nan),
    }
    return {
        "name": _text(graph.names),
        "n_atoms": np.diff(graph.data["ptr"].cpu().numpy()),
        "n_edges": graph.edges_per_structure(),
        **_edges(graph),
        "atomic_numbers": graph.atomic_numbers,
        "positions": to_numpy(graph.data["positions"]),
        "cell": to_numpy(graph.cells),
        "pbc": graph.pbc,
        **missing,
        **graph.labels,
    }


def _edges(graph: Graph) -> dict[str, NDArray[Any]]:
    """Which atoms each edge joins, counted within its structure, and across which image of the cell."""
    sender, receiver = graph.data["edge_index"]
    first_atom = graph.data["ptr"][graph.data["batch"][sender]]
    return {
        "sender": to_numpy(sender - first_atom).astype(np.int32),
        "receiver": to_numpy(receiver - first_atom).astype(np.int32),
        "image": to_numpy(graph.data["unit_shifts"]).round().astype(np.int16),
    }


def sample_arrays(sample: Graph | Inputs, *, by_species: bool = False) -> dict[str, NDArray[Any]]:
    """The variables of ``/structures`` for what was run: a graph, or inputs, of which there is but a name.

    Args:
        sample: What was run.
        by_species: Whether something is kept by the elements of each structure, so that these are listed.
    """
    if not isinstance(sample, Graph):
        return {"name": _text([sample.name])}
    arrays = structure_arrays(sample)
    if by_species:
        arrays |= {"n_species": sample.species.per_structure, "species_numbers": sample.species.atomic_numbers}
    return arrays


def _text(names: Sequence[str]) -> NDArray[Any]:
    """Names as a file can hold them too: there a NUL would end the text, and half a surrogate pair has no bytes."""
    return np.array([storable(name) for name in names], dtype=object)


def predicted_arrays(prediction: Prediction, n_structures: int, seconds: float = np.nan) -> list[ModelArray]:
    """What a model predicts for one graph or input, and the time that took; NaN if it was not timed."""
    arrays = [
        ModelArray(
            quantity.name,
            to_numpy(tensor),
            quantity.dims,
            quantity.unit,
            quantity.long_name,
            "" if quantity.name == "stress" else str(tensor.dtype).removeprefix("torch."),  # made in float64 of virials
        )
        for quantity, tensor in prediction.values.items()
    ]
    each = np.full(n_structures, seconds / n_structures)
    long_name = "wall-clock time of one unhooked evaluation, forces included, after warm-up; NaN where not timed"
    return [*arrays, ModelArray("seconds", each, ("structure",), "s", long_name)]


def lacking_arrays(exact: Sequence[ModelArray], precision: Precision) -> list[ModelArray]:
    """NaN for what a precision has not predicted, where the reference has predicted this."""
    return [
        dataclasses.replace(array, values=nan(array.values.shape, precision), native_dtype=precision.dtype)
        if array.native_dtype
        else dataclasses.replace(array, values=np.full(array.values.shape, np.nan))  # float64 in every precision
        for array in exact
    ]


def nan(shape: tuple[int, ...], precision: Precision) -> NDArray[Any]:
    """NaN in the dtype that numbers of a precision are stored in: half precisions are widened."""
    return np.full(shape, np.nan, np.float64 if precision.dtype == "float64" else np.float32)


def captured_tensors(
    call: Call,
    grads: Mapping[Port, torch.Tensor],
    *,
    unit: str = "1",
    outputs: bool = True,
    backward: str = "backward",
) -> list[BlockArray[torch.Tensor]]:
    """One call's tensors, where they are, in e3nn's layout.

    Args:
        call: The call.
        grads: Gradients with respect to its inputs.
        unit: Unit of what was differentiated.
        outputs: Whether to take what the call returned too.
        backward: The pass that the gradients are of.
    """
    captured = []
    for tensors, computed_in in ((call.outputs if outputs else {}, "forward"), (grads, backward)):
        for port, tensor in tensors.items():
            values = port.to_mul_ir(tensor.detach())
            components = _components(port, values)
            is_gradient = computed_in != "forward"
            captured.append(
                BlockArray(
                    block=call.block.name,
                    tensor=port.name + (f".call{call.number}" if call.number else ""),
                    values=values,
                    native_dtype=str(tensor.dtype).removeprefix("torch."),
                    computed_in=computed_in,
                    rows=port.rows,
                    components=components,
                    irreps=str(port.irreps) if components else "",
                    layout="mul_ir" if port.irreps is not None or values.ndim < 2 else port.layout,
                    unit=(unit if port.unit == "1" else f"{unit}/{port.unit}") if is_gradient else port.unit,
                )
            )
    return captured


def _components(port: Port, tensor: torch.Tensor) -> tuple[str, ...]:
    """The irrep of each entry of the last dimension; nothing if the sizes contradict the irreps."""
    if port.irreps is None or tensor.ndim < 2:
        return ()
    entries = _entries(port.irreps, per_channel=tensor.ndim == 3)
    return entries if len(entries) == tensor.shape[-1] else ()


@functools.cache
def _entries(irreps: o3.Irreps, *, per_channel: bool) -> tuple[str, ...]:
    """The irrep of each entry; of [rows, channels, components] each irrep once, not times its multiplicity."""
    return tuple(str(ir) for mul, ir in irreps for _ in range(ir.dim * (1 if per_channel else mul)))
