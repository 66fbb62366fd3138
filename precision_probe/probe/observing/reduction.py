"""Errors on the device: tensors of a variant and of the reference → the statistics that every metric follows from.

Nothing here waits for a GPU: no number reaches the host, and no shape depends on one. Tensors whose rows are of one
kind are put side by side, so that few kernels are launched however many there are.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from precision_probe.analysis.metrics import EPS
from precision_probe.analysis.scaled import ulps
from precision_probe.analysis.statistics import STATISTICS
from precision_probe.precisions import Precision
from precision_probe.variants.rounding import round_to

__all__ = ["Columns", "Owners", "reduced", "side_by_side"]

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

    def sums(self, *terms: torch.Tensor) -> torch.Tensor:
        """(n_rows, k) each → (n_terms, n, k)."""
        if self.of_row is None:
            return torch.stack([rows.sum(dim=0, keepdim=True) for rows in terms])
        found = terms[0].new_zeros(len(terms), self.n, terms[0].shape[1])
        for own, rows in zip(found.unbind(), terms, strict=True):
            own.index_add_(0, self.of_row, rows)
        return found

    def maxima(self, *terms: torch.Tensor) -> torch.Tensor:
        """(n_rows, k) each, of numbers that are not negative → (n_terms, n, k)."""
        if self.of_row is None:
            return torch.stack([rows.amax(dim=0, keepdim=True) for rows in terms])
        found = terms[0].new_zeros(len(terms), self.n, terms[0].shape[1])
        index = self.of_row[:, None].expand_as(terms[0])
        for own, rows in zip(found.unbind(), terms, strict=True):
            own.scatter_reduce_(0, index, rows, "amax")
        return found


@dataclass(frozen=True)
class Columns:
    """What the columns of tensors side by side belong to: parts, those of each tensor after those of the one before.

    Attributes:
        labels: Of each tensor, the labels of its parts, in order of appearance.
        part_of: (n_columns,) the number of the part that each column is of.
    """

    labels: tuple[tuple[str, ...], ...]
    part_of: torch.Tensor

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor], entries: Iterable[Sequence[str]]) -> "Columns":
        """The columns of some tensors.

        Args:
            tensors: Each (n_rows, …).
            entries: Of each tensor, the label of each entry of its last dimension, such as its irrep; empty where all
                are one part.
        """
        labels, numbers = [], []
        n_parts = 0
        for tensor, given in zip(tensors, entries, strict=True):
            known = tuple(dict.fromkeys(given)) or ("",)
            numbers_of = {label: n_parts + index for index, label in enumerate(known)}
            last = [numbers_of[label] for label in given or ("",)]
            numbers += last * (math.prod(tensor.shape[1:]) // len(last))
            labels.append(known)
            n_parts += len(known)
        return cls(tuple(labels), torch.tensor(numbers, dtype=torch.int64, device=tensors[0].device))

    @property
    def n_parts(self) -> int:
        """Of all tensors."""
        return sum(map(len, self.labels))

    def sums(self, columns: torch.Tensor) -> torch.Tensor:
        """(…, n_columns) → (…, n_parts)."""
        return columns.new_zeros(*columns.shape[:-1], self.n_parts).index_add_(-1, self.part_of, columns)

    def maxima(self, columns: torch.Tensor) -> torch.Tensor:
        """(…, n_columns) of numbers that are not negative → (…, n_parts)."""
        found = columns.new_zeros(*columns.shape[:-1], self.n_parts)
        return found.scatter_reduce_(-1, self.part_of.expand_as(columns), columns, "amax")

    def each(self, statistics: torch.Tensor) -> Iterable[tuple[tuple[str, ...], torch.Tensor]]:
        """(n_owners, n_parts, n_statistics) → of each tensor, the labels of its parts and its statistics."""
        ends = itertools.accumulate(map(len, self.labels))
        for labels, end in zip(self.labels, ends, strict=True):
            yield labels, statistics[:, end - len(labels) : end]


def side_by_side(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """(n_rows, …) each, of any real dtype → (n_rows, n_columns) in float64."""
    flat = [tensor.detach().reshape(len(tensor), math.prod(tensor.shape[1:])).double() for tensor in tensors]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)


def reduced(
    y: torch.Tensor, y_hat: torch.Tensor, owners: Owners, columns: Columns, precision: Precision
) -> torch.Tensor:
    """The statistics of errors, by owner of rows and by part of columns.

    Args:
        y: The reference, (n_rows, n_columns) in float64.
        y_hat: The variant's, of the same shape.
        owners: Of the rows.
        columns: What the columns are.
        precision: The variant's precision.

    Returns:
        (n_owners, n_parts, n_statistics) in float64.
    """
    if not y.numel():
        return y.new_zeros(owners.n, columns.n_parts, len(STATISTICS))
    delta = y_hat - y
    magnitude, size = delta.abs(), y.abs()
    in_ulps = ulps(magnitude, y, precision)
    largest = columns.maxima(owners.maxima(size, y_hat.abs(), magnitude, in_ulps))  # (4, n_owners, n_parts)
    scales = _power_of_two(largest[:3])
    by_column = scales[..., columns.part_of]  # (3, 1, n_columns)
    y_unit, y_hat_unit, unit = y / by_column[0], y_hat / by_column[1], delta / by_column[2]
    floor = (_stored(y, precision) - y) / by_column[0]
    terms: tuple[torch.Tensor, ...] = (
        y_unit * y_unit,
        y_hat_unit * y_hat_unit,
        unit * unit,
        y_unit * y_hat_unit,
        unit.abs(),
        unit,
        magnitude / (size + EPS),
        in_ulps,
        floor * floor,
        (~torch.isfinite(y_hat)).double(),
        ((y != 0) & (y_hat == 0)).double(),
    )
    sums = columns.sums(owners.sums(*terms))
    counts = owners.sums(torch.ones_like(y[:, :1])) * columns.sums(torch.ones_like(y[:1]))
    return torch.cat([counts, scales.expand(-1, owners.n, -1), largest[1:], sums]).movedim(0, -1)


def _power_of_two(largest: torch.Tensor) -> torch.Tensor:
    """For each part, the least power of two above the largest number of any owner: the smallest of all above 0.

    Where an owner has something infinite or NaN, that counts as 1: its finite numbers must not overflow beside it.
    """
    most = torch.where(torch.isfinite(largest), largest, 1.0).amax(dim=1, keepdim=True)
    _, exponent = torch.frexp(most)
    exponent = torch.where(most > 0, exponent, _SMALLEST).clamp(_SMALLEST, 1023)
    return torch.ldexp(torch.ones_like(most), exponent)


def _stored(y: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Float64 numbers as a format stores them, infinite beyond its range."""
    stored = precision.storage
    if stored.name == "float32":
        return y.float().double()
    return round_to(y, replace(stored, stochastic=False))  # torch rounds twice, by way of float32, to a half precision
