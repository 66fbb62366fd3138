"""Structures in their order, as many in one graph as were asked for and fit into the memory; and what comes of them."""

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch

from precision_probe.exceptions import ProbeError
from precision_probe.interruption import INTERRUPTIONS
from precision_probe.models.evaluation import Sample
from precision_probe.models.graphs import Graph, batch_sizes, joined
from precision_probe.models.memory import described
from precision_probe.probe.observation import Observation
from precision_probe.probe.observing.observer import DoesNotFitError, Observer
from precision_probe.probe.recording import Recording
from precision_probe.probe.turns import TURNS
from precision_probe.progress import counted
from precision_probe.variants.devices import current, undisturbed

__all__ = ["Batches", "record"]

_LOG = logging.getLogger(__name__)

_TIMED = 5  # evaluations in a run at least: where structures are few, each has a median of several times
# Structures and atoms up to which a run is timed if nobody says: a choice, for five evaluations of what is larger would
# be felt, and of many structures the errors are asked for.
_FEW, _SMALL = 5, 1000


class Batches:
    """Gives batch after batch; structures of one that does not fit come again in smaller ones, as do all after them.

    Args:
        samples: Structures, or inputs, which are not joined.
        most_edges: Up to how many edges structures that follow one another are joined to one graph; ``None`` to run
            each by itself.
        fitting: With about how many edges a graph fills the memory: no batch has more.
        device: Where they are run.

    Attributes:
        most_edges: As given, or what it has come down to.
        n_structures: Of all batches together.
        note: Why it has come down; empty if it has not.
    """

    def __init__(self, samples: Sequence[Sample], most_edges: int | None, fitting: float, device: torch.device) -> None:
        self.most_edges, self._device = most_edges, device
        self.note = ""
        self.n_structures = len(samples)
        self._waiting = deque(samples)
        self._given: list[Sample] = []  # in the latest batch
        self._first_too_large = 0  # edges
        self._largest: Graph | None = None
        if most_edges is not None and fitting < most_edges:
            self.most_edges = int(fitting)
            if sum(_n_edges(samples)) > fitting:
                self.note = (
                    f"batches have up to {self.most_edges:,} edges and not {most_edges:,}, which would take more "
                    f"memory than {device} has free."
                )

    def __len__(self) -> int:
        """How many are still to come, if all of them fit."""
        return sum(1 for _ in self._sizes())

    def repeats(self, time: bool | None) -> int:
        """How often each batch is timed: as often as was asked for, else where it is quick."""
        n_atoms = sum(sample.n_atoms for sample in self._waiting if isinstance(sample, Graph))
        is_quick = len(self._waiting) <= _FEW and n_atoms <= _SMALL
        return math.ceil(_TIMED / len(self)) if (is_quick if time is None else time) else 0

    def __iter__(self) -> Iterator[Sample]:
        """Batches until every structure has had its turn."""
        while self._waiting:
            n = next(self._sizes())
            self._given = [self._waiting.popleft() for _ in range(n)]
            graphs = [sample for sample in self._given if isinstance(sample, Graph)]
            sample = self._given[0] if n == 1 else joined(graphs)
            yield sample
            if self._given and isinstance(sample, Graph):  # else it did not fit
                self._largest = max(self._largest or sample, sample, key=lambda graph: graph.n_edges)

    def halve(self, why: DoesNotFitError) -> None:
        """Take back the latest batch, and make smaller ones from now on.

        Raises:
            ProbeError: If it is of one structure.
        """
        n_edges = sum(_n_edges(self._given))
        if len(self._given) == 1:
            raise ProbeError(self._too_large(self._given[0], why.precision)) from why
        self._waiting.extendleft(reversed(self._given))
        self._given = []
        self.most_edges = (n_edges - 1) // 2  # fewer than there were, even where there are none
        self._first_too_large = self._first_too_large or n_edges
        self.note = (
            f"a batch of {self._first_too_large:,} edges did not fit into the memory of {self._device}: its structures "
            f"and those after them were run in batches of up to {self.most_edges:,} edges."
        )

    def _sizes(self) -> Iterator[int]:
        """Of how many structures each batch is that is still to come."""
        if self.most_edges is None:
            return iter([1] * len(self._waiting))
        return batch_sizes(_n_edges(self._waiting), self.most_edges)

    def _too_large(self, sample: Sample, precision: str) -> str:
        """What is said of a structure that does not fit by itself."""
        largest = f" The largest that did is {described(self._largest)}." if self._largest is not None else ""
        return (
            f"{described(sample)} did not fit into the memory of {self._device} in {precision}; nothing of it is "
            f"recorded.{largest} Leave it out, take another device, or keep less: --modes propagated, --keep errors "
            "with --offload, or --keep none (modes=, keep=, offload=)."
        )


def record(
    batches: Batches,
    observer: Observer,
    recording: Recording,
    device: torch.device,
    first: int,
    *,
    repeats: int,
    progress: bool,
) -> None:
    """Run batches in every variant, and record what comes of them.

    Args:
        batches: Of structures that the recording expects.
        observer: Runs them.
        recording: Takes what comes of them.
        device: Where they are run.
        first: How many structures come before those of the recording, where it is a part of others.
        repeats: How often each batch is timed.
        progress: Say on stderr how far it is: a bar in a terminal, else lines.

    Raises:
        KeyboardInterrupt: Between two batches, if the command line was interrupted.
        ProbeError: If the memory does not suffice for one structure in float64, or nothing more can be recorded.
    """
    before = recording.n_structures
    recording.batch_edges = batches.most_edges if batches.note else recording.batch_edges
    with counted(batches.n_structures, f"{len(observer.variants)} precisions", progress=progress) as told:
        try:
            for sample in batches:
                INTERRUPTIONS.check()
                with TURNS.taken(), undisturbed(), current(device):
                    number, may_lack = first + recording.n_structures, sample.n_structures == 1
                    _LOG.debug("structure %d begun: %s", number, described(sample))
                    start = time.monotonic()
                    try:
                        observed = observer.observe(sample, repeats=repeats, number=number, may_lack=may_lack)
                    except DoesNotFitError as why:
                        batches.halve(why)
                        recording.batch_edges = batches.most_edges
                        _LOG.warning("%s: batches have up to %d edges now", why, batches.most_edges)
                        continue
                    observation = Observation(sample, observed.predictions, observed.captured, observed.lacking)
                    recording.add(observation, is_expected=True)
                    if recording.has_stopped:
                        raise ProbeError(recording.problem)
                _LOG.debug("structure %d ended after %.3g s", number, time.monotonic() - start)
                told(recording.n_structures - before)
        finally:
            if batches.note:
                recording.add_note(batches.note)


def _n_edges(samples: Iterable[Sample]) -> Iterator[int]:
    """The edges of each; inputs have none."""
    return (sample.n_edges if isinstance(sample, Graph) else 0 for sample in samples)
