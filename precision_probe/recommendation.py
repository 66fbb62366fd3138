"""Find the fastest assignment of precisions to blocks within a tolerance, and prove it on structures held out.

1. Each block alone is computed in each precision: what that does to the results, and how much time it saves.
2. :mod:`precision_probe.assignment_search` proposes assignments from these numbers; uniform ones, and ones that keep
   what comes before the first interaction in float64, are added.
3. Proposals are measured as they are: errors first, then times side by side. The fastest within the tolerance is
   verified on the structures held out; if it fails there, the next is.

Nothing is taken from a prediction: it only chooses what is measured.
"""

import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from precision_probe.analysis import TOLERANCE_UNITS
from precision_probe.assignment_search import Option, assignments, rules_of
from precision_probe.backends import check_backend
from precision_probe.blocks import default_blocks
from precision_probe.candidates import CAST, Candidates
from precision_probe.exceptions import InputError
from precision_probe.mixed import GENERATED
from precision_probe.models import load_model, weights_sha256
from precision_probe.policy import Policy, Rule
from precision_probe.precisions import PRECISIONS, parse_precisions
from precision_probe.prediction import sensitivities
from precision_probe.probe import default_precisions
from precision_probe.progress import shown
from precision_probe.provenance import provenance
from precision_probe.structures import read_structures
from precision_probe.timing import Timed
from precision_probe.trials import Trials
from precision_probe.variants import check_device

__all__ = ["DO_NOTHING", "Recommendation", "Search", "recommend"]

DO_NOTHING = "float64"
_JUDGED = ("energy", "forces", "stress")
_MARGIN = 0.8  # of the tolerance that errors of the structures searched may use: others may be somewhat worse
_HOLDS = 0.95  # of the structures held out must be within the tolerance
_N_SEARCHED, _N_HELD_OUT = 8, 64  # structures at most
_N_PROPOSED = 6
_EQUAL = 1.01  # costs that differ by less are the same
_CLOSE, _N_REFINED, _N_RAISED = 20.0, 2, 3  # tolerances; proposals; parts
_LOW = ("tf32", "bfloat16", "float16")
_BEFORE = ("node_embedding", "radial_embedding", "spherical_harmonics")  # before the first interaction


@dataclass(frozen=True)
class Recommendation:
    """What a search found.

    Attributes:
        policy: The fastest that was proven, with its evidence; without rules if that is to do nothing.
        candidates: All that was measured as a whole, a row for each by name, the fastest first: ``rules``, the largest
            errors (``energy`` eV/atom, ``forces`` eV/Å, ``stress`` eV/Å³) and ``forces_rel_l2``, ``share`` (the
            largest error in tolerances), ``seconds`` and ``iqr`` (median and interquartile range of the largest
            structure), ``vs_float64`` and ``vs_float32`` (how many times faster than the model cast as a whole),
            ``peak_gib`` and ``memory_vs_float32``, ``pareto`` (nothing measured is both faster and more accurate),
            ``held_out`` (of the structures held out, the share within the tolerance; NaN where not verified).
        blocks: One row for each block and precision, alone: ``energy``, ``forces``, ``stress``, ``share``, ``saves``
            (seconds), and ``predicted``, the force error that adjoints predict.
        notes: What a reader should know.
    """

    policy: Policy
    candidates: pd.DataFrame
    blocks: pd.DataFrame
    notes: tuple[str, ...]


