"""``attach()`` and the :class:`Probe`: a model, its variants, and everything that they compute.

Example:
    >>> import ase.build
    >>> with attach("demo", precisions="float16", device="cpu") as probe:
    ...     probe.run(ase.build.molecule("H2O"))
    >>> trace = probe.trace()
    >>> trace.group("propagated", "float16")["forces"].shape
    (3, 3)
"""

import atexit
import contextlib
import logging
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch

from precision_probe.exceptions import InputError, printable
from precision_probe.models.blocks import select_blocks
from precision_probe.models.evaluation import MaceEnergy, Sample
from precision_probe.models.loading import ModelSource, check_module, load_model
from precision_probe.models.memory import check_memory, fitting_edges
from precision_probe.models.provenance import provenance
from precision_probe.models.targets import Mace, Module, Subject
from precision_probe.notebook import as_html
from precision_probe.precisions import PRECISIONS, PrecisionSource, parse_precisions
from precision_probe.probe.batches import Batches, record
from precision_probe.probe.live_calls import Calls, observe_calls
from precision_probe.probe.observed_calls import ObservedCalls
from precision_probe.probe.observing.observer import Observer
from precision_probe.probe.options import (
    BatchEdges,
    Gradients,
    Keep,
    batch_edges_on,
    check_batch_edges,
    default_device,
    parse_gradients,
    parse_keep,
    parse_modes,
    parse_output,
)
from precision_probe.probe.own_precision import OwnPrecision
from precision_probe.probe.recording import Recording
from precision_probe.probe.turns import TURNS
from precision_probe.probe.weights import Weights
from precision_probe.structures import StructureSource, read_structures
from precision_probe.trace.claim import Claim
from precision_probe.trace.parts.part import Part
from precision_probe.trace.recorder import Recorder
from precision_probe.trace.tables import StoredTable
from precision_probe.trace.trace import MODES, Trace
from precision_probe.variants.devices import check_device, check_precisions, current, default_precisions, undisturbed
from precision_probe.variants.variant import Variant

__all__ = ["Probe", "attach"]

_LOG = logging.getLogger(__name__)


