"""What several sections of a page are made of, found once."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from precision_probe.analysis.errors import errors, exceeded, summary
from precision_probe.analysis.frames import per_atom, worst_tensors
from precision_probe.analysis.physical_errors import ALL, by_structure, has_energies_and_forces
from precision_probe.analysis.whole_model import ModelRow, main_causes, model_rows, shown_units
from precision_probe.trace.trace import Trace

if TYPE_CHECKING:
    from precision_probe.policy import Policy

__all__ = ["MILLI", "Findings", "shown_mode", "slots"]

MILLI = 1e3  # eV to meV


def shown_mode(trace: Trace) -> str:
    """The mode that is shown where one is: the whole model, if blocks were run so; else the blocks alone."""
    return "propagated" if "propagated" in trace.modes else trace.modes[0]


def slots(trace: Trace) -> dict[str, int]:
    """Of each precision its place among the trace's, by which figures and pages colour it, whatever of them is shown.

    float64, with which they are compared, has none.
    """
    return {precision.name: slot for slot, precision in enumerate(trace.precisions)}


@dataclass(frozen=True)
class Findings:
    """A trace, and what it is judged by.

    Attributes:
        trace: What was recorded.
        tolerance: The largest errors allowed, those of them that the trace tells.
        is_guide: Whether nobody asked for that tolerance.
        policy: What is recommended instead, where the reader has that.
        other: Another trace of the same structures, to be compared with it.
        file: The name of the file that the trace was read from, if any.
    """

    trace: Trace
    tolerance: Mapping[str, float]
    is_guide: bool
    policy: "Policy | None" = None
    other: Trace | None = None
    file: str | None = None

    @cached_property
    def summary(self) -> pd.DataFrame:
        """From :func:`precision_probe.summary`."""
        return summary(self.trace)

    @cached_property
    def errors(self) -> pd.DataFrame:
        """From :func:`precision_probe.errors`."""
        return errors(self.trace)

    def number(self, precision: str, name: str) -> float:
        """One number of the summary."""
        return float(self.summary[name][precision])

    @cached_property
    def judged(self) -> dict[str, float]:
        """The tolerance of what the trace has."""
        return {name: limit for name, limit in self.tolerance.items() if name in self.summary}

    @cached_property
    def rows(self) -> dict[str, ModelRow]:
        """The model as a whole, precision by precision, float64 first."""
        over = exceeded(self.summary, self.judged)
        rows = model_rows(self.summary, self.units, over, self.causes, is_judged=bool(self.judged))
        return {row.precision: row for row in rows}

    @cached_property
    def by_structure(self) -> pd.DataFrame:
        """From :func:`precision_probe.by_structure`, structure by structure; no rows without energies and forces."""
        if not has_energies_and_forces(self.trace):
            return pd.DataFrame(columns=["precision", "structure"])
        table = by_structure(self.trace)
        return table[table["structure"] != ALL]

    @cached_property
    def per_atom(self) -> pd.DataFrame:
        """From :func:`precision_probe.per_atom`."""
        return per_atom(self.trace)

    def worst(self, mode: str, precision: str, direction: str) -> pd.DataFrame:
        """Of each block, in the order of the run, the row of ``errors`` that stands for it: the largest rel_l2."""
        return worst_tensors(self.errors, self.trace.blocks, mode, precision, direction)

    @cached_property
    def causes(self) -> pd.DataFrame | None:
        """What makes most of each precision's error, where the trace tells."""
        return main_causes(self.trace) if "contributions" in self.trace.tables else None

    @property
    def precisions(self) -> list[str]:
        """Names of those compared with float64."""
        return [precision.name for precision in self.trace.precisions]

    @cached_property
    def units(self) -> dict[str, tuple[str, float]]:
        """From :func:`precision_probe.analysis.whole_model.shown_units`."""
        return shown_units(self.errors)
