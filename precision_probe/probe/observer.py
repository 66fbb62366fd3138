"""One sample run through every variant: what each predicts, and what each of its blocks computes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from precision_probe.models.blocks import Block
from precision_probe.models.evaluation import Prediction, Sample
from precision_probe.models.graphs import Graph
from precision_probe.probe.to_numpy import captured_arrays, predicted_arrays
from precision_probe.trace.arrays import BlockArray, ModelArray
from precision_probe.variants.captured_run import captured_run
from precision_probe.variants.hooks import Call, capture, gradients, input_gradients, replay
from precision_probe.variants.variant import Variant

__all__ = ["Observer"]

# Seconds after which no sample is evaluated once more for its time alone. A choice: as long as people wait without
# wondering; what takes longer is large, and its times vary little anyway.
_TIMING_BUDGET = 2.0


@dataclass
class Observer:
    """Runs samples through variants.

    Attributes:
        variants: The float64 reference first.
        blocks: Which blocks are captured.
        modes: ``propagated``, ``isolated`` or both.
        gradients: ``per_block``, ``shared`` or ``none``.
        gradient_unit: Unit of what the blocks' propagated gradients are of.
    """

    variants: Sequence[Variant]
    blocks: Sequence[Block]
    modes: Sequence[str]
    gradients: str
    gradient_unit: str
    _is_warm: bool = False

    def about(self) -> dict[str, object]:
        """Attributes that say what it runs, and how."""
        return {
            "precisions": [variant.precision.name for variant in self.variants],
            "math_dtypes": {variant.precision.name: variant.math_dtype for variant in self.variants},
            "blocks": [block.name for block in self.blocks],
            "modes": list(self.modes),
            "gradients": self.gradients,
            # nothing else is random
            "seed": next((each.seed for each in self.variants if each.precision.stochastic), None),
        }

    def predict(self, sample: Sample, repeats: int = 1, number: int = 0) -> dict[str, list[ModelArray]]:
        """What each variant predicts, unhooked, and its time: all precisions in turn, so that they are timed alike.

        Args:
            sample: What to run.
            repeats: How often, for the median of the times; less often if that takes longer than two seconds.
            number: Of the sample in the trace, by which what is random, here and in what is captured next, is the same
                wherever a run begins.
        """
        if not self._is_warm:
            for variant in self.variants:
                variant.predict(sample)
                variant.predict(sample)  # TorchScript compiles in the second call
            self._is_warm = True
        start = time.perf_counter()
        seconds: dict[str, list[float]] = {}
        predictions: dict[str, Prediction] = {}
        for repeat in range(repeats):
            if repeat and time.perf_counter() - start > _TIMING_BUDGET:
                break
            for variant in self.variants:
                name = variant.precision.name
                variant.draw_anew(number)
                predictions[name] = variant.predict(sample)
                seconds.setdefault(name, []).append(predictions[name].seconds)
        n_structures = sample.n_structures if isinstance(sample, Graph) else 1
        return {
            name: predicted_arrays(prediction, float(np.median(seconds[name])), n_structures)
            for name, prediction in predictions.items()
        }

    def capture(self, sample: Sample) -> dict[str, list[BlockArray]]:
        """What the blocks of each variant compute and receive, for each group of the trace."""
        groups: dict[str, list[BlockArray]] = {}
        reference: list[Call] = []
        for variant in self.variants:
            is_reference = variant.precision.name == "float64"
            if is_reference or "propagated" in self.modes:
                calls, arrays = self._propagated(variant, sample)
                reference = calls if is_reference else reference
                if "propagated" in self.modes:
                    groups[f"propagated/{variant.precision}"] = arrays
            if "isolated" in self.modes:
                groups[f"isolated/{variant.precision}"] = self._isolated(variant, reference)
            if variant.device.type == "cuda":
                torch.cuda.empty_cache()  # the next precision needs other sizes
        return groups

    def _propagated(self, variant: Variant, sample: Sample) -> tuple[list[Call], list[BlockArray]]:
        """The whole model in its precision; the calls are kept for the isolated mode."""
        run = captured_run(
            variant,
            sample,
            self.blocks,
            shared=self.gradients == "shared",
            with_gradients=self.gradients != "none",
        )
        arrays = [
            array
            for call, grads in zip(run.calls, run.grads, strict=True)
            for array in captured_arrays(call, grads, unit=self.gradient_unit)
        ]
        return run.calls, arrays

    def _isolated(self, variant: Variant, reference: Sequence[Call]) -> list[BlockArray]:
        """Each block alone in its precision, on the inputs that the float64 reference gave it."""
        arrays = []
        with variant.arithmetic():
            for recorded in reference:
                call = replay(variant.model.get_submodule(recorded.block.name), recorded, variant.dtype)
                grads = input_gradients(call) if self.gradients != "none" else {}
                arrays += captured_arrays(call, grads)
        return arrays

    def loss_gradients(
        self, sample: Sample, cotangents: Mapping[str, torch.Tensor], options: Mapping[str, object]
    ) -> dict[str, list[BlockArray]]:
        """Gradients of a training loss with respect to the blocks' inputs, through the forces where it needs them.

        Args:
            sample: What the trained model was called with.
            cotangents: Gradients of the loss with respect to the model's outputs, by their names.
            options: With which options the model was called.
        """
        groups = {}
        for variant in self.variants:
            shared = self.gradients == "shared"
            with variant.arithmetic(), capture(variant.model, self.blocks, shared=shared) as calls:
                outputs = variant.with_cotangents(sample, cotangents, options)
                for y, cotangent in outputs:  # one output may be made of another, whose share its cotangent has already
                    y.register_hook(partial(_replaced, cotangent))  # type: ignore[no-untyped-call]
                grads_of_calls = gradients(calls, outputs)
            groups[f"loss/{variant.precision}"] = [
                array
                for call, grads in zip(calls, grads_of_calls, strict=True)
                for array in captured_arrays(call, grads, outputs=False, backward="double_backward")
            ]
        return groups


def _replaced(cotangent: torch.Tensor, arriving: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    """A tensor's hook: the given cotangent, whatever gradient arrives at it."""
    return cotangent
