"""Find the fastest assignment of precisions to blocks within a tolerance, and test it on structures held out.

:mod:`precision_probe.search.search` measures policies on some structures; here the choice among them is made. Of the
fastest within the tolerance the file that users get is run on structures held out; if it fails there, the next one's.
"""

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ase
import numpy as np
import pandas as pd
import scipy.stats
import torch

from precision_probe.analysis.errors import TOLERANCE_UNITS
from precision_probe.diagnostics.reference import Reference
from precision_probe.exceptions import InputError
from precision_probe.fast.drivers import RUNS
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.backends import backend as backend_of
from precision_probe.models.graphs import build_graph
from precision_probe.models.loading import ModelSource, load_model
from precision_probe.models.provenance import provenance
from precision_probe.notebook import as_html
from precision_probe.policy import Policy
from precision_probe.precisions import PRECISIONS, PrecisionSource, parse_precisions
from precision_probe.search import notes
from precision_probe.search.choice import as_cheap, from_the_best, within
from precision_probe.search.held_out import CONFIDENCE, Outcome, count_kinds, split
from precision_probe.search.margin import Margin
from precision_probe.search.measuring import CAST, Candidates, Elsewhere
from precision_probe.search.running.backends import Chosen, chosen
from precision_probe.search.running.delivered import errors_of_file, errors_of_launched
from precision_probe.search.running.rivals import rivals
from precision_probe.search.search import JUDGED, Search
from precision_probe.structures import StructureSource, read_structures
from precision_probe.variants.devices import check_device, check_precisions, default_precisions
from precision_probe.variants.mixed import check_interface

__all__ = ["Recommendation", "answer", "recommend"]

# Of the structures held out, how many must be within the tolerance: a choice. Three of 64 may exceed it, so that no
# single odd structure decides; who needs every structure within the tolerance asks for a smaller one.
_HOLDS = 0.95
# Structures at most, a choice: every block in every precision is run on those searched on, dozens of runs for each; on
# those held out only what is tested, one run for each.
_N_SEARCHED, _N_HELD_OUT = 8, 64


