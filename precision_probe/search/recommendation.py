"""Find the fastest assignment of precisions to blocks within a tolerance, and prove it on structures held out.

:mod:`precision_probe.search.search` measures policies on some structures; here the choice among them is made. The
fastest within the tolerance is verified on structures held out; if it fails there, the next is.
"""

import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ase
import numpy as np
import pandas as pd
import scipy.stats

from precision_probe.analysis.errors import TOLERANCE_UNITS
from precision_probe.diagnostics.reference import Reference
from precision_probe.exceptions import InputError
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.loading import ModelSource, load_model
from precision_probe.models.provenance import provenance
from precision_probe.policy import Policy
from precision_probe.precisions import PRECISIONS, PrecisionSource, parse_precisions
from precision_probe.search.measuring import CAST, Candidates
from precision_probe.search.proposals import DO_NOTHING
from precision_probe.search.search import COSTS, JUDGED, MARGIN, Search
from precision_probe.structures import StructureSource, read_structures
from precision_probe.variants.devices import check_precisions, default_precisions

__all__ = ["Recommendation", "answer", "recommend"]

# Of the structures held out, how many must be within the tolerance: a choice. Three of 64 may exceed it, so that no
# single odd structure decides; who needs every structure within the tolerance asks for a smaller one.
_HOLDS = 0.95
# Structures at most, a choice: every block in every precision is run on those searched on, dozens of runs for each; on
# those held out only what is verified, one run for each.
_N_SEARCHED, _N_HELD_OUT = 8, 64
# Interquartile range of times, relative to their median, above which a reader is told. In benchmarks/results
# (bench_recommend) it is 0.2 to 2.6 % where kernels take the time, and 8 to 38 % where launching them does.
_BUSY = 0.1
# Costs that differ by less than such a factor are the same. Of the objective: 1 %, as half of the candidates there have
# quartiles less than 0.9 % apart. Of the other: a choice, as 5 % of it is not worth digits.
_EQUAL = (1.01, 1.05)


@dataclass(frozen=True)
class Recommendation:
    """What a search found.

    Attributes:
        policy: The fastest that was proven, with its evidence; without rules if that is to do nothing.
        candidates: All that was measured as a whole, a row for each by name, the fastest first: ``rules``, the largest
            errors (``energy`` eV/atom, ``forces`` eV/Å, ``stress`` eV/Å³) and ``forces_rel_l2``, ``share`` (the
            largest error in tolerances), ``seconds`` and ``iqr`` (median and interquartile range of the largest
            structure), ``vs_float64`` and ``vs_float32`` (how many times faster than the model cast as a whole),
            ``peak_gib`` and ``memory_vs_float32``, ``pareto`` (nothing measured is both faster, or smaller,
            and more accurate),
            ``held_out`` (of the structures held out, the share within the tolerance; NaN where not verified).
        blocks: One row for each block and precision, alone: ``energy``, ``forces``, ``stress``, ``share``, ``saves``
            (seconds), ``saves_gib`` (NaN on a CPU), and ``predicted``, the force error that adjoints predict.
        notes: What a reader should know.
    """

    policy: Policy
    candidates: pd.DataFrame
    blocks: pd.DataFrame
    notes: tuple[str, ...]


def recommend(
    model: ModelSource,
    structures: StructureSource,
    tolerance: Mapping[str, float],
    *,
    allow: PrecisionSource | None = None,
    objective: str = "time",
    granularity: str = "block",
    head: str | None = None,
    device: str | None = None,
    seed: int = 0,
    log: str | Path | None = None,
    progress: bool = True,
) -> Recommendation:
    """Search the fastest assignment of precisions to blocks, within a tolerance.

    Of policies as fast, within 1 % or what repetitions differ by, one that needs no more memory than 5 % over the least
    is taken, and of these the most accurate. With the objective memory, time and memory change places.

    Args:
        model: As :func:`precision_probe.attach` takes it; it must predict energies and forces.
        structures: As ``probe.run()`` takes them. Up to 8, chosen at random, are searched on, up to 64 others held
            out. Times are of energy and forces (and stress, if that has a tolerance) of the largest of those searched
            on, so let it be of the size that you will run.
        tolerance: The largest errors allowed, of ``energy`` (eV/atom), ``forces`` (eV/Å: of any component), ``stress``
            (eV/Å³).
        allow: Precisions to choose from beside float64; by default float32, bfloat16 and float16, and tf32 on CUDA.
        objective: ``time`` or ``memory`` (CUDA only).
        granularity: ``block``, or ``module``: proposals that are faster but break the tolerance are tried again with
            some of their blocks' parts in a higher precision.
        head: Which head of a multi-head model.
        device: Where to run; by default a GPU if there is one.
        seed: Of the choice of structures.
        log: A file of errors as they are measured, from which an interrupted search goes on.
        progress: Show a progress bar, where there is a terminal.

    Raises:
        InputError: If the model, a structure, a precision, the tolerance or the device cannot be used, the model
            predicts NaN or infinity in float64, or the tolerance is of nothing that the structures have.
    """
    _check(tolerance, objective, granularity)
    searched, held_out = _split(read_structures(structures), seed)
    module, _ = load_model(model)
    reference = Reference(module, searched, head=head, device=device)
    precisions = _allowed(allow, reference)
    held = reference.on(held_out, head=head) if held_out else None
    for each in (reference, *([] if held is None else [held])):
        _check_finite(each)
    search = Search(Candidates(reference, None if log is None else Path(log)), tolerance, objective)
    blocks = search.alone(precisions, progress=progress)
    return answer(search, blocks, precisions, held, granularity=granularity, progress=progress)


