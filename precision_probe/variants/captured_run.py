"""One run of a variant with its blocks hooked: what they computed, and the gradients with respect to their inputs.

Where gradients are shared, or none are asked for, hooks change nothing of a run: then it gives what the variant
predicts too, and one run is enough for both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from precision_probe.models.blocks import Block, Port
from precision_probe.models.evaluation import Prediction, Sample
from precision_probe.variants.hooks import Call, capture, gradients
from precision_probe.variants.variant import Variant

__all__ = ["CapturedRun", "captured_run", "predicting_run"]


@dataclass(frozen=True)
class CapturedRun:
    """What the blocks of one run gave.

    Attributes:
        calls: In the order in which they ended, off the autograd graph.
        grads: For each call, gradients with respect to its inputs; empty if none were asked for.
        prediction: What the variant predicted, if it was asked to.
    """

    calls: list[Call]
    grads: list[dict[Port, torch.Tensor]]
    prediction: Prediction | None = None


def captured_run(
    variant: Variant,
    sample: Sample,
    blocks: Sequence[Block],
    *,
    shared: bool = False,
    with_gradients: bool = True,
) -> CapturedRun:
    """Run a sample in a variant's arithmetic and keep what its blocks compute and receive.

    Args:
        variant: The variant.
        sample: On its device.
        blocks: Which blocks.
        shared: Leave the blocks' inputs as they are, see :func:`precision_probe.variants.hooks.capture`.
        with_gradients: Whether to differentiate what the variant predicts.
    """
    with variant.arithmetic(), capture(variant.model, blocks, shared=shared) as calls:
        outputs = variant.differentiable(sample)
        grads = gradients(calls, outputs) if with_gradients else [{} for _ in calls]
    return CapturedRun([call.detach() for call in calls], grads)


def predicting_run(
    variant: Variant, sample: Sample, blocks: Sequence[Block], *, with_gradients: bool = True
) -> CapturedRun:
    """Let a variant predict, bit for bit as without hooks, and keep what its blocks compute and receive meanwhile.

    Args:
        variant: The variant. For gradients it must be one that ``differentiates`` as it predicts.
        sample: On its device.
        blocks: Which blocks.
        with_gradients: Whether to keep the gradients that arrive at the blocks' inputs, as they are shared.
    """
    with variant.arithmetic(), capture(variant.model, blocks, shared=True, watched=with_gradients) as calls:
        prediction = variant.predict_within(sample)
    grads = [call.arrived_gradients() if with_gradients else {} for call in calls]
    return CapturedRun([call.detach() for call in calls], grads, prediction)
