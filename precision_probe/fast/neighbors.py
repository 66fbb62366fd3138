"""Pairs of atoms that are near or may come near: a Verlet list, made anew when atoms have moved too far.

Pairs within the cutoff and a skin stay valid for many steps of dynamics. Which of them are within the cutoff itself is
decided at each step (:mod:`precision_probe.fast.inputs`), so that a model sees the edges that it would see otherwise.
"""

import importlib
import importlib.util
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from matscipy.neighbours import neighbour_list

__all__ = ["Pairs", "VerletList", "pairs_within"]


@dataclass(frozen=True)
class Pairs:
    """Directed pairs of atoms, each in both directions.

    Attributes:
        senders: (n_pairs,) int64, in ascending order.
        receivers: (n_pairs,) int64.
        unit_shifts: (n_pairs, 3) float64, how many cell vectors the receiver's image is away.
    """

    senders: torch.Tensor
    receivers: torch.Tensor
    unit_shifts: torch.Tensor

    @property
    def n(self) -> int:
        """How many."""
        return int(self.senders.numel())


def pairs_within(positions: torch.Tensor, cell: torch.Tensor, pbc: torch.Tensor, cutoff: float) -> Pairs:
    """All pairs of one structure that are nearer than a cutoff.

    Made by vesin where it is installed, on the device of the positions, else by matscipy, as mace-torch does.

    Args:
        positions: (n_atoms, 3) float64, Å.
        cell: (3, 3) float64, Å, vectors in rows; those of directions that are not periodic must not make it singular.
        pbc: (3,) bool, on the CPU.
        cutoff: Å.
    """
    if importlib.util.find_spec("vesin_torch") is None:
        return _by_matscipy(positions, cell, pbc, cutoff)
    # found by name, as it is optional and has no types
    library: Any = importlib.import_module("vesin_torch")
    calculator = library.NeighborList(cutoff=cutoff, full_list=True, sorted=True)
    try:
        senders, receivers, shifts = calculator.compute(positions, cell, pbc, "ijS")
    except RuntimeError:  # on a GPU it has memory for so many pairs an atom, and not for more
        return _by_matscipy(positions, cell, pbc, cutoff)
    return Pairs(senders.long(), receivers.long(), shifts.to(torch.float64))


def _by_matscipy(positions: torch.Tensor, cell: torch.Tensor, pbc: torch.Tensor, cutoff: float) -> Pairs:
    """The same on the CPU."""
    senders, receivers, shifts = neighbour_list(
        "ijS", positions=positions.cpu().numpy(), cell=cell.cpu().numpy(), pbc=pbc.numpy(), cutoff=cutoff
    )
    device = positions.device
    return Pairs(
        torch.as_tensor(senders, dtype=torch.int64).to(device),
        torch.as_tensor(receivers, dtype=torch.int64).to(device),
        torch.as_tensor(shifts, dtype=torch.float64).to(device),
    )


class VerletList:
    """What makes pairs within a cutoff and a skin, of one structure or several.

    Args:
        cutoff: Å.
        skin: Å; larger ones hold longer (:func:`slack`) and have more pairs.
        pbc: (n_structures, 3) bool, on the CPU.
        ptr: (n_structures + 1,) where the atoms of each structure begin, and the last's end.

    Attributes:
        n_built: How often the pairs were made.
    """

    def __init__(self, cutoff: float, skin: float, pbc: torch.Tensor, ptr: torch.Tensor) -> None:
        self._within, self._pbc = cutoff + skin, pbc
        self._bounds = [(int(first), int(last)) for first, last in itertools.pairwise(ptr)]
        self.n_built = 0

    def build(self, positions: torch.Tensor, cells: torch.Tensor, device: torch.device) -> Pairs:
        """Make the pairs.

        Args:
            positions: (n_atoms, 3) float64, Å.
            cells: (n_structures, 3, 3) float64, Å.
            device: Where the pairs are made and stay.
        """
        self.n_built += 1
        found = []
        positions, cells = positions.to(device), cells.to(device)
        for number, (first, last) in enumerate(self._bounds):
            own = positions[first:last].contiguous()
            pairs = pairs_within(own, cells[number].contiguous(), self._pbc[number], self._within)
            found.append(Pairs(pairs.senders + first, pairs.receivers + first, pairs.unit_shifts))
        return Pairs(
            *(torch.cat([getattr(each, name) for each in found]) for name in ("senders", "receivers", "unit_shifts"))
        )


@dataclass(frozen=True)
class Places:
    """Where atoms stand, on one device.

    Attributes:
        positions: (n_atoms, 3) float64, Å.
        cells: (n_structures, 3, 3) float64, Å, not singular.
        batch: (n_atoms,) int64, which structure each atom is of.
    """

    positions: torch.Tensor
    cells: torch.Tensor
    batch: torch.Tensor


def slack(now: Places, inverse_cells: torch.Tensor, then: torch.Tensor, cutoff: float, skin: float) -> torch.Tensor:
    """By how much the nearest pair that was not made is beyond the cutoff, at least; below zero pairs may be missing.

    A cell that changes by F = I + E takes every vector d between atoms that follow it to d·F, whose length is at least
    σ·|d| with F's least singular value σ; beyond that, each atom moves by no more than the largest displacement. As
    σ ≥ 1 − ‖E‖₂ and ‖E‖₂² ≤ ‖E‖₁·‖E‖_∞ (Golub and Van Loan, *Matrix Computations*, 2.3.3), nothing has to be
    decomposed, and no number is needed on the host.

    Args:
        now: Where atoms stand.
        inverse_cells: (n_structures, 3, 3) of the cells when the pairs were made, 1/Å.
        then: (n_atoms, 3) positions at that time, Å.
        cutoff: Å.
        skin: Å, within which beyond the cutoff pairs were made.

    Returns:
        () float64, Å.
    """
    changes = inverse_cells @ now.cells
    strains = (changes - torch.eye(3, dtype=changes.dtype, device=changes.device)).abs()
    norms = (strains.sum(dim=1).amax(dim=1) * strains.sum(dim=2).amax(dim=1)).sqrt()
    followed = (then[:, :, None] * changes[now.batch]).sum(dim=1)
    moved = torch.linalg.vector_norm(now.positions - followed, dim=1).amax()
    left: torch.Tensor = (1 - norms.amax()) * (cutoff + skin) - 2 * moved - cutoff
    return left
