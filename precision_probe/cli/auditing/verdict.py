"""Whether an audit keeps the tolerance, in words and numbers that a program can read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from precision_probe.cli.common import EXCEEDED, FAILED
from precision_probe.exceptions import ProbeError

if TYPE_CHECKING:
    import pandas as pd

    from precision_probe.trace.trace import Trace

__all__ = ["Verdict", "document", "judge"]


@dataclass(frozen=True)
class Verdict:
    """What was judged, and by what.

    Attributes:
        summary: From :func:`precision_probe.summary`.
        over: What exceeds a limit, from :func:`precision_probe.analysis.errors.exceeded`.
        limits: Largest errors of what the trace has, in eV, Å.
        is_guide: They are the package's own guide, by which no exit code is decided.
        not_judged: Quantities that a limit was given for and that the trace lacks, each with the reason.
        failure: Why the audit is not complete, if it is not.
    """

    summary: "pd.DataFrame"
    over: "pd.DataFrame"
    limits: Mapping[str, float]
    is_guide: bool
    not_judged: Mapping[str, str]
    failure: ProbeError | None

    @property
    def exit_code(self) -> int:
        """What the command line exits with."""
        if self.failure is not None:
            return FAILED
        return EXCEEDED if len(self.over) and not self.is_guide else 0

    @property
    def reason(self) -> str:
        """Why it does, in a sentence."""
        if self.failure is not None:
            return str(self.failure)
        if self.is_guide:
            return "No tolerance was given, so none was exceeded."
        if not len(self.over):
            return "Every error is within the tolerance." if self.limits else "Nothing was judged."
        return f"Exceeded: {', '.join(self.over['precision'] + ' ' + self.over['quantity'])}."


def judge(trace: "Trace", limits: Mapping[str, float] | None, failure: ProbeError | None = None) -> Verdict:
    """Judge the model as a whole.

    Args:
        trace: What was recorded.
        limits: Largest errors allowed; by default a guide.
        failure: Why the audit is not complete, if it is not.
    """
    import precision_probe as pp
    from precision_probe.analysis.errors import GUIDE, exceeded

    summary = pp.summary(trace)
    judged = {name: limit for name, limit in (limits or GUIDE).items() if name in summary}
    not_judged = {
        name: "no structure is periodic in all directions" if name == "stress" else "the model does not predict it"
        for name in limits or {}
        if name not in summary
    }
    return Verdict(summary, exceeded(summary, judged), judged, limits is None, not_judged, failure)


def document(trace: "Trace", verdict: Verdict, path: str | None, notes: list[str]) -> dict[str, object]:
    """All that an audit found of the model as a whole, and the parts that lose most: docs/command-line.md has the keys.

    Args:
        trace: What was recorded.
        verdict: Of it.
        path: Where it is, if it is anywhere.
        notes: What a reader should know.
    """
    import precision_probe as pp
    from precision_probe.analysis.errors import TOLERANCE_UNITS, worst_blocks
    from precision_probe.analysis.whole_model import main_causes

    causes = main_causes(trace).T.to_dict() if "contributions" in trace.tables else {}
    blocks = worst_blocks(pp.errors(trace)) if trace.modes else {}
    return {
        "trace": path,
        "model": trace.attributes["model_name"],
        "tolerance": {name: {"limit": limit, "unit": TOLERANCE_UNITS[name]} for name, limit in verdict.limits.items()},
        "tolerance_is_guide": verdict.is_guide,
        "not_judged": dict(verdict.not_judged),
        "precisions": [
            {
                "precision": precision,
                **_row(row, verdict.over[verdict.over["precision"] == precision]),
                "worst_parts": _parts(causes.get(precision, {})),
                "worst_block": blocks.get(str(precision)),
            }
            for precision, row in verdict.summary.drop(index="float64").iterrows()
        ],
        "failures": list(trace.attributes["failures"]),
        "notes": notes,
        "exit": {"code": verdict.exit_code, "reason": verdict.reason},
    }


def _parts(cause: Mapping[Any, object]) -> dict[str, object]:
    """What makes most of the squared error of energies, and of forces."""
    return {
        quantity: {"part": cause[f"{quantity}_part"], "share": cause[f"{quantity}_share"]}
        for quantity in (("energy", "forces") if cause else ())
    }


def _row(row: "pd.Series[float]", over: "pd.DataFrame") -> dict[str, object]:
    """One precision: its errors in eV and Å, how long it takes, and what is too large."""
    errors = row.drop(["nonfinite", "time", "time_iqr"]).to_dict()
    return {
        "is_within": over.empty,
        "exceeded": over["quantity"].tolist(),
        "errors": errors,
        "nonfinite": int(row["nonfinite"]),
        "time_vs_float64": row["time"],
    }
