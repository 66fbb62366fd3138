"""An ASE calculator of a model that is launched as one CUDA graph."""

from collections.abc import Sequence
from typing import Any

import ase
import numpy as np
import torch
from ase.calculators.calculator import CalculationFailed, Calculator, PropertyNotImplementedError, all_changes
from ase.geometry import complete_cell
from ase.stress import full_3x3_to_voigt_6_stress

from precision_probe.fast.launcher import Launcher, Structures
from precision_probe.models.attributes import inputs_needed
from precision_probe.models.graphs import told_beside

__all__ = ["GraphCalculator"]

_MOST_STRUCTURES = 4  # whose atoms and pairs are kept, as for images of a path that are visited in turn


class GraphCalculator(Calculator):  # type: ignore[misc]
    """Energy, forces and stress by a launcher.

    ``energy`` eV, ``free_energy`` the same, ``energies`` (n_atoms,) eV, ``forces`` (n_atoms, 3) eV/Å, ``stress`` (6,)
    eV/Å³ of what is periodic in all directions. Once the stress has been asked for it is computed each time.

    Args:
        launcher: Of the model.
        interaction: Whether ``energy`` is the interaction energy, where the model has it: the isolated atoms' energies
            are a constant, which would hide in a half precision how the rest of the energy changes.

    Attributes:
        launcher: The same; its ``why_not`` says why no graph is used, where none is.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012  ASE's interface

    def __init__(self, launcher: Launcher, *, interaction: bool = False) -> None:
        super().__init__()
        self.launcher, self._interaction = launcher, interaction
        self._needed = inputs_needed(launcher.model)
        self._has_stress = False
        self._known: dict[tuple[object, ...], Structures] = {}
        self._told: tuple[object, ...] = ()

    def check_state(self, atoms: ase.Atoms, tol: float = 1e-15) -> list[str]:
        """What is other than it was when it was computed: charge, spin and the like too, which ASE does not look at."""
        changes: list[str] = super().check_state(atoms, tol=tol)
        return changes if self._told == told_beside(atoms, self._needed) else [*changes, "info"]

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute what ASE asks for.

        Raises:
            InputError: If the model does not know an element, or lacks what it needs to know of the structure.
            CalculationFailed: If the model predicts NaN or infinity.
            PropertyNotImplementedError: If the stress of something is asked for that is not periodic.
        """
        super().calculate(atoms, properties, system_changes)
        given: ase.Atoms = self.atoms
        if "stress" in properties:
            if not given.pbc.all():
                raise PropertyNotImplementedError("A structure has a stress if it is periodic in all directions.")
            self._has_stress = True
        stress = self._has_stress and bool(given.pbc.all())
        structures = self._structures(given)
        positions = torch.from_numpy(np.ascontiguousarray(given.positions))
        cells = torch.from_numpy(complete_cell(given.cell)).reshape(1, 3, 3)
        found = self.launcher.evaluate(structures, positions, cells, stress=stress)
        changing = found.interaction if self._interaction and found.interaction is not None else found.energy
        energy, forces = float(changing), found.forces.cpu().numpy()
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise CalculationFailed(
                "The model predicts NaN or infinity: two atoms on one place, or numbers beyond what a precision of the "
                "policy holds. precision-probe audit --explain says in which block that begins."
            )
        self.results: dict[str, Any] = {"energy": energy, "free_energy": energy, "forces": forces}
        if found.energies is not None:
            self.results["energies"] = found.energies.cpu().numpy()
        if found.stress is not None:
            self.results["stress"] = full_3x3_to_voigt_6_stress(found.stress[0].cpu().numpy())

    def _structures(self, atoms: ase.Atoms) -> Structures:
        """Those that have these atoms, and what else the model needs to know of them."""
        self._told = told_beside(atoms, self._needed)
        known = (atoms.numbers.tobytes(), atoms.pbc.tobytes(), *self._told)
        if known not in self._known:
            if len(self._known) == _MOST_STRUCTURES:
                del self._known[next(iter(self._known))]
            self._known[known] = self.launcher.structures([atoms])
        return self._known[known]
