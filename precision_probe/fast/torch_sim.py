"""A model for torch-sim that is launched as one CUDA graph; imported where torch-sim is there."""

from typing import NamedTuple

import ase
import torch
import torch_sim
from ase.geometry import complete_cell
from torch_sim.models.interface import ModelInterface

from precision_probe.fast.launcher import Launcher, Structures

__all__ = ["GraphModel"]


class GraphModel(ModelInterface):  # type: ignore[misc]
    """Energies, forces and stress of all structures of a state, by a launcher.

    Args:
        launcher: Of the model.
        compute_stress: Whether the stress is computed.

    Attributes:
        launcher: The same.
    """

    def __init__(self, launcher: Launcher, *, compute_stress: bool = False) -> None:
        super().__init__()
        self.launcher = launcher
        self._device, self._dtype = launcher.device, torch.float64
        self._compute_forces, self._compute_stress = True, compute_stress
        self._seen: list[_Seen] = []
        self._structures: Structures | None = None

    def forward(self, state: "torch_sim.SimState | dict[str, torch.Tensor]", **_: object) -> dict[str, torch.Tensor]:
        """Compute what integrators ask for.

        Args:
            state: Positions, cells, atomic numbers and which structure each atom is of; those of one stand together.

        Returns:
            ``energy`` (n_systems,) eV, ``forces`` (n_atoms, 3) eV/Å and, if it was asked for, ``stress`` (n_systems, 3,
            3) eV/Å³; float64.
        """
        if isinstance(state, dict):
            state = torch_sim.SimState(**state, masses=torch.ones_like(state["positions"]))
        structures = self._structures_of(state)
        positions, cells = (each.detach().to(torch.float64) for each in (state.positions, state.row_vector_cell))
        pbc = structures.graph.pbc
        if not pbc.any():  # any cell will do, and those of the graph are there without waiting for the GPU
            cells = structures.graph.data["cell"].view(-1, 3, 3)
        elif not pbc.all():
            cells = torch.stack([torch.as_tensor(complete_cell(cell)) for cell in cells.cpu().numpy()])
        found = self.launcher.evaluate(structures, positions, cells, stress=self._compute_stress)
        made = {"energy": found.energy, "forces": found.forces}
        return made if found.stress is None else {**made, "stress": found.stress}

    def _structures_of(self, state: "torch_sim.SimState") -> Structures:
        """Those of before, or others."""
        given = (state.atomic_numbers, state.system_idx)
        is_known = bool(self._seen) and all(map(_Seen.is_that, self._seen, given))
        if self._structures is None or not is_known:
            self._structures = self.launcher.structures(_atoms(state))
        self._seen = [_Seen.of(each) for each in given]
        return self._structures


class _Seen(NamedTuple):
    """A tensor on the device, and how often it had been written to, which tensors of inference mode do not know."""

    tensor: torch.Tensor
    version: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "_Seen":
        """What a tensor is now."""
        return cls(tensor.clone(), 0) if tensor.is_inference() else cls(tensor, tensor._version)

    def is_that(self, other: torch.Tensor) -> bool:
        """Whether another has the same numbers; the GPU is only waited for if it is another object."""
        if other is self.tensor:
            return other._version == self.version
        return torch.equal(other, self.tensor)


def _atoms(state: "torch_sim.SimState") -> list[ase.Atoms]:
    """The structures of a state."""
    numbers, systems = state.atomic_numbers.cpu().numpy(), state.system_idx.cpu().numpy()
    positions, cells = state.positions.detach().cpu().numpy(), state.row_vector_cell.detach().cpu().numpy()
    pbc = torch.as_tensor(state.pbc).cpu().numpy()
    return [
        ase.Atoms(numbers[systems == each], positions[systems == each], cell=cell, pbc=pbc)
        for each, cell in enumerate(cells)
    ]
