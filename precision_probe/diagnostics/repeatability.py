"""The noise floor: how far runs of the same thing are apart, because CUDA adds numbers in any order."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from precision_probe.analysis.pairs import MODEL
from precision_probe.models.blocks import Block
from precision_probe.models.graphs import Graph
from precision_probe.variants.captured_run import captured_run
from precision_probe.variants.variant import Variant

__all__ = ["noise_floor"]


def noise_floor(variants: Sequence[Variant], graph: Graph, blocks: Sequence[Block], *, n_runs: int = 5) -> pd.DataFrame:
    """Run each variant several times and compare the runs.

    Args:
        variants: The variants.
        graph: One structure, on their device.
        blocks: Blocks whose outputs and gradients are compared.
        n_runs: How many runs.

    Returns:
        One row for each precision, block (``model`` for energy and forces), tensor and direction, with ``spread``: the
        root mean square over runs of the distance from their mean, relative to the first's norm. An error below it is
        not resolved. Zero wherever sums are deterministic, as on one thread of a CPU.
    """
    rows = []
    for variant in variants:
        runs = [_run(variant, graph, blocks) for _ in range(n_runs)]
        for key in runs[0]:
            # Runs that are the same are off the first by exactly zero; off their own mean, rounded, they would not be.
            off = torch.stack([run[key] - runs[0][key] for run in runs])
            distance = float((off - off.mean(dim=0)).square().sum().div(n_runs - 1).sqrt())
            norm = float(runs[0][key].norm())
            block, tensor, direction = key
            spread = distance / norm if norm else np.nan
            rows.append(
                {
                    "precision": variant.precision.name,
                    "block": block,
                    "tensor": tensor,
                    "direction": direction,
                    "spread": spread,
                }
            )
    return pd.DataFrame(rows)


def _run(variant: Variant, graph: Graph, blocks: Sequence[Block]) -> dict[tuple[str, str, str], torch.Tensor]:
    """What one run gives, by block, tensor and direction, in float64; no stress, which is NaN of a molecule."""
    prediction = variant.predict(graph)
    tensors = {
        (MODEL, quantity.name, "backward" if quantity.name == "forces" else "forward"): tensor.double()
        for quantity, tensor in prediction.values.items()
        if quantity.name != "stress"
    }
    run = captured_run(variant, graph, blocks)
    for call, grad in zip(run.calls, run.grads, strict=True):
        tensors |= {(call.block.name, port.name, "forward"): y.double() for port, y in call.outputs.items()}
        tensors |= {(call.block.name, port.name, "backward"): g.double() for port, g in grad.items()}
    return tensors
