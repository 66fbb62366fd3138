"""The steps of a search for a policy: each block alone, what is proposed, and what that does as a whole.

1. Each block alone is computed in each precision: what that does to the results, and how much it saves.
2. :mod:`precision_probe.search.proposals` makes policies of these numbers.
3. They are measured as they are: errors first, then times side by side.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from precision_probe.diagnostics.sensitivity import sensitivities
from precision_probe.exceptions import InputError
from precision_probe.models.blocks import default_blocks
from precision_probe.models.graphs import Graph
from precision_probe.policy import SUMMED, Policy, Rule
from precision_probe.precisions import PRECISIONS
from precision_probe.search import proposals
from precision_probe.search.convex_hull import Option
from precision_probe.search.margin import Margin, learnt_margin
from precision_probe.search.measuring import CAST, Candidates
from precision_probe.search.paired_times import ratio_of
from precision_probe.search.timing import Timed
from precision_probe.variants.assembly import GENERATED

__all__ = ["COSTS", "JUDGED", "Search"]

COSTS = {"time": "seconds", "memory": "peak_gib"}  # by objective
JUDGED = ("energy", "forces", "stress")
_SAVES = {"time": "saves", "memory": "saves_gib"}
# Tolerances from which raising parts may still lead back: it lowered errors of forces up to 2.5 times and of energies
# up to 13 times (15 cases: demo and 3BPA model, half precisions). A choice, with room above that for models not seen.
_CLOSE = 20.0
# In 12 of those 15 cases the least error came with one to three parts raised. How many proposals are refined is a
# choice: each costs a run for every part of its low blocks, about twenty in these models.
_N_RAISED, _N_REFINED = 3, 2
# Of timing what is chosen from; a choice. The interval of a median of 11 ratios, the second to the tenth, has 98.8 %.
_ROUNDS = 11


class Search:
    """The steps of a search, on the structures searched on.

    Args:
        candidates: What measures policies.
        tolerance: As :func:`precision_probe.recommend` takes it.
        objective: Likewise.

    Attributes:
        judged: The quantities of the tolerance that the structures have.

    Raises:
        InputError: If memory is asked for and there is no GPU, or the structures have nothing of the tolerance.
    """

    def __init__(self, candidates: Candidates, tolerance: Mapping[str, float], objective: str = "time") -> None:
        self.candidates, self.objective = candidates, objective
        self.tolerance = {name: float(limit) for name, limit in tolerance.items()}
        self.reference = reference = candidates.reference
        blocks = (block.name for block in default_blocks(reference.model))
        self.names = [name for name in blocks if name not in SUMMED]  # float64 under every policy
        if objective == "memory" and reference.device.type != "cuda":
            raise InputError("Memory is measured on CUDA only. Use --device cuda, or --objective time.")
        stresses = any(graph.periodic.all() for graph in reference.graphs)
        self.judged = [name for name in tolerance if name != "stress" or stresses]
        if not self.judged:
            raise InputError(
                "The only tolerance is of stress, but no structure searched on is periodic in all directions, so that "
                "nothing would be judged. Give a tolerance of forces or energy, or other structures."
            )

    def alone(self, precisions: Sequence[str], *, progress: bool) -> pd.DataFrame:
        """Each block alone in each precision."""
        policies = {(block, name): Policy((Rule(block, name),)) for block in self.names for name in precisions}
        errors = self.candidates.errors_of(policies, "blocks one at a time", progress=progress)
        named = {"|".join(key): each for key, each in policies.items()} | {"|": Policy(())}
        timed = self.candidates.timed(named, stress="stress" in self.judged)
        expected = sensitivities(self.reference, n_probes=1).groupby("block")["forces_expected"].apply(_root_of_squares)
        rows = [
            {
                "block": block,
                "precision": name,
                **{quantity: _largest(table[quantity]) for quantity in JUDGED},
                "share": self._share(table),
                **_saves(timed["|"], timed[f"{block}|{name}"]),
                "predicted": expected.get(block, np.nan) * PRECISIONS[name].unit_roundoff,
            }
            for (block, name), table in errors.items()
        ]
        return pd.DataFrame(rows)

    def proposals(self, blocks: pd.DataFrame, precisions: Sequence[str]) -> dict[str, Policy]:
        """What is worth measuring as a whole, by name.

        Args:
            blocks: From :meth:`alone`.
            precisions: Those to choose from.
        """
        uniform = proposals.uniform(self.names, precisions)
        return uniform | proposals.combined(self._options(blocks), uniform.values())

    def margin(self, policies: Mapping[str, Policy], *, progress: bool) -> Margin:
        """Which part of the tolerance policies may use here, learnt from how the errors of these differ."""
        errors = self.candidates.errors_of(policies, "proposals", progress=progress)
        return learnt_margin(self.shares(errors[name]).max(axis=1) for name in errors if policies[name].rules)

    def refined(self, policies: Mapping[str, Policy], margin: float, *, progress: bool) -> dict[str, Policy]:
        """Of policies that use more than a part of the tolerance, but not too much, others with costly parts raised."""
        shares = {name: self._share(self.candidates.errors(policy)) for name, policy in policies.items()}
        close = sorted((share, name) for name, share in shares.items() if margin < share <= _CLOSE)
        refined: dict[str, Policy] = {}
        for share, name in close[:_N_REFINED]:
            policy = policies[name]
            parts = [part for block in self.names if proposals.is_low(policy, block) for part in self._parts(block)]
            others = {part: proposals.raised(policy, [part]) for part in parts}
            errors = self.candidates.errors_of(others, name, progress=progress)
            raised = {part: self._share(table) for part, table in errors.items()}
            best = [part for part in sorted(parts, key=lambda part: raised[part]) if raised[part] < share]
            for n in range(1, min(_N_RAISED, len(best)) + 1):
                refined[f"{name}, {n} raised"] = proposals.raised(policy, best[:n])
        return refined

    def measured(self, policies: Mapping[str, Policy], precisions: Sequence[str], *, progress: bool) -> pd.DataFrame:
        """Proposals as they are, beside the model cast as a whole and rivals: errors, then times side by side."""
        errors = self.candidates.errors_of(policies, "proposals", progress=progress)
        casts = tuple(dict.fromkeys(("float64", "float32", *precisions)))
        casts = tuple(name for name in casts if not PRECISIONS[name].products_only)
        for name in casts:
            errors[CAST.format(name)] = self.candidates.cast_errors(name)
        errors |= {name: self.candidates.rival_errors(name) for name in self.candidates.rivals}
        timed = self.candidates.timed(policies, casts, stress="stress" in self.judged, rounds=_ROUNDS)
        rows = {name: self._row(errors[name], timed[name]) for name in errors}
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("candidate")
        counted = {name: self.candidates.operations(policy) for name, policy in policies.items()}
        table["float64_share"] = pd.Series({name: each.share for name, each in counted.items()}).reindex(table.index)
        table.insert(0, "rules", [_text(policies[name]) if name in policies else "" for name in table.index])
        for other in ("float64", "float32"):
            cast = timed[CAST.format(other)].seconds
            ratios = [ratio_of(cast, timed[name].seconds) for name in table.index]
            table[f"vs_{other}"] = [ratio.median for ratio in ratios]
            table[f"vs_{other}_low"] = [ratio.low for ratio in ratios]
            table[f"vs_{other}_high"] = [ratio.high for ratio in ratios]
        table["memory_vs_float32"] = table["peak_gib"] / _gib(timed[CAST.format("float32")])
        table["held_out"] = table["held_out_at_least"] = np.nan
        cost = COSTS[self.objective]
        return table.sort_values(cost, kind="stable").assign(pareto=lambda ordered: _pareto(ordered, cost))

    def shares(self, errors: pd.DataFrame, graphs: Sequence[Graph] | None = None) -> NDArray[np.float64]:
        """Errors in tolerances, (structures, quantities); of the structures searched on, or of others.

        All are infinite where energy or forces are not finite, even if they have no tolerance; those of the stress are
        zero for structures that have none.
        """
        has_stress = np.asarray([bool(graph.periodic.all()) for graph in graphs or self.reference.graphs])
        is_broken = ~np.isfinite(errors[["energy", "forces"]]).all(axis=1)
        in_tolerances = []
        for name in self.judged:
            judged = errors[name].fillna(np.inf).where(has_stress | (name != "stress"), 0.0).to_numpy()
            in_tolerances.append(np.where(is_broken, np.inf, judged) / self.tolerance[name])
        return np.stack(in_tolerances, axis=1)

    def _parts(self, block: str) -> list[str]:
        """The modules of a block that can have a precision of their own."""
        module = self.reference.model.get_submodule(block)
        called = (name for name, part in module.named_children() if not isinstance(part, GENERATED))
        return [f"{block}.{name}" for name in called]

    def _share(self, errors: pd.DataFrame) -> float:
        """The largest of the errors of structures searched on, in tolerances."""
        return float(np.max(self.shares(errors)))

    def _options(self, blocks: pd.DataFrame) -> dict[str, dict[str, Option]]:
        """For each block, what each precision alone costs of the objective, and its error in each structure."""
        n = len(self.reference.graphs) * len(self.judged)
        options: dict[str, dict[str, Option]] = {}
        for row in blocks.to_dict("records"):
            choices = options.setdefault(row["block"], {proposals.DO_NOTHING: Option(0.0, np.zeros(n))})
            table = self.candidates.errors(Policy((Rule(row["block"], row["precision"]),)))
            choices[row["precision"]] = Option(-row[_SAVES[self.objective]], self.shares(table).flatten())
        return options

    def _row(self, errors: pd.DataFrame, timed: Timed) -> dict[str, float | tuple[float, ...]]:
        """A candidate's largest errors, and what it costs, as the table of candidates has them."""
        norm = _root_of_squares(errors["forces_norm"])
        rel_l2 = _root_of_squares(errors["forces_l2"]) / norm if norm else np.nan
        return {
            **{quantity: _largest(errors[quantity]) for quantity in JUDGED},
            "forces_rel_l2": rel_l2,
            "share": self._share(errors),
            "seconds": timed.median,
            "rounds": timed.seconds,
            "peak_gib": _gib(timed),
        }