def answer(
    search: Search,
    blocks: pd.DataFrame,
    precisions: Sequence[str],
    held: Reference | None,
    *,
    granularity: str,
    progress: bool,
) -> Recommendation:
    """Propose policies, measure them, and choose the best that holds on the structures held out too.

    Args:
        search: The search.
        blocks: What :meth:`Search.alone` found.
        precisions: Those to choose from.
        held: The structures held out, if there are any.
        granularity: As :func:`recommend` takes it.
        progress: Likewise.
    """
    policies = search.proposals(blocks, precisions)
    if granularity == "module":
        policies |= search.refined(policies, progress=progress)
    table = search.measured(policies, precisions, progress=progress)
    name, holds = _chosen(search, table, policies, held)
    table["held_out"] = pd.Series(holds, dtype=float).reindex(table.index)
    notes = [
        f"{each} was within the tolerance on the structures searched on, but only on {share:.0%} of those held out."
        for each, share in holds.items()
        if each != name
    ]
    notes += _notes(search, name, table, held)
    rank = _rank_correlation(blocks)
    runs = f"{search.candidates.n_runs} runs of the model for errors"
    ranks = f"; adjoints rank the blocks' force errors with a Spearman correlation of {rank:.2f}"
    notes.append(f"{runs}{ranks if np.isfinite(rank) else ''}.")
    model = search.reference.model
    evidence = _evidence(search, name, table, held) | {"adjoint_rank_correlation": _plain(rank)}
    about = {"class": type(model).__name__, "sha256": weights_sha256(model)}
    return Recommendation(Policy(policies[name].rules, search.tolerance, evidence, about), table, blocks, tuple(notes))


def _chosen(
    search: Search, table: pd.DataFrame, policies: Mapping[str, Policy], held: Reference | None
) -> tuple[str, dict[str, float]]:
    """The best policy that holds, and for each one that was tried the share of structures held out on which it does."""
    within = [name for name in table.index if name in policies and table.loc[name, "share"] <= MARGIN]
    ranked = _from_the_best(table, list(dict.fromkeys([*within, DO_NOTHING])), search.objective)
    if held is None:
        return next(ranked), {}
    verified = Candidates(held)
    holds: dict[str, float] = {}
    for name in ranked:
        shares = search.shares(verified.errors(policies[name]), held.graphs)
        holds[name] = float((shares.max(axis=1) <= 1).mean())
        if holds[name] >= _HOLDS:
            break
    return name, holds


def _from_the_best(table: pd.DataFrame, names: Sequence[str], objective: str) -> Iterator[str]:
    """The best, then the best of the others, up to doing nothing: the others decide what is as cheap as the least."""
    left, best = list(names), ""
    while best != DO_NOTHING:
        best = _best(table, left, objective)
        yield best
        left.remove(best)


def _best(table: pd.DataFrame, names: Sequence[str], objective: str) -> str:
    """The cheapest; of those as cheap the one that costs least of the other, time or memory; then the most accurate.

    The names are of policies, to do nothing among them.
    """
    rows = table.loc[list(names)]
    costs = list(COSTS.values())
    # to do nothing is to run the model as it is
    rows.loc[DO_NOTHING, [*costs, "iqr"]] = table.loc[CAST.format("float64"), [*costs, "iqr"]]
    first = COSTS[objective]
    for column, equal in zip(sorted(costs, key=lambda cost: cost != first), _EQUAL, strict=True):
        rows = rows[_least(rows, column, equal)]
    return str(rows.sort_values(["share", first], kind="stable").index[0])


def _least(rows: pd.DataFrame, column: str, equal: float) -> "pd.Series[bool]":
    """Which cost as little as the least: within a factor, or within what repetitions of the least differ by."""
    cost = rows[column].fillna(np.inf)
    spread = rows["iqr"].iloc[int(cost.argmin())] if column == "seconds" else 0.0
    is_least: pd.Series[bool] = cost <= max(equal * cost.min(), cost.min() + np.nan_to_num(spread))
    return is_least


def _evidence(search: Search, name: str, table: pd.DataFrame, held: Reference | None) -> dict[str, object]:
    """What the policy's file keeps of the search."""
    kept = table[table["pareto"] | (table.index == name) | table.index.str.startswith(CAST.format(""))]
    reference = search.reference
    return {
        "objective": search.objective,
        "device": provenance(reference.model, reference.device)["device"],
        "searched": [graph.names[0] for graph in reference.graphs],
        "held_out": 0 if held is None else len(held.graphs),
        "runs": search.candidates.n_runs,
        "chosen": name,
        "candidates": {
            str(index): {key: _plain(value) for key, value in line.items() if not pd.isna(value)}
            for index, line in kept.iterrows()
        },
    }


