"""A search for a policy whose errors workers measure, a policy at a time each.

Times are measured by the process that searches, while the workers wait. On a CPU errors are bit for bit those of one
process with as many threads as a worker has.
"""

import functools
import gc
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase
import pandas as pd
import torch

from precision_probe.diagnostics.reference import Reference
from precision_probe.models.backends import backend, to_cuequivariance
from precision_probe.models.loading import load_model
from precision_probe.parallel.cluster import anywhere
from precision_probe.parallel.futures import as_done
from precision_probe.policy import Policy
from precision_probe.search.measuring import Candidates, Elsewhere
from precision_probe.search.recommendation import Recommendation
from precision_probe.search.recommendation import recommend as search
from precision_probe.structures import StructureSource
from precision_probe.variants.devices import check_device

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["recommend"]


@dataclass(frozen=True)
class _Searched:
    """What a worker measures policies of, known by the number of the search alone."""

    number: str
    model: str = field(compare=False)
    structures: Sequence[ase.Atoms] = field(compare=False, repr=False)
    head: str | None = field(compare=False)
    device: str = field(compare=False)
    interface: str = field(compare=False)
    backend: str = field(compare=False)


def recommend(
    model: str | Path,
    structures: StructureSource,
    tolerance: Mapping[str, float],
    client: "Client",
    *,
    head: str | None = None,
    interface: str = "float64",
    **options: Any,
) -> Recommendation:
    """Search as :func:`precision_probe.recommend` does, with errors of policies measured by workers.

    Args:
        model: A checkpoint that all workers can read, a foundation model's name, or ``"demo"``.
        structures: As :func:`precision_probe.recommend` takes them, and what follows.
        tolerance: Likewise.
        client: Of workers that run one task at a time, on devices of the kind that this process searches on. Where they
            are numbered, as those of ``LocalCluster`` are, each takes a GPU of its own.
        head: As :func:`precision_probe.recommend` takes it.
        interface: Likewise.
        options: Likewise.

    Raises:
        InputError: As :func:`precision_probe.recommend`.
        ProbeError: If a worker fails.
    """
    name = anywhere(model)

    def elsewhere(reference: Reference, searched: Sequence[ase.Atoms]) -> Elsewhere:
        device = reference.device.type  # a number is this process's; a worker sees its own GPU alone
        what = _Searched(str(uuid.uuid4()), name, searched, head, device, interface, backend(reference.model))
        return functools.partial(_on_workers, client, what)

    try:
        return search(name, structures, tolerance, head=head, interface=interface, elsewhere=elsewhere, **options)
    finally:
        with suppress(OSError, RuntimeError):  # if they cannot be reached, that is not why a search has failed
            client.run(_forget, on_error="ignore")


def _on_workers(
    client: "Client", searched: _Searched, policies: Mapping[str, Policy]
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Errors of policies, by their names, as they are done."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)  # structures are what is to be sent
        futures = {client.submit(_errors, searched, each, pure=False): name for name, each in policies.items()}
    try:
        for future, table in as_done(dict.fromkeys(futures, "a policy")):
            yield futures[future], table
    finally:
        client.cancel(list(futures), force=True)


def _errors(searched: _Searched, policy: Policy) -> pd.DataFrame:
    """What a worker does: measure one policy."""
    table = _candidates(searched).errors(policy)
    if searched.device == "cuda":
        torch.cuda.empty_cache()  # times may be measured on the same GPU next
    return table


@functools.lru_cache(maxsize=1)
def _candidates(searched: _Searched) -> Candidates:
    """The model and structures of a search, which a worker keeps from one policy to the next."""
    model, _ = load_model(searched.model)
    if searched.backend != backend(model):
        model = to_cuequivariance(model, check_device(searched.device))
    reference = Reference(model, searched.structures, head=searched.head, device=searched.device)
    return Candidates(reference, interface=searched.interface)


def _forget() -> None:
    """Give up what a worker keeps, as its next work may be another's."""
    _candidates.cache_clear()
    gc.collect()
    torch.cuda.empty_cache()  # which does nothing where there is no GPU
