"""Errors of which a trace has statistics alone, where arrays were too large to keep."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from precision_probe.analysis.metrics import EPS
from precision_probe.analysis.pairs import By, blocks_of_rows, labels_in_order, order_of_run
from precision_probe.analysis.statistics import STATISTICS, combined, floor_of, metrics_of
from precision_probe.exceptions import InputError
from precision_probe.precisions import Precision
from precision_probe.trace.schema import ERRORS
from precision_probe.trace.trace import Trace

__all__ = ["KeptError", "kept_errors"]


@dataclass(frozen=True)
class KeptError:
    """The errors of one array.

    Attributes:
        block: The block.
        tensor: Which of its tensors.
        direction: ``forward`` or ``backward``.
        units: Of the array.
        statistics: (n_rows, n_parts, n_statistics), in the order of :data:`STATISTICS`; NaN for calls without it.
        parts: The irrep of each part; one without a name where they are unknown.
        elements: The atomic number that each row is of; ``None`` where rows are structures.
    """

    block: str
    tensor: str
    direction: str
    units: str
    statistics: xr.Variable
    parts: tuple[str, ...]
    elements: NDArray[np.int64] | None

    @property
    def identity(self) -> dict[str, str]:
        """What a table says of it."""
        return {name: getattr(self, name) for name in ("block", "tensor", "direction", "units")}

    def numbers(self, precision: Precision, eps: float, by: By | None) -> dict[str, dict[str, float]]:
        """Of each irrep or element, or of the whole, how many numbers it has, every metric, and the floor of rel_l2.

        Raises:
            InputError: If ε is another than the one that the sums were made with.
        """
        if eps != EPS:
            raise InputError(
                f"The trace keeps errors that were summed with eps={EPS:g}, not {eps:g}, and no arrays. Audit with "
                "--keep tensors (keep='tensors'), or leave eps as it is."
            )
        found: dict[str, list[NDArray[np.float64]]] = {}
        for rows in blocks_of_rows(self.statistics):
            values = self.statistics[rows].values
            seen = ~np.isnan(values[:, 0, 0])
            elements = None if self.elements is None else self.elements[rows][seen]
            for label, statistics in self._resolved(values[seen], elements, by):
                found.setdefault(label, []).append(combined(statistics.reshape(-1, len(STATISTICS))))
        numbers = {}
        for label in labels_in_order(found, by):
            whole = combined(np.asarray(found[label]))
            numbers[label] = {"n": int(whole[0])} | metrics_of(whole, precision) | {"floor": floor_of(whole)}
        return numbers

    def _resolved(
        self, values: NDArray[np.float64], elements: NDArray[np.int64] | None, by: By | None
    ) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """The statistics of each irrep, in order of appearance, or of each element; nothing if that is unknown."""
        if by is None:
            yield "", values
        elif by == "irrep" and self.parts != ("",):
            for index, irrep in enumerate(self.parts):
                yield irrep, values[:, index]
        elif by == "element" and elements is not None:
            import ase.data  # here alone: a trace is read without ASE too

            for number in np.unique(elements):
                yield ase.data.chemical_symbols[number], values[elements == number]


def kept_errors(trace: Trace, mode: str, precision: Precision) -> Iterator[KeptError]:
    """The errors that a trace keeps of one precision in one mode, in the order in which the model runs the blocks.

    Raises:
        InputError: If it keeps other statistics than :data:`STATISTICS`.
    """
    if trace.has_group(f"{ERRORS}/{mode}", precision):
        if (kept := trace.attributes["statistics"]) != list(STATISTICS):
            raise InputError(
                f"The trace keeps other statistics of errors ({', '.join(map(str, kept))}) than this version reads "
                f"({', '.join(STATISTICS)}). Read it with the version that wrote it, or audit anew."
            )
        group = trace.group(f"{ERRORS}/{mode}", precision)
        for array in order_of_run(trace, group):
            yield _of_array(trace, array)


def _of_array(trace: Trace, array: xr.DataArray) -> KeptError:
    """One variable."""
    elements = trace.structures["species_numbers"].values if array.dims[0] == "species" else None
    block, tensor, direction, units = (array.attrs[key] for key in ("block", "tensor", "direction", "units"))
    parts = tuple(array.attrs["parts"].split()) or ("",)
    return KeptError(block, tensor, direction, units, array.variable, parts, elements)
