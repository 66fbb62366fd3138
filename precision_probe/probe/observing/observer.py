"""One sample run through every variant: what each predicts, and what each of its blocks computes."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from precision_probe.analysis.statistics import STATISTICS
from precision_probe.exceptions import ProbeError
from precision_probe.models.blocks import Block
from precision_probe.models.evaluation import Prediction, Sample
from precision_probe.models.graphs import Graph
from precision_probe.models.memory import attempt, described
from precision_probe.probe.observing.keeping import Captured, Groups, Kept, KeptErrors, KeptTensors
from precision_probe.probe.observing.to_numpy import captured_tensors, lacking_arrays, predicted_arrays
from precision_probe.trace.arrays import ModelArray
from precision_probe.trace.schema import LOSS, REFERENCE
from precision_probe.variants.captured_run import CapturedRun, captured_run, predicting_run
from precision_probe.variants.hooks import Call, capture, gradients, input_gradients, replay
from precision_probe.variants.variant import Variant

__all__ = ["DoesNotFitError", "Observed", "Observer"]

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds after which no sample is evaluated once more for its time alone. A choice: as long as people wait without
# wondering; what takes longer is large, and its times vary little anyway.
_TIMING_BUDGET = 2.0
# Of a live model, of whose calls nobody has said how many are to be observed: a choice, some minutes of dynamics.
_EXPECTED_CALLS = 100
_MANY_BYTES = 2**30  # of tensors, above which their errors alone are kept by default: a choice, seconds of writing


class DoesNotFitError(ProbeError):
    """The memory does not suffice for a sample in a precision; nothing of it is to be recorded.

    Attributes:
        precision: The precision's name.
    """

    def __init__(self, precision: str) -> None:
        super().__init__(f"the memory does not suffice in {precision}")
        self.precision = precision


@dataclass(frozen=True)
class Observed:
    """What came of one sample.

    Attributes:
        predictions: Of each precision.
        captured: For each group of the trace, what blocks computed.
        lacking: Names of the precisions that ran out of memory: what they lack is NaN.
    """

    predictions: dict[str, list[ModelArray]]
    captured: Groups
    lacking: tuple[str, ...] = ()


@dataclass
class _Unfinished:
    """What came of one sample so far.

    Attributes:
        sample: On its device.
        in_one_run: Whether one run gives what a variant predicts and what its blocks compute.
        may_lack: Whether a variant that runs out of memory leaves NaN; else the sample is given up.
        predictions: Of each precision that has predicted.
        kept: What blocks computed.
        reference: The reference's calls, where blocks are to be run on their inputs.
        lacking: The precisions that ran out of memory.
    """

    sample: Sample
    in_one_run: bool
    may_lack: bool
    predictions: dict[str, list[ModelArray]] = field(default_factory=dict)
    kept: Kept = field(default_factory=KeptTensors)
    reference: Sequence[Call] = ()
    lacking: set[str] = field(default_factory=set)


@dataclass
class Observer:
    """Runs samples through variants.

    Attributes:
        variants: The float64 reference first.
        blocks: Which blocks are captured.
        modes: ``propagated``, ``isolated`` or both.
        gradients: ``per_block``, ``shared`` or ``none``.
        gradient_unit: Unit of what the blocks' propagated gradients are of.
        keep: ``tensors``, ``errors``, or ``none`` of what blocks compute; empty until the first sample tells whether
            the tensors of all would be large.
        offload: Let what is kept of the reference for its errors wait in the host's memory.
        n_expected: How many samples are to come, as large as each, where :meth:`expect` was not told.
        notes: What was decided where nobody had said it.
    """

    variants: Sequence[Variant]
    blocks: Sequence[Block]
    modes: Sequence[str]
    gradients: str
    gradient_unit: str
    keep: str = "tensors"
    offload: bool = False
    n_expected: float = _EXPECTED_CALLS
    notes: list[str] = field(default_factory=list)
    _is_warm: bool = False
    _rows_expected: int = 0

    def about(self) -> dict[str, object]:
        """Attributes that say what it runs, and how."""
        return {
            "precisions": [variant.precision.name for variant in self.variants],
            "math_dtypes": {variant.precision.name: variant.math_dtype for variant in self.variants},
            "blocks": [block.name for block in self.blocks],
            "modes": list(self.modes),
            "gradients": self.gradients,
            "keep": self.keep,
            **({"statistics": list(STATISTICS)} if self.keep == "errors" else {}),
            # nothing else is random
            "seed": next((each.seed for each in self.variants if each.precision.stochastic), None),
        }

    def expect(self, samples: Sequence[Sample]) -> None:
        """Say which samples are to come: how large the tensors of all would be is told from those of the first."""
        self._rows_expected = sum(map(_n_rows, samples))

    def observe(self, sample: Sample, *, repeats: int = 1, number: int = 0, may_lack: bool = True) -> Observed:
        """What each variant predicts, and what its blocks compute.

        Args:
            sample: What to run.
            repeats: How often each variant is timed, for the median of the times; less often if that takes longer than
                two seconds. If not at all, and hooks change nothing of a run, one run gives both.
            number: Of the sample in the trace, by which what is random is the same wherever a run begins.
            may_lack: Whether NaN stands for what a variant other than the reference has no memory for.

        Raises:
            DoesNotFitError: If the memory does not suffice for the reference, or for a variant that may not lack.
        """
        present: Sample | None = attempt(lambda: sample.to(self.variants[0].device))
        if present is None:
            raise DoesNotFitError(REFERENCE)
        so_far = _Unfinished(present, not repeats and self.predicts_as_it_captures, may_lack)
        if not so_far.in_one_run:
            so_far.predictions = self.predict(so_far.sample, repeats, number, may_lack=may_lack)
        for variant in self.variants if self.keep != "none" else ():
            is_reference = variant.precision.name == REFERENCE
            if so_far.in_one_run:
                variant.draw_anew(number)
            if is_reference or "propagated" in self.modes:
                self._run("propagated", self._run_whole, variant, so_far)
            if "isolated" in self.modes:
                self._run("isolated", self._run_blocks, variant, so_far)
        exact = so_far.predictions[REFERENCE]
        so_far.lacking |= {variant.precision.name for variant in self.variants} - so_far.predictions.keys()
        predictions = {
            variant.precision.name: so_far.predictions.get(variant.precision.name)
            or lacking_arrays(exact, variant.precision)
            for variant in self.variants
        }
        return Observed(predictions, so_far.kept.groups(), tuple(sorted(so_far.lacking)))

    def _fitting(self, variant: Variant, run: Callable[[], T], *, may_lack: bool) -> T | None:
        """What a run of a variant gives; nothing where it has no memory for that and may lack it.

        Raises:
            DoesNotFitError: If it may not, or is the reference.
        """
        found = attempt(run)
        if found is None and (not may_lack or variant.precision.name == REFERENCE):
            raise DoesNotFitError(variant.precision.name)
        return found

    def _run(
        self, mode: str, run: Callable[[Variant, _Unfinished], bool], variant: Variant, so_far: _Unfinished
    ) -> None:
        """Run a variant in one mode; what it computed on its way is gone when this returns, before the next begins."""
        if self._fitting(variant, partial(run, variant, so_far), may_lack=so_far.may_lack) is None:
            _LOG.warning("no memory for %s in %s, %s", described(so_far.sample), variant.precision, mode)
            so_far.kept.add_nothing(mode, variant.precision)
            so_far.lacking.add(variant.precision.name)

    def _run_whole(self, variant: Variant, so_far: _Unfinished) -> bool:
        """The whole model in its precision: what it predicts, if that is not known, and what its blocks compute."""
        run = self._propagated(variant, so_far.sample, is_predicting=so_far.in_one_run)
        captured = self._tensors(run)
        if variant.precision.name == REFERENCE:
            so_far.kept = self._kept(so_far.sample, captured)
            if "isolated" in self.modes:  # what blocks returned is not needed any more, and can go
                so_far.reference = [dataclasses.replace(call, inputs={}, outputs={}) for call in run.calls]
        if "propagated" in self.modes:
            so_far.kept.add("propagated", variant.precision, captured)
        if run.prediction is not None:
            so_far.predictions[variant.precision.name] = predicted_arrays(run.prediction, so_far.sample.n_structures)
        return True

    def _run_blocks(self, variant: Variant, so_far: _Unfinished) -> bool:
        """Each block alone in its precision."""
        so_far.kept.add("isolated", variant.precision, self._isolated(variant, so_far.reference))
        return True

    @property
    def predicts_as_it_captures(self) -> bool:
        """Whether a MACE with hooks is the bare one, and everything that is asked for comes of one run of it."""
        is_bare = self.gradients == "none" or (self.gradients == "shared" and self.variants[0].differentiates)
        return is_bare and self.variants[0].takes_graphs and "propagated" in self.modes and self.keep != "none"

    def predict(
        self, sample: Sample, repeats: int = 1, number: int = 0, *, may_lack: bool = True
    ) -> dict[str, list[ModelArray]]:
        """What each variant predicts, unhooked, and its time: all precisions in turn, so that they are timed alike.

        Args:
            sample: What to run, on its device.
            repeats: How often it is timed; if not at all, it is run once.
            number: Of the sample in the trace.
            may_lack: Whether to leave out a variant other than the reference that has no memory for it.

        Raises:
            DoesNotFitError: If the memory does not suffice for the reference, or for a variant that may not lack.
        """

        def predicted(variant: Variant) -> Prediction | None:
            return self._fitting(variant, partial(variant.predict, sample), may_lack=may_lack)

        if repeats and not self._is_warm:
            for variant in self.variants:
                predicted(variant)
                predicted(variant)  # TorchScript compiles in the second call
            self._is_warm = True
        start = time.perf_counter()
        seconds: dict[str, list[float]] = {}
        predictions: dict[str, Prediction] = {}
        for repeat in range(max(repeats, 1)):
            if repeat and time.perf_counter() - start > _TIMING_BUDGET:
                break
            for variant in self.variants:
                name = variant.precision.name
                variant.draw_anew(number)
                if (found := predicted(variant)) is not None:
                    predictions[name] = found
                    seconds.setdefault(name, []).append(found.seconds if repeats else np.nan)
        return {
            name: predicted_arrays(prediction, sample.n_structures, float(np.median(seconds[name])))
            for name, prediction in predictions.items()
        }

    def _kept(self, sample: Sample, captured: Captured) -> Kept:
        """What keeps what is asked for; if nobody has, tensors if all of them are not large."""
        if not self.keep:
            n_expected = self._rows_expected / _n_rows(sample) if self._rows_expected else self.n_expected
            n_numbers = n_expected * len(self.modes) * sum(each.values.numel() for each in captured)
            n_bytes = n_numbers * (8 + 4 * (len(self.variants) - 1))  # half precisions are widened to float32
            self.keep = "errors" if n_bytes > _MANY_BYTES else "tensors"
            if self.keep == "errors":
                self.notes.append(
                    f"the tensors of all blocks would take {n_bytes / 2**30:.1f} GiB, so that of them the errors alone "
                    "are kept, by element and irrep. --keep tensors (keep='tensors') keeps them all."
                )
            _LOG.info("tensors of all blocks would take %.3g GiB: %s are kept", n_bytes / 2**30, self.keep)
        return self._keeping(sample)

    def _keeping(self, sample: Sample) -> Kept:
        return KeptErrors(sample, offload=self.offload) if self.keep == "errors" else KeptTensors()

    def _propagated(self, variant: Variant, sample: Sample, *, is_predicting: bool) -> CapturedRun:
        """The whole model in its precision; the calls are kept for the isolated mode."""
        with_gradients = self.gradients != "none"
        if is_predicting:
            return predicting_run(variant, sample, self.blocks, with_gradients=with_gradients)
        shared = self.gradients == "shared"
        return captured_run(variant, sample, self.blocks, shared=shared, with_gradients=with_gradients)

    def _tensors(self, run: CapturedRun) -> Captured:
        return [
            tensor
            for call, grads in zip(run.calls, run.grads, strict=True)
            for tensor in captured_tensors(call, grads, unit=self.gradient_unit)
        ]

    def _isolated(self, variant: Variant, reference: Sequence[Call]) -> Captured:
        """Each block alone in its precision, on the inputs that the float64 reference gave it."""
        captured = []
        with variant.arithmetic():
            for recorded in reference:
                call = replay(variant.model.get_submodule(recorded.block.name), recorded, variant.dtype)
                grads = input_gradients(call) if self.gradients != "none" else {}
                captured += captured_tensors(call, grads)
        return captured

    def loss_gradients(
        self, sample: Sample, cotangents: Mapping[str, torch.Tensor], options: Mapping[str, object]
    ) -> Groups:
        """Gradients of a training loss with respect to the blocks' inputs, through the forces where it needs them.

        Args:
            sample: What the trained model was called with.
            cotangents: Gradients of the loss with respect to the model's outputs, by their names.
            options: With which options the model was called.
        """
        kept = self._keeping(sample)
        for variant in self.variants if self.keep != "none" else ():
            shared = self.gradients == "shared"
            with variant.arithmetic(), capture(variant.model, self.blocks, shared=shared) as calls:
                outputs = variant.with_cotangents(sample, cotangents, options)
                for y, cotangent in outputs:  # one output may be made of another, whose share its cotangent has already
                    y.register_hook(partial(_replaced, cotangent))  # type: ignore[no-untyped-call]
                grads_of_calls = gradients(calls, outputs)
            captured = [
                tensor
                for call, grads in zip(calls, grads_of_calls, strict=True)
                for tensor in captured_tensors(call, grads, outputs=False, backward="double_backward")
            ]
            kept.add(LOSS, variant.precision, captured)
        return kept.groups()


def _n_rows(sample: Sample) -> int:
    """About what the tensors of a sample are proportional to: its atoms and edges."""
    return sample.n_atoms + sample.n_edges if isinstance(sample, Graph) else 1


def _replaced(cotangent: torch.Tensor, arriving: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    """A tensor's hook: the given cotangent, whatever gradient arrives at it."""
    return cotangent
