"""Molecular dynamics in a precision: how fast the total energy drifts."""

from collections.abc import Mapping, Sequence

import ase
import ase.units
import numpy as np
import pandas as pd
import scipy.stats
from ase.calculators.calculator import Calculator, all_changes
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet
from numpy.typing import NDArray

from precision_probe.models.graphs import build_graph
from precision_probe.models.loading import ModelSource, load_model
from precision_probe.policy import Policy
from precision_probe.precisions import PRECISIONS, PrecisionSource, parse_precisions
from precision_probe.structures import read_structures
from precision_probe.variants.devices import check_device, check_precisions
from precision_probe.variants.mixed import MixedVariant, apply
from precision_probe.variants.variant import Variant

__all__ = ["VariantCalculator", "energy_drift"]

_MILLI = 1e3
_Array = NDArray[np.float64]


class VariantCalculator(Calculator):  # type: ignore[misc]
    """An ASE calculator that computes in a precision, or under a policy.

    Args:
        variant: The model in that precision, or under that policy.

    ``energy`` is the interaction energy, where the model has it: the isolated atoms' energies are a constant, which
    would hide in a half precision how the rest of the energy changes.
    """

    implemented_properties = ("energy", "forces")

    def __init__(self, variant: Variant | MixedVariant) -> None:
        super().__init__()
        self._variant = variant

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute energy (eV) and forces (eV/Å)."""
        super().calculate(atoms, properties, system_changes)
        (structure,) = read_structures(self.atoms)  # which refuses positions that are NaN
        graph = build_graph(structure, self._variant.model).to(self._variant.device)
        prediction = self._variant.predict(graph)
        self.results = {
            "energy": float(prediction.changing_energy.sum()),
            "forces": prediction["forces"].double().cpu().numpy(),
        }


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
        runs) and ``fluctuation`` (meV/atom: root mean square about that line).
    """
    module, _ = load_model(model)
    asked = [PRECISIONS["float64"], *parse_precisions(precisions)]
    where = check_device(device)
    check_precisions(asked, where, module)
    variants: dict[str, Variant | MixedVariant] = {str(each): Variant(module, each, where) for each in asked}
    for name, policy in (policies or {}).items():
        variants[name] = MixedVariant(apply(policy, module, str(where)), where)
    rows = {}
    for name, variant in variants.items():
        runs = [_run(variant, atoms, steps, timestep, temperature, seed + number) for number in range(n_runs)]
        rows[name] = _summary(np.asarray(runs), timestep / 1000)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("precision")


def _run(
    variant: Variant | MixedVariant, start: ase.Atoms, steps: int, timestep: float, temperature: float, seed: int
) -> _Array:
    """Total energy at the start and after each step, (steps + 1,) meV/atom."""
    atoms = start.copy()
    width = np.sqrt(atoms.get_masses() * ase.units.kB * temperature)  # Maxwell and Boltzmann's distribution
    atoms.set_momenta(np.random.default_rng(seed).normal(size=(len(atoms), 3)) * width[:, None])
    Stationary(atoms)
    if not atoms.pbc.any():  # what is periodic does not conserve angular momentum
        ZeroRotation(atoms)
    atoms.calc = VariantCalculator(variant)
    energies: list[float] = []
    dynamics = VelocityVerlet(atoms, timestep * ase.units.fs)
    dynamics.attach(lambda: energies.append(_MILLI * atoms.get_total_energy() / len(atoms)))
    dynamics.run(steps)
    return np.asarray(energies)


def _summary(energies: _Array, picoseconds: float) -> dict[str, float]:
    """What the total energies of some runs, (n_runs, steps + 1) meV/atom, say, so far apart in time."""
    time = np.arange(energies.shape[1]) * picoseconds
    fits = [np.polyfit(time, run, 1) for run in energies]
    residuals = [run - np.polyval(fit, time) for run, fit in zip(energies, fits, strict=True)]
    slopes = np.asarray([fit[0] for fit in fits])
    n = len(slopes)
    # 95 % lie between the quantiles at 2.5 % and 97.5 %; one run says nothing of others
    half = scipy.stats.t.ppf(0.975, n - 1) * slopes.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return {
        "drift": float(slopes.mean()),
        "confidence": float(half),
        "fluctuation": float(np.sqrt(np.mean(np.square(residuals)))),
    }
