"""How the benchmark measures: variants in turn, by CUDA events or the wall clock, with memory and errors.

:func:`precision_probe.search.timing.side_by_side`, which times whole calls for a search, is not enough here: a block's
forward and backward are timed apart within one call, CUDA events leave out the cast of the inputs and the wait for the
host, and results are kept for the errors.
"""

import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from records import Record

from precision_probe.analysis.metrics import compare
from precision_probe.models.blocks import Block, Port
from precision_probe.models.evaluation import interaction_energy
from precision_probe.models.graphs import Graph
from precision_probe.models.memory import attempt
from precision_probe.precisions import Precision
from precision_probe.search.timing import peak_of
from precision_probe.variants.hooks import Call, capture, input_gradients, replay
from precision_probe.variants.variant import Variant

WARM_UP = 3  # calls; TorchScript compiles in the first two
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
BLOCK_METRICS = ("rel_l2", "max_abs", "mean_rel", "amplification", "nonfinite", "flushed")

Mark: TypeAlias = "float | torch.cuda.Event"
Tensors = dict[str, torch.Tensor]


@dataclass
class Measured:
    """What repeated calls of one variant gave: times of each phase (ms), two results, and the peak memory (bytes)."""

    times: list[tuple[float, ...]] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    peak: int | None = None

    def phase(self, index: int) -> list[float]:
        """The times of one phase, one for each round."""
        return [times[index] for times in self.times]


def interleave(
    variants: Sequence[Variant],
    measure: Callable[[Variant], tuple[tuple[float, ...], Any]],
    repeats: int,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Measured]:
    """Measure all variants in turn, each round beginning with another one; those that run out of memory drop out."""
    measured = {variant.precision.name: Measured() for variant in variants}
    for turn in range(-WARM_UP, repeats):
        start = turn % len(variants)
        for variant in (*variants[start:], *variants[:start]):
            name = variant.precision.name
            if name not in measured:
                continue
            call = attempt(measure, variant)
            if call is None:
                del measured[name]
            elif turn >= 0:
                measured[name].times.append(call[0])
                measured[name].results = [call[1]]
        advance()
    for variant in variants:
        name = variant.precision.name
        if name in measured:
            with_peak = attempt(peak_of, variant.device, partial(measure, variant))
            if with_peak is None:
                del measured[name]
            else:
                (_, result), measured[name].peak = with_peak
                measured[name].results.append(result)
    return measured


def mark(device: torch.device) -> Mark:
    """A point in time: an event among the GPU's work, or the wall clock."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def milliseconds(start: Mark, end: Mark) -> float:
    """Time between two marks of one kind; waits for the second."""
    if isinstance(start, float):
        assert isinstance(end, float)
        return 1e3 * (end - start)
    assert not isinstance(end, float)
    end.synchronize()
    return float(start.elapsed_time(end))


def call_model(graph: Graph, stress: bool, variant: Variant) -> tuple[tuple[float, ...], dict[str, torch.Tensor]]:
    """One evaluation of the bare model: its time, and what it predicts."""
    with variant.arithmetic():
        data = graph.cast(variant.dtype)
        start = mark(variant.device)
        out = variant.model(data, compute_virials=stress)
        end = mark(variant.device)
    interaction = interaction_energy(out)
    assert interaction is not None  # every model benchmarked here has one
    prediction = {"energy": out["energy"], "interaction_energy": interaction, "forces": out["forces"]}
    return (milliseconds(start, end),), {key: value.detach() for key, value in prediction.items()}


def call_block(call: Call, variant: Variant) -> tuple[tuple[float, ...], tuple[Tensors, Tensors, set[str]]]:
    """One block alone, forward and backward: both times, outputs, gradients of inputs, and which of these vanish."""
    arguments = {
        key: value.to(variant.dtype, copy=True) if torch.is_tensor(value) and value.is_floating_point() else value
        for key, value in call.arguments.items()
    }
    module = variant.model.get_submodule(call.block.name)
    with variant.arithmetic():
        marks = [mark(variant.device)]
        done = replay(module, Call(call.block, arguments, {}, {}), variant.dtype)
        marks.append(mark(variant.device))
        gradients = input_gradients(done)
        marks.append(mark(variant.device))
    times = tuple(milliseconds(start, end) for start, end in pairwise(marks))
    outputs = {port.name: tensor.detach() for port, tensor in done.outputs.items()}
    return times, (outputs, {port.name: tensor for port, tensor in gradients.items()}, vanishing(done, gradients))


def vanishing(done: Call, gradients: Mapping[Port, torch.Tensor]) -> set[str]:
    """The gradients that are zero but for rounding: ‖x‖‖∂s/∂x‖ < 1e-12 s, where s is the sum of squared outputs.

    In float64 rounding leaves some 1e-16 of s for each of the terms that cancel; other gradients are of the order of s.
    Spherical harmonics of normalised vectors are the example: their squares sum to a constant.
    """
    total = sum(norm(tensor) ** 2 for tensor in done.outputs.values())
    return {
        port.name for port, gradient in gradients.items() if norm(done.inputs[port]) * norm(gradient) < 1e-12 * total
    }


def norm(tensor: torch.Tensor) -> float:
    """Euclidean norm, in float64."""
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))


def reference_calls(reference: Variant, graph: Graph, blocks: Sequence[Block]) -> list[Call]:
    """The blocks' calls within a float64 run, off the autograd graph."""
    with reference.arithmetic(), capture(reference.model, blocks) as calls:
        reference.differentiable(graph)
    return [call.detach() for call in calls]


