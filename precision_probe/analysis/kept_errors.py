"""Errors of which a trace has statistics alone, where arrays were too large to keep."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from precision_probe.analysis.metrics import EPS
from precision_probe.analysis.pairs import By, order_of_run
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
        statistics: (n_rows, n_parts, n_statistics), in the order of :data:`STATISTICS`.
        parts: The irrep of each part; one without a name where they are unknown.
        elements: The atomic number that each row is of; ``None`` where rows are structures.
    """

    block: str
    tensor: str
    direction: str
    units: str
    statistics: NDArray[np.float64]
    parts: tuple[str, ...]
    elements: NDArray[np.int64] | None

    @property
    def identity(self) -> dict[str, str | int]:
        """What a table says of it."""
        names = ("block", "tensor", "direction", "units")
        return {name: getattr(self, name) for name in names} | {"n": int(self.statistics[..., 0].sum())}

    def numbers(self, precision: Precision, eps: float = EPS) -> dict[str, float]:
        """Every metric, and the floor of rel_l2.

        Raises:
            InputError: If ε is another than the one that the sums were made with.
        """
        if eps != EPS:
            raise InputError(
                f"The trace keeps errors that were summed with eps={EPS:g}, not {eps:g}, and no arrays. Audit with "
                "--keep tensors (keep='tensors'), or leave eps as it is."
            )
        whole = combined(self.statistics.reshape(-1, len(STATISTICS)))
        return metrics_of(whole, precision) | {"floor": floor_of(whole)}

    def resolved_by(self, by: By) -> Iterator[tuple[str, "KeptError"]]:
        """The parts for each irrep or element, in order of appearance or of atomic number; nothing if unknown."""
        if by == "irrep" and self.parts != ("",):
            for index, irrep in enumerate(self.parts):
                yield irrep, dataclasses.replace(self, statistics=self.statistics[:, index : index + 1])
        elif by == "element" and self.elements is not None:
            import ase.data  # here alone: a trace is read without ASE too

            for number in np.unique(self.elements):
                symbol = ase.data.chemical_symbols[number]
                yield symbol, dataclasses.replace(self, statistics=self.statistics[self.elements == number])


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
    """One variable; without the rows of calls that have no such array."""
    values = array.values
    seen = ~np.isnan(values[:, 0, 0])
    elements = trace.structures["species_numbers"].values[seen] if array.dims[0] == "species" else None
    block, tensor, direction, units = (array.attrs[key] for key in ("block", "tensor", "direction", "units"))
    parts = tuple(array.attrs["parts"].split()) or ("",)
    return KeptError(block, tensor, direction, units, values[seen], parts, elements)