def _notes(search: Search, name: str, table: pd.DataFrame, held: Reference | None) -> list[str]:
    """What a reader of the choice should know."""
    notes = []
    row = table.loc[name]
    float32 = table.loc[CAST.format("float32")]
    if name == DO_NOTHING:
        better = "faster" if search.objective == "time" else "smaller"
        notes.append(f"No other policy keeps the tolerance and is {better}: run the model in float64.")
        if row["share"] > 1:
            dtype = next(search.reference.model.parameters()).dtype
            notes.append(f"Not even that keeps the tolerance: the model gives its results in {dtype}.")
    if search.objective == "time":
        pair = table.loc[[CAST.format("float64") if name == DO_NOTHING else name, CAST.format("float32")]]
        own_is_least, other_is_least = _least(pair, "seconds", _EQUAL[0])
        if other_is_least:
            notes.append(
                f"The model cast to float32 as a whole is {'as fast' if own_is_least else 'faster'}; on the structures "
                f"searched on its errors reach {float32['share']:.2g} of the tolerance, here {row['share']:.2g}."
            )
        spread = row["iqr"] / row["seconds"]
        if spread > _BUSY:
            notes.append(
                f"Repetitions differ by {spread:.0%}, and policies that do not differ by more count as equally fast. "
                "Let nothing else run beside a search, or give a larger structure."
            )
    if held is None:
        notes.append("There were too few structures to hold any out: the tolerance was verified on none but these.")
    if set(search.judged) != set(search.tolerance):
        notes.append("The tolerance of stress was not judged: no structure is periodic in all directions.")
    return notes


def _check(tolerance: Mapping[str, float], objective: str, granularity: str) -> None:
    """Refuse what no search can be made of, before anything is loaded."""
    if not tolerance or not set(tolerance) <= set(JUDGED):
        known = ", ".join(f"{name} ({TOLERANCE_UNITS[name]})" for name in JUDGED)
        raise InputError(f"A search needs tolerances of one or more of {known}; got {dict(tolerance)}.")
    for name, limit in tolerance.items():
        if not isinstance(limit, numbers.Real) or isinstance(limit, bool) or not 0 < limit < np.inf:
            raise InputError(f"The tolerance of {name} is a finite number above zero, such as 1e-3; got {limit!r}.")
    if objective not in ("time", "memory"):
        raise InputError(f"The objective is time or memory; got {objective!r}.")
    if granularity not in ("block", "module"):
        raise InputError(f"The granularity is block or module; got {granularity!r}.")


def _split(structures: list[ase.Atoms], seed: int) -> tuple[list[ase.Atoms], list[ase.Atoms]]:
    """Those to search on, and those to hold out: none of a single one."""
    order = np.random.default_rng(seed).permutation(len(structures))
    n = min(_N_SEARCHED, (len(structures) + 1) // 2)
    searched, held_out = order[:n], order[n : n + _N_HELD_OUT]
    return [structures[index] for index in searched], [structures[index] for index in held_out]


def _check_finite(reference: Reference) -> None:
    for name, _ in reference.not_finite():
        raise InputError(
            f"In float64 the model predicts NaN or infinity for the structure {name}, so that no error can be "
            "measured. Leave the structure out."
        )


def _allowed(allow: PrecisionSource | None, reference: Reference) -> list[str]:
    """Names of the precisions to choose from, all of which the device and the model can compute in."""
    device, model = reference.device, reference.model
    precisions = default_precisions(device, model) if allow is None else parse_precisions(allow)
    if not precisions or any(precision.emulated for precision in precisions):
        raise InputError(
            f"A search chooses from one or more of {', '.join(list(PRECISIONS)[1:])}, beside float64, which is always "
            f"allowed; got {allow!r}."
        )
    check_precisions(precisions, device, model)
    return [precision.name for precision in precisions]


def _rank_correlation(blocks: pd.DataFrame) -> float:
    """Of the errors that adjoints predict with those measured, over blocks, averaged over precisions."""
    finite = blocks[np.isfinite(blocks["forces"])]
    correlations = [
        scipy.stats.spearmanr(rows["predicted"], rows["forces"]).statistic
        for _, rows in finite.groupby("precision")
        if len(rows) > 2 and min(rows["predicted"].nunique(), rows["forces"].nunique()) > 1
    ]
    return float(np.mean(correlations)) if correlations else np.nan


def _plain(value: str | bool | np.bool_ | float) -> str | bool | float | None:
    """A value as JSON has it, numbers with four digits."""
    if isinstance(value, str | bool | np.bool_):
        return value if isinstance(value, str) else bool(value)
    return float(f"{value:.4g}") if np.isfinite(value) else None
