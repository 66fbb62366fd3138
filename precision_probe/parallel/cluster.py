"""Workers: started on this machine, or those of a scheduler that is there."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from precision_probe.exceptions import InputError, first_line

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["anywhere", "connected", "n_workers_of"]

_CONNECTING = 30  # seconds in which a scheduler answers
_PATIENCE = 600  # seconds in which the workers of a scheduler have come: a choice, batch systems let one wait


@contextlib.contextmanager
def connected(n_workers: int | None, scheduler: str | None = None) -> Iterator["Client"]:
    """A client of workers that each run one thing at a time.

    Args:
        n_workers: How many are started here; of a scheduler, how many are waited for, one if it is not said.
        scheduler: The address of one, such as ``tcp://10.0.0.1:8786``, or the file that it was started with
            (``--scheduler-file``); by default workers are started here.

    Raises:
        InputError: If dask.distributed is not installed, the number is none, or the scheduler or its workers cannot be
            reached.
    """
    if n_workers is not None and n_workers < 1:
        raise InputError(f"At least one worker is needed (--workers); got {n_workers}.")
    if importlib.util.find_spec("distributed") is None:
        raise InputError("Workers need dask.distributed. Install it with: pip install 'precision-probe[parallel]'")
    with _local(n_workers or 1) if scheduler is None else _remote(scheduler, n_workers or 1) as client:
        yield client


def n_workers_of(client: "Client") -> int:
    """How many workers there are."""
    return len(client.scheduler_info(n_workers=-1)["workers"])


def anywhere(model: str | Path) -> str:
    """A model's path or name as it is the same in other processes, which have other working directories."""
    return str(Path(model).resolve()) if Path(model).is_file() else str(model)


@contextlib.contextmanager
def _local(n_workers: int) -> Iterator["Client"]:
    """Processes on this machine, which share its processors; they end with this."""
    import logging

    from distributed import Client, LocalCluster

    from precision_probe.parallel.one_gpu import OneGPU

    n_threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // n_workers))
    variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), n_threads)
    with (
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            dashboard_address=None,
            memory_limit=0,  # a model takes what it takes
            silence_logs=logging.CRITICAL,
            env=variables,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(OneGPU())
        yield client


@contextlib.contextmanager
def _remote(scheduler: str, n_workers: int) -> Iterator["Client"]:
    """The workers of a scheduler, which stay when this ends."""
    from distributed import Client

    try:
        if Path(scheduler).is_file():
            client = Client(scheduler_file=scheduler, timeout=_CONNECTING)
        else:
            client = Client(scheduler, timeout=_CONNECTING)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(
            f"The scheduler {scheduler} (--scheduler) cannot be reached ({first_line(error)}). Start one with "
            "`dask scheduler`, and give the address that it prints."
        ) from error
    with client:
        try:
            client.wait_for_workers(n_workers, timeout=_PATIENCE)
        except TimeoutError as error:
            raise InputError(
                f"The scheduler {scheduler} has {n_workers_of(client)} of {n_workers} workers after {_PATIENCE} s. "
                "Start more with `dask worker --nthreads 1`, or ask for fewer (--workers)."
            ) from error
        yield client
