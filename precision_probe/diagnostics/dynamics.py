"""Molecular dynamics in a precision: how fast the total energy drifts."""

import warnings
from collections.abc import Mapping

import ase
import ase.units
import numpy as np
import pandas as pd
import scipy.optimize
import scipy.stats
from ase.calculators.calculator import CalculationFailed
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet
from numpy.typing import NDArray

from precision_probe.exceptions import InputError
from precision_probe.fast.calculator import GraphCalculator
from precision_probe.fast.capture import Room
from precision_probe.fast.launcher import Launcher
from precision_probe.models.loading import ModelSource, load_model
from precision_probe.policy import Policy
from precision_probe.precisions import PRECISIONS, PrecisionSource, parse_precisions
from precision_probe.structures import read_structures
from precision_probe.variants.devices import check_device, check_precisions
from precision_probe.variants.mixed import apply
from precision_probe.variants.variant import Variant

__all__ = ["drifts", "energy_drift"]

_MILLI = 1e3
# What is left out at the start of a run, a choice: velocities are drawn, but positions are not, so that at first energy
# goes from motion into bonds, and what Verlet's rule conserves is not quite the total energy. Within 25 fs that moves
# by 0.03 (benzene) or 0.6 meV/atom (ice VIII, demo model) and then stays; a tenth of 1000 steps is 50 fs.
_START_UP = 0.1
_Array = NDArray[np.float64]


def energy_drift(
    model: ModelSource,
    atoms: ase.Atoms,
    precisions: PrecisionSource,
    *,
    policies: Mapping[str, Policy] | None = None,
    steps: int = 1000,
    timestep: float = 0.5,
    temperature: float = 300.0,
    n_runs: int = 4,
    seed: int = 0,
    device: str = "cpu",
) -> pd.DataFrame:
    """Run dynamics at constant energy in float64 and in each precision, from the same velocities.

    Energies are interaction energies, where the model has them. On a GPU each model is launched as one CUDA graph, but
    for emulated formats.

    Args:
        model: As :func:`precision_probe.attach` takes it.
        atoms: Where each run starts.
        precisions: The precisions.
        policies: More to run, by any name.
        steps: Of each run.
        timestep: fs.
        temperature: Of the velocities drawn at the start, K.
        n_runs: Runs from other velocities; their spread gives the confidence interval.
        seed: Of the velocities.
        device: Where to run.

    Returns:
        Indexed by precision or the policy's name, float64 first: ``drift`` (meV/atom/ps: mean over runs of the slope of
        a straight line through the total energy), ``confidence`` (half the width of its 95 % interval, Student's t over
        runs) and ``fluctuation`` (meV/atom: root mean square about that line). The first tenth of each run is left out.

        Runs share their starts, so that drifts are compared run by run: ``difference`` is the mean of a precision's
        drift less float64's, ``difference_confidence`` half the width of its 95 % interval, and ``detectable`` the
        difference that so many runs with this scatter would show to be one, with that confidence, in 95 % of cases (all
        meV/atom/ps; NaN for float64). Where the interval of the difference has zero in it, no difference was seen, and
        none that is much smaller than ``detectable`` could have been.

        A precision in which the model predicts NaN or infinity on the way has NaN, and a warning says so.

    Raises:
        InputError: If the model, the structure, a precision or the device cannot be used, or float64 predicts NaN or
            infinity on the way.
    """
    module, _ = load_model(model)
    (start,) = read_structures(atoms)
    asked = [PRECISIONS["float64"], *parse_precisions(precisions)]
    where = check_device(device)
    check_precisions(asked, where, module)
    room = Room(where) if where.type == "cuda" else None  # in common, as one computes after another
    launchers = {str(each): _launcher(Variant(module, each, where), room) for each in asked}
    for name, policy in (policies or {}).items():
        launchers[name] = Launcher(apply(policy, module, str(where)), room=room)
    energies: dict[str, _Array] = {}
    for name, launcher in launchers.items():
        calculator = GraphCalculator(launcher, interaction=True)
        try:
            runs = [_run(calculator, start, steps, timestep, temperature, seed + n) for n in range(n_runs)]
            energies[name] = np.asarray(runs)
        except CalculationFailed as failed:
            if not energies:  # float64
                raise InputError(f"Dynamics cannot be run in {name}. {failed}") from failed
            said = f"precision_probe: Dynamics cannot be run in {name}, whose row is NaN. {failed}"
            warnings.warn(said, RuntimeWarning, stacklevel=2)
            energies[name] = np.full((n_runs, steps + 1), np.nan)
    return drifts(energies, timestep / 1000)


