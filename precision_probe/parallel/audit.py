"""An audit that workers share: each runs a part of the structures, and writes a file of its own.

What is recorded is what one process would have recorded: structures keep their order, and batches are the same. (But
what stochastic formats draw depends on whether TorchScript has compiled a model, which it does in the second call of a
process.) A worker that is killed costs what it had not yet written; another goes on from there.
"""

import logging
import shutil
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase

from precision_probe.diagnostics.suite import evenly_spread
from precision_probe.exceptions import ProbeError
from precision_probe.files import unfinished
from precision_probe.models.graphs import batch_sizes, build_graph
from precision_probe.models.loading import load_model
from precision_probe.parallel.cluster import anywhere, n_workers_of
from precision_probe.parallel.futures import as_done
from precision_probe.parallel.splitting import split
from precision_probe.parallel.work import Explained, PartDone, run_part
from precision_probe.probe.options import Options
from precision_probe.structures import StructureSource, read_structures
from precision_probe.trace.claim import Claim, claim_output
from precision_probe.trace.parts.part import Part, part_files
from precision_probe.trace.reading import open_trace

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["Audit", "audit"]

_LOG = logging.getLogger(__name__)

_N_EXPLAINED = 3  # structures: each is run some hundred times
# What contributions of one structure take, in audits of one: measured on an H100, 64 atoms in three precisions, where
# those of three structures took 5.8 s and an audit 0.195 s. It shares work, and changes no result.
_N_RUNS = 10
_STOPPING = 60  # seconds that are waited for workers to finish the structure that they are at: a choice


@dataclass
class Audit:
    """What came of an audit.

    Attributes:
        path: The folder with its trace.
        notes: What a reader of the results should know.
        n_resumed: How many structures were done already.
    """

    path: Path
    notes: list[str] = field(default_factory=list)
    n_resumed: int = 0


def audit(
    model: str | Path,
    structures: StructureSource,
    output: str | Path | Claim,
    client: "Client",
    *,
    options: Options | None = None,
    explain: Collection[str] | None = ("contributions",),
    steps: int = 0,
    force: bool = False,
    resume: bool = False,
    told: Callable[[int], object] | None = None,
) -> Audit:
    """Run a model's variants on structures, a part on each worker, and keep what they compute.

    Args:
        model: A checkpoint that all workers can read, a foundation model's name, or ``"demo"``.
        structures: As :meth:`precision_probe.Probe.run` takes them.
        output: A folder, which all workers can write to; :func:`precision_probe.open_trace` opens it. Until all is done
            it is ``<output>.partial``.
        client: Of workers that run one task at a time. Where they are numbered, as those of ``LocalCluster`` are, each
            takes a GPU of its own.
        options: As :func:`precision_probe.attach` takes them. By default errors are kept and not tensors, and nothing
            is timed.
        explain: Which tables that explain the errors are made, of three of the structures; ``None`` for all.
        steps: Of dynamics, as :meth:`precision_probe.Probe.explain` takes them.
        force: Replace an output that is there, once the new one is complete.
        resume: Go on from what an earlier run of the same left.
        told: Called now and then with the number of structures that are done.

    Raises:
        InputError: If the model, a structure, an option or the output cannot be used.
        ProbeError: If a worker fails; what was done is in ``<output>.partial``.
    """
    given = options or Options()
    options = given | Options(keep=given.get("keep") or "errors", time=bool(given.get("time")))
    with (
        output
        if isinstance(output, Claim)
        else claim_output(output, force=force, resume=resume, as_folder=True) as claim
    ):
        atoms = read_structures(structures)
        name = anywhere(model)
        folder = _prepared(claim)
        n_parts, n_resumed = _left(folder)
        is_explained = explain is None or bool(explain)
        explained = Explained(evenly_spread(atoms, _N_EXPLAINED), explain, steps) if is_explained else None
        parts = _parts(name, atoms, n_parts or max(1, n_workers_of(client)), options, explained)
        done = _on_workers(client, name, atoms, parts, folder, options, told, explained)
        outcome = _finished(claim, done, n_resumed)
    for each in done:
        if each.not_explained:
            raise ProbeError(f"{each.not_explained} The audit itself is complete, and in {outcome.path}.")
    return outcome


