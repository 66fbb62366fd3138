"""One sample, and what came of it in every variant."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils.hooks import RemovableHandle

from precision_probe.models.evaluation import Sample
from precision_probe.models.graphs import Graph
from precision_probe.trace.arrays import BlockArray, ModelArray, Sizes

__all__ = ["Observation", "RandomState"]


class RandomState:
    """What random numbers came next, on the CPU and where the variants run, so that a replay draws the same.

    Args:
        device: Where the variants run.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = [device] if device.type == "cuda" else []
        self._states = torch.get_rng_state(), *(torch.cuda.get_rng_state(each) for each in self._cuda)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Have that state for a while, and leave the present one as it is."""
        with torch.random.fork_rng(devices=self._cuda):
            torch.set_rng_state(self._states[0])
            for device, state in zip(self._cuda, self._states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


@dataclass
class Observation:
    """One sample and what came of it.

    Attributes:
        sample: What was run.
        predictions: Of each precision.
        captured: For each group of the trace, what blocks computed.
        lacking: The precisions that ran out of memory, which have NaN.
        training: With which options the attached model was called, if it was in training.
        handle: What waits for the gradients of its loss.
        number: Of the call, if it is one of the attached model's.
        random_state: Of torch when the attached model was called: see :class:`RandomState`.
        is_rounded: Whether a reduced precision of the call has rounded its geometry before the reference got it.
    """

    sample: Sample
    predictions: dict[str, list[ModelArray]] = field(default_factory=dict)
    captured: dict[str, list[BlockArray[NDArray[Any]]]] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()
    training: dict[str, object] | None = None
    handle: RemovableHandle | None = None
    number: int = 0
    random_state: RandomState | None = None
    is_rounded: bool = False

    @property
    def sizes(self) -> Sizes:
        """How many structures, atoms and edges it has."""
        if isinstance(self.sample, Graph):
            n_species = len(self.sample.species.atomic_numbers)
            return Sizes(self.sample.n_structures, self.sample.n_atoms, self.sample.n_edges, n_species)
        return Sizes(1)
