"""Boxes of liquid water, for models that know hydrogen and oxygen."""

from collections.abc import Callable

import ase
import numpy as np
from ase import units
from ase.calculators.calculator import Calculator
from ase.md.langevin import Langevin
from scipy.spatial.transform import Rotation

__all__ = ["equilibrated", "water"]

_SPACING = 3.104  # Å, the cube root of a molecule's volume at 1 g/cm³
_BOND, _ANGLE = 0.97, np.radians(104.5)
_TIMESTEP, _FRICTION = 0.5, 0.02  # fs, 1/fs: strong, as a lattice has much energy to lose


def water(n_atoms: int, seed: int = 0) -> ase.Atoms:
    """About so many atoms: n³ molecules on a lattice, each turned at random, at 1 g/cm³."""
    n = max(1, round((n_atoms / 3) ** (1 / 3)))
    half = _ANGLE / 2
    arms = _BOND * np.array([[np.sin(half), np.cos(half), 0.0], [-np.sin(half), np.cos(half), 0.0]])
    molecule = np.vstack([np.zeros(3), arms])
    places = _SPACING * np.stack(np.meshgrid(*[np.arange(n)] * 3), axis=-1).reshape(-1, 3)
    turns = Rotation.random(n**3, rng=np.random.default_rng(seed))
    positions = np.concatenate([turn.apply(molecule) + place for turn, place in zip(turns, places, strict=True)])
    return ase.Atoms("OHH" * n**3, positions, cell=[_SPACING * n] * 3, pbc=True, info={"name": f"{n**3} H2O"})


def equilibrated(
    atoms: ase.Atoms, calculator: Calculator, n_steps: int, temperature: float = 300.0, seed: int = 0
) -> ase.Atoms:
    """The same after so many steps of half a femtosecond at a temperature (K), with the velocities that it has then."""
    moving = atoms.copy()
    moving.calc = calculator
    random = np.random.default_rng(seed)
    width = np.sqrt(moving.get_masses() * units.kB * temperature)
    moving.set_momenta(random.normal(size=(len(moving), 3)) * width[:, None])
    dynamics = Langevin(
        moving, _TIMESTEP * units.fs, temperature_K=temperature, friction=_FRICTION / units.fs, rng=_drawn_by(random)
    )
    dynamics.run(n_steps)
    moving.calc = None
    return moving


class _drawn_by:  # noqa: N801  what ASE asks of a generator of random numbers
    """A generator with the one method that Langevin dynamics calls."""

    def __init__(self, random: np.random.Generator) -> None:
        self.standard_normal: Callable[..., np.ndarray] = random.standard_normal
