"""What explains the errors, as far as the trace has it: the tables that ``explain`` prints, coloured."""

import pandas as pd

from precision_probe.analysis.views import view, views
from precision_probe.report.content import Part, Section, Table, table_of
from precision_probe.report.drawing.scales import LogScale
from precision_probe.report.findings import Findings

__all__ = ["causes"]

_SHADED = ("contributions", "noise", "budget", "sweep")  # tables whose numbers are all of one kind
_LONG = 40  # rows: a longer table is opened by who wants it


def causes(findings: Findings) -> Section | None:
    """Contributions, bits needed, equivariance, noise, and where numbers leave the range."""
    parts: list[Part] = [_table(findings, name) for name in views(findings.trace) if name != "physics"]
    return Section("causes", "What explains it", parts) if parts else None


def _table(findings: Findings, name: str) -> Table:
    shown = view(findings.trace, name)
    shaded = _scale(shown.frame) if name in _SHADED else None
    return table_of(shown.frame, shown.title, shaded=shaded, note=shown.note, is_folded=len(shown.frame) > _LONG)


def _scale(frame: pd.DataFrame) -> LogScale | None:
    """From a thousandth of the largest number: what is smaller is as dark as nothing. None where all are zero."""
    numbers = frame.to_numpy(dtype=float).ravel()
    if not (numbers > 0).any():
        return None
    scale = LogScale.tight(numbers)
    return LogScale(max(scale.low, scale.high - 3), scale.high)