def recommend(
    model: Any,
    structures: Any,
    tolerance: Mapping[str, float],
    *,
    allow: Any = None,
    objective: str = "time",
    granularity: str = "block",
    head: str | None = None,
    device: str | None = None,
    seed: int = 0,
    log: str | Path | None = None,
    progress: bool = True,
) -> Recommendation:
    """Search the fastest assignment of precisions to blocks, within a tolerance.

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
    trials = Trials(module, searched, head=head, device=device)
    names = _allowed(allow, trials)
    held = trials.on(held_out, head=head) if held_out else None
    for each in (trials, *([] if held is None else [held])):
        _check_finite(each)
    search = Search(Candidates(trials, None if log is None else Path(log)), tolerance, objective)
    blocks = search.alone(names, progress=progress)
    proposals = search.proposals(blocks, names)
    if granularity == "module":
        proposals |= search.refined(proposals, progress=progress)
    table = search.measured(proposals, names, progress=progress)
    return search.verified(table, proposals, blocks, held)


class Search:
    """The steps of a search, on the structures searched on.

    Args:
        candidates: What measures policies.
        tolerance: As :func:`recommend` takes it.
        objective: Likewise.

    Raises:
        InputError: If memory is asked for and there is no GPU, or the structures have nothing of the tolerance.
    """

    def __init__(self, candidates: Candidates, tolerance: Mapping[str, float], objective: str = "time") -> None:
        self.candidates, self.objective = candidates, objective
        self.tolerance = {name: float(limit) for name, limit in tolerance.items()}
        self.trials = trials = candidates.trials
        self.names = [block.name for block in default_blocks(trials.model)]
        if objective == "memory" and trials.device.type != "cuda":
            raise InputError("Memory is measured on CUDA only. Use --device cuda, or --objective time.")
        stresses = any(graph.periodic.all() for graph in trials.graphs)
        self.judged = [name for name in tolerance if name != "stress" or stresses]
        if not self.judged:
            raise InputError(
                "The only tolerance is of stress, but no structure searched on is periodic in all directions, so that "
                "nothing would be judged. Give a tolerance of forces or energy, or other structures."
            )

    def alone(self, precisions: Sequence[str], *, progress: bool) -> pd.DataFrame:
        """Each block alone in each precision."""
        policies = {(block, name): Policy((Rule(block, name),)) for block in self.names for name in precisions}
        cells = shown(list(policies), "blocks one at a time", progress=progress)
        errors = {key: self.candidates.errors(policies[key]) for key in cells}
        named = {"|".join(key): each for key, each in policies.items()} | {"|": Policy(())}
        timed = self.candidates.timed(named, stress="stress" in self.judged)
        base, spread = self._cost(timed["|"]), _iqr(timed["|"])
        expected = sensitivities(self.trials, n_probes=1).groupby("block")["forces_expected"].apply(_root_of_squares)
        rows = []
        for (block, name), table in errors.items():
            cost = self._cost(timed[f"{block}|{name}"])
            saves = base - cost if np.isfinite([base, cost]).all() else 0.0  # unknown where memory did not suffice
            rows.append(
                {
                    "block": block,
                    "precision": name,
                    **{quantity: _largest(table[quantity]) for quantity in _JUDGED},
                    "share": float(np.max(self._shares(table))),
                    "saves": saves if abs(saves) > (0 if self.objective == "memory" else spread) else 0.0,
                    "predicted": expected.get(block, np.nan) * PRECISIONS[name].unit_roundoff,
                }
            )
        return pd.DataFrame(rows)

    def uniform(self, precisions: Sequence[str]) -> dict[str, Policy]:
        """One precision for all blocks, or for all but those before the first interaction; and float64."""
        found = {DO_NOTHING: Policy(())}
        for name in precisions:
            found[name] = Policy.uniform(name)
            found[f"{name} after the embeddings"] = _policy({each: name for each in self.names if each not in _BEFORE})
        return found

    def proposals(self, blocks: pd.DataFrame, precisions: Sequence[str]) -> dict[str, Policy]:
        """What is worth measuring as a whole, by name."""
        found = self.uniform(precisions)
        number = 0
        both = {"tf32", "float32"} <= set(precisions)
        for excluded in ("tf32", "float32") if both else ("",):  # a policy has but one of them
            options = self._options(blocks[blocks["precision"] != excluded])
            within = [each for each in assignments(options) if each.error <= 1.5 and each.cost < 0]
            for each in within[:_N_PROPOSED]:
                policy = _policy(each.precisions)
                if self._is_new(policy, found.values()):
                    number += 1
                    found[f"mixed {number}"] = policy
        return found

    def refined(self, proposals: Mapping[str, Policy], *, progress: bool) -> dict[str, Policy]:
        """Of proposals that break the tolerance by little, others with the parts that cost most digits raised."""
        shares = {name: self._share(policy) for name, policy in proposals.items()}
        close = sorted((share, name) for name, share in shares.items() if _MARGIN < share <= _CLOSE)
        found: dict[str, Policy] = {}
        for share, name in close[:_N_REFINED]:
            policy = proposals[name]
            low = [block for block in self.names if policy.precision_of(block).name in _LOW]
            parts = [part for block in low for part in self._parts(block)]
            higher = "float64" if "tf32" in {precision.name for precision in policy.precisions} else "float32"
            steps = shown(parts, name, progress=progress)
            raised = {part: self._share(_raised(policy, [part], higher)) for part in steps}
            best = [part for part in sorted(parts, key=lambda part: raised[part]) if raised[part] < share]
            for n in range(1, min(_N_RAISED, len(best)) + 1):
                found[f"{name}, {n} raised"] = _raised(policy, best[:n], higher)
        return found

    def _parts(self, block: str) -> list[str]:
        """The modules of a block that can have a precision of their own."""
        module = self.trials.model.get_submodule(block)
        called = (name for name, part in module.named_children() if not isinstance(part, GENERATED))
        return [f"{block}.{name}" for name in called]

    def _share(self, policy: Policy) -> float:
        return float(np.max(self._shares(self.candidates.errors(policy))))

    def measured(self, proposals: Mapping[str, Policy], precisions: Sequence[str], *, progress: bool) -> pd.DataFrame:
        """Proposals as they are, beside the model cast as a whole: errors, then times side by side."""
        steps = shown(list(proposals), "proposals", progress=progress)
        errors = {name: self.candidates.errors(proposals[name]) for name in steps}
        casts = tuple(dict.fromkeys(("float64", "float32", *precisions)))
        casts = tuple(name for name in casts if name != "tf32")
        for name in casts:
            errors[CAST.format(name)] = self.candidates.cast_errors(name)
        timed = self.candidates.timed(proposals, casts, stress="stress" in self.judged, rounds=11)
        rows = {name: self._row(errors[name], timed[name]) for name in errors}
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("candidate")
        table.insert(0, "rules", [_text(proposals[name]) if name in proposals else "" for name in table.index])
        for other in ("float64", "float32"):
            table[f"vs_{other}"] = timed[CAST.format(other)].median / table["seconds"]
        table["memory_vs_float32"] = table["peak_gib"] / rows[CAST.format("float32")]["peak_gib"]
        table["held_out"] = np.nan
        table = table.sort_values("peak_gib" if self.objective == "memory" else "seconds", kind="stable")
        return table.assign(pareto=_pareto(table))

    def verified(
        self, table: pd.DataFrame, proposals: Mapping[str, Policy], blocks: pd.DataFrame, held: Trials | None
    ) -> Recommendation:
        """The fastest within the tolerance that holds on the structures held out too; of equals the most accurate.

        Nothing is chosen that is no faster than the model as it is, in float64.
        """
        notes = []
        checked = Candidates(held) if held is not None else None
        cost = table["peak_gib" if self.objective == "memory" else "seconds"].fillna(np.inf)
        cost[DO_NOTHING] = cost[CAST.format("float64")]  # to do nothing is to run the model as it is
        within = [name for name in table.index if name in proposals and table.loc[name, "share"] <= _MARGIN]
        within = [name for name in within if name != DO_NOTHING and cost[name] < cost[DO_NOTHING]] + [DO_NOTHING]
        while True:
            equals = [name for name in within if cost[name] <= _EQUAL * cost[within].min()]
            name = min(equals, key=lambda each: (table.loc[each, "share"], cost[each]))
            if checked is None:
                break
            shares = self._shares(checked.errors(proposals[name]), held)
            holds = float((shares.max(axis=1) <= 1).mean())
            table.loc[name, "held_out"] = holds
            if holds >= _HOLDS or name == DO_NOTHING:
                break
            notes.append(
                f"{name} was within the tolerance on the structures searched on, but only on {holds:.0%} of those held "
                "out."
            )
            within.remove(name)
        return self._recommendation(name, table, proposals[name], blocks, held, notes)

    def _recommendation(
        self,
        name: str,
        table: pd.DataFrame,
        policy: Policy,
        blocks: pd.DataFrame,
        held: Trials | None,
        notes: list[str],
    ) -> Recommendation:
        rank = _rank_correlation(blocks)
        runs = f"{self.candidates.n_runs} runs of the model for errors"
        ranks = f"; adjoints rank the blocks' force errors with a Spearman correlation of {rank:.2f}"
        notes = [*notes, *self._notes(name, table, held), f"{runs}{ranks if np.isfinite(rank) else ''}."]
        kept = table[table["pareto"] | (table.index == name) | table.index.str.startswith(CAST.format(""))]
        evidence = {
            "objective": self.objective,
            "device": provenance(self.trials.model, self.trials.device)["device"],
            "searched": [graph.names[0] for graph in self.trials.graphs],
            "held_out": 0 if held is None else len(held.graphs),
            "runs": self.candidates.n_runs,
            "adjoint_rank_correlation": _plain(rank),
            "chosen": name,
            "candidates": {
                str(index): {key: _plain(value) for key, value in line.items() if not pd.isna(value)}
                for index, line in kept.iterrows()
            },
        }
        about = {"class": type(self.trials.model).__name__, "sha256": weights_sha256(self.trials.model)}
        return Recommendation(Policy(policy.rules, self.tolerance, evidence, about), table, blocks, tuple(notes))

    def _notes(self, name: str, table: pd.DataFrame, held: Trials | None) -> list[str]:
        """What a reader of the choice should know."""
        notes = []
        row = table.loc[name]
        float32 = table.loc[CAST.format("float32")]
        if name == DO_NOTHING:
            better = "faster" if self.objective == "time" else "smaller"
            notes.append(f"No other policy keeps the tolerance and is {better}: run the model in float64.")
            if row["share"] > 1:
                dtype = next(self.trials.model.parameters()).dtype
                notes.append(f"Not even that keeps the tolerance: the model gives its results in {dtype}.")
        seconds = table["seconds"].to_dict()
        own = seconds[CAST.format("float64") if name == DO_NOTHING else name]
        if self.objective == "time" and seconds[CAST.format("float32")] < own:
            notes.append(
                "The model cast to float32 as a whole is faster; on the structures searched on its errors reach "
                f"{float32['share']:.2g} of the tolerance, here {row['share']:.2g}."
            )
        if held is None:
            notes.append("There were too few structures to hold any out: the tolerance was verified on none but these.")
        if set(self.judged) != set(self.tolerance):
            notes.append("The tolerance of stress was not judged: no structure is periodic in all directions.")
        return notes

    def _options(self, blocks: pd.DataFrame) -> dict[str, dict[str, Option]]:
        n = len(self.trials.graphs) * len(self.judged)
        found: dict[str, dict[str, Option]] = {}
        for row in blocks.to_dict("records"):
            choices = found.setdefault(row["block"], {DO_NOTHING: Option(0.0, np.zeros(n))})
            table = self.candidates.errors(Policy((Rule(row["block"], row["precision"]),)))
            choices[row["precision"]] = Option(-row["saves"], self._shares(table).flatten())
        return found

    def _shares(self, errors: pd.DataFrame, trials: Trials | None = None) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Errors in tolerances, (structures, quantities).

        All are infinite where energy or forces are not finite, even if they have no tolerance; those of the stress are
        zero for structures that have none.
        """
        graphs = (self.trials if trials is None else trials).graphs
        has_stress = np.asarray([bool(graph.periodic.all()) for graph in graphs])
        is_broken = ~np.isfinite(errors[["energy", "forces"]]).all(axis=1)
        found = []
        for name in self.judged:
            judged = errors[name].fillna(np.inf).where(has_stress | (name != "stress"), 0.0).to_numpy()
            found.append(np.where(is_broken, np.inf, judged) / self.tolerance[name])
        return np.stack(found, axis=1)

    def _row(self, errors: pd.DataFrame, timed: Timed) -> dict[str, float]:
        norm = _root_of_squares(errors["forces_norm"])
        rel_l2 = _root_of_squares(errors["forces_l2"]) / norm if norm else np.nan
        return {
            **{quantity: _largest(errors[quantity]) for quantity in _JUDGED},
            "forces_rel_l2": rel_l2,
            "share": float(np.max(self._shares(errors))),
            "seconds": timed.median,
            "iqr": _iqr(timed),
            "peak_gib": np.nan if timed.peak_bytes is None else timed.peak_bytes / 2**30,
        }

    def _cost(self, timed: Timed) -> float:
        if self.objective == "memory":
            return np.inf if timed.peak_bytes is None else float(timed.peak_bytes)
        return timed.median

    def _is_new(self, policy: Policy, others: Iterable[Policy]) -> bool:
        return all(policy.assignments(self.names) != other.assignments(self.names) for other in others)