def drifts(energies: Mapping[str, _Array], picoseconds: float) -> pd.DataFrame:
    """How fast total energies drift, and how far that is from the first's, run by run.

    Args:
        energies: Of runs from the same starts, by how they were computed, float64 first: (n_runs, n_times) meV/atom.
        picoseconds: Between two times.

    Returns:
        As :func:`energy_drift` has it.
    """
    rows, exact = {}, None
    for name, runs in energies.items():
        slopes, fluctuation = _lines(runs, picoseconds)
        rows[name] = _summary(slopes, exact) | {"fluctuation": fluctuation}
        exact = slopes if exact is None else exact
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("precision")


def _launcher(variant: Variant, room: Room | None) -> Launcher:
    """What launches a model in one precision; emulated formats are rounded in the model's call, and not captured."""
    return Launcher(variant.model, captures=False if variant.precision.emulated else None, room=room, call=variant.call)


def _run(
    calculator: GraphCalculator, start: ase.Atoms, steps: int, timestep: float, temperature: float, seed: int
) -> _Array:
    """Total energy at the start and after each step, (steps + 1,) meV/atom."""
    atoms = start.copy()
    width = np.sqrt(atoms.get_masses() * ase.units.kB * temperature)  # Maxwell and Boltzmann's distribution
    atoms.set_momenta(np.random.default_rng(seed).normal(size=(len(atoms), 3)) * width[:, None])
    Stationary(atoms)
    if not atoms.pbc.any():  # what is periodic does not conserve angular momentum
        ZeroRotation(atoms)
    atoms.calc = calculator
    if atoms.pbc.all():
        atoms.get_stress()  # with which a model makes shifts across cells in its precision, as wherever errors are said
    energies: list[float] = []
    dynamics = VelocityVerlet(atoms, timestep * ase.units.fs)
    dynamics.attach(lambda: energies.append(_MILLI * atoms.get_total_energy() / len(atoms)))
    dynamics.run(steps)
    return np.asarray(energies)


def _lines(energies: _Array, picoseconds: float) -> tuple[_Array, float]:
    """Straight lines through the total energies of some runs, (n_runs, steps + 1) meV/atom, so far apart in time.

    Returns:
        Their slopes, (n_runs,) meV/atom/ps, and the root mean square of what is about them, meV/atom.
    """
    kept = energies[:, int(_START_UP * energies.shape[1]) :]
    if np.isnan(kept).any():  # with which no line is found
        return np.full(len(kept), np.nan), np.nan
    time = np.arange(kept.shape[1]) * picoseconds
    fits = [np.polyfit(time, run, 1) for run in kept]
    residuals = [run - np.polyval(fit, time) for run, fit in zip(kept, fits, strict=True)]
    return np.asarray([fit[0] for fit in fits]), float(np.sqrt(np.mean(np.square(residuals))))


def _summary(slopes: _Array, exact: _Array | None) -> dict[str, float]:
    """What the slopes of some runs say, and how far they are from float64's of the same starts."""
    apart = np.full_like(slopes, np.nan) if exact is None else slopes - exact
    n = len(slopes)
    return {
        "drift": float(slopes.mean()),
        "confidence": _half_width(slopes),
        "difference": float(apart.mean()),
        "difference_confidence": _half_width(apart),
        "detectable": _detectable(n) * float(apart.std(ddof=1)) / n**0.5 if n > 1 else np.nan,
    }


def _half_width(values: _Array) -> float:
    """Of the 95 % interval of a mean; one run says nothing of others."""
    n = len(values)
    return float(scipy.stats.t.ppf(0.975, n - 1) * values.std(ddof=1)) / n**0.5 if n > 1 else np.nan


def _detectable(n: int) -> float:
    """How many standard errors a mean of so many runs must be from zero to leave its 95 % interval in 95 % of cases.

    One as far off as the interval is wide would be missed in every second case.
    """
    edge = scipy.stats.t.ppf(0.975, n - 1)

    def too_rarely(standard_errors: float) -> float:
        return 0.95 - float(scipy.stats.nct.sf(edge, n - 1, standard_errors))

    return float(scipy.optimize.brentq(too_rarely, edge, 3 * edge))
