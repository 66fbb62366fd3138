"""What explains a model's errors, found out by running it: tables that a trace keeps."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ase
import numpy as np
import pandas as pd

from precision_probe.backends import check_backend
from precision_probe.bit_sweep import SWEEP_TITLE, sweep_of
from precision_probe.blocks import default_blocks
from precision_probe.budget import budget
from precision_probe.digits import significant_digits
from precision_probe.dynamics import energy_drift
from precision_probe.exceptions import InputError
from precision_probe.noise import noise_floor
from precision_probe.nonfinite import failures_of
from precision_probe.precisions import PRECISIONS, Precision, parse_precisions
from precision_probe.prediction import predicted_errors, sensitivities
from precision_probe.progress import shown
from precision_probe.smoothness import along_displacement, finite_differences
from precision_probe.stored_tables import StoredTable
from precision_probe.structures import read_structures
from precision_probe.symmetry import equivariance
from precision_probe.trials import ERROR_UNITS, Trials
from precision_probe.variants import Variant, check_device

__all__ = ["explain", "explained"]


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
        By name, for :meth:`precision_probe.trace.Trace.with_tables`. What the columns mean is said by the functions
        that make them: ``range`` (:mod:`precision_probe.nonfinite`), ``noise``, ``budget``, ``sweep``, ``prediction``,
        ``equivariance`` (:mod:`precision_probe.symmetry`), ``finite_differences`` and ``displacement``
        (:mod:`precision_probe.smoothness`), ``digits``, ``drift`` (:mod:`precision_probe.dynamics`). Without a reduced
        precision there are no ``range``, ``budget`` and ``prediction``; there is no ``budget`` of tf32 either.

    Raises:
        InputError: If the model, a structure, a precision or the device cannot be used.
    """
    return dict(
        explained(
            model,
            structures,
            precisions,
            n_structures=n_structures,
            steps=steps,
            head=head,
            device=device,
            progress=progress,
        )
    )


def explained(
    model: Any,
    structures: Any,
    precisions: Any,
    *,
    n_structures: int,
    steps: int,
    head: str | None,
    device: str | None,
    progress: bool,
) -> Iterator[tuple[str, StoredTable]]:
    """The tables of :func:`explain`, one by one, so that an interruption loses none that is made."""
    if steps < 0:
        raise InputError(f"The number of steps of dynamics must not be below zero; got {steps}.")
    if n_structures < 1:
        raise InputError(f"At least one structure must be used; got n_structures={n_structures}.")
    asked = parse_precisions(precisions)
    atoms = read_structures(structures)
    chosen = np.unique(np.linspace(0, len(atoms) - 1, min(n_structures, len(atoms))).astype(int))
    trials = Trials(model, [atoms[index] for index in chosen], head=head, device=device)
    check_device(trials.device, asked)
    check_backend(trials.model, asked, trials.device)
    variants = [trials.reference, *(Variant(trials.model, precision, trials.device) for precision in asked)]
    questions = _questions(trials, variants)
    if steps:
        questions.append(_drift(trials, max((atoms[index] for index in chosen), key=len), asked, steps))
    for each in shown(questions, "explaining", progress=progress):
        yield each.name, StoredTable(each.make(), each.title, each.units)


@dataclass(frozen=True)
class _Question:
    """One table to be made."""

    name: str
    title: str
    make: Callable[[], pd.DataFrame]
    units: dict[str, str] = field(default_factory=dict)


def _questions(trials: Trials, variants: list[Variant]) -> list[_Question]:
    largest = max(trials.graphs, key=lambda graph: graph.n_atoms)
    blocks = default_blocks(trials.model)
    reduced = [variant.precision for variant in variants[1:]]
    emulated = [precision for precision in reduced if precision.name != "tf32"]
    questions = [
        _Question(
            "range",
            "Where numbers first leave the range of a precision",
            lambda: failures_of(trials, variants[1:]),
        ),
        _Question(
            "noise",
            "How far runs of the same are apart: errors below are not resolved",
            lambda: noise_floor(variants, largest, blocks),
        ),
        _Question(
            "budget",
            "What the errors come from: one source of rounding at a time",
            lambda: _for_each(emulated, lambda precision: budget(trials, precision)),
            ERROR_UNITS,
        ),
        _Question(
            "sweep",
            SWEEP_TITLE,
            lambda: sweep_of(trials),
            ERROR_UNITS,
        ),
        _Question(
            "prediction",
            "Errors predicted to first order from adjoints of one float64 run, beside those measured",
            lambda: _predictions(trials, variants[1:]),
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
            lambda: significant_digits(trials, [PRECISIONS["float64"], *emulated]),
            {"spread": "eV/atom; forces eV/Å"},
        ),
    ]
    empty = {"range", "budget", "prediction"} if not reduced else {"budget"} if not emulated else set()
    return [question for question in questions if question.name not in empty]


def _drift(trials: Trials, atoms: ase.Atoms, precisions: Sequence[Precision], steps: int) -> _Question:
    return _Question(
        "drift",
        f"Drift of the total energy at constant energy, four runs of {steps} steps of 0.5 fs",
        lambda: energy_drift(trials.model, atoms, precisions, steps=steps, device=str(trials.device)).reset_index(),
        {"drift": "meV/atom/ps", "confidence": "meV/atom/ps", "fluctuation": "meV/atom"},
    )


def _for_each(precisions: Iterable[Precision], table: Callable[[Precision], pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([table(p).assign(precision=p.name) for p in precisions], ignore_index=True)


def _predictions(trials: Trials, variants: Iterable[Variant]) -> pd.DataFrame:
    """Predicted and measured, precision by precision; tf32 is predicted as if it rounded everything."""
    table = sensitivities(trials)
    rows = []
    for variant in variants:
        measured = trials.errors(variant.predict)
        energy = measured.get("interaction_energy", measured["energy"])
        predicted = predicted_errors(table, variant.precision).to_dict()
        rows.append(
            {"precision": variant.precision.name, **predicted, "energy": energy, "forces": measured["forces_rms"]}
        )
    return pd.DataFrame(rows)
