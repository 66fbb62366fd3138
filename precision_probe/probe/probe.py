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
import math
import warnings
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from precision_probe.exceptions import InputError
from precision_probe.files import check_writable
from precision_probe.models.blocks import select_blocks
from precision_probe.models.evaluation import MaceEnergy
from precision_probe.models.loading import ModelSource, check_module, load_model
from precision_probe.models.provenance import provenance
from precision_probe.models.targets import Mace, Module, Subject
from precision_probe.precisions import PRECISIONS, PrecisionSource, parse_precisions
from precision_probe.probe.live_calls import Calls, observe_calls, on_loss_gradients, training_options
from precision_probe.probe.observer import Observation, Observer
from precision_probe.probe.options import Gradients, default_device, parse_gradients, parse_modes
from precision_probe.probe.to_numpy import sample_arrays
from precision_probe.progress import shown
from precision_probe.structures import StructureSource, read_structures
from precision_probe.trace.recorder import Recorder
from precision_probe.trace.tables import StoredTable
from precision_probe.trace.trace import MODES, Trace
from precision_probe.variants.devices import check_device, check_precisions, default_precisions
from precision_probe.variants.variant import Variant

__all__ = ["Probe", "attach"]

_TIMED = 5  # evaluations in a run at least: where structures are few, each has a median of several times


