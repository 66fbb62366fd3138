"""The verdict: a sentence for each precision, and the table of the whole model that it rests on."""

import math
from collections.abc import Iterator

import pandas as pd
import scipy.stats

from precision_probe.analysis.whole_model import CAUSED, ModelRow
from precision_probe.exceptions import printable
from precision_probe.report.content import Cell, Section, Table
from precision_probe.report.findings import MILLI, Findings
from precision_probe.report.numbers import entry
from precision_probe.trace.schema import REFERENCE

__all__ = ["verdict"]

_HEADINGS = {
    "energy": "energy",
    "interaction_energy": "interaction energy",
    "forces": "forces, largest",
    "forces_mae": "forces, mean",
    "stress": "stress",
}
_CONFIDENCE = 0.95
_FEWEST = 2  # structures of which a share says something


def verdict(findings: Findings) -> Section:
    """What may be used, and why."""
    points = [(_state(findings, each), _reasons(findings, each)) for each in findings.precisions]
    text = [_judged_by(findings)]
    if findings.trace.attributes.get("complete") is False:
        failures = findings.trace.attributes.get("failures") or ["it was interrupted"]
        text.insert(0, f"The run is not complete: {'; '.join(map(printable, failures))}.")
    return Section("verdict", "Verdict", [_table(findings)], text, points)


def _state(findings: Findings, precision: str) -> str:
    if not findings.judged:
        return f"{precision}: not judged."
    over = [f"{name} ({_times(findings, precision, name)})" for name in findings.rows[precision].exceeded]
    return (
        f"✗ {precision}: beyond the tolerance in {', '.join(over)}."
        if over
        else f"✓ {precision}: within the tolerance."
    )


def _times(findings: Findings, precision: str, name: str) -> str:
    """How many tolerances an error is."""
    ratio = findings.number(precision, name) / findings.judged[name]
    return f"{entry(ratio)} times" if math.isfinite(ratio) else "not finite"


def _reasons(findings: Findings, precision: str) -> str:
    """By what numbers that is so, what makes most of each error, and on how many structures it holds."""
    said = [_measured(findings, precision, name) for name in (findings.judged or _results(findings))]
    n_broken = findings.number(precision, "nonfinite")
    broken = f" {n_broken:.0f} of its results are NaN or infinite." if n_broken else ""
    within = _share_within(findings, precision) if findings.judged else ""
    return f"Largest errors: {'; '.join(said)}.{broken}{within}"


def _results(findings: Findings) -> list[str]:
    return [name for name in findings.summary if name in findings.units and name != "forces_mae"]


def _measured(findings: Findings, precision: str, name: str) -> str:
    """One number, beside what is allowed and what part makes most of it."""
    unit, scale = findings.units[name]
    limit = findings.judged.get(name)
    allowed = "" if limit is None else f" of {limit * scale:g} allowed"
    error = findings.number(precision, name) * scale
    return f"{name.replace('_', ' ')} {entry(error) or 'NaN'} {unit}{allowed}{_cause(findings, precision, name)}"


def _cause(findings: Findings, precision: str, name: str) -> str:
    """What part makes most of an error, if the trace tells."""
    table = findings.causes
    if table is None or precision not in table.index or f"{name}_part" not in table:
        return ""
    part, share = printable(table[f"{name}_part"][precision]), float(table[f"{name}_share"][precision])
    where = "the sums of energies" if part == "sums" else part
    if part and math.isnan(share):
        return f", not finite from {where} on"
    # more than all: parts that come later undo some of it
    undone = " (others undo some)" if share > 1 else ""
    return f", {100 * share:.0f} % of it in {where}{undone}" if part and share > 0 else ""


def _share_within(findings: Findings, precision: str) -> str:
    """Of how many structures it is within the tolerance, and what that says of others drawn like them."""
    columns = {"energy": "energy", "forces": "forces_max"}  # in meV
    names = [name for name in findings.judged if name in columns]
    rows = findings.by_structure
    rows = rows[rows["precision"] == precision]
    if not names or len(rows) < _FEWEST:
        return ""
    within = pd.concat([rows[columns[name]] <= MILLI * findings.judged[name] for name in names], axis=1).all(axis=1)
    n_within, n = int(within.sum()), len(rows)
    said = f" In {' and '.join(names)} it is within on {n_within} of {n} structures"
    if not n_within:
        return f"{said}."
    least = float(scipy.stats.beta.ppf(1 - _CONFIDENCE, n_within, n - n_within + 1))  # Clopper and Pearson's limit
    share, confidence = math.floor(100 * least), round(100 * _CONFIDENCE)
    return f"{said}: on at least {share} % of others drawn like them ({confidence} % confidence)."


def _judged_by(findings: Findings) -> str:
    """What was judged by."""
    if not findings.judged:
        return "Nothing is judged: no tolerance is of what this model predicts."
    limits = ", ".join(
        f"{name} {limit * findings.units[name][1]:g} {findings.units[name][0]}"
        for name, limit in findings.judged.items()
    )
    source = "a guide, as none was given: set your own with --tolerance" if findings.is_guide else "as given"
    shares = "" if findings.causes is None else " Shares are of the squared error, over all structures."
    return f"The tolerance: {limits} ({source}), of the largest error over structures, atoms and components.{shares}"


def _table(findings: Findings) -> Table:
    """The model as a whole: a row for each precision."""
    rows = list(findings.rows.values())
    columns = [f"{_HEADINGS.get(name, name)}, {findings.units[name][0]}" for name in rows[0].errors]
    columns += ["NaN or ∞", *(["time ÷ float64's"] if rows[0].time is not None else []), "verdict"]
    has_causes = findings.causes is not None
    columns += ["energy error mostly from", "force error mostly from"] if has_causes else []
    note = "Largest errors over all structures, against float64."
    if rows[0].time is not None:
        note += " Time: median ± half the interquartile range."
    cells = tuple((row.precision, (*_cells(row), *(_causes(row) if has_causes else []))) for row in rows)
    return Table("The model as a whole: error against float64", ("precision", *columns), cells, note)


def _cells(row: ModelRow) -> Iterator[Cell]:
    """What a row says of the errors, of time, and of what is allowed."""
    for name, value in row.errors.items():
        yield Cell(entry(value) or "NaN", value, is_bad=name in row.exceeded or not math.isfinite(value))
    yield Cell(str(row.n_broken), row.n_broken, is_bad=row.n_broken > 0)
    if row.time is not None:
        median, spread = row.time
        yield Cell(f"{median:.2f} ± {spread / 2:.2f}", median)
    if row.exceeded:
        yield Cell(f"too large: {', '.join(row.exceeded)}", is_bad=True)
    else:
        yield Cell("reference" if row.precision == REFERENCE else "✓ within" if row.is_judged else "")


def _causes(row: ModelRow) -> Iterator[Cell]:
    """The part that makes most of each error, with its share."""
    for name in CAUSED:
        part, share = row.causes.get(name, ("", math.nan))
        yield Cell(printable(part) + (f" {100 * share:.0f} %" if share > 0 else ""))
