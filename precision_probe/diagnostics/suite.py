"""What explains a model's errors, found out by running it: tables that a trace keeps."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import ase
import numpy as np
import pandas as pd

from precision_probe.diagnostics.bit_sweep import SWEEP_TITLE, sweep_of
from precision_probe.diagnostics.contributions import UNITS, contributions
from precision_probe.diagnostics.dynamics import energy_drift
from precision_probe.diagnostics.equivariance import equivariance
from precision_probe.diagnostics.error_budget import budget
from precision_probe.diagnostics.finite_differences import along_displacement, finite_differences
from precision_probe.diagnostics.range_failures import failures_of
from precision_probe.diagnostics.reference import ERROR_UNITS, Reference
from precision_probe.diagnostics.repeatability import noise_floor
from precision_probe.diagnostics.sensitivity import predicted_errors, sensitivities
from precision_probe.diagnostics.significant_digits import significant_digits
from precision_probe.exceptions import InputError
from precision_probe.models.blocks import default_blocks
from precision_probe.models.graphs import Graph
from precision_probe.models.loading import ModelSource
from precision_probe.precisions import PRECISIONS, Precision, PrecisionSource, parse_precisions
from precision_probe.progress import shown
from precision_probe.structures import StructureSource, read_structures
from precision_probe.trace.tables import StoredTable
from precision_probe.variants.devices import check_precisions
from precision_probe.variants.variant import Variant

__all__ = ["evenly_spread", "explain", "explained"]

_LOG = logging.getLogger(__name__)


def explain(
    model: ModelSource,
    structures: StructureSource,
    precisions: PrecisionSource,
    *,
    n_structures: int = 3,
    steps: int = 0,
    head: str | None = None,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, StoredTable]:
    """Find out where the errors of energies and forces come from.

    Args:
        model: As :func:`precision_probe.attach` takes it; it must predict energies and forces.
        structures: As ``probe.run()`` takes them.
        precisions: As :func:`precision_probe.attach` takes them.
        n_structures: How many of the structures are used, evenly spread over them: each is run some hundred times.
        steps: Of dynamics at constant energy, four runs of the largest structure in each precision; none by default.
        head: Which head of a multi-head model.
        device: Where to run; by default a GPU if there is one.
        progress: Say on stderr how far it is: a bar in a terminal, else lines.

    Returns:
        By name, for ``Trace.with_tables``. What the columns mean is said by the modules
        of this package that make them: ``contributions``, ``range`` (``range_failures``), ``noise``
        (``repeatability``), ``budget`` (``error_budget``), ``sweep`` (``bit_sweep``), ``prediction``
        (``sensitivity``), ``equivariance``, ``finite_differences`` and ``displacement`` (``finite_differences``),
        ``digits`` (``significant_digits``), ``drift`` (``dynamics``). Without a reduced precision there are no
        ``contributions``, ``range``, ``budget`` and ``prediction``; there is no ``budget`` of tf32, and there are no
        ``contributions`` of emulated formats.

    Raises:
        InputError: If the model, a structure, a precision or the device cannot be used.
    """
    asked = parse_precisions(precisions)
    chosen = evenly_spread(read_structures(structures), n_structures)
    reference = Reference(model, chosen, head=head, device=device)
    check_precisions(asked, reference.device, reference.model)
    variants = [Variant(reference.model, precision, reference.device) for precision in asked]
    return dict(explained(reference, variants, chosen, steps=steps, progress=progress))


def evenly_spread(structures: Sequence[ase.Atoms], n_structures: int) -> list[ase.Atoms]:
    """So many of the structures, the first among them and, if it is not alone, the last; all where there are fewer.

    Raises:
        InputError: If none is asked for.
    """
    if n_structures < 1:
        raise InputError(f"At least one structure must be used; got n_structures={n_structures}.")
    indices = np.linspace(0, len(structures) - 1, min(n_structures, len(structures)))
    return [structures[index] for index in indices.astype(int)]  # they are at least one apart: none comes twice


def explained(
    reference: Reference,
    variants: Sequence[Variant],
    structures: Sequence[ase.Atoms],
    *,
    steps: int = 0,
    only: Collection[str] | None = None,
    progress: bool = False,
) -> Iterator[tuple[str, StoredTable]]:
    """The tables of :func:`explain`, one by one, so that an interruption loses none that is made.

    Args:
        reference: The model in float64 and what it predicts for the structures.
        variants: The model in each reduced precision.
        structures: The same structures as ``Atoms``: the largest is renumbered, and is where dynamics start.
        steps: As :func:`explain` takes them.
        only: Names of tables, where not all are wanted.
        progress: As :func:`explain` takes it.

    Raises:
        InputError: If the number of steps is below zero.
    """
    if steps < 0:
        raise InputError(f"The number of steps of dynamics must not be below zero; got {steps}.")
    questions = _questions(reference, [reference.variant, *variants], structures)
    if steps:
        questions.append(_drift(reference, max(structures, key=len), [each.precision for each in variants], steps))
    wanted = [question for question in questions if only is None or question.name in only]
    for question in shown(wanted, "explaining", progress=progress):
        start = time.monotonic()
        answer = question.answer()
        _LOG.info("%s took %.3g s", question.name, time.monotonic() - start)
        yield question.name, StoredTable(answer, question.title, question.units)


@dataclass(frozen=True)
class _Question:
    """One table to be made: what it is called, what it says in one line, how it is made, and its columns' units."""

    name: str
    title: str
    answer: Callable[[], pd.DataFrame]
    units: dict[str, str] = field(default_factory=dict)


