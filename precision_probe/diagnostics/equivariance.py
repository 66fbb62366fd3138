"""Equivariance: how far a structure moved, turned, renumbered or computed beside others gives the same results.

Rotation, inversion and translation are symmetries of the model, and change the numbers that it computes with. Another
order of atoms or edges and a batch change none of them, only the order and the shape in which they are added up.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import ase
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from precision_probe.analysis.pairs import MODEL
from precision_probe.models._mace import o3
from precision_probe.models.attributes import heads
from precision_probe.models.blocks import Block, Port
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import Graph, build_graph, joined
from precision_probe.variants.captured_run import captured_run
from precision_probe.variants.hooks import Call
from precision_probe.variants.variant import Variant

__all__ = ["equivariance"]

_SHIFT = 3.7  # Å, a choice, of the order of a molecule's own size: further away coordinates have fewer digits left
_BATCH = 8
# Edges of a batch at most. A choice: with 128 channels one block's output over as many takes some gigabytes, and
# structures for which eight have more are not run in batches.
_MOST_EDGES = 200_000

_Rows = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class _Motion:
    """A structure as it is moved, and what its results have to be.

    Attributes:
        name: What is done to it.
        graph: The structure moved.
        matrix: The rotation or inversion, (3, 3), if it is turned.
        rows: By what is counted (``atom``, ``edge``, ``structure``), which rows of the results at rest are which rows
            of the moved ones; what is not named has its rows in the same order.
    """

    name: str
    graph: Graph
    matrix: torch.Tensor | None = None
    rows: Mapping[str, _Rows] = field(default_factory=dict)

    def expected(self, port: Port, tensor: torch.Tensor) -> torch.Tensor:
        """What a tensor at rest becomes, (rows, entries): its irreps turned by their Wigner matrices."""
        rows = tensor[self.rows[port.rows][0].to(tensor.device)] if port.rows in self.rows else tensor
        return torch.cat([self._turned(irrep, part).flatten(1) for irrep, part in _split(port, rows)], dim=1)

    def _turned(self, irrep: str, part: torch.Tensor) -> torch.Tensor:
        return part if self.matrix is None else part @ _wigner(irrep, self.matrix).to(part).T

    def same_rows(self, port: Port, tensor: torch.Tensor) -> torch.Tensor:
        """The rows of a moved tensor that belong to those of :meth:`expected`."""
        return tensor[self.rows[port.rows][1].to(tensor.device)] if port.rows in self.rows else tensor


def equivariance(
    variants: Sequence[Variant], atoms: ase.Atoms, graph: Graph, blocks: Sequence[Block], *, n_seeds: int = 3
) -> pd.DataFrame:
    """Compare each variant's results for a moved structure with its own results, moved.

    Args:
        variants: Float64 first, so that its own error stands beside the others'.
        atoms: One structure.
        graph: The same, built for the model, on the variants' device.
        blocks: Blocks whose outputs are compared too.
        n_seeds: How many random rotations, translations, orders and batches are tried.

    Returns:
        One row for each precision, motion, block (``model`` for energy and forces), tensor and irrep, with ``rel_l2``
        of the difference, the mean over seeds; ``spread``, its standard deviation over them (NaN of one alone); and
        ``n_seeds``. Motions: ``rotation``, ``inversion`` (the same for every seed), ``translation``; ``permutation``,
        for which atoms are renumbered and the graph is built anew; ``edge order``, the same graph with its edges in
        another; ``batch``, the structure as one of a batch of eight, against alone, left out where that has more than
        200,000 edges.
    """
    motions = [motion for seed in range(n_seeds) for motion in _motions(atoms, graph, variants[0].model, seed)]
    rows = []
    for variant in variants:
        still = _results(variant, graph, blocks)
        for motion in motions:
            moved = _results(variant, motion.graph, blocks)
            for (block, port), tensor in still.items():
                expected, rows_of_it = motion.expected(port, tensor), motion.same_rows(port, moved[block, port])
                for irrep, y, y_hat in _by_irrep(port, expected, rows_of_it):
                    error = float((y_hat - y).norm() / y.norm()) if float(y.norm()) else np.nan
                    rows.append((variant.precision.name, motion.name, block, port.name, irrep, error))
    keys = ["precision", "motion", "block", "tensor", "irrep"]
    errors = pd.DataFrame(rows, columns=[*keys, "rel_l2"]).groupby(keys, sort=False)["rel_l2"]
    mean = errors.agg(lambda each: each.mean(skipna=False))  # what overflows once is not hidden by the other seeds
    table = pd.DataFrame({"rel_l2": mean, "spread": errors.std(), "n_seeds": errors.size()})
    return table.reset_index()


def _results(variant: Variant, graph: Graph, blocks: Sequence[Block]) -> dict[tuple[str, Port], torch.Tensor]:
    """Energy, forces and the outputs of blocks whose irreps are known, in float64 and e3nn's layout."""
    prediction = variant.predict(graph)
    calls = captured_run(variant, graph, blocks, with_gradients=False).calls
    of_model = {
        (MODEL, Port("energy", "structure", o3.Irreps("0e"))): prediction.changing_energy.double().reshape(-1, 1),
        (MODEL, Port("forces", "atom", o3.Irreps("1o"))): prediction["forces"].double(),
    }
    return of_model | {(call.block.name, port): value for call in calls for port, value in _outputs(call)}


def _outputs(call: Call) -> Iterator[tuple[Port, torch.Tensor]]:
    for port, tensor in call.outputs.items():
        if port.irreps is not None and port.rows:
            yield port, port.to_mul_ir(tensor).double()