@dataclass(frozen=True)
class Recommendation:
    """What a search found.

    Attributes:
        policy: The fastest that kept the tolerance as users get it, with its evidence; without rules if that is to do
            nothing.
        candidates: All that was measured as a whole, a row for each by name, the fastest first: ``rules``, the largest
            errors (``energy`` eV/atom, ``forces`` eV/Å, ``stress`` eV/Å³) and ``forces_rel_l2``, ``share`` (the
            largest error in tolerances), ``seconds`` (median of the largest structure) and ``rounds`` (all of them:
            those of a round are comparable), ``vs_float64`` and ``vs_float32`` (how many times faster than the model
            cast as a whole: the median of ratios within rounds, and with ``_low`` and ``_high`` its confidence
            interval), ``float64_share`` (of the operations of energy and forces of the smallest structure, the part in
            float64; NaN of casts; what cuEquivariance's kernels compute is not in it), ``peak_gib`` and
            ``memory_vs_float32``, ``pareto`` (nothing measured is both faster, or smaller, and more accurate),
            ``held_out`` (of the structures held out, the share on which what users get kept the tolerance; NaN where
            that was not tried) and ``held_out_at_least`` (the share of structures drawn like these
            that it keeps it on at least, with a confidence of 95 %, counting all that were tried).
        blocks: One row for each block and precision, alone: ``energy``, ``forces``, ``stress``, ``share``, ``saves``
            (seconds), ``saves_gib`` (NaN on a CPU), and ``predicted``, the force error that adjoints predict.
        notes: What a reader should know.
    """

    policy: Policy
    candidates: pd.DataFrame
    blocks: pd.DataFrame
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<Recommendation of {len(self.candidates)} candidates: {self._chosen}, {self.policy!r}>"

    def _repr_html_(self) -> str:
        row = self.candidates.loc[self._chosen]
        about = {
            "chosen": self._chosen,
            "largest error of forces": f"{row['forces']:.2g} eV/Å",
            "largest error of the energy": f"{1e3 * row['energy']:.2g} meV/atom",
            "× the speed of the model cast to float32": f"{row['vs_float32']:.3g}",
        }
        notes = {f"note {number}": note for number, note in enumerate(self.notes, 1)}
        return as_html("Recommendation", about | notes) + self.policy._repr_html_()

    @property
    def _chosen(self) -> str:
        return str(self.policy.evidence["chosen"])


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
    interface: str = "float64",
    run: str | None = None,
    backend: str = "auto",
    seed: int = 0,
    log: str | Path | None = None,
    force: bool = False,
    elsewhere: Callable[[Reference, Sequence[ase.Atoms]], Elsewhere] | None = None,
    progress: bool = True,
) -> Recommendation:
    """Search the fastest assignment of precisions to blocks, within a tolerance.

    Of policies as fast (not told apart from the fastest, or by less than 1 %) one that needs no more memory than 5 %
    over the least is taken, and of these the most accurate. With the objective memory, time and memory change places.

    What is tested is what users get. Of what is called as it is, that is the file that ``apply`` writes, loaded by
    mace-torch's ``MACECalculator`` with its defaults; of what is launched as a graph, the calculator that
    :meth:`precision_probe.Policy.calculator` makes.

    Args:
        model: As :func:`precision_probe.attach` takes it; it must predict energies and forces.
        structures: As ``probe.run()`` takes them. Up to 8 are searched on, up to 64 others held out, both chosen at
            random but spread over all kinds of structures and the frames of each. Times are of energy and forces (and
            stress, if that has a tolerance) of the largest of those searched on, so let it be of the size that you will
            run.
        tolerance: The largest errors allowed, of ``energy`` (eV/atom), ``forces`` (eV/Å: of any component), ``stress``
            (eV/Å³).
        allow: Precisions to choose from beside float64; by default float32, bfloat16 and float16, and tf32 on CUDA.
        objective: ``time`` or ``memory`` (CUDA only).
        granularity: ``block``, or ``module``: proposals that are faster but break the tolerance are tried again with
            some of their blocks' parts in a higher precision.
        head: Which head of a multi-head model.
        device: Where to run; by default a GPU if there is one.
        interface: What the model under the policy takes and gives: ``float64``, or ``float32`` for callers that cannot
            give it more. Then the structures are rounded, as such callers do, wherever a policy is measured.
        run: How the model will be run, and so is timed: ``graph``, launched as one CUDA graph, as
            :meth:`precision_probe.Policy.calculator` does; or ``eager``, called as it is. By default a graph on a GPU,
            unless the interface is float32. Beside graphs, ``MACECalculator`` is timed with the model in float64 and
            float32, and in float32 with ``enable_cueq`` where its kernels are installed.
        backend: Of what is launched: ``e3nn``, ``cuEquivariance``, or ``auto`` for the faster of the two where the
            latter's kernels are installed. What is called as it is, and what is converted already, stays as it is.
        seed: Of the choice of structures.
        log: A file of errors as they are measured, from which an interrupted search goes on.
        force: Begin a log anew that is of something else.
        elsewhere: What measures errors in other processes, made of the model in float64 and the structures searched on;
            :func:`precision_probe.parallel.recommend.recommend` has workers do it. Times are measured in this one.
        progress: Say on stderr how far it is: a bar in a terminal, else lines.

    Raises:
        InputError: If the model, a structure, a precision, the tolerance, the interface or the device cannot be used,
            the model predicts NaN or infinity in float64, the tolerance is of nothing that the structures have, or the
            log is of another model, other structures, another interface or device and there is no ``force``.
    """
    _check(tolerance, objective, granularity)
    check_interface(interface)
    searched, held_out = split(read_structures(structures), seed, _N_SEARCHED, _N_HELD_OUT)
    given, _ = load_model(model)
    place = check_device(device)
    run = _checked_run(run, backend, place, interface)
    by = Chosen(given)
    if run == "graph":
        by = chosen(given, build_graph(max(searched, key=len), given, head).to(place), backend)
    reference = Reference(by.model, searched, head=head, device=place)
    precisions = _allowed(allow, reference)
    held = reference.on(held_out, head=head) if held_out else None
    for each in (reference, *([] if held is None else [held])):
        _check_finite(each)
    others, absent = rivals(given, reference) if run == "graph" else ({}, [])
    candidates = Candidates(
        reference,
        None if log is None else Path(log),
        interface,
        force=force,
        elsewhere=None if elsewhere is None else elsewhere(reference, searched),
        run=run,
        rivals=others,
    )
    search = Search(candidates, tolerance, objective)
    blocks = search.alone(precisions, progress=progress)
    answered = answer(search, blocks, precisions, held, granularity=granularity, progress=progress)
    policy = replace(answered.policy, model=_about(given))  # rules are of either library's blocks
    return replace(answered, policy=policy, notes=(*answered.notes, *absent, *([by.why] if by.why else [])))


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
    margin = search.margin(policies, progress=progress)
    if granularity == "module":
        policies |= search.refined(policies, margin.value, progress=progress)
    table = search.measured(policies, precisions, progress=progress)
    tried = _tested(search, table, policies, margin, held)
    name = list(tried)[-1]
    if held is not None:
        for column, values in (("held_out", "share"), ("held_out_at_least", "at_least")):
            bounds = {each: getattr(tested, values) for each, tested in tried.items()}
            table[column] = pd.Series(bounds, dtype=float).reindex(table.index)
    rank = _rank_correlation(blocks)
    place = held or search.reference
    said = [
        *notes.of_test(
            notes.WHAT_IS_TESTED[search.candidates.run],
            tried,
            count_kinds(graph.atomic_numbers for graph in place.graphs),
            held is not None,
        ),
        *notes.of_rivals(name, table, list(search.candidates.rivals)),
        *notes.of_float64(name, table, backend_of(search.reference.model)),
        *notes.of_choice(
            name,
            table,
            as_cheap(table, within(table, policies, margin.value), tried, search.objective),
            search.objective,
        ),
        str(margin),
        notes.of_runs(search.candidates.n_runs, rank),
    ]
    if set(search.judged) != set(search.tolerance):
        said.append("The tolerance of stress was not judged: no structure is periodic in all directions.")
    evidence = _evidence(search, name, table, margin, tried, held) | {"adjoint_rank_correlation": _plain(rank)}
    policy = Policy(policies[name].rules, search.tolerance, evidence, _about(search.reference.model))
    return Recommendation(policy, table, blocks, tuple(said))


