"""How models are called while they are timed: as they are, or launched as one CUDA graph each."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from precision_probe.fast.capture import Room
from precision_probe.fast.launcher import Launcher
from precision_probe.models.attributes import heads
from precision_probe.models.graphs import Graph

__all__ = ["Call", "Launches", "called", "head_of"]

Call = Callable[[], object]


def head_of(graph: Graph, model: torch.nn.Module) -> str | None:
    """Which head of a model with several a graph was made for."""
    names = heads(model)
    return names[int(graph.data["head"][0])] if len(names) > 1 else None


def called(model: Callable[..., object], graph: Graph, dtype: torch.dtype, options: Mapping[str, bool]) -> Call:
    """A call of a model as it is, or of what calls it (:meth:`precision_probe.variants.variant.Variant.call`)."""
    return lambda: model(graph.cast(dtype), **options)


class Launches:
    """Launches models on one graph of structures, one after another: what they compute in is shared.

    Args:
        graph: The structures.
        stress: Whether the stress is computed too.
        device: Where; on a CPU nothing is captured.
    """

    def __init__(self, graph: Graph, *, stress: bool, device: torch.device) -> None:
        self._graph, self._stress = graph, stress
        self._room = Room(device) if device.type == "cuda" else None

    def launched(self, model: torch.nn.Module, call: Callable[..., Mapping[str, Any]] | None = None) -> Call:
        """A call that finds the edges and launches a model; the first runs as it is, and the second captures.

        Args:
            model: The model.
            call: What calls it, if it is not called as it is; once it is captured, that costs nothing.
        """
        launcher = Launcher(model, head_of(self._graph, model), room=self._room, call=call)
        structures = launcher.structures_of(self._graph)
        positions, cells = self._graph.data["positions"], self._graph.cells
        return lambda: launcher.evaluate(structures, positions, cells, stress=self._stress)