def model_errors(
    reference: Mapping[str, torch.Tensor],
    results: Sequence[Mapping[str, torch.Tensor]],
    precision: Precision,
    n_atoms: int,
) -> Record:
    """Errors of one precision's last prediction, and how far its last two are apart (the noise floor)."""
    last = results[-1]
    forces = compare(reference["forces"], last["forces"], precision)
    energies = {key: compare(reference[key], last[key], precision) for key in ("energy", "interaction_energy")}
    return {
        **{f"{key}_abs_meV_per_atom": 1e3 * errors["max_abs"] / n_atoms for key, errors in energies.items()},
        "forces_mae_meV_per_A": 1e3 * forces["mean_abs"],
        "forces_max_meV_per_A": 1e3 * forces["max_abs"],
        "forces_rel_l2": forces["rel_l2"],
        "forces_amplification": forces["amplification"],
        "forces_nonfinite": forces["nonfinite"],
        "energy_nonfinite": energies["energy"]["nonfinite"],
        "forces_run_to_run_max_meV_per_A": 1e3 * compare(results[0]["forces"], last["forces"], precision)["max_abs"],
    }


def block_errors(
    reference: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    precision: Precision,
    zero: Collection[str] = (),
) -> Record:
    """Errors of a block's tensors, each and (the worst relative error, the distribution of errors) all together.

    Tensors that are zero but for rounding have absolute errors only: there is nothing to be relative to.
    """
    tensors, scaled = {}, []
    for name, y in reference.items():
        errors: Record = compare(y, own[name], precision)
        if name in zero:
            errors |= dict.fromkeys(("rel_l2", "mean_rel", "amplification"), None)
        else:
            rms = max(norm(y) / y.numel() ** 0.5, sys.float_info.min) if y.numel() else 1.0
            scaled.append(((own[name].double() - y.double()).abs() / rms).flatten())
        tensors[name] = {metric: errors[metric] for metric in BLOCK_METRICS} | {"zero_but_for_rounding": name in zero}
    ordered = torch.cat(scaled).sort().values if scaled else torch.zeros(0)
    ranks = [round(percent / 100 * (ordered.numel() - 1)) for percent in PERCENTILES]
    relative = [errors["rel_l2"] for errors in tensors.values() if errors["rel_l2"] is not None]
    return {
        "rel_l2": float(np.max(relative)) if relative else None,  # NaN if one is
        "abs_error_over_rms_percentiles": ordered[ranks].tolist() if ordered.numel() else [None] * len(ranks),
        "tensors": tensors,
    }


def summary(samples: Sequence[float]) -> Record:
    """Median and quartiles."""
    q25, median, q75 = np.percentile(samples, (25, 50, 75)).tolist()
    return {"median": median, "q25": q25, "q75": q75}


def spread(values: Record, form: str) -> str:
    """A summary as a table has it: the median, and the quartiles in brackets."""
    return f"{values['median']:{form}} [{values['q25']:{form}}, {values['q75']:{form}}]"


def ratio(measured: Measured, reference: Measured | None) -> Record | None:
    """Median and quartiles of the ratios of two variants' times within the same round."""
    if reference is None:
        return None
    return summary([own / other for own, other in zip(measured.phase(0), reference.phase(0), strict=True)])
