"""One sample run through every variant: what each predicts, and what each of its blocks computes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from precision_probe.analysis.statistics import STATISTICS
from precision_probe.models.blocks import Block
from precision_probe.models.evaluation import Prediction, Sample
from precision_probe.models.graphs import Graph
from precision_probe.probe.observing.keeping import Captured, Groups, Kept, KeptErrors, KeptTensors
from precision_probe.probe.observing.to_numpy import captured_tensors, predicted_arrays
from precision_probe.trace.arrays import ModelArray
from precision_probe.trace.schema import LOSS, REFERENCE
from precision_probe.variants.captured_run import CapturedRun, captured_run, predicting_run
from precision_probe.variants.hooks import Call, capture, gradients, input_gradients, replay
from precision_probe.variants.variant import Variant

__all__ = ["Observed", "Observer"]

# Seconds after which no sample is evaluated once more for its time alone. A choice: as long as people wait without
# wondering; what takes longer is large, and its times vary little anyway.
_TIMING_BUDGET = 2.0
# Of a live model, of whose calls nobody has said how many are to be observed: a choice, some minutes of dynamics.
_EXPECTED_CALLS = 100
_MANY_BYTES = 2**30  # of tensors, above which their errors alone are kept by default: a choice, seconds of writing


@dataclass(frozen=True)
class Observed:
    """What came of one sample.

    Attributes:
        predictions: Of each precision.
        captured: For each group of the trace, what blocks computed.
    """

    predictions: dict[str, list[ModelArray]]
    captured: Groups


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
        n_expected: How many samples are to come, in units of the first.
        notes: What was decided where nobody had said it.
    """

    variants: Sequence[Variant]
    blocks: Sequence[Block]
    modes: Sequence[str]
    gradients: str
    gradient_unit: str
    keep: str = "tensors"
    n_expected: float = _EXPECTED_CALLS
    notes: list[str] = field(default_factory=list)
    _is_warm: bool = False

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
        sizes = [sample.n_edges + sample.n_atoms if isinstance(sample, Graph) else 1 for sample in samples]
        self.n_expected = sum(sizes) / sizes[0]

    def observe(self, sample: Sample, *, repeats: int = 1, number: int = 0) -> Observed:
        """What each variant predicts, and what its blocks compute.

        Args:
            sample: What to run, on its device.
            repeats: How often each variant is timed, for the median of the times; less often if that takes longer than
                two seconds. If not at all, and hooks change nothing of a run, one run gives both.
            number: Of the sample in the trace, by which what is random is the same wherever a run begins.
        """
        in_one_run = not repeats and self.predicts_as_it_captures
        predictions = {} if in_one_run else self.predict(sample, repeats, number)
        kept: Kept | None = None
        reference: list[Call] = []
        for variant in self.variants if self.keep != "none" else ():
            is_reference = variant.precision.name == REFERENCE
            if in_one_run:
                variant.draw_anew(number)
            if is_reference or "propagated" in self.modes:
                run = self._propagated(variant, sample, is_predicting=in_one_run)
                reference = run.calls if is_reference else reference
                if run.prediction is not None:
                    predictions[variant.precision.name] = predicted_arrays(run.prediction, sample.n_structures)
                captured = self._tensors(run)
                kept = kept or self._kept(sample, captured)
                if "propagated" in self.modes:
                    kept.add("propagated", variant.precision, captured)
            if "isolated" in self.modes and kept is not None:
                kept.add("isolated", variant.precision, self._isolated(variant, reference))
        return Observed(predictions, {} if kept is None else kept.groups())

    @property
    def predicts_as_it_captures(self) -> bool:
        """Whether a MACE with hooks is the bare one, and everything that is asked for comes of one run of it."""
        is_bare = self.gradients == "none" or (self.gradients == "shared" and self.variants[0].differentiates)
        return is_bare and self.variants[0].takes_graphs and "propagated" in self.modes and self.keep != "none"

    def predict(self, sample: Sample, repeats: int = 1, number: int = 0) -> dict[str, list[ModelArray]]:
        """What each variant predicts, unhooked, and its time: all precisions in turn, so that they are timed alike.

        Args:
            sample: What to run.
            repeats: How often it is timed; if not at all, it is run once.
            number: Of the sample in the trace.
        """
        if repeats and not self._is_warm:
            for variant in self.variants:
                variant.predict(sample)
                variant.predict(sample)  # TorchScript compiles in the second call
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
                predictions[name] = variant.predict(sample)
                seconds.setdefault(name, []).append(predictions[name].seconds if repeats else np.nan)
        return {
            name: predicted_arrays(prediction, sample.n_structures, float(np.median(seconds[name])))
            for name, prediction in predictions.items()
        }

    def _kept(self, sample: Sample, captured: Captured) -> Kept:
        """What keeps what is asked for; if nobody has, tensors if all of them are not large."""
        if not self.keep:
            n_numbers = self.n_expected * len(self.modes) * sum(each.values.numel() for each in captured)
            n_bytes = n_numbers * (8 + 4 * (len(self.variants) - 1))  # half precisions are widened to float32
            self.keep = "errors" if n_bytes > _MANY_BYTES else "tensors"
            if self.keep == "errors":
                self.notes.append(
                    f"the tensors of all blocks would take {n_bytes / 2**30:.1f} GiB, so that of them the errors alone "
                    "are kept, by element and irrep. --keep tensors (keep='tensors') keeps them all."
                )
        return KeptErrors(sample) if self.keep == "errors" else KeptTensors()

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
        kept = KeptErrors(sample) if self.keep == "errors" else KeptTensors()
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


def _replaced(cotangent: torch.Tensor, arriving: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    """A tensor's hook: the given cotangent, whatever gradient arrives at it."""
    return cotangent
