"""Tables of what a model was run for many times, as a terminal shows them: sweeps and searches."""

from collections.abc import Sequence

import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from precision_probe.analysis.errors import TOLERANCE_UNITS, bits_needed
from precision_probe.cli.tables.style import entry, number, plain_table
from precision_probe.policy import Policy
from precision_probe.trace.tables import HELD_OUT

__all__ = ["recommendation_table", "sweep_table"]

_FORMATS = (23, 10, 7)  # stored bits of float32, of float16 and TF32, and of bfloat16

# What a narrow terminal has of a search, the first longest.
_RANKS = (
    *("share", "seconds", "peak_gib", "forces", "energy", "vs_float32", "memory_vs_float32", "rules", "held_out"),
    *("stress", "forces_rel_l2", "vs_float64", "held_out_at_least"),
)


def sweep_table(sweep: pd.DataFrame, quantity: str, tolerance: float) -> RenderableType:
    """The largest error for each block and number of bits, and how many bits keep it within a tolerance.

    Args:
        sweep: From :func:`precision_probe.sweep`.
        quantity: ``energy`` or ``forces``.
        tolerance: In eV/atom or eV/Å.
    """
    held_out = f"{HELD_OUT}{quantity}"
    judged = [quantity] if held_out not in sweep else [quantity, held_out]
    largest = sweep.assign(largest=sweep[judged].max(axis=1, skipna=False))
    wide = largest.pivot_table(index="block", columns="bits", values="largest", sort=False, dropna=False)
    wide = wide[sorted(wide.columns)]
    needed = bits_needed(sweep, tolerance, quantity)
    searched = bits_needed(sweep, tolerance, quantity, searched_only=True)
    table = plain_table(f"Largest error of {quantity} ({TOLERANCE_UNITS[quantity]}) with so many bits of significand")
    table.add_column("\nrounded", no_wrap=True)
    table.add_column("bits\nneeded", justify="right")
    numbers = [int(bits) for bits in wide.columns]
    for bits in numbers:
        # in a narrow terminal those of a format are there longest, then the most
        rank = _FORMATS.index(bits) if bits in _FORMATS else len(_FORMATS) + max(numbers) - bits
        table.add_column(f"\n{bits}", justify="right", no_wrap=True, rank=1 + rank)
    for block, row in wide.iterrows():
        enough, there = ("more" if pd.isna(each[str(block)]) else str(each[str(block)]) for each in (needed, searched))
        cells = [Text(number(value), style="" if value <= tolerance else "red") for value in row]
        table.add_row(str(block), enough if enough == there else f"{enough} ({there})", *cells)
    notes = (
        f"needed: to stay within {tolerance:g} {TOLERANCE_UNITS[quantity]} with that number and every larger one "
        "tried. One block is rounded at a time (its inputs, weights and every operation, forward and backward), the "
        "rest is float64; exponents are float64's. Stored bits: float32 has 23, float16 10, bfloat16 7."
    )
    if held_out in sweep:
        n_searched, n_held_out = (int(sweep[column].iloc[0]) for column in ("n_searched", "n_held_out"))
        notes += (
            f" Errors are the largest over {n_searched} structures searched on and {n_held_out} held out; in brackets "
            "the bits that those searched on would have asked for, where these differ."
        )
    return Group(table, Text(notes, style="dim"))


def recommendation_table(policy: Policy, candidates: pd.DataFrame, notes: Sequence[str]) -> RenderableType:
    """What was measured in a search, what was chosen, and what a reader should know.

    Args:
        policy: What was chosen, with its evidence.
        candidates: As a :class:`precision_probe.search.recommendation.Recommendation` has them.
        notes: Likewise.
    """
    chosen = policy.evidence["chosen"]
    is_time = policy.evidence["objective"] == "time"
    order, better = ("the fastest", "faster") if is_time else ("the smallest", "smaller")
    table = plain_table(f"Candidates, {order} first", "candidate")
    table.add_column("rules", rank=_RANKS.index("rules"))
    columns = {
        "energy": "energy\nmeV/atom",
        "forces": "forces max\nmeV/Å",
        "forces_rel_l2": "forces\nrel_l2",
        "stress": "stress\nmeV/Å³",
        "share": "error ÷\ntolerance",
        "seconds": "time\nms",
        "vs_float64": "× float64\nspeed",
        "vs_float32": "× float32\nspeed",
        "peak_gib": "memory\nGiB",
        "memory_vs_float32": "÷ float32\nmemory",
        "held_out": "held out\nwithin",
        "held_out_at_least": "at least\n(95 %)",
    }
    shown = {name: title for name, title in columns.items() if not candidates[name].isna().all()}
    for column, title in shown.items():
        table.add_column(title, justify="right", no_wrap=True, rank=_RANKS.index(column))
    for name, row in candidates.iterrows():
        cells = [_cell(row, column) for column in shown]
        style = "bold green" if name == chosen else "" if row["pareto"] else "dim"
        table.add_row(str(name), row["rules"], *cells, style=style)
    legend = (
        f"Bright: nothing measured is both {better} and more accurate (Pareto front). "
        "≈: speeds that are not told apart."
    )
    text = "\n".join((legend, *notes))
    rules = ", ".join(f"{rule.blocks} {rule.compute}" for rule in policy.rules)
    choice = f"{chosen} ({rules}); the rest is float64." if rules else "the model as it is, in float64."
    return Group(table, Text(f"Recommended: {choice}", style="bold"), Text(text))


def _cell(row: "pd.Series[float]", column: str) -> str:
    """One number, in milli-units or ms where it is of an error or a time; of a ratio, whether it is resolved."""
    shown = entry(1000 * row[column] if column in ("energy", "forces", "stress", "seconds") else row[column])
    is_unresolved = column.startswith("vs_") and row[f"{column}_low"] <= 1 <= row[f"{column}_high"]
    return f"≈{shown}" if is_unresolved and shown else shown
