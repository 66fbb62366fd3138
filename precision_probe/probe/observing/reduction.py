"""Errors on the device: tensors of a variant and of the reference → the statistics that every metric follows from.

Nothing here waits for a GPU: no number reaches the host, and no shape depends on one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from precision_probe.analysis.metrics import EPS
from precision_probe.analysis.scaled import ulps
from precision_probe.analysis.statistics import STATISTICS
from precision_probe.precisions import Precision
from precision_probe.variants.rounding import round_to

__all__ = ["Owners", "reduced"]

_SMALLEST = -1021  # exponent of a power of two that float64 has as a normal number, as its inverse


@dataclass(frozen=True)
class Owners:
    """Which structure, or element of a structure, each row of a tensor belongs to.

    Attributes:
        n: How many of them there are.
        of_row: (n_rows,) the number of each row's; ``None`` where there is one.
    """

    n: int
    of_row: torch.Tensor | None = None

    def sums(self, rows: torch.Tensor) -> torch.Tensor:
        """(n_rows, k) → (n, k)."""
        if self.of_row is None:
            return rows.sum(dim=0, keepdim=True)
        return rows.new_zeros(self.n, rows.shape[1]).index_add_(0, self.of_row, rows)

    def maxima(self, rows: torch.Tensor) -> torch.Tensor:
        """(n_rows, k) of numbers that are not negative → (n, k)."""
        if self.of_row is None:
            return rows.amax(dim=0, keepdim=True)
        index = self.of_row[:, None].expand_as(rows)
        return rows.new_zeros(self.n, rows.shape[1]).scatter_reduce_(0, index, rows, "amax")

    def spread(self, numbers: torch.Tensor) -> torch.Tensor:
        """(n, k) → (n_rows, k), or (1, k) where all rows have the same."""
        return numbers if self.of_row is None else numbers[self.of_row]


def reduced(
    y: torch.Tensor, y_hat: torch.Tensor, owners: Owners, parts: Sequence[str], precision: Precision
) -> tuple[tuple[str, ...], torch.Tensor]:
    """The statistics of a tensor's errors, by owner of its rows and by part of its last dimension.

    Args:
        y: The reference, (n_rows, …), of any real dtype.
        y_hat: The variant's, of the same shape.
        owners: Of the rows.
        parts: The label of each entry of the last dimension, such as its irrep; empty where all are one part.
        precision: The variant's precision.

    Returns:
        The labels of the parts, in order of appearance, and (n_owners, n_parts, n_statistics) in float64.
    """
    labels = tuple(dict.fromkeys(parts)) or ("",)
    found = []
    for label in labels:
        chosen = [_slice(tensor, parts, label) if parts else tensor for tensor in (y, y_hat)]
        of_part, of_part_hat = (
            tensor.detach().double().reshape(len(tensor), math.prod(tensor.shape[1:])) for tensor in chosen
        )
        found.append(_statistics(of_part, of_part_hat, owners, precision))
    return labels, torch.stack(found, dim=1)


def _slice(tensor: torch.Tensor, parts: Sequence[str], label: str) -> torch.Tensor:
    """The entries of the last dimension that have a label, which mostly lie in a row."""
    runs, first = [], 0
    for each, run in groupby(parts):
        n = len(list(run))
        if each == label:
            runs.append(tensor[..., first : first + n])
        first += n
    return runs[0] if len(runs) == 1 else torch.cat(runs, dim=-1)


def _statistics(y: torch.Tensor, y_hat: torch.Tensor, owners: Owners, precision: Precision) -> torch.Tensor:
    """(n_rows, k) each, in float64 → (n_owners, n_statistics)."""
    if not y.numel():
        return y.new_zeros(owners.n, len(STATISTICS))
    delta = y_hat - y
    magnitude, reference = delta.abs(), y.abs()
    in_ulps = ulps(magnitude, y, precision)
    largest = owners.maxima(torch.stack([each.amax(dim=1) for each in (reference, y_hat.abs(), magnitude, in_ulps)], 1))
    scales = _power_of_two(largest[:, :3])
    of_row = owners.spread(scales)
    y_unit, y_hat_unit, unit = (x / of_row[:, i : i + 1] for i, x in enumerate((y, y_hat, delta)))
    floor = (_stored(y, precision) - y) / of_row[:, :1]
    sums: list[torch.Tensor] = [
        (y_unit * y_unit).sum(1),
        (y_hat_unit * y_hat_unit).sum(1),
        (unit * unit).sum(1),
        (y_unit * y_hat_unit).sum(1),
        unit.abs().sum(1),
        unit.sum(1),
        (magnitude / (reference + EPS)).sum(1),
        in_ulps.sum(1),
        (floor * floor).sum(1),
        (~torch.isfinite(y_hat)).sum(1).double(),
        ((y != 0) & (y_hat == 0)).sum(1).double(),
        torch.full_like(y[:, 0], y.shape[1]),
    ]
    summed = owners.sums(torch.stack(sums, dim=1))
    return torch.cat([summed[:, -1:], scales, largest[:, 1:], summed[:, :-1]], dim=1)


def _power_of_two(largest: torch.Tensor) -> torch.Tensor:
    """The least power of two above each number: the smallest for 0, and 1 where that is of no use."""
    _, exponent = torch.frexp(largest)
    exponent = torch.where(largest > 0, exponent, _SMALLEST).clamp(_SMALLEST, 1023)
    one = torch.ones_like(largest)
    return torch.where(torch.isfinite(largest), torch.ldexp(one, exponent), one)


def _stored(y: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Float64 numbers as a format stores them, infinite beyond its range."""
    stored = precision.storage
    if stored.name == "float32":
        return y.float().double()
    return round_to(y, replace(stored, stochastic=False))  # torch rounds twice, by way of float32, to a half precision
