"""Errors on the device: tensors of a variant and of the reference → the statistics that every metric follows from.

Nothing here waits for a GPU: no number reaches the host, and no shape depends on one. Tensors whose rows are of one
kind are put side by side, so that few kernels are launched however many there are.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from precision_probe.analysis.metrics import EPS
from precision_probe.analysis.scaled import ulp
from precision_probe.analysis.statistics import STATISTICS
from precision_probe.precisions import Precision

__all__ = ["Columns", "Owners", "errors_of_nan", "reduced", "side_by_side"]

_BLOCK = 32  # rows at most, a choice: most sums are then within blocks, and few zeros are added
_CACHED = 2**15  # numbers of one array, a choice: the ten or so at hand are then within a CPU's caches
_SMALLEST = -1021  # exponent of a power of two that float64 has as a normal number, as its inverse


class Owners:
    """Which structure, or element of a structure, each row of a tensor belongs to.

    Rows are brought into the order of their owners, each owner's filled up with zeros to whole blocks: so nearly all is
    summed within blocks, and little by additions that have to wait for one another.

    Args:
        n: How many owners there are.
        of_row: (n_rows,) the number of each row's; ``None`` where there is one.
    """

    def __init__(self, n: int, of_row: torch.Tensor | None = None) -> None:
        self.n = n
        self._of_row = of_row
        if of_row is None:
            return
        n_rows, zero = len(of_row), of_row.new_zeros(1)
        self._n_of = n_of = of_row.new_zeros(n).index_add_(0, of_row, torch.ones_like(of_row))
        on_average = n_rows // max(n, 1)
        block = min(_BLOCK, 1 << max(on_average - 1, 0).bit_length())  # so that few rows have few zeros to go with
        n_blocks_of = (n_of + block - 1) // block
        ends = n_blocks_of.cumsum(0)
        first = torch.cat([zero, n_of.cumsum(0)])[:-1]
        place = torch.cat([zero, block * ends])[:-1] - first
        n_blocks = n_rows // block + min(n, n_rows)  # at most
        order = of_row.argsort(stable=True)
        numbers = torch.arange(n_rows, device=of_row.device)
        self._rows = of_row.new_full((n_blocks * block,), n_rows)  # the row of zeros, where there is no other
        self._rows[numbers + place[of_row[order]]] = order
        blocks = torch.arange(n_blocks, device=of_row.device)
        self._block = block
        self._of_block = torch.searchsorted(ends, blocks, right=True).clamp(max=n - 1)

    def in_order(self, rows: torch.Tensor) -> torch.Tensor:
        """(n_rows, k) → (n_blocks, n_rows_of_a_block, k)."""
        if self._of_row is None:
            return rows[None]
        with_zeros = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
        return with_zeros[self._rows].reshape(-1, self._block, rows.shape[1])

    def sums(self, *terms: torch.Tensor) -> torch.Tensor:
        """(n_blocks, n_rows_of_a_block, k) each → (n_terms, n, k)."""
        found = torch.stack([term.sum(dim=1) for term in terms])
        if self._of_row is None:
            return found
        return found.new_zeros(len(terms), self.n, found.shape[2]).index_add_(1, self._of_block, found)

    def maxima(self, *terms: torch.Tensor) -> torch.Tensor:
        """(n_blocks, n_rows_of_a_block, k) each, of numbers that are not negative → (n_terms, n, k)."""
        found = torch.stack([term.amax(dim=1) for term in terms])
        if self._of_row is None:
            return found
        index = self._of_block[:, None].expand_as(found)
        return found.new_zeros(len(terms), self.n, found.shape[2]).scatter_reduce_(1, index, found, "amax")

    def n_rows(self, ordered: torch.Tensor) -> torch.Tensor:
        """(n, 1) how many rows each has of what is in order."""
        if self._of_row is None:
            return ordered.new_full((1, 1), ordered.shape[1])
        return self._n_of[:, None].to(ordered)


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
        y: The reference in float64, in the order that its owners give it: (n_blocks, n_rows_of_a_block, n_columns).
        y_hat: The variant's, of the same shape.
        owners: Of the rows.
        columns: What the columns are.
        precision: The variant's precision.

    Returns:
        (n_owners, n_parts, n_statistics) in float64.
    """
    if not y.numel():
        return y.new_zeros(owners.n, columns.n_parts, len(STATISTICS))
    width = _width(y)
    pieces = list(zip(torch.split(y, width, dim=2), torch.split(y_hat, width, dim=2), strict=True))
    found = [_unscaled(*piece, owners, precision) for piece in pieces]
    largest = columns.maxima(_joined([maxima for maxima, _, _ in found]))  # (4, n_owners, n_parts)
    scales = _power_of_two(largest[:3])
    by_column = torch.split(scales[..., columns.part_of], width, dim=2)  # (3, 1, n_columns) in all
    scaled = [
        _scaled(*piece, rounding, scale, owners)
        for piece, (_, _, rounding), scale in zip(pieces, found, by_column, strict=True)
    ]
    sums = columns.sums(torch.cat([_joined(scaled), _joined([own for _, own, _ in found])]))
    in_order = (sums[:6], sums[7:9], sums[6:7], sums[9:])
    counts = owners.n_rows(y) * columns.sums(y.new_ones(1, y.shape[2]))
    return torch.cat([counts[None], scales.expand(-1, owners.n, -1), largest[1:], *in_order]).movedim(0, -1)