def _saves(whole: Timed, part: Timed) -> dict[str, float]:
    """What one block alone saves; nothing if that is not resolved, or not known as memory did not suffice."""
    ratio = ratio_of(part.seconds, whole.seconds)
    return {
        "saves": whole.median * (1 - ratio.median) if ratio.resolved else 0.0,
        "saves_gib": _gib(whole) - _gib(part) if whole.seconds and part.seconds else 0.0,
    }


def _pareto(table: pd.DataFrame, cost: str) -> list[bool]:
    """Whether nothing costs as little and is more accurate, or is as accurate and costs less."""
    costs, errors = table[cost].fillna(np.inf).to_numpy(), table["share"].fillna(np.inf).to_numpy()
    return [
        not bool(np.any((costs <= c) & (errors <= e) & ((costs < c) | (errors < e))))
        for c, e in zip(costs, errors, strict=True)
    ]


def _text(policy: Policy) -> str:
    return ", ".join(f"{rule.blocks} {rule.compute}" for rule in policy.rules) or "no rules"


def _largest(values: "pd.Series[float]") -> float:
    """The largest; what is NaN stays so, unless only some have such an error, as stress."""
    return float(values.max() if values.name == "stress" else values.max(skipna=False))


def _root_of_squares(values: "pd.Series[float]") -> float:
    return float(np.sqrt((values**2).sum(skipna=False)))


def _gib(timed: Timed) -> float:
    return np.nan if timed.peak_bytes is None else timed.peak_bytes / 2**30