def _motions(atoms: ase.Atoms, graph: Graph, model: torch.nn.Module, seed: int) -> Iterator[_Motion]:
    """One motion of each kind, so that a failure says which symmetry is broken."""
    rng = np.random.default_rng(seed)
    matrix, inversion = _random_rotation(rng), -torch.eye(3, dtype=torch.float64)
    yield _Motion("rotation", _turned(graph, matrix), matrix)
    if seed == 0:
        yield _Motion("inversion", _turned(graph, inversion), inversion)
    shift = rng.uniform(-_SHIFT, _SHIFT, 3)
    yield _Motion("translation", graph.displaced(np.tile(shift, (graph.n_atoms, 1))))
    yield _renumbered(atoms, graph, model, rng.permutation(graph.n_atoms))
    yield _with_edges_in_order(graph, torch.as_tensor(rng.permutation(graph.n_edges)))
    if _BATCH * graph.n_edges <= _MOST_EDGES:
        yield _in_a_batch(graph, int(rng.integers(_BATCH)))


def _turned(graph: Graph, matrix: torch.Tensor) -> Graph:
    """The graph turned about the origin, with its cell; its edges keep their order."""
    turned = {key: graph.data[key] @ matrix.to(graph.data[key]).T for key in ("positions", "shifts", "cell")}
    return dataclasses.replace(graph, data={**graph.data, **turned})


def _renumbered(atoms: ase.Atoms, graph: Graph, model: torch.nn.Module, order: NDArray[np.intp]) -> _Motion:
    """The structure with its atoms in another order, and the graph that is built of it, whose edges are too."""
    head = heads(model)[int(graph.data["head"][0])]
    moved = build_graph(atoms[order], model, head).to(graph.data["positions"].device)
    new_number = torch.empty(len(order), dtype=torch.int64)
    new_number[order] = torch.arange(len(order))
    edges = _same_edges(_edge_keys(graph, new_number), _edge_keys(moved, torch.arange(len(order))))
    return _Motion(
        "permutation", moved, rows={"atom": (torch.as_tensor(order), torch.arange(len(order))), "edge": edges}
    )


def _with_edges_in_order(graph: Graph, order: torch.Tensor) -> _Motion:
    """The same graph with its edges in another order."""
    on_device = order.to(graph.data["edge_index"].device)
    edges = {key: graph.data[key][on_device] for key in ("shifts", "unit_shifts")}
    edges["edge_index"] = graph.data["edge_index"][:, on_device]
    moved = dataclasses.replace(graph, data={**graph.data, **edges})
    return _Motion("edge order", moved, rows={"edge": (order, torch.arange(graph.n_edges))})


def _in_a_batch(graph: Graph, place: int) -> _Motion:
    """The structure at a place in a batch of its like."""

    def of_place(n: int) -> _Rows:
        return torch.arange(n), torch.arange(place * n, (place + 1) * n)

    counts = {"atom": graph.n_atoms, "edge": graph.n_edges, "structure": 1}
    return _Motion("batch", joined([graph] * _BATCH), rows={name: of_place(n) for name, n in counts.items()})


def _edge_keys(graph: Graph, new_number: torch.Tensor) -> NDArray[np.int64]:
    """What identifies each edge, (n_edges, 5): both atoms, by their new numbers, and the cell image."""
    atoms = new_number[graph.data["edge_index"].cpu()].T
    return torch.cat([atoms, graph.data["unit_shifts"].round().to("cpu", torch.int64)], dim=1).numpy()


def _same_edges(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> _Rows:
    """Which edge is which, of those that both have: one at the very cutoff may be within it for one alone."""
    _, index, their_index = np.intersect1d(_as_one(ours), _as_one(theirs), assume_unique=True, return_indices=True)
    return torch.as_tensor(index), torch.as_tensor(their_index)


def _as_one(keys: NDArray[np.int64]) -> NDArray[np.void]:
    """Each row as one thing to be compared, (n_edges,)."""
    return np.ascontiguousarray(keys).view([("", keys.dtype)] * keys.shape[1]).ravel()


def _random_rotation(rng: np.random.Generator) -> torch.Tensor:
    """A rotation from a random unit quaternion, uniform over all rotations, (3, 3)."""
    w, x, y, z = (quaternion := rng.normal(size=4)) / np.linalg.norm(quaternion)
    matrix = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.as_tensor(np.asarray(matrix))


def _by_irrep(port: Port, y: torch.Tensor, y_hat: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Both tensors irrep by irrep, (rows, entries); y is flat already, as :func:`_moved` leaves it."""
    flat = torch.cat([part.flatten(1) for _, part in _split(port, y_hat)], dim=1)
    start = 0
    for irrep, part in _split(port, y_hat):
        width = part.flatten(1).shape[1]
        yield irrep, y[:, start : start + width], flat[:, start : start + width]
        start += width


def _split(port: Port, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The parts of a tensor, (rows, channels, components), irrep by irrep."""
    start = 0
    for mul, ir in port.irreps or ():
        if tensor.ndim == 3:  # channels and components are apart
            yield str(ir), tensor[:, :, start : start + ir.dim]
            start += ir.dim
        else:
            yield str(ir), tensor[:, start : start + mul * ir.dim].reshape(len(tensor), mul, ir.dim)
            start += mul * ir.dim


def _wigner(irrep: str, matrix: torch.Tensor) -> torch.Tensor:
    """The Wigner matrix of a rotation, with the sign that parity gives an inversion."""
    with default_dtype(torch.float64):  # e3nn makes what it needs on the way in the default dtype
        wigner: torch.Tensor = o3.Irrep(irrep).D_from_matrix(matrix)
    return wigner