def _width(y: torch.Tensor) -> int:
    """How many columns are worked on at once: on a CPU as many as its caches hold, else all."""
    if y.device.type != "cpu":
        return y.shape[2]
    # Whole multiples of 32, so that all are summed as they would be at once: torch sums those left over otherwise.
    return max(1, _CACHED // (32 * y.shape[0] * y.shape[1])) * 32


def _joined(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """What was found of pieces of the columns → of all."""
    return pieces[0] if len(pieces) == 1 else torch.cat([*pieces], dim=2)


def _unscaled(
    y: torch.Tensor, y_hat: torch.Tensor, owners: Owners, precision: Precision
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of some columns what needs no scale: maxima and sums, (4, n_owners, n_columns) each, and what rounding y adds."""
    magnitude, size, size_hat, spacing = (y_hat - y).abs(), y.abs(), y_hat.abs(), ulp(y, precision)
    in_ulps = magnitude / spacing
    sums = owners.sums(
        magnitude / (size + EPS),
        in_ulps,
        (~(size_hat < torch.inf)).double(),  # NaN too
        ((y != 0) & (y_hat == 0)).double(),
    )
    return owners.maxima(size, size_hat, magnitude, in_ulps), sums, _stored(y, spacing, precision) - y


def _scaled(
    y: torch.Tensor, y_hat: torch.Tensor, rounding: torch.Tensor, scales: torch.Tensor, owners: Owners
) -> torch.Tensor:
    """Sums of some columns that are divided by scales first: (7, n_owners, n_columns)."""
    y_unit, y_hat_unit, unit = y / scales[0], y_hat / scales[1], (y_hat - y) / scales[2]
    floor = rounding / scales[0]
    products = (y_unit * y_unit, y_hat_unit * y_hat_unit, unit * unit, y_unit * y_hat_unit)
    return owners.sums(*products, unit.abs(), unit, floor * floor)


def errors_of_nan(shape: torch.Size, owners: Owners, columns: Columns) -> torch.Tensor:
    """The statistics of a variant that computed nothing: all of its numbers are counted as NaN, nothing else is known.

    Args:
        shape: Of the reference, as its owners give it.
        owners: Of the rows.
        columns: What the columns are.

    Returns:
        (n_owners, n_parts, n_statistics) in float64.
    """
    nan = torch.full((), torch.nan, dtype=torch.float64, device=columns.part_of.device)
    counts = owners.n_rows(nan.expand(shape)) * columns.sums(nan.new_ones(1, shape[2]))
    known = {"count": counts, "nonfinite": counts, "flushed": torch.zeros_like(counts)}
    unknown = nan.expand_as(counts)
    return torch.stack([known.get(name, unknown) for name in STATISTICS], dim=-1)


def _power_of_two(largest: torch.Tensor) -> torch.Tensor:
    """For each part, the least power of two above the largest number of any owner: the smallest of all above 0.

    Where an owner has something infinite or NaN, that counts as 1: its finite numbers must not overflow beside it.
    """
    most = torch.where(torch.isfinite(largest), largest, 1.0).amax(dim=1, keepdim=True)
    _, exponent = torch.frexp(most)
    exponent = torch.where(most > 0, exponent, _SMALLEST).clamp(_SMALLEST, 1023)
    return torch.ldexp(torch.ones_like(most), exponent)


def _stored(y: torch.Tensor, spacing: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Float64 numbers as a format stores them, infinite beyond its range; ``spacing`` is that of its numbers at y."""
    if precision.dtype == "float32":
        return y.float().double()
    nearest = torch.round(y / spacing) * spacing  # exact but for the rounding, with ties to even
    return torch.where(nearest.abs() > precision.largest, torch.inf, nearest)