def _about(model: torch.nn.Module) -> dict[str, str]:
    """What a policy says of the model that it is for."""
    return {"class": type(model).__name__, "sha256": weights_sha256(model)}


def _tested(
    search: Search, table: pd.DataFrame, policies: Mapping[str, Policy], margin: Margin, held: Reference | None
) -> dict[str, Outcome]:
    """What was tried, from the best, up to the first that keeps the tolerance as users get it; or to do nothing."""
    place = held or search.reference
    delivered = errors_of_launched if search.candidates.run == "graph" else errors_of_file
    tried: dict[str, Outcome] = {}
    for name in from_the_best(table, within(table, policies, margin.value), search.objective):
        errors = delivered(search.candidates.model(policies[name]), place)
        largest = search.shares(errors, place.graphs).max(axis=1)
        tried[name] = Outcome(int((largest <= 1).sum()), len(largest), len(tried) + 1, float(largest.max()))
        if tried[name].share >= _HOLDS:
            break
    return tried


def _evidence(
    search: Search,
    name: str,
    table: pd.DataFrame,
    margin: Margin,
    tried: Mapping[str, Outcome],
    held: Reference | None,
) -> dict[str, object]:
    """What the policy's file keeps of the search."""
    is_usual = table.index.str.startswith(CAST.partition("{")[0]) | table.index.isin(list(search.candidates.rivals))
    kept = table[table["pareto"] | (table.index == name) | is_usual]
    reference = search.reference
    tested = tried[name]
    return {
        "objective": search.objective,
        "interface": search.candidates.interface,
        "run": search.candidates.run,
        "backend": backend_of(reference.model),
        "device": provenance(reference.model, reference.device)["device"],
        "searched": [graph.names[0] for graph in reference.graphs],
        "margin": _plain(margin.value),
        "held_out": 0 if held is None else len(held.graphs),
        "tested": {
            "what": notes.WHAT_IS_TESTED[search.candidates.run],
            "on": "structures searched on" if held is None else "structures held out",
            "within": tested.within,
            "structures": tested.n_structures,
            "kinds": count_kinds(graph.atomic_numbers for graph in (held or reference).graphs),
            "at_least": None if held is None else _plain(tested.at_least),
            "confidence": CONFIDENCE,
            "policies_tried": tested.attempt,
            "largest_error_in_tolerances": _plain(tested.largest),
        },
        "runs": search.candidates.n_runs,
        "chosen": name,
        "candidates": {
            str(index): {key: _plain(value) for key, value in line.items() if not pd.isna(value)}
            for index, line in kept.drop(columns="rounds").iterrows()
        },
    }


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


def _checked_run(run: str | None, backend: str, device: torch.device, interface: str) -> str:
    """How models are timed.

    Raises:
        InputError: If there is no such way, or not there.
    """
    if run != "graph" and backend not in ("auto", "e3nn"):
        raise InputError(
            f"The backend {backend!r} is chosen for what is launched: take run='graph', or a converted model."
        )
    can_launch = device.type == "cuda" and interface == "float64"
    if run is None:
        return "graph" if can_launch else "eager"
    if run not in RUNS:
        raise InputError(f"A model is run as one of {', '.join(RUNS)}; got {run!r}.")
    if run == "graph" and not can_launch:
        raise InputError(
            f"A CUDA graph needs a GPU and the interface float64; got {device} and {interface}. Take eager."
        )
    return run


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