def attach(
    model: ModelSource,
    *,
    precisions: PrecisionSource | None = None,
    blocks: str | Sequence[str] | None = None,
    gradients: Gradients = "per_block",
    keep: Keep | None = None,
    modes: str | Sequence[str] = MODES,
    time: bool | None = None,
    batch_edges: BatchEdges = None,
    offload: bool = False,
    call: Callable[..., object] | None = None,
    every: int = 1,
    limit: int | None = None,
    when: Callable[..., bool] | None = None,
    head: str | None = None,
    device: str | torch.device | None = None,
    output: str | Path | Claim | None = None,
    force: bool = False,
    resume: bool = False,
    part: Part | None = None,
    configuration: Mapping[str, object] | None = None,
) -> "Probe":
    """Clone a MACE model, or any module, into each precision and record what every block computes.

    Args:
        model: A MACE module, a ``MACECalculator``, the path of a checkpoint, a foundation model's name such as
            ``"mace-mp:small"``, or ``"demo"``. It is copied, and its own results stay bit for bit what they were.
        precisions: What to compare with float64. By default float32, bfloat16 and float16, and tf32 on CUDA.
        blocks: Globs over module names, see :func:`precision_probe.models.blocks.select_blocks`; by default the
            embeddings, interactions, products and readouts.
        gradients: ``"per_block"`` gives each block the gradients with respect to its own inputs, by handing it aliases
            of them. ``"shared"`` leaves the inputs as they are: then the backward pass is bit for bit the bare
            model's, but a tensor that several blocks are given (``edge_attrs``, ``edge_feats``) shows the total under
            each, and one with no path to the positions has no gradient. ``False`` records none.
        keep: Of what blocks compute, ``"tensors"`` keeps all; ``"errors"`` reduces it where it is to what every metric
            follows from, for each element of each structure and each irrep, a few numbers in place of each tensor;
            ``"none"`` runs no block by itself, and keeps what the model predicts. By default tensors, and errors where
            the tensors of all structures would take more than 1 GiB, which :attr:`Probe.notes` says then.
        modes: ``"propagated"`` (the whole model in the precision), ``"isolated"`` (each block on the reference's own
            inputs), or both.
        time: Whether each variant is timed too, after a warm-up, in evaluations of its own without hooks. By default up
            to five structures of up to 1,000 atoms are, each as often as makes five evaluations; and calls of the
            attached model, once, where an evaluation without hooks is needed anyway.
        batch_edges: Run structures that follow one another in one graph, as long as it has no more edges than this.
            Many small molecules take little longer so than one, on a GPU above all. By default each is run by itself:
            sums, and so reduced precisions, can depend on what else is in a graph. The trace tells it. ``"auto"``
            is 60,000 on a GPU, and on a CPU one by one. A batch that the memory does not suffice for is run again in
            halves, and what follows in batches of that size.
        offload: With ``keep="errors"``, let the reference's tensors wait in the host's memory until they are compared,
            in place of the GPU's: slower, with the same numbers.
        call: For a module that is not a MACE: ``call(module, input)`` runs it on one of the inputs given to ``run()``
            and returns a tensor, or several in a tuple or dictionary. ``blocks`` must be named then.
        every: Of the calls of the attached model, observe each ``every``-th.
        limit: Observe no more than this many calls.
        when: Called with what the attached model is called with; of the calls that ``every`` chooses, those are
            observed for which it is true.
        head: Which head of a multi-head model the structures given to ``run()`` are evaluated with.
        device: Where the variants run; by default where the model is, and for a file a GPU if there is one.
        output: Write the trace to this file as it grows, and finish it when the probe is detached; until then, and if
            the run does not come to its end, it is ``<output>.partial``. A file that cannot be written stops no run:
            see :attr:`Probe.output_problem`. Nobody else can have the same output meanwhile; a claim of it that was
            taken before may be given, too.
        force: Replace an ``output`` that exists, once the new one is complete.
        resume: Go on from the ``<output>.partial`` of an earlier run, if it left one: the structures that it has are
            not run again. That run must have been of the same model, precisions, blocks and modes.
        part: Where several processes share a run, which part of its structures this one is given; ``output`` is then
            ``part.file_name`` in a folder, and :func:`precision_probe.open_trace` of that has all parts as one trace.
        configuration: What else the trace is to say of how it was asked for, such as options from a file: numbers and
            text that JSON holds.

    Returns:
        A probe, also usable in a ``with`` statement, whose end detaches it; so does the end of the probe's life, so
        keep it. Probes do not disturb one another: several may be attached, to one model or to more. Threads that
        call attached models are served one after the other. Copies and files of an attached model are of the bare
        one. A call that gives other numbers than its replay in the model's own precision is told, in
        :attr:`Probe.notes` and in the trace: the trace is of another model then.

    Raises:
        InputError: If the model, a precision, a block pattern, a mode, the device or the output cannot be used.
    """
    calls = Calls(every, limit, when)
    check_batch_edges(batch_edges)
    parsed_modes, parsed_gradients, parsed_keep = parse_modes(modes), parse_gradients(gradients), parse_keep(keep)
    claim = parse_output(output, force=force, resume=resume)
    with contextlib.nullcontext() if claim is None else claim.released_on_failure():
        module, name = load_model(model) if call is None else (check_module(model), type(model).__name__)
        place = check_device(default_device(model, module) if device is None else device)
        asked = default_precisions(place, module) if precisions is None else parse_precisions(precisions)
        check_precisions(asked, place, module)
        if call is not None and blocks is None:
            raise InputError(
                "With call=, name the blocks to capture, such as blocks='*' for the module's own children."
            )
        if call is not None and head is not None:
            raise InputError("head= chooses a head of a MACE model, and call= is for modules that are not one.")
        if call is not None and batch_edges is not None:
            raise InputError(
                "batch_edges= joins structures for a MACE model, and call= is for modules that are not one."
            )
        subject: Subject = Mace(module, head, holder=model) if call is None else Module(call)
        members = getattr(model, "models", None)
        if call is None and members is not None and len(members) > 1:
            subject.notes.append(
                f"of the calculator's {len(members)} models, the first is probed; pass models[i] for others."
            )
        chosen = select_blocks(module, blocks)
        with current(place):
            variants = [Variant(module, p, place, subject.evaluation) for p in (PRECISIONS["float64"], *asked)]
        own = OwnPrecision(module, variants, lambda cloned, p: Variant(cloned, p, place, subject.evaluation))
        observer = Observer(
            variants,
            chosen,
            parsed_modes if parsed_keep != "none" else (),
            parsed_gradients,
            subject.gradient_unit,
            parsed_keep or "",
            offload,
        )
        if limit is not None:
            observer.n_expected = limit
        recorder = Recorder(claim)
        return Probe(
            *(module, name, place, subject, observer, own, calls, recorder),
            time=time,
            batch_edges=batch_edges_on(batch_edges, place),
            part=part,
            configuration=configuration,
        )