def _questions(reference: Reference, variants: list[Variant], structures: Sequence[ase.Atoms]) -> list[_Question]:
    """Every question but that of dynamics; float64's variant comes first. None that would have an empty table."""
    reduced = variants[1:]
    emulated = [variant.precision for variant in reduced if not variant.precision.products_only]
    empty = {"range", "contributions", "budget", "prediction"} if not reduced else {"budget"} if not emulated else set()
    if all(variant.precision.emulated for variant in reduced):
        empty.add("contributions")
    symptoms = _on_symptoms(reference, variants, emulated, max(structures, key=len))
    questions = [*_on_errors(reference, variants, emulated), *symptoms]
    return [question for question in questions if question.name not in empty]


def _on_errors(reference: Reference, variants: list[Variant], emulated: Sequence[Precision]) -> Iterator[_Question]:
    """What makes the errors against float64, and how large they had to be."""
    reduced = variants[1:]
    yield _Question(
        "contributions",
        "What part of the model makes how much of the errors",
        lambda: contributions(reference, reduced),
        UNITS,
    )
    yield _Question(
        "range",
        "Where numbers first leave the range of a precision",
        lambda: failures_of(reference, reduced),
    )
    yield _Question(
        "noise",
        "How far runs of the same are apart: errors below are not resolved",
        lambda: noise_floor(variants, _largest(reference.graphs), default_blocks(reference.model)),
    )
    yield _Question(
        "budget",
        "What the errors come from: one source of rounding at a time",
        lambda: _for_each(emulated, lambda precision: budget(reference, precision)),
        ERROR_UNITS,
    )
    yield _Question("sweep", SWEEP_TITLE, lambda: sweep_of(reference), ERROR_UNITS)
    yield _Question(
        "prediction",
        "Errors predicted to first order from adjoints of one float64 run, beside those measured",
        lambda: _predictions(reference, reduced),
        {"energy_bound": "eV/atom", "energy_expected": "eV/atom", "energy": "eV/atom"}
        | {"forces_expected": "eV/Å", "forces": "eV/Å"},
    )


def _on_symptoms(
    reference: Reference, variants: list[Variant], emulated: Sequence[Precision], largest: ase.Atoms
) -> Iterator[_Question]:
    """What a precision breaks that holds for an exact model, and needs no exact result to be seen."""
    graph = _largest(reference.graphs)
    yield _Question(
        "equivariance",
        "How far the results for a moved structure are from the moved results, the mean over random motions",
        lambda: equivariance(variants, largest, graph, default_blocks(reference.model)),
    )
    yield _Question(
        "finite_differences",
        "Whether forces are the gradient of the energy",
        lambda: finite_differences(variants, graph).reset_index(),
        {"difference": "eV/Å", "expected": "eV/Å", "step": "Å", "energy_noise": "eV"},
    )
    yield _Question(
        "displacement",
        "Energy and force along a straight line",
        lambda: along_displacement(variants, graph),
        {"position": "Å", "energy": "meV/atom", "force": "meV/Å"},
    )
    yield _Question(
        "digits",
        "Decimal digits that agree between runs rounded stochastically",
        lambda: significant_digits(reference, [PRECISIONS["float64"], *emulated]),
        {"spread": "eV/atom; forces eV/Å"},
    )


def _largest(graphs: Sequence[Graph]) -> Graph:
    """The structure with the most atoms: what is asked of one structure only is asked of this."""
    return max(graphs, key=lambda graph: graph.n_atoms)


def _drift(reference: Reference, atoms: ase.Atoms, precisions: Sequence[Precision], steps: int) -> _Question:
    """The question of dynamics, which runs long and is asked on demand."""
    return _Question(
        "drift",
        f"Drift of the total energy at constant energy, four runs of {steps} steps of 0.5 fs",
        lambda: energy_drift(
            reference.model, atoms, precisions, steps=steps, device=str(reference.device)
        ).reset_index(),
        {"fluctuation": "meV/atom"}
        | dict.fromkeys(
            ("drift", "confidence", "difference", "difference_confidence", "detectable"),
            "meV/atom/ps",
        ),
    )


def _for_each(precisions: Iterable[Precision], table: Callable[[Precision], pd.DataFrame]) -> pd.DataFrame:
    tables = [table(precision).assign(precision=precision.name) for precision in precisions]
    return pd.concat(tables, ignore_index=True)


def _predictions(reference: Reference, variants: Iterable[Variant]) -> pd.DataFrame:
    """Errors predicted and measured, precision by precision; tf32 is predicted as if it rounded everything."""
    table = sensitivities(reference)
    rows = []
    for variant in variants:
        measured = reference.errors(variant.predict)
        energy = measured.get("interaction_energy", measured["energy"])
        predicted = predicted_errors(table, variant.precision).to_dict()
        rows.append(
            {"precision": variant.precision.name, **predicted, "energy": energy, "forces": measured["forces_rms"]}
        )
    return pd.DataFrame(rows)
