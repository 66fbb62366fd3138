"""Equivariance: how far a structure moved, turned, mirrored or renumbered gives the moved, turned, … results."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from precision_probe.analysis.pairs import MODEL
from precision_probe.models._mace import o3
from precision_probe.models.blocks import Block, Port
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import Graph
from precision_probe.variants.captured_run import captured_run
from precision_probe.variants.hooks import Call
from precision_probe.variants.variant import Variant

__all__ = ["equivariance"]

_SHIFT = 3.7  # Å, a choice, of the order of a molecule's own size: further away coordinates have fewer digits left


@dataclasses.dataclass(frozen=True)
class _Motion:
    """A rotation or inversion, a translation, and an order of atoms."""

    name: str
    matrix: torch.Tensor
    shift: torch.Tensor
    order: torch.Tensor

    def of(self, graph: Graph) -> Graph:
        """The graph moved; its edges keep their order."""
        data = dict(graph.data)
        matrix, order = self.matrix.to(data["positions"]), self.order.to(data["positions"].device)
        new_index = torch.empty_like(order)
        new_index[order] = torch.arange(len(order), device=order.device)
        for key in ("positions", "shifts", "cell"):
            data[key] = data[key] @ matrix.T
        data["positions"] = data["positions"] + self.shift.to(matrix)
        for key in ("positions", "node_attrs", "batch"):
            data[key] = data[key][order]
        data["edge_index"] = new_index[data["edge_index"]]
        return dataclasses.replace(graph, data=data)


def equivariance(variants: Sequence[Variant], graph: Graph, blocks: Sequence[Block], *, seed: int = 0) -> pd.DataFrame:
    """Compare each variant's results for a moved structure with its own results, moved.

    Args:
        variants: Float64 first, so that its own error stands beside the others'.
        graph: One structure, on the variants' device.
        blocks: Blocks whose outputs are compared too.
        seed: Of the rotation, the translation and the order of atoms.

    Returns:
        One row for each precision, motion (``rotation``, ``inversion``, ``translation``, ``permutation``), block
        (``model`` for energy and forces), tensor and irrep (empty for the model), with ``rel_l2`` of the difference.
    """
    rows = []
    for variant in variants:
        still = _results(variant, graph, blocks)
        for motion in _motions(graph, seed):
            moved = _results(variant, motion.of(graph), blocks)
            for (block, port), tensor in still.items():
                expected = _moved(tensor, port, motion)
                for irrep, y, y_hat in _by_irrep(port, expected, moved[block, port]):
                    error = float((y_hat - y).norm() / y.norm()) if float(y.norm()) else np.nan
                    rows.append(
                        {
                            "precision": variant.precision.name,
                            "motion": motion.name,
                            "block": block,
                            "tensor": port.name,
                            "irrep": irrep,
                            "rel_l2": error,
                        }
                    )
    return pd.DataFrame(rows)


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


def _motions(graph: Graph, seed: int) -> Iterator[_Motion]:
    """One motion of each kind, so that a failure says which symmetry is broken."""
    rng = np.random.default_rng(seed)
    eye, still = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    same = torch.arange(graph.n_atoms)
    yield _Motion("rotation", _random_rotation(rng), still, same)
    yield _Motion("inversion", -eye, still, same)
    yield _Motion("translation", eye, torch.as_tensor(rng.uniform(-_SHIFT, _SHIFT, 3)), same)
    yield _Motion("permutation", eye, still, torch.as_tensor(rng.permutation(graph.n_atoms)))


def _random_rotation(rng: np.random.Generator) -> torch.Tensor:
    """A rotation from a random unit quaternion, uniform over all rotations, (3, 3)."""
    w, x, y, z = (quaternion := rng.normal(size=4)) / np.linalg.norm(quaternion)
    matrix = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.as_tensor(np.asarray(matrix))


def _moved(tensor: torch.Tensor, port: Port, motion: _Motion) -> torch.Tensor:
    """What a tensor becomes: its irreps turned by their Wigner matrices, its atoms renumbered."""
    order = motion.order.to(tensor.device)
    rows = tensor[order] if port.rows == "atom" else tensor
    parts = [part @ _wigner(str(ir), motion.matrix).to(part).T for ir, part in _split(port, rows)]
    return torch.cat([part.flatten(1) for part in parts], dim=1)


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