def _prepared(claim: Claim) -> Path:
    """The folder that grows, with what an earlier run left where that is to be continued."""
    folder = unfinished(claim.path)
    if folder.exists() and not claim.is_resumed:
        _remove(folder)
    folder.mkdir(exist_ok=True)
    return folder


def _left(folder: Path) -> tuple[int, int]:
    """In how many parts an earlier run had shared its structures, and how many of these it has finished."""
    if not part_files(folder):
        return 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of parts that nobody had begun
        with open_trace(folder) as trace:
            return int(trace.attributes["n_parts"]), int(trace.structures.sizes["structure"])


def _parts(
    model: str, atoms: Sequence[ase.Atoms], n_parts: int, options: Options, explained: Explained | None
) -> list[tuple[Part, slice]]:
    """The parts, of about as much work each; batches are those of a run by one process."""
    work, batches = [len(each) for each in atoms], [1] * len(atoms)
    batch_edges = options.get("batch_edges")
    if isinstance(batch_edges, int):  # else none, or as each worker's device has it
        module, _ = load_model(model)
        graphs = [build_graph(each, module) for each in atoms]
        work = [graph.n_edges for graph in graphs]
        batches = list(batch_sizes(work, batch_edges))
    n_runs = _N_RUNS * len(explained.structures) if explained else 0
    return split(work, n_parts, batches, first_has=n_runs * sum(work) / len(batches))


def _on_workers(
    client: "Client",
    model: str,
    atoms: Sequence[ase.Atoms],
    parts: Sequence[tuple[Part, slice]],
    folder: Path,
    options: Options,
    told: Callable[[int], object] | None,
    explained: Explained | None,
) -> list[PartDone]:
    """Have every part run.

    Raises:
        InputError: If one cannot be.
        ProbeError: If one fails.
    """
    from distributed import Event, wait

    run = f"precision-probe-{uuid.uuid4()}"  # others may use the same workers
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)  # structures are what is to be sent
        futures = {
            client.submit(
                *(run_part, model, atoms[which], part, folder.resolve(), options, run),
                explained=None if part.number else explained,
                pure=False,
            ): part
            for part, which in parts
        }
    try:
        with _counted(client, run, told):
            return _results(futures)
    except BaseException:
        # a thread of a worker cannot be ended from outside; who goes on would write what others resume
        Event(run, client=client).set()
        with suppress(TimeoutError):
            wait(list(futures), timeout=_STOPPING)
        client.cancel(list(futures), force=True)
        raise


def _results(futures: Mapping["Future", Part]) -> list[PartDone]:
    """What came of all parts, once they are done.

    Raises:
        InputError: If one cannot be run.
        ProbeError: If one fails, or its file is not finished.
    """
    results: dict[Future, PartDone] = {}
    for future, done in as_done({future: f"part {part.number}" for future, part in futures.items()}):
        if done.problem:
            raise ProbeError(done.problem)
        results[future] = done
    return [results[future] for future in futures]


@contextmanager
def _counted(client: "Client", run: str, told: Callable[[int], object] | None) -> Iterator[None]:
    """Tell how many structures all workers together have done."""
    counts: dict[int, int] = {}
    workers: dict[int, str] = {}

    def add(event: tuple[float, Mapping[str, Any]]) -> None:
        part, worker = event[1]["part"], event[1]["worker"]
        counts[part] = event[1]["n_structures"]
        if workers.setdefault(part, worker) != worker:
            _LOG.warning("worker %s was lost: part %d goes on on %s", workers[part], part, worker)
            workers[part] = worker
        if told is not None:
            told(sum(counts.values()))

    client.subscribe_topic(run, add)
    try:
        yield
    finally:
        client.unsubscribe_topic(run)


def _finished(claim: Claim, done: Sequence[PartDone], n_resumed: int) -> Audit:
    """Put the folder in its place."""
    folder = unfinished(claim.path)
    with open_trace(folder) as trace:
        if not (trace.attributes["complete"] or trace.attributes["failures"]):
            raise ProbeError(f"The trace is not complete, and stays {folder}.")
    replaced = claim.path.with_name(f"{claim.path.name}.replaced")
    if claim.path.exists():
        claim.path.replace(replaced)
    folder.replace(claim.path)
    if replaced.exists():
        _remove(replaced)
    return Audit(claim.path, list(dict.fromkeys(note for each in done for note in each.notes)), n_resumed)


def _remove(path: Path) -> None:
    """Remove a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
