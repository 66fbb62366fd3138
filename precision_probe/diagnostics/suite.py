"""What explains a model's errors, found out by running it: tables that a trace keeps."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ase
import numpy as np
import pandas as pd

from precision_probe.diagnostics.bit_sweep import SWEEP_TITLE, sweep_of
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
from precision_probe.precisions import PRECISIONS, Precision, parse_precisions
from precision_probe.progress import shown
from precision_probe.structures import read_structures
from precision_probe.trace.tables import StoredTable
from precision_probe.variants.devices import check_precisions
from precision_probe.variants.variant import Variant

__all__ = ["evenly_spread", "explain", "explained"]


def explain(
    model: Any,
    structures: Any,
    precisions: str | Precision | Iterable[str | Precision],
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
        precisions: Which.
        n_structures: How many of the structures are used, evenly spread over them: each is run some hundred times.
        steps: Of dynamics at constant energy, four runs of the largest structure in each precision; none by default.
        head: Which head of a multi-head model.
        device: Where to run; by default a GPU if there is one.
        progress: Show a progress bar, where there is a terminal.

    Returns:
        By name, for :meth:`precision_probe.trace.trace.Trace.with_tables`. What the columns mean is said by the modules
        of this package that make them: ``range`` (``range_failures``), ``noise`` (``repeatability``), ``budget``
        (``error_budget``), ``sweep`` (``bit_sweep``), ``prediction`` (``sensitivity``), ``equivariance``,
        ``finite_differences`` and ``displacement`` (``finite_differences``), ``digits`` (``significant_digits``),
        ``drift`` (``dynamics``). Without a reduced precision there are no ``range``, ``budget`` and ``prediction``;
        there is no ``budget`` of tf32 either.

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
    """So many of the structures, the first and the last among them.

    Raises:
        InputError: If none is asked for.
    """
    if n_structures < 1:
        raise InputError(f"At least one structure must be used; got n_structures={n_structures}.")
    indices = np.linspace(0, len(structures) - 1, min(n_structures, len(structures)))
    return [structures[index] for index in np.unique(indices.astype(int))]


def explained(
    reference: Reference,
    variants: Sequence[Variant],
    structures: Sequence[ase.Atoms],
    *,
    steps: int = 0,
    progress: bool = False,
) -> Iterator[tuple[str, StoredTable]]:
    """The tables of :func:`explain`, one by one, so that an interruption loses none that is made.

    Args:
        reference: The model and the structures.
        variants: The model in each reduced precision.
        structures: The same structures, for dynamics.
        steps: As :func:`explain` takes them.
        progress: Likewise.

    Raises:
        InputError: If the number of steps is below zero.
    """
    if steps < 0:
        raise InputError(f"The number of steps of dynamics must not be below zero; got {steps}.")
    questions = _questions(reference, [reference.variant, *variants])
    if steps:
        questions.append(_drift(reference, max(structures, key=len), [each.precision for each in variants], steps))
    for each in shown(questions, "explaining", progress=progress):
        yield each.name, StoredTable(each.make(), each.title, each.units)


@dataclass(frozen=True)
class _Question:
    """One table to be made."""

    name: str
    title: str
    make: Callable[[], pd.DataFrame]
    units: dict[str, str] = field(default_factory=dict)


def _questions(reference: Reference, variants: list[Variant]) -> list[_Question]:
    largest = max(reference.graphs, key=lambda graph: graph.n_atoms)
    blocks = default_blocks(reference.model)
    reduced = [variant.precision for variant in variants[1:]]
    emulated = [precision for precision in reduced if not precision.products_only]
    questions = [
        _Question(
            "range",
            "Where numbers first leave the range of a precision",
            lambda: failures_of(reference, variants[1:]),
        ),
        _Question(
            "noise",
            "How far runs of the same are apart: errors below are not resolved",
            lambda: noise_floor(variants, largest, blocks),
        ),
        _Question(
            "budget",
            "What the errors come from: one source of rounding at a time",
            lambda: _for_each(emulated, lambda precision: budget(reference, precision)),
            ERROR_UNITS,
        ),
        _Question(
            "sweep",
            SWEEP_TITLE,
            lambda: sweep_of(reference),
            ERROR_UNITS,
        ),
        _Question(
            "prediction",
            "Errors predicted to first order from adjoints of one float64 run, beside those measured",
            lambda: _predictions(reference, variants[1:]),
            {"energy_bound": "eV/atom", "energy_expected": "eV/atom", "energy": "eV/atom"}
            | {"forces_expected": "eV/Å", "forces": "eV/Å"},
        ),
        _Question(
            "equivariance",
            "How far the results for a moved structure are from the moved results",
            lambda: equivariance(variants, largest, blocks),
        ),
        _Question(
            "finite_differences",
            "Whether forces are the gradient of the energy",
            lambda: finite_differences(variants, largest).reset_index(),
            {"difference": "eV/Å", "expected": "eV/Å", "step": "Å", "energy_noise": "eV"},
        ),
        _Question(
            "displacement",
            "Energy and force along a straight line",
            lambda: along_displacement(variants, largest),
            {"position": "Å", "energy": "meV/atom", "force": "meV/Å"},
        ),
        _Question(
            "digits",
            "Decimal digits that agree between runs rounded stochastically",
            lambda: significant_digits(reference, [PRECISIONS["float64"], *emulated]),
            {"spread": "eV/atom; forces eV/Å"},
        ),
    ]
    empty = {"range", "budget", "prediction"} if not reduced else {"budget"} if not emulated else set()
    return [question for question in questions if question.name not in empty]


def _drift(reference: Reference, atoms: ase.Atoms, precisions: Sequence[Precision], steps: int) -> _Question:
    return _Question(
        "drift",
        f"Drift of the total energy at constant energy, four runs of {steps} steps of 0.5 fs",
        lambda: energy_drift(
            reference.model, atoms, precisions, steps=steps, device=str(reference.device)
        ).reset_index(),
        {"drift": "meV/atom/ps", "confidence": "meV/atom/ps", "fluctuation": "meV/atom"},
    )


def _for_each(precisions: Iterable[Precision], table: Callable[[Precision], pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([table(p).assign(precision=p.name) for p in precisions], ignore_index=True)


def _predictions(reference: Reference, variants: Iterable[Variant]) -> pd.DataFrame:
    """ModelArray and measured, precision by precision; tf32 is predicted as if it rounded everything."""
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
