"""``attach()`` and the :class:`Probe`: a model, its variants, and everything that they compute.

Example:
    >>> import ase.build
    >>> with attach("demo", precisions="float16", device="cpu") as probe:
    ...     probe.run(ase.build.molecule("H2O"))
    >>> trace = probe.trace()
    >>> trace.group("propagated", "float16")["forces"].shape
    (3, 3)
"""

import contextlib
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from precision_probe.arrays import captured_arrays, prediction_arrays, structure_arrays
from precision_probe.blocks import select_blocks
from precision_probe.capture import Call, capture, gradients, input_gradients, replay
from precision_probe.exceptions import InputError
from precision_probe.models import cutoff, heads, load_model
from precision_probe.precisions import DEFAULT_PRECISIONS, PRECISIONS, Precision, parse_precisions
from precision_probe.provenance import provenance
from precision_probe.recorder import Captured, Recorder, Sizes
from precision_probe.structures import Graph, build_graph, choose_head, graph_of_call, read_structures
from precision_probe.trace import MODES, Trace
from precision_probe.variants import Prediction, Variant, check_device

__all__ = ["Probe", "attach", "default_precisions"]

_TIMED = 5  # evaluations over which a median of times is taken, if they fit into
_TIMING_BUDGET = 2.0  # seconds


def attach(
    model: Any,
    *,
    precisions: str | Precision | Iterable[str | Precision] | None = None,
    blocks: str | Sequence[str] | None = None,
    gradients: bool = True,
    modes: str | Sequence[str] = MODES,
    every: int = 1,
    limit: int | None = None,
    head: str | None = None,
    device: str | torch.device | None = None,
) -> "Probe":
    """Clone a MACE model into each precision and record what every block computes.

    Args:
        model: A MACE module, a ``MACECalculator``, the path of a checkpoint, a foundation model's name such as
            ``"mace-mp:small"``, or ``"demo"``. It is copied, and its own results stay bit for bit what they were.
        precisions: What to compare with float64. By default float32, bfloat16 and float16, and tf32 on CUDA.
        blocks: Globs over module names; by default the embeddings, interactions, products and readouts.
        gradients: Whether to record the gradients with respect to the blocks' inputs too.
        modes: ``"propagated"`` (the whole model in the precision), ``"isolated"`` (each block on the reference's own
            inputs), or both.
        every: Of the calls of the attached model, observe each ``every``-th, the first one included.
        limit: Observe no more than this many calls.
        head: Which head of a multi-head model the structures given to ``run()`` are evaluated with.
        device: Where the variants run; by default where the model is, and for a file a GPU if there is one.

    Returns:
        A probe, also usable in a ``with`` statement, whose end detaches it; so does the end of the probe's life, so
        keep it. Probes do not disturb one another: several may be attached, to one model or to more.

    Raises:
        InputError: If the model, a precision, a block pattern, a mode or the device cannot be used.
    """
    return Probe(
        model,
        precisions=precisions,
        blocks=blocks,
        gradients=gradients,
        modes=modes,
        every=every,
        limit=limit,
        head=head,
        device=device,
    )