def _check(tolerance: Mapping[str, float], objective: str, granularity: str) -> None:
    if not tolerance or not set(tolerance) <= set(_JUDGED):
        known = ", ".join(f"{name} ({TOLERANCE_UNITS[name]})" for name in _JUDGED)
        raise InputError(f"A search needs tolerances of one or more of {known}; got {dict(tolerance)}.")
    for name, limit in tolerance.items():
        if not isinstance(limit, numbers.Real) or isinstance(limit, bool) or not 0 < limit < np.inf:
            raise InputError(f"The tolerance of {name} is a finite number above zero, such as 1e-3; got {limit!r}.")
    if objective not in ("time", "memory"):
        raise InputError(f"The objective is time or memory; got {objective!r}.")
    if granularity not in ("block", "module"):
        raise InputError(f"The granularity is block or module; got {granularity!r}.")


def _split(structures: list[Any], seed: int) -> tuple[list[Any], list[Any]]:
    """Those to search on, and those to hold out: none of a single one."""
    order = np.random.default_rng(seed).permutation(len(structures))
    n = min(_N_SEARCHED, (len(structures) + 1) // 2)
    searched, held_out = order[:n], order[n : n + _N_HELD_OUT]
    return [structures[index] for index in searched], [structures[index] for index in held_out]


def _check_finite(trials: Trials) -> None:
    for name, _ in trials.not_finite():
        raise InputError(
            f"In float64 the model predicts NaN or infinity for the structure {name}, so that no error can be "
            "measured. Leave the structure out."
        )


def _allowed(allow: Any, trials: Trials) -> list[str]:
    device, model = trials.device, trials.model
    precisions = default_precisions(device, model) if allow is None else parse_precisions(allow)
    if not precisions or any(precision.emulated for precision in precisions):
        raise InputError(
            f"A search chooses from one or more of {', '.join(list(PRECISIONS)[1:])}, beside float64, which is always "
            f"allowed; got {allow!r}."
        )
    check_device(device, precisions)
    check_backend(model, precisions, device)
    return [precision.name for precision in precisions]


def _pareto(table: pd.DataFrame) -> list[bool]:
    """Whether nothing is at least as fast and more accurate, or as accurate and faster."""
    time, error = table["seconds"].to_numpy(), table["share"].fillna(np.inf).to_numpy()
    return [
        not bool(np.any((time <= t) & (error <= e) & ((time < t) | (error < e))))
        for t, e in zip(time, error, strict=True)
    ]


def _rank_correlation(blocks: pd.DataFrame) -> float:
    """Of the errors that adjoints predict with those measured, over blocks, averaged over precisions."""
    finite = blocks[np.isfinite(blocks["forces"])]
    found = [
        scipy.stats.spearmanr(rows["predicted"], rows["forces"]).statistic
        for _, rows in finite.groupby("precision")
        if len(rows) > 2 and min(rows["predicted"].nunique(), rows["forces"].nunique()) > 1
    ]
    return float(np.mean(found)) if found else np.nan


def _policy(precisions: Mapping[str, str]) -> Policy:
    return Policy(tuple(Rule(glob, name) for glob, name in rules_of(precisions)))


def _raised(policy: Policy, parts: Sequence[str], precision: str) -> Policy:
    return Policy((*(Rule(part, precision) for part in parts), *policy.rules))


def _text(policy: Policy) -> str:
    return ", ".join(f"{rule.blocks} {rule.compute}" for rule in policy.rules) or "no rules"


def _largest(values: "pd.Series[float]") -> float:
    """The largest; what is NaN stays so, unless only some have such an error, as stress."""
    return float(values.max() if values.name == "stress" else values.max(skipna=False))


def _root_of_squares(values: "pd.Series[float]") -> float:
    return float(np.sqrt((values**2).sum(skipna=False)))


def _iqr(timed: Timed) -> float:
    if not timed.seconds:
        return np.nan
    low, high = np.percentile(timed.seconds, [25, 75])
    return float(high - low)


def _plain(value: Any) -> Any:
    """A value as JSON has it, numbers with four digits."""
    if isinstance(value, str | bool | np.bool_):
        return value if isinstance(value, str) else bool(value)
    return float(f"{value:.4g}") if np.isfinite(value) else None
