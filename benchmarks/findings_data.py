"""What was measured of each model, read from the JSON files of findings.py, and how numbers and prose are written."""

import json
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from records import Record

from precision_probe.analysis.errors import bits_needed

MILLI = 1e3
TOLERANCES = (0.1, 1.0, 10.0)  # meV/Å
STORED_BITS = {"bfloat16": 7, "float16": 10, "float32": 23}
PARTS, TOTAL, REST = "parts, root of squares", "all together", "not explained by the parts"

Lines = list[str]


@dataclass(frozen=True)
class Model:
    """What was measured of a model."""

    name: str
    record: Record
    dynamics: Record | None

    def table(self, name: str) -> pd.DataFrame:
        """A table; None is NaN."""
        return pd.DataFrame(self.record["tables"][name])

    def rows(self, name: str) -> list[Record]:
        """Its rows."""
        rows: list[Record] = self.record["tables"][name]
        return rows

    @cached_property
    def precisions(self) -> list[str]:
        """The reduced ones."""
        return [name for name in self.record["provenance"]["precisions"] if name != "float64"]

    def label(self, precision: str) -> str:
        """What a row is of."""
        return f"{self.name}, {precision}"

    @cached_property
    def overall(self) -> pd.DataFrame:
        """Errors in physical terms over all structures, by precision."""
        physics = self.table("physics")
        return physics[physics["structure"] == "all"].set_index("precision")

    @cached_property
    def shares(self) -> pd.DataFrame:
        """By precision and source: ``forces`` (meV/Å, root mean square) and ``share`` of the sum of squares."""
        budget = self.table("budget")
        parts = budget[~budget["source"].isin([PARTS, TOTAL, REST])]
        source = parts["block"].str.partition(".")[0].where(parts["block"] != "", parts["source"])
        squares = parts["forces_rms"] ** 2
        shares = squares.groupby([parts["precision"], source.rename("source")], sort=False).sum().to_frame("squares")
        shares["share"] = shares["squares"] / shares.groupby("precision")["squares"].transform("sum")
        return shares.assign(forces=MILLI * np.sqrt(shares["squares"]))

    def budget_row(self, precision: str, source: str) -> pd.Series:
        """One of the rows after the sources, in meV/Å and meV/atom."""
        budget = self.table("budget")
        rows = budget[(budget["precision"] == precision) & (budget["source"] == source)]
        return MILLI * rows[["energy", "interaction_energy", "forces_rms"]].iloc[0].astype(float)

    @cached_property
    def drifts(self) -> list[Record]:
        """Rows of the dynamics, with ``label``, and within confidence ``apart`` from float64's and ``is_zero``.

        Runs share their starts and are compared run by run.
        """
        rows: list[Record] = (self.dynamics or {"drift": []})["drift"]
        return [
            {
                **row,
                "label": f"{self.name}, {row['structure']}",
                "apart": abs(row["difference"] or 0) > (row["difference_confidence"] or 0),
                "is_zero": abs(row["drift"]) <= row["confidence"],
            }
            for row in rows
        ]

    def bits(self, tolerance: float) -> pd.Series:
        """Bits that each block needs for a largest force error, meV/Å."""
        return bits_needed(self.table("sweep"), tolerance / MILLI)


def read(results: Path) -> list[Model]:
    """The models that were measured, the demo first."""
    models = []
    for path in sorted(results.glob("findings-*.json"), key=lambda path: (path.stem != "findings-demo", path.stem)):
        if not path.stem.endswith("-drift"):
            beside = path.with_name(f"{path.stem}-drift.json")
            dynamics = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else None
            record = json.loads(path.read_text(encoding="utf-8"))
            models.append(Model(record["name"], record, dynamics))
    return models


def labelled(model: Model, name: str) -> bool:
    """Whether the structures have labels to compare with."""
    column = f"{name}_share"
    return column in model.overall and bool(model.overall[column].notna().any())


def broken(model: Model, precision: str, motion: str, tensor: str = "") -> float:
    """By how much a motion changes the model's energy or forces, or the worst output of a block."""
    return broken_and_spread(model, precision, motion, tensor)[0]


def broken_and_spread(model: Model, precision: str, motion: str, tensor: str = "") -> tuple[float, float]:
    """The same, the mean over random motions, and its standard deviation, zero where there was one motion."""
    table = model.table("equivariance")
    rows = table[(table["precision"] == precision) & (table["motion"] == motion)]
    is_model = rows["block"] == "model"
    rows = rows[is_model & (rows["tensor"] == tensor) if tensor else ~is_model].dropna(subset="rel_l2")
    if rows.empty:
        return math.nan, math.nan
    worst = rows.sort_values("rel_l2").iloc[-1]
    return float(worst["rel_l2"]), float(np.nan_to_num(worst["spread"]))


def extremes(values: Sequence[tuple[str, float]]) -> tuple[tuple[str, float], tuple[str, float]]:
    """The smallest and the largest of labelled values."""
    return min(values, key=lambda item: item[1]), max(values, key=lambda item: item[1])


def line_of(models: Sequence[Model]) -> str:
    """The displacement's length and points."""
    tables = [model.table("displacement")["position"] for model in models]
    return listing(dict.fromkeys(f"a line of {table.max():g} Å in {table.nunique()} points" for table in tables))


def bits_cell(model: Model, needed: float) -> str:
    """A number of bits; at the ends of those tried only a bound is known."""
    tried = model.table("sweep")["bits"]
    if pd.isna(needed):
        return f"> {tried.max()}"
    return f"≤ {needed}" if needed == tried.min() else f"{needed}"


def longest(models: Sequence[Model]) -> list[str]:
    """All reduced precisions of all models."""
    return list(dict.fromkeys(precision for model in models for precision in model.precisions))


def has(model: Model, precision: str) -> bool:
    """Whether a model was run in a precision."""
    return precision in ("float64", *model.precisions)


def beside(models: Sequence[Model], value: Callable[[Model, str], str], exact: bool = False) -> str:
    """For each precision the models' values side by side."""
    names = ["float64"] * exact + longest(models)
    return ", ".join(
        f"{name} {' / '.join(value(model, name) if has(model, name) else '–' for model in models)}" for name in names
    )


def each(models: Iterable[Model], text: Callable[[Model], str]) -> str:
    """The same said of every model."""
    return ". ".join(f"{model.name}: {said}" for model in models if (said := text(model)))


def interval(row: Record) -> str:
    """A drift and its confidence interval."""
    return f"{number(row['drift'])} ± {number(row['confidence'])}"


def number(value: float | None) -> str:
    """Two significant digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    rounded = float(f"{value:.1e}")
    exponent = math.floor(math.log10(abs(rounded)))
    if -3 <= exponent < 5:
        return f"{rounded:,.{max(0, 1 - exponent)}f}"
    return f"{rounded / 10.0**exponent:.1f}e{exponent}"


def decimal(value: float | None, sign: str = "") -> str:
    """One decimal."""
    return "–" if value is None or not math.isfinite(value) else f"{value:{sign}.1f}"


def percent(share: float | None) -> str:
    """A share, two significant digits."""
    return "–" if share is None or not math.isfinite(share) else f"{number(100 * share)} %"


def listing(items: Iterable[str]) -> str:
    """a, b and c."""
    *most, last = [*items] or [""]
    return f"{', '.join(most)} and {last}" if most else last


def paragraph(text: str) -> Lines:
    """Prose, wrapped."""
    return wrapped(text[:1].upper() + text[1:])


def wrapped(text: str, indent: str = "") -> Lines:
    """At 120 characters, as the sources are."""
    return textwrap.wrap(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
