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
    """Pairs within a cutoff and a skin, of one structure or several.

    Args:
        cutoff: Å.
        skin: Å; larger ones hold longer and have more pairs.
        pbc: (n_structures, 3) bool, on the CPU.
        ptr: (n_structures + 1,) where the atoms of each structure begin, and the last's end.

    Attributes:
        n_built: How often the pairs were made.
    """

    def __init__(self, cutoff: float, skin: float, pbc: torch.Tensor, ptr: torch.Tensor) -> None:
        self._cutoff, self._skin, self._pbc = cutoff, skin, pbc
        self._bounds = [(int(first), int(last)) for first, last in itertools.pairwise(ptr)]
        self._positions: torch.Tensor | None = None
        self._cells = torch.empty(0)
        self.n_built = 0

    def build(self, positions: torch.Tensor, cells: torch.Tensor, device: torch.device) -> Pairs:
        """Make the pairs.

        Args:
            positions: (n_atoms, 3) float64, Å.
            cells: (n_structures, 3, 3) float64, Å.
            device: Where the pairs are made and stay.
        """
        self._positions, self._cells = positions.clone(), cells.cpu().clone()
        self.n_built += 1
        found = []
        positions, cells = positions.to(device), cells.to(device)
        for number, (first, last) in enumerate(self._bounds):
            own = positions[first:last].contiguous()
            pairs = pairs_within(own, cells[number].contiguous(), self._pbc[number], self._cutoff + self._skin)
            found.append(Pairs(pairs.senders + first, pairs.receivers + first, pairs.unit_shifts))
        return Pairs(
            *(torch.cat([getattr(each, name) for each in found]) for name in ("senders", "receivers", "unit_shifts"))
        )

    def holds_for(self, positions: torch.Tensor, cells: torch.Tensor) -> bool:
        """Whether no pair that was not made can be within the cutoff.

        A cell that changes by F takes every vector d between atoms that follow it to d·F, whose length is at least
        σ·|d| with F's least singular value σ; beyond that, each atom moves by no more than the largest displacement.

        Args:
            positions: As :meth:`build` was given them, of as many atoms and on the same device.
            cells: Likewise; on any device.
        """
        if self._positions is None:
            return False
        cells = cells.cpu()
        followed, least = self._positions, 1.0
        if not torch.equal(cells, self._cells):
            changes = torch.linalg.solve(self._cells, cells)
            least = float(torch.linalg.svdvals(changes).min())
            sizes = torch.tensor([last - first for first, last in self._bounds])
            each = changes.repeat_interleave(sizes, dim=0).to(positions.device)
            followed = (self._positions[:, None, :] @ each)[:, 0]
        moved = float((positions - followed).square().sum(dim=-1).max().sqrt()) if len(positions) else 0.0
        return least * (self._cutoff + self._skin) - 2 * moved >= self._cutoff