class Probe:
    """A model with its variants, and the record of what they computed; made by :func:`attach`.

    Attributes:
        model: The attached model.
        name: A short name for it.
        device: Where the variants run.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        name: str,
        device: torch.device,
        subject: Subject,
        observer: Observer,
        own: OwnPrecision,
        calls: Calls,
        recorder: Recorder,
        *,
        time: bool | None,
        batch_edges: int | None,
        part: Part | None,
        configuration: Mapping[str, object] | None,
    ) -> None:
        self.model, self.name, self.device = model, name, device
        self._subject, self._observer, self._time, self._batch_edges = subject, observer, time, batch_edges
        self._weights = Weights(model, [*observer.variants, *([] if own.extra is None else [own.extra])])
        about = {**provenance(model, device), "model_name": name, "batch_edges": batch_edges}  # as the model is now
        about |= {} if part is None else part.about
        about |= {} if configuration is None else {"configuration": dict(configuration)}
        self._first = 0 if part is None else part.first
        self._recording = Recording(recorder, about, subject, self._weights, observer)
        calls.number = self._recording.last_call
        self._calls = ObservedCalls(
            model, device, calls, subject, observer, own, self._weights, self._recording, time=time
        )
        self._is_detached = False
        self._unhook = observe_calls(model, self._calls)
        _LOG.info("%s has hooks; %d of its blocks run in %s", name, len(observer.blocks), self.precision_names)
        self._save = weakref.finalize(self, recorder.save)
        atexit.register(self._save)  # weakref's own turn comes after h5py's, and then nothing can be written

    def __enter__(self) -> "Probe":
        return self

    def __repr__(self) -> str:
        rows = "; ".join(f"{name}: {value}" for name, value in self._described().items())
        return f"<Probe of {printable(self.name)}: {rows}>"

    def _repr_html_(self) -> str:
        return as_html(f"Probe of {self.name}", self._described())

    def _described(self) -> dict[str, object]:
        """What is shown of it."""
        return {
            "precisions": ", ".join(str(variant.precision) for variant in self._observer.variants),
            "structures recorded": self._recording.n_structures,
            "hooks": "removed" if self._is_detached else "on the model",
            "device": self.device,
        }

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._recording.is_interrupted |= kind is not None
        self.detach()

    def detach(self) -> None:
        """Remove every hook from the attached model and finish the output file. What was recorded stays.

        If the file cannot be written, that is warned of, and nothing is raised: see :attr:`output_problem`.
        """
        with TURNS.taken():
            self._unhook()
            self._calls.finish()
            self._is_detached = True
            self._recording.save()
        self._save.detach()
        atexit.unregister(self._save)

    def run(self, structures: object, *, progress: bool = True) -> None:
        """Run structures through every variant and record what they compute.

        Args:
            structures: ``Atoms``, a list of them, or a path of anything ASE reads. For a module attached with
                ``call``: one input, or a list of them.
            progress: Say on stderr how far it is: a bar in a terminal, else lines.

        Raises:
            InputError: If a structure cannot be used, or an earlier run, from which this one goes on, has another in
                its place; none has been run then.
            ProbeError: If the memory does not suffice for a structure in float64, or nothing more can be recorded, as
                the output cannot be written and memory must not fill up.

        A precision that there is no memory for, where float64 has some, has NaN for that structure: :attr:`notes` says
        it, and the trace is not ``complete``.

        If this is interrupted, the structures that were finished are in the trace.
        """
        self._check_unfinished()
        with TURNS.taken(), undisturbed(), current(self.device):
            samples = self._subject.samples(structures)
            self._subject.notes += check_memory(samples, self.model, self.device)
            self._calls.finish()
            self._weights.follow()
            self._observer.expect(samples)
            repeats = self._batches(samples).repeats(self._time)
            batches = self._batches(self._recording.still_to_run(samples))
        record(batches, self._observer, self._recording, self.device, self._first, repeats=repeats, progress=progress)

    def _batches(self, samples: Sequence[Sample]) -> Batches:
        """Structures that follow one another in one graph, where that was asked for."""
        return Batches(samples, self._batch_edges, fitting_edges(self.model, self.device), self.device)

    def explain(
        self,
        structures: StructureSource,
        *,
        n_structures: int = 3,
        steps: int = 0,
        only: Collection[str] | None = None,
        progress: bool = True,
    ) -> None:
        """Find out where the errors of energies and forces come from, and keep the tables in the trace.

        Args:
            structures: As :meth:`run` takes them.
            n_structures: How many of them are used, evenly spread: each is run some hundred times.
            steps: Of dynamics at constant energy, four runs of the largest in each precision; none by default.
            only: Names of tables, such as ``"contributions"``, where not all of :func:`precision_probe.explain` are
                wanted.
            progress: Say on stderr how far it is: a bar in a terminal, else lines.

        Raises:
            InputError: If a structure cannot be used, the model predicts no energies and forces, or the output file is
                finished.
        """
        self._check_unfinished()
        from precision_probe.diagnostics import suite  # needs SciPy and ASE's dynamics, and few need it
        from precision_probe.diagnostics.reference import Reference

        chosen = suite.evenly_spread(read_structures(structures), n_structures)
        with TURNS.taken(), undisturbed(), current(self.device):
            self._weights.follow()
            exact, *variants = (self._fresh(variant) for variant in self._observer.variants)
            reference = Reference(self.model, chosen, head=self._subject.about.get("head"), variant=exact)
            for name, table in suite.explained(reference, variants, chosen, steps=steps, only=only, progress=progress):
                self.add_tables({name: table})

    def _fresh(self, variant: Variant) -> Variant:
        """The variant, or where it rounds at random another one, whose random numbers begin anew."""
        return Variant(self.model, variant.precision, self.device) if variant.precision.stochastic else variant

    def add_tables(self, tables: Mapping[str, StoredTable]) -> None:
        """Keep tables in the trace, in place of any of the same names.

        Raises:
            InputError: If the output file is finished.
        """
        self._check_unfinished()
        self._recording.add_tables(tables)

    @property
    def tables(self) -> dict[str, StoredTable]:
        """The tables that explain the errors, by name, as far as they were asked for."""
        return self._recording.tables

    def _check_unfinished(self) -> None:
        if self._is_detached and self._recording.has_file:
            raise InputError("The trace was finished when the probe was detached. Attach again, with another output.")

    def trace(self) -> Trace:
        """Everything recorded so far.

        Raises:
            InputError: If nothing has been recorded.
        """
        with TURNS.taken():
            self._calls.finish()
            if not self.n_structures:
                raise InputError(
                    "Nothing has been recorded yet. Run structures with probe.run(), or the attached model."
                )
            return self._recording.trace()

    @property
    def precision_names(self) -> str:
        """The precisions, float64 first, as a sentence lists them."""
        return ", ".join(variant.precision.name for variant in self._observer.variants)

    @property
    def predicts_energies(self) -> bool:
        """Whether the model is a MACE that predicts energies and forces, whose errors can be explained."""
        return isinstance(self._subject.evaluation, MaceEnergy)

    @property
    def n_structures(self) -> int:
        """How many structures have been recorded."""
        return self._recording.n_structures

    @property
    def n_resumed(self) -> int:
        """How many of these an earlier run had recorded."""
        return self._recording.n_resumed

    @property
    def written_to(self) -> Path | None:
        """The file that has what was recorded: the output once it is finished, its ``.partial`` before; or none."""
        return self._recording.written_to

    @property
    def output_problem(self) -> str:
        """Why the output is not, or not yet, what it should be, and where the data are; empty where all is well."""
        return self._recording.problem

    @property
    def failures(self) -> list[str]:
        """What could not be observed, and which precisions had no memory for what, a sentence each."""
        return list(self._recording.failures)

    @property
    def notes(self) -> list[str]:
        """What a reader of the results should know: a reference that is not exact, calls that it is not of."""
        return self._recording.notes
