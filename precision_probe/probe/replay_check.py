"""Whether a replay gives what the live call gave: if not, the trace is of another model than the one that was called.

The replay is that of the clone in the model's own dtype, on the same numbers. So it should give the same, but for the
order of sums: on a CPU it is the same bit for bit where both are asked for the same, and within 9 unit roundoffs u of
the scale below where one of them is asked for stress too (the demo on its structures, float32 and float64, molecules
and crystals, one thread and two). GPUs add up in no fixed order. One rounding to tf32 is 2¹³ u of float32. Between:

    bound = 2⁸ u · scale  (+ 2⁴ u · scale · L/Å for forces and energies of a periodic structure).

The scale is the largest number of a kind. Since sums cancel, that of a force is no less than the largest interaction
energy per atom over one Å, that of an interaction energy no less than the largest force times one Å, and that of
charges and dipoles no less than their unit. L is the longest shift of an edge across the cell: shifts are made in the
model's precision where stress is asked for, and come rounded where it is not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from precision_probe.models.evaluation import Sample, interaction_energy
from precision_probe.models.graphs import Graph
from precision_probe.models.inputs import named_tensors
from precision_probe.precisions import Precision
from precision_probe.trace.arrays import ModelArray

__all__ = ["Difference", "live_values", "unexplained"]

_ROUNDOFFS, _OF_SHIFTS = 2.0**8, 2.0**4
_NOT_COMPARED = ("stress", "seconds")  # ours is made of virials and the float64 volume


@dataclass(frozen=True)
class Difference:
    """By how much a replay differs from the call that it is of.

    Attributes:
        quantity: Of what.
        largest: The largest difference, in the quantity's unit.
        bound: What rounding explains.
        unit: The unit.
    """

    quantity: str
    largest: float
    bound: float
    unit: str

    def __str__(self) -> str:
        unit = "" if self.unit == "1" else f" {self.unit}"
        return f"{self.quantity} by {self.largest:.2g}{unit} (rounding explains {self.bound:.1g})"


def live_values(returned: object) -> dict[str, NDArray[np.float64]]:
    """What a live call returned, by name, in float64 on the CPU: brought there all at once."""
    tensors = named_tensors(returned)
    if isinstance(returned, Mapping) and "energy" in tensors:
        made = interaction_energy(returned)
        tensors |= {} if made is None else {"interaction_energy": made}
    if not tensors:
        return {}
    with torch.no_grad():
        flat = torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors.values()]).cpu().numpy()
    ends = np.cumsum([tensor.numel() for tensor in tensors.values()])
    parts = np.split(flat, ends[:-1])
    return {name: part.reshape(tensor.shape) for (name, tensor), part in zip(tensors.items(), parts, strict=True)}


def unexplained(
    live: Mapping[str, NDArray[np.float64]], replayed: Sequence[ModelArray], sample: Sample, precision: Precision
) -> list[Difference]:
    """What a replay gives otherwise than the live call, by more than rounding explains.

    Args:
        live: What :func:`live_values` gives.
        replayed: What the clone in the model's own precision predicts.
        sample: What both were run on.
        precision: That precision.
    """
    arrays = {array.name: array for array in replayed if array.name in live and array.name not in _NOT_COMPARED}
    roundoffs = _ROUNDOFFS + _OF_SHIFTS * (_longest_shift(sample) if isinstance(sample, Graph) else 0.0)
    differences = []
    for name, array in arrays.items():
        scale = max(_largest(live[name]), _least_scale(name, live, sample) if isinstance(sample, Graph) else 0.0)
        bound = roundoffs * precision.unit_roundoff * scale
        largest = _distance(live[name].ravel(), np.asarray(array.values, dtype=np.float64).ravel())
        if largest > bound:
            differences.append(Difference(name, largest, bound, array.unit))
    return differences


def _largest(values: NDArray[np.float64]) -> float:
    """The largest finite number, by its size."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def _distance(mine: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """The largest difference; infinite where one is not finite and the other not the same, or the sizes differ."""
    if mine.size != theirs.size:
        return float("inf")
    is_same = (mine == theirs) | (np.isnan(mine) & np.isnan(theirs))
    with np.errstate(invalid="ignore"):
        apart = np.where(is_same, 0.0, np.abs(mine - theirs))
    return float(np.nan_to_num(apart, nan=np.inf, posinf=np.inf).max(initial=0.0))


def _least_scale(name: str, live: Mapping[str, NDArray[np.float64]], graph: Graph) -> float:
    """What the scale of one of a MACE's quantities is no less than, in eV, eV/Å or the quantity's own unit."""
    energies = live.get("interaction_energy", live.get("energy", np.zeros(graph.n_structures)))
    least = {
        "energy": 0.0,
        "interaction_energy": _largest(live.get("forces", np.zeros(0))),
        "forces": _largest(energies / np.diff(graph.data["ptr"].cpu().numpy())),
    }
    return least.get(name, 1.0)


def _longest_shift(graph: Graph) -> float:
    """The largest component of any edge's shift across the cell, Å."""
    shifts = graph.data["shifts"]
    return float(shifts.abs().max()) if shifts.numel() else 0.0
