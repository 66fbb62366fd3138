"""One sample run through every variant: what each predicts, and what each of its blocks computes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from precision_probe.models.blocks import Block
from precision_probe.models.evaluation import Prediction
from precision_probe.models.graphs import Graph
from precision_probe.models.targets import Sample
from precision_probe.probe.to_numpy import captured_arrays, predicted_arrays
from precision_probe.trace.arrays import BlockArray, ModelArray
from precision_probe.variants.captured_run import captured_run
from precision_probe.variants.hooks import Call, capture, gradients, input_gradients, replay
from precision_probe.variants.variant import Variant

__all__ = ["Observer"]

_TIMED = 5  # evaluations over which a median of times is taken, if they fit into
_TIMING_BUDGET = 2.0  # seconds


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

    @torch.enable_grad()
    def predict(self, sample: Sample, n_samples: int = 1) -> dict[str, list[ModelArray]]:
        """What each variant predicts, unhooked, and its time: all precisions in turn, so that they are timed alike.

        Args:
            sample: What to run.
            n_samples: How many are to be run in all: of few, each is timed more often.
        """
        if not self._is_warm:
            for variant in self.variants:
                variant.predict(sample)
                variant.predict(sample)  # TorchScript compiles in the second call
            self._is_warm = True
        start = time.perf_counter()
        seconds: dict[str, list[float]] = {}
        found: dict[str, Prediction] = {}
        for repeat in range(-(-_TIMED // n_samples)):
            if repeat and time.perf_counter() - start > _TIMING_BUDGET:
                break
            for variant in self.variants:
                name = variant.precision.name
                found[name] = variant.predict(sample)
                seconds.setdefault(name, []).append(found[name].seconds)
        n_structures = sample.n_structures if isinstance(sample, Graph) else 1
        return {
            name: predicted_arrays(prediction, float(np.median(seconds[name])), n_structures)
            for name, prediction in found.items()
        }

    @torch.enable_grad()
    def capture(self, sample: Sample) -> dict[str, list[BlockArray]]:
        """What the blocks of each variant compute and receive, for each group of the trace."""
        found: dict[str, list[BlockArray]] = {}
        reference: list[Call] = []
        for variant in self.variants:
            is_reference = variant.precision.name == "float64"
            if is_reference or "propagated" in self.modes:
                calls, arrays = self._propagated(variant, sample)
                reference = calls if is_reference else reference
                if "propagated" in self.modes:
                    found[f"propagated/{variant.precision}"] = arrays
            if "isolated" in self.modes:
                found[f"isolated/{variant.precision}"] = self._isolated(variant, reference)
            if variant.device.type == "cuda":
                torch.cuda.empty_cache()  # the next precision needs other sizes
        return found

    def _propagated(self, variant: Variant, sample: Sample) -> tuple[list[Call], list[BlockArray]]:
        """The whole model in its precision; the calls are kept for the isolated mode."""
        run = captured_run(
            variant,
            sample,
            self.blocks,
            shared=self.gradients == "shared",
            with_gradients=self.gradients != "none",
        )
        pairs = zip(run.calls, run.grads, strict=True)
        return run.calls, [array for pair in pairs for array in captured_arrays(*pair, unit=self.gradient_unit)]

    def _isolated(self, variant: Variant, reference: Sequence[Call]) -> list[BlockArray]:
        arrays = []
        with variant.arithmetic():
            for recorded in reference:
                call = replay(variant.model.get_submodule(recorded.block.name), recorded, variant.dtype)
                grad = input_gradients(call) if self.gradients != "none" else {}
                arrays += captured_arrays(call, grad)
        return arrays

    @torch.enable_grad()
    def loss_gradients(
        self, sample: Sample, cotangents: Mapping[str, torch.Tensor], options: Mapping[str, Any]
    ) -> dict[str, list[BlockArray]]:
        """Gradients of a training loss with respect to the blocks' inputs, through the forces where it needs them.

        Args:
            sample: What the trained model was called with.
            cotangents: Gradients of the loss with respect to the model's outputs, by their names.
            options: With which options the model was called.
        """
        found = {}
        for variant in self.variants:
            shared = self.gradients == "shared"
            with variant.arithmetic(), capture(variant.model, self.blocks, shared=shared) as calls:
                pairs = variant.with_cotangents(sample, cotangents, options)
                for y, cotangent in pairs:  # one output may be made of another, whose share its cotangent has already
                    y.register_hook(partial(_replaced, cotangent))  # type: ignore[no-untyped-call]
                grads = gradients(calls, pairs)
            found[f"loss/{variant.precision}"] = [
                array
                for call, grad in zip(calls, grads, strict=True)
                for array in captured_arrays(call, grad, outputs=False, backward="double_backward")
            ]
        return found


def _replaced(cotangent: torch.Tensor, arriving: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    return cotangent