class Probe:
    """A model with its variants, and the record of what they computed; made by :func:`attach`."""

    def __init__(
        self,
        model: Any,
        *,
        precisions: str | Precision | Iterable[str | Precision] | None,
        blocks: str | Sequence[str] | None,
        gradients: bool,
        modes: str | Sequence[str],
        every: int,
        limit: int | None,
        head: str | None,
        device: str | torch.device | None,
    ) -> None:
        self.model, self.name = load_model(model)
        if device is None:
            device = _default_device(model, self.model)
        device = check_device(device, ())
        asked = default_precisions(device) if precisions is None else parse_precisions(precisions)
        self.device = check_device(device, asked)
        self.blocks = select_blocks(self.model, blocks)
        self.modes = _parse_modes(modes)
        self.gradients = gradients
        if every < 1:
            raise InputError(f"every must be 1 or more, got {every}.")
        if limit is not None and limit < 0:
            raise InputError(f"limit must be 0 or more, got {limit}.")
        self._every, self._limit = every, limit
        self._head = choose_head(self.model, head)
        self._provenance = provenance(self.model, self.device)  # of the model as it is now
        self._variants = [Variant(self.model, p, self.device) for p in (PRECISIONS["float64"], *asked)]
        self._recorder = Recorder()
        self._notes = _notes(self.model, self._provenance, self._head)
        self._is_warm = False
        self._n_calls = 0
        self._n_unfinished = 0
        self._failures: list[str] = []
        self._weights = _state_of(self.model)
        self._weights_changed = False
        self._observed: Graph | None = None
        self._detach = _observe_calls(self)

    def __enter__(self) -> "Probe":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Remove every hook from the attached model. What was recorded stays."""
        self._detach()

    def run(self, structures: Any, *, progress: bool = True) -> None:
        """Run structures through every variant and record what they compute.

        Args:
            structures: ``Atoms``, a list of them, or a path of anything ASE reads.
            progress: Show a progress bar, where there is a terminal.

        Raises:
            InputError: If a structure cannot be used; none has been run then.

        If this is interrupted, the structures that were finished are in the trace.
        """
        graphs = [build_graph(atoms, self.model, self._head) for atoms in read_structures(structures)]
        lonely = [graph.names[0] for graph in graphs if not graph.n_edges]
        if lonely:
            self._notes.append(
                f"{', '.join(dict.fromkeys(lonely))}: no two atoms are within the cutoff of {cutoff(self.model):g} Å, "
                "so there are no edges, and no forces to compare."
            )
        repeats = -(-_TIMED // len(graphs))
        self._follow_weights()
        console = Console(stderr=True)
        shown = track(
            graphs,
            description=f"{len(self._variants)} precisions",
            console=console,
            disable=not (progress and console.is_terminal),
            transient=True,
        )
        self._n_unfinished += len(graphs)
        for graph in shown:
            self._observe(graph.to(self.device), repeats)
            self._n_unfinished -= 1

    def trace(self) -> Trace:
        """Everything recorded so far.

        Raises:
            InputError: If nothing has been recorded.
        """
        if not self.n_structures:
            raise InputError("Nothing has been recorded yet. Run structures with probe.run(), or the attached model.")
        attributes = self._provenance | {
            "model_name": self.name,
            "precisions": [variant.precision.name for variant in self._variants],
            "blocks": [block.name for block in self.blocks],
            "modes": list(self.modes),
            "head": self._head,
            "gradients": "per_block" if self.gradients else "none",
            "complete": self._n_unfinished == 0 and not self._failures,
            "failures": self._failures,
            "weights_changed": self._weights_changed,
            "seed": None,  # nothing in a run is random
        }
        return self._recorder.trace(attributes)

    @property
    def precision_names(self) -> str:
        """The precisions, float64 first, as a sentence lists them."""
        return ", ".join(variant.precision.name for variant in self._variants)

    @property
    def n_structures(self) -> int:
        """How many structures have been recorded."""
        return self._recorder.n_structures

    @property
    def notes(self) -> list[str]:
        """What a reader of the results should know: structures without edges, a reference that is not exact."""
        return list(dict.fromkeys((*self._notes, *self._failures)))

    def _before_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note what the attached model is called with; MACE changes its input in place later."""
        self._observed = None  # a call that failed may have left something
        number, self._n_calls = self._n_calls, self._n_calls + 1
        if number % self._every == 0 and (self._limit is None or number // self._every < self._limit):
            with self._without_harm(number):
                data = kwargs["data"] if "data" in kwargs else args[0]
                self._observed = graph_of_call(data, self.model, f"call {number}").to(self.device)

    def _after_call(self) -> None:
        graph, self._observed = self._observed, None
        if graph is not None:
            with self._without_harm(self._n_calls - 1):
                self._follow_weights()
                self._observe(graph, repeats=1)

    def _follow_weights(self) -> None:
        """Give the variants the attached model's weights of this moment: training changes them."""
        state = _state_of(self.model)
        if state != self._weights:
            self._weights = state
            self._weights_changed = True
            for variant in self._variants:
                variant.follow(self.model)

    @contextlib.contextmanager
    def _without_harm(self, call: int) -> Iterator[None]:
        """Keep a failure to observe a call from the user's own run: note it, and warn of the first."""
        try:
            yield
        except Exception as error:
            self._failures.append(f"call {call} could not be observed ({type(error).__name__}: {error})")
            if len(self._failures) == 1:
                warnings.warn(f"precision_probe: {self._failures[0]}. The run goes on.", RuntimeWarning, stacklevel=2)

    @torch.enable_grad()
    def _observe(self, graph: Graph, repeats: int) -> None:
        """Run one graph through every variant; nothing is recorded unless all of them finish."""
        predictions = self._predict(graph, repeats)
        captured: dict[str, list[Captured]] = {}
        reference: list[Call] = []
        for variant in self._variants:
            is_reference = variant.precision.name == "float64"
            if is_reference or "propagated" in self.modes:
                calls, found = self._propagated(variant, graph)
                reference = calls if is_reference else reference
                if "propagated" in self.modes:
                    captured[f"propagated/{variant.precision}"] = found
            if "isolated" in self.modes:
                captured[f"isolated/{variant.precision}"] = self._isolated(variant, reference)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # the next precision needs other sizes
        sizes = Sizes(graph.n_structures, graph.n_atoms, graph.n_edges)
        self._recorder.add(structure_arrays(graph), sizes, predictions, captured)

    def _predict(self, graph: Graph, repeats: int) -> dict[str, dict[str, NDArray[Any]]]:
        """What each variant predicts, unhooked, and its time: all precisions in turn, so that they are timed alike."""
        if not self._is_warm:
            for variant in self._variants:
                variant.predict(graph)
                variant.predict(graph)  # TorchScript compiles in the second call
            self._is_warm = True
        start = time.perf_counter()
        seconds: dict[str, list[float]] = {}
        found: dict[str, Prediction] = {}
        for repeat in range(repeats):
            if repeat and time.perf_counter() - start > _TIMING_BUDGET:
                break
            for variant in self._variants:
                name = variant.precision.name
                found[name] = variant.predict(graph)
                seconds.setdefault(name, []).append(found[name].seconds)
        return {
            name: prediction_arrays(graph, prediction, float(np.median(seconds[name])))
            for name, prediction in found.items()
        }

    def _propagated(self, variant: Variant, graph: Graph) -> tuple[list[Call], list[Captured]]:
        with variant.arithmetic(), capture(variant.model, self.blocks) as calls:
            energy = variant.forward(graph)
            grads = gradients(calls, energy) if self.gradients else [{} for _ in calls]
        found: list[Captured] = []
        for call, grad in zip(calls, grads, strict=True):
            found += captured_arrays(call.block, call.outputs, grad)
        return [call.detach() for call in calls], found

    def _isolated(self, variant: Variant, reference: Sequence[Call]) -> list[Captured]:
        found = []
        with variant.arithmetic():
            for recorded in reference:
                call = replay(variant.model.get_submodule(recorded.block.name), recorded, variant.dtype)
                grad = input_gradients(call) if self.gradients else {}
                found += captured_arrays(call.block, call.outputs, grad, cotangent_unit="1")
        return found


def _state_of(model: torch.nn.Module) -> list[tuple[int, int]]:
    """What changes when a weight does: where each tensor is, and how often it was written in place."""
    return [(tensor.data_ptr(), tensor._version) for tensor in (*model.parameters(), *model.buffers())]


def _observe_calls(probe: Probe) -> Callable[[], Any]:
    """Hook the attached model; what is returned unhooks it, as does the end of the probe's life.

    The hooks hold the probe weakly: a model that outlives it would keep it, and its clones, alive.
    """
    held = weakref.ref(probe)

    def before(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (found := held()) is not None:
            found._before_call(args, kwargs)

    def after(*_: Any) -> None:
        if (found := held()) is not None:
            found._after_call()

    handles = (
        probe.model.register_forward_pre_hook(before, with_kwargs=True),
        probe.model.register_forward_hook(after),
    )

    def unhook() -> None:
        for handle in handles:
            handle.remove()

    return weakref.finalize(probe, unhook)


def default_precisions(device: str | torch.device) -> tuple[Precision, ...]:
    """The precisions compared when none are named: on CUDA also tf32, where the GPU has it."""
    names = list(DEFAULT_PRECISIONS)
    has_cuda = torch.device(device).type == "cuda" and torch.cuda.is_available()
    if has_cuda and torch.cuda.get_device_capability(device)[0] >= 8:
        names.insert(1, "tf32")
    return parse_precisions(names)


def _default_device(given: Any, model: torch.nn.Module) -> torch.device:
    if isinstance(given, str) or hasattr(given, "__fspath__"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return next(model.parameters()).device


def _notes(model: torch.nn.Module, about: Mapping[str, Any], head: str) -> list[str]:
    notes = []
    if about["model_dtype"] != "float64":
        notes.append(f"the reference is {about['reference']}.")
    names = heads(model)
    if len(names) > 1:
        notes.append(f"of the model's heads, {', '.join(names)}, structures given to run() are evaluated with {head}.")
    return notes


def _parse_modes(modes: str | Sequence[str]) -> tuple[str, ...]:
    names = modes.split(",") if isinstance(modes, str) else list(modes)
    names = [name.strip() for name in names if name.strip()]
    unknown = [name for name in names if name not in MODES]
    if unknown or not names:
        raise InputError(f"Unknown mode {', '.join(unknown) or 'list (empty)'}. Known: {', '.join(MODES)}.")
    return tuple(mode for mode in MODES if mode in names)
