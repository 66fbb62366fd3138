"""What a model is called with when every tensor keeps its shape: atoms and edges filled up, edges chosen on the device.

A CUDA graph repeats the same kernels on the same memory, so that nothing may depend on how many edges there are. One
more structure holds the atoms that fill up, twice the cutoff apart, and the edges that fill up run between neighbours
among them: beyond the cutoff they add exactly nothing to anything, and powers of their lengths fit into float16.
"""

from dataclasses import dataclass

import ase
import numpy as np
import torch

from precision_probe.fast.neighbors import Pairs, Places, slack
from precision_probe.models.attributes import cutoff
from precision_probe.models.graphs import Graph, build_graph, joined

__all__ = ["Inputs", "Shape", "rounded_up"]

_FEWEST = 16  # atoms that fill up: edges that fill up are spread over them, as adding to one row waits for one another
_FINE = 7  # bits of a size that are kept: at most one in 64 is filled up in vain


def rounded_up(n: int) -> int:
    """The next size that graphs are kept for.

    Example:
        >>> [rounded_up(n) for n in (1, 100, 1001, 4112, 188_417)]
        [1, 100, 1008, 4160, 190464]
    """
    step = 1 << max(0, (n - 1).bit_length() - _FINE)
    return -(-n // step) * step


@dataclass(frozen=True)
class Shape:
    """How many of each there are at most; models of one shape run in the same graph.

    Attributes:
        n_structures: Without the one that fills up.
        n_atoms: All, as many as there are memory for.
        n_edges: Likewise.
        n_pairs: Likewise; of these the edges are chosen.
    """

    n_structures: int
    n_atoms: int
    n_edges: int
    n_pairs: int

    @classmethod
    def fitting(cls, n_structures: int, n_atoms: int, n_edges: int, n_pairs: int) -> "Shape":
        """One in which so many fit, with room for the edges and pairs that come as atoms move."""
        return cls(n_structures, rounded_up(n_atoms + _FEWEST), _with_room(n_edges), _with_room(n_pairs))

    def holds(self, n_atoms: int, n_edges: int, n_pairs: int) -> bool:
        """Whether so many fit."""
        return n_atoms + _FEWEST <= self.n_atoms and n_edges <= self.n_edges and n_pairs <= self.n_pairs


def _with_room(n: int) -> int:
    """For how many edges there is to be room: how many come and go varies as the square root of how many there are."""
    return rounded_up(n + n // 64 + round(8 * n**0.5) + 1)


class Inputs:
    """Tensors of one shape that stay where they are, and what a model is called with, made of them.

    Args:
        shape: The shape.
        graph: Structures that fit in it.
        model: The model, whose cutoff and elements matter.
        head: Of a model with several.
        skin: Å, of the pairs.
        device: Where the tensors lie.
    """

    def __init__(
        self, shape: Shape, graph: Graph, model: torch.nn.Module, head: str | None, skin: float, device: torch.device
    ) -> None:
        self.shape = shape
        self._cutoff, self._skin = cutoff(model), skin
        n_filling = shape.n_atoms - graph.n_atoms
        filled = joined([graph, build_graph(_filling(graph, n_filling, self._cutoff), model, head)]).to(device)
        self._data = {key: value for key, value in filled.data.items() if key not in ("edge_index", "shifts")}
        self._data.pop("unit_shifts")
        self._positions = self._data["positions"]
        self._cells = self._data["cell"].view(-1, 3, 3)
        self._sizes = {key: len(graph.data[key]) for key in self._data}
        # where atoms stood and cells were when the pairs were made
        self._then, self._inverse_cells = torch.empty_like(self._positions), torch.empty_like(self._cells)
        between = torch.arange(n_filling, device=device)
        self._filling = Pairs(
            graph.n_atoms + between,
            graph.n_atoms + torch.where(between < n_filling - 1, between + 1, between - 1),
            torch.zeros(n_filling, 3, dtype=torch.float64, device=device),
        )
        # behind the pairs stand those between atoms that fill up, one for each
        n_rows = shape.n_pairs + shape.n_atoms
        self._senders, self._receivers = (torch.empty(n_rows, dtype=torch.int64, device=device) for _ in range(2))
        self._shifts = torch.empty(n_rows, 3, dtype=torch.float64, device=device)
        self._default = torch.arange(shape.n_edges + 1, device=device) % n_filling + shape.n_pairs
        self._rows = torch.arange(n_rows, device=device)

    def take(self, others: "Inputs") -> None:
        """Take over the structures of others of the same shape; pairs are to be set anew."""
        for key, value in others._data.items():
            self._data[key].copy_(value)
        self._default.copy_(others._default)
        self._filling, self._sizes = others._filling, others._sizes

    def move(self, positions: torch.Tensor, cells: torch.Tensor) -> None:
        """Put atoms and cells where they are now.

        Args:
            positions: (n_atoms, 3) float64, Å, on any device, without what fills up.
            cells: (n_structures, 3, 3) float64, Å, likewise.
        """
        self._positions[: len(positions)].copy_(positions)
        self._cells[: len(cells)].copy_(cells)

    def set_pairs(self, pairs: Pairs) -> None:
        """Take other pairs to choose edges from, made of where the atoms are now."""
        self._then.copy_(self._positions)
        self._inverse_cells.copy_(self._cells.inverse())
        filling = self._filling
        rest = (self._rows[pairs.n :] - self.shape.n_pairs) % filling.n
        for own, name in ((self._senders, "senders"), (self._receivers, "receivers"), (self._shifts, "unit_shifts")):
            own[: pairs.n] = getattr(pairs, name)
            own[pairs.n :] = getattr(filling, name)[rest]

    def data(self, *, filled: bool = True) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """What a model is called with, and whether it can be.

        Args:
            filled: Whether up to the shape, so that no number is needed on the host; else with what is there alone.

        Returns:
            The data, and (2,) float64: how many edges there are, of which those that do not fit are left out, and the
            slack of the pairs (:func:`precision_probe.fast.neighbors.slack`), Å.
        """
        positions = self._positions.detach()
        of_sender = self._data["batch"][self._senders]
        shifts = (self._shifts[:, :, None] * self._cells[of_sender]).sum(dim=1)
        vectors = positions[self._receivers] - positions[self._senders] + shifts
        is_edge = vectors.square().sum(dim=-1) < self._cutoff**2
        places = is_edge.cumsum(dim=0)
        chosen = self._chosen(is_edge, places) if filled else is_edge.nonzero()[:, 0]
        now = Places(positions, self._cells, self._data["batch"])
        left = slack(now, self._inverse_cells, self._then, self._cutoff, self._skin)
        given = {
            **{key: (each if filled else each[: self._sizes[key]]).detach() for key, each in self._data.items()},
            "edge_index": torch.stack([self._senders[chosen], self._receivers[chosen]]),
            "shifts": shifts[chosen],
            "unit_shifts": self._shifts[chosen],
        }
        return given, torch.stack([places[-1].double(), left])

    def _chosen(self, is_edge: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """The rows of edges, (shape.n_edges,), and of some that fill up where there are fewer."""
        n_edges = self.shape.n_edges
        # rows that are no edges go to one place behind all that is used
        slots = torch.where(is_edge & (places <= n_edges), places - 1, n_edges)
        return self._default.scatter(0, slots, self._rows)[:n_edges]


def _filling(graph: Graph, n_atoms: int, cutoff: float) -> ase.Atoms:
    """So many atoms of an element that is there, twice the cutoff apart from one another and from their images.

    They are as periodic as the first structure: models with long-range parts compute a batch in one way or the other.
    """
    n = int(np.ceil(n_atoms ** (1 / 3)))
    points = np.array(list(np.ndindex(n, n, n))).reshape(n, n, n, 3)
    points[1::2] = points[1::2, ::-1]  # back and forth, so that those that follow one another are neighbours
    rows = points.reshape(n * n, n, 3)
    rows[1::2] = rows[1::2, ::-1]
    numbers = np.full(n_atoms, graph.atomic_numbers[0])
    return ase.Atoms(numbers, 2 * cutoff * rows.reshape(-1, 3)[:n_atoms], cell=[2 * cutoff * n] * 3, pbc=graph.pbc[0])