def attach(
    model: ModelSource,
    *,
    precisions: PrecisionSource | None = None,
    blocks: str | Sequence[str] | None = None,
    gradients: Gradients = "per_block",
    modes: str | Sequence[str] = MODES,
    call: Callable[..., object] | None = None,
    every: int = 1,
    limit: int | None = None,
    when: Callable[..., bool] | None = None,
    head: str | None = None,
    device: str | torch.device | None = None,
    output: str | Path | None = None,
    force: bool = False,
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
        modes: ``"propagated"`` (the whole model in the precision), ``"isolated"`` (each block on the reference's own
            inputs), or both.
        call: For a module that is not a MACE: ``call(module, input)`` runs it on one of the inputs given to ``run()``
            and returns a tensor, or several in a tuple or dictionary. ``blocks`` must be named then.
        every: Of the calls of the attached model, observe each ``every``-th.
        limit: Observe no more than this many calls.
        when: Called with what the attached model is called with; of the calls that ``every`` chooses, those are
            observed for which it is true.
        head: Which head of a multi-head model the structures given to ``run()`` are evaluated with.
        device: Where the variants run; by default where the model is, and for a file a GPU if there is one.
        output: Write the trace to this file as it grows, and finish it when the probe is detached; until then it is
            ``<output>.partial``.
        force: Replace an ``output`` that exists.

    Returns:
        A probe, also usable in a ``with`` statement, whose end detaches it; so does the end of the probe's life, so
        keep it. Probes do not disturb one another: several may be attached, to one model or to more.

    Raises:
        InputError: If the model, a precision, a block pattern, a mode or the device cannot be used.
    """
    calls = Calls(every, limit, when)
    parsed_modes, parsed_gradients = parse_modes(modes), parse_gradients(gradients)
    path = None if output is None else check_writable(output, force=force)
    module, name = load_model(model) if call is None else (check_module(model), type(model).__name__)
    place = check_device(default_device(model, module) if device is None else device)
    asked = default_precisions(place, module) if precisions is None else parse_precisions(precisions)
    check_precisions(asked, place, module)
    if call is not None and blocks is None:
        raise InputError("With call=, name the blocks to capture, such as blocks='*' for the module's own children.")
    if call is not None and head is not None:
        raise InputError("head= chooses a head of a MACE model, and call= is for modules that are not one.")
    subject: Subject = Mace(module, head) if call is None else Module(call)
    members = getattr(model, "models", None)
    if call is None and members is not None and len(members) > 1:
        subject.notes.append(
            f"of the calculator's {len(members)} models, the first is probed; pass models[i] for others."
        )
    chosen = select_blocks(module, blocks)
    variants = [Variant(module, p, place, subject.evaluation) for p in (PRECISIONS["float64"], *asked)]
    observer = Observer(variants, chosen, parsed_modes, parsed_gradients, subject.gradient_unit)
    return Probe(module, name, place, subject, observer, calls, Recorder(path))


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
        calls: Calls,
        recorder: Recorder,
    ) -> None:
        self.model, self.name, self.device = model, name, device
        self._subject, self._observer, self._calls, self._recorder = subject, observer, calls, recorder
        self._provenance = provenance(model, device)  # of the model as it is now
        self._n_unfinished = 0
        self._failures: list[str] = []
        self._weights = _state_of(model)
        self._weights_changed = False
        self._present: Observation | None = None
        self._is_detached = False
        self._unhook = observe_calls(model, self)
        self._save = weakref.finalize(self, recorder.save)
        atexit.register(self._save)  # weakref's own turn comes after h5py's, and then nothing can be written
        self._describe()

    def __enter__(self) -> "Probe":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Remove every hook from the attached model and finish the output file. What was recorded stays."""
        self._unhook()
        self._finish_call()
        self._is_detached = True
        self._describe()
        self._recorder.save()
        self._save.detach()
        atexit.unregister(self._save)

    def run(self, structures: object, *, progress: bool = True) -> None:
        """Run structures through every variant and record what they compute.

        Args:
            structures: ``Atoms``, a list of them, or a path of anything ASE reads. For a module attached with
                ``call``: one input, or a list of them.
            progress: Show a progress bar, where there is a terminal.

        Raises:
            InputError: If a structure cannot be used; none has been run then.

        If this is interrupted, the structures that were finished are in the trace.
        """
        self._check_unfinished()
        samples = self._subject.samples(structures)
        self._finish_call()
        self._follow_weights()
        self._n_unfinished += len(samples)
        repeats = math.ceil(_TIMED / len(samples))
        for sample in shown(samples, f"{len(self._observer.variants)} precisions", progress=progress):
            present = sample.to(self.device)
            predictions = self._observer.predict(present, repeats)
            captured = self._observer.capture(present)
            self._n_unfinished -= 1
            self._record(Observation(present, predictions, captured))

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
            progress: Show a progress bar, where there is a terminal.

        Raises:
            InputError: If a structure cannot be used, the model predicts no energies and forces, or the output file is
                finished.
        """
        self._check_unfinished()
        from precision_probe.diagnostics import suite  # needs SciPy and ASE's dynamics, and few need it
        from precision_probe.diagnostics.reference import Reference

        self._follow_weights()
        chosen = suite.evenly_spread(read_structures(structures), n_structures)
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
        self._recorder.tables |= tables

    def _check_unfinished(self) -> None:
        if self._is_detached and self._recorder.has_file:
            raise InputError("The trace was finished when the probe was detached. Attach again, with another output.")

    def trace(self) -> Trace:
        """Everything recorded so far.

        Raises:
            InputError: If nothing has been recorded.
        """
        self._finish_call()
        if not self.n_structures:
            raise InputError("Nothing has been recorded yet. Run structures with probe.run(), or the attached model.")
        self._describe()
        return self._recorder.trace()

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
        return self._recorder.n_structures

    @property
    def notes(self) -> list[str]:
        """What a reader of the results should know: structures without edges, a reference that is not exact."""
        notes = [*self._subject.notes, *self._failures]
        if self._provenance["model_dtype"] != "float64":
            notes.insert(0, f"the reference is {self._provenance['reference']}.")
        return list(dict.fromkeys(notes))

    def before_call(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        """Note what the attached model is called with; MACE changes its input in place later."""
        self._finish_call()
        with self._without_harm():
            if self._calls.chooses_next(args, kwargs):
                sample = self._subject.sample_of_call(args, kwargs, f"call {self._calls.number}").to(self.device)
                self._present = Observation(sample, training=training_options(self.model, args, kwargs))

    def after_call(self, returned: object) -> None:
        """Replay the call in every variant, and wait for what a loss makes of it if the model is in training."""
        present = self._present
        if present is None or present.predictions:
            return
        self._present = None
        with self._without_harm():
            self._follow_weights()
            present.predictions = self._observer.predict(present.sample)
            present.captured = self._observer.capture(present.sample)
            if present.training is None:
                self._record(present)
                return
            held = weakref.ref(self)

            def tell(cotangents: dict[str, torch.Tensor]) -> None:
                if (probe := held()) is not None:
                    probe._after_loss(cotangents)

            present.handle = on_loss_gradients(returned, tell)
            self._present = present

    def _after_loss(self, cotangents: dict[str, torch.Tensor]) -> None:
        present = self._present
        if present is None or present.training is None:
            return
        with self._without_harm():
            present.captured |= self._observer.loss_gradients(present.sample, cotangents, present.training)
        self._finish_call()

    def _finish_call(self) -> None:
        """Record the present call, if one waits for a loss that did not come, or came."""
        present, self._present = self._present, None
        if present is not None and present.predictions:
            if present.handle is not None:
                present.handle.remove()
            with self._without_harm():
                self._record(present)

    def _record(self, observation: Observation) -> None:
        self._recorder.add(
            sample_arrays(observation.sample), observation.sizes, observation.predictions, observation.captured
        )
        self._describe()
        self._recorder.write_if_due()  # if that fails, it is done later

    def _describe(self) -> None:
        """Tell the recorder what the trace is of, as of now."""
        variants = self._observer.variants
        self._recorder.attributes = {
            **self._provenance,
            "model_name": self.name,
            "precisions": [variant.precision.name for variant in variants],
            "math_dtypes": {variant.precision.name: variant.math_dtype for variant in variants},
            "blocks": [block.name for block in self._observer.blocks],
            "modes": list(self._observer.modes),
            **self._subject.about,
            "gradients": self._observer.gradients,
            "complete": self._n_unfinished == 0 and not self._failures,
            "failures": self._failures,
            "weights_changed": self._weights_changed,
            "seed": next((each.seed for each in variants if each.precision.stochastic), None),  # nothing else is random
        }

    def _follow_weights(self) -> None:
        """Give the variants the attached model's mode and weights of this moment: training changes them."""
        for variant in self._observer.variants:
            variant.follow_mode(self.model)
        state = _state_of(self.model)
        if state != self._weights:
            self._weights = state
            self._weights_changed = True
            for variant in self._observer.variants:
                variant.follow(self.model)

    @contextlib.contextmanager
    def _without_harm(self) -> Iterator[None]:
        """Keep a failure to observe a call from the user's own run: note it, and warn of the first."""
        try:
            yield
        except Exception as error:
            self._failures.append(f"call {self._calls.number} could not be observed ({type(error).__name__}: {error})")
            self._describe()
            if len(self._failures) == 1:
                warnings.warn(f"precision_probe: {self._failures[0]}. The run goes on.", RuntimeWarning, stacklevel=2)


def _state_of(model: torch.nn.Module) -> list[tuple[int, int]]:
    """What changes when a weight does: where each tensor is, and how often it was written in place."""
    return [(tensor.data_ptr(), tensor._version) for tensor in (*model.parameters(), *model.buffers())]
