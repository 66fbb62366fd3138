"""First-order prediction of the errors of energy and forces, from adjoints of one float64 run.

Rounding a number x to a format of unit roundoff u changes it by δx = x·ε with |ε| ≤ u. To first order that changes the
energy by Σ ∂E/∂x·δx, at most by u·Σ|∂E/∂x·x|; errors that know nothing of one another, spread evenly over ±u, make it
u/√3·√Σ(∂E/∂x·x)² (Higham & Mary 2019, SIAM J. Sci. Comput. 41, A2815). For the forces F the same holds with
∂(v·F)/∂x, the mean over random signs v being the sum over all components (Hutchinson 1990).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from precision_probe.diagnostics.reference import Reference
from precision_probe.models.blocks import default_blocks
from precision_probe.models.graphs import Graph
from precision_probe.precisions import Precision, parse_precision
from precision_probe.variants.hooks import Call, capture

__all__ = ["predicted_errors", "sensitivities"]


def sensitivities(reference: Reference, *, n_probes: int = 4, seed: int = 0) -> pd.DataFrame:
    """What rounding each block's inputs once would do, in unit roundoffs: no reduced precision is run for this.

    Args:
        reference: The model and the structures.
        n_probes: Random vectors for the forces; each costs one more backward pass, through the forces.
        seed: Of these.

    Returns:
        One row for each block and input: ``energy_bound`` and ``energy_expected`` (eV/atom, the largest over
        structures), ``forces_expected`` (eV/Å, root mean square over components), all for u = 1.
    """
    generator = torch.Generator(reference.device).manual_seed(seed)
    sums_of_each = [_of_graph(reference, graph, n_probes, generator) for graph in reference.graphs]
    n_atoms = np.asarray([graph.n_atoms for graph in reference.graphs])
    rows = []
    # ε spread evenly over ±u has the variance u²/3; a structure's forces have 3 n_atoms components
    for block, name in sums_of_each[0]:
        bound, expected, forces = np.asarray([sums[block, name] for sums in sums_of_each]).T
        rows.append(
            {
                "block": block,
                "input": name,
                "energy_bound": float((bound / n_atoms).max()),
                "energy_expected": float((np.sqrt(expected) / n_atoms).max()) / np.sqrt(3),
                "forces_expected": float(np.sqrt(forces.sum() / (3 * n_atoms.sum()) / 3)),
            }
        )
    return pd.DataFrame(rows)


def predicted_errors(table: pd.DataFrame, precision: str | Precision) -> pd.Series:
    """The errors that sensitivities predict for a precision, all blocks' inputs rounded.

    Args:
        table: From :func:`sensitivities`.
        precision: The precision.

    Returns:
        ``energy_bound`` (the sum), ``energy_expected`` and ``forces_expected`` (roots of sums of squares).
    """
    u = parse_precision(precision).unit_roundoff
    together = {"energy_bound": table["energy_bound"].sum()}
    together |= {name: float(np.sqrt((table[name] ** 2).sum())) for name in ("energy_expected", "forces_expected")}
    return pd.Series(together) * u


def _of_graph(
    reference: Reference, graph: Graph, n_probes: int, generator: torch.Generator
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """For each input: Σ|gx|, Σ(gx)² of the energy, and the mean over probes of Σ(gx)² of v·F."""
    variant = reference.variant
    with variant.arithmetic(), torch.enable_grad(), capture(variant.model, default_blocks(variant.model)) as calls:
        data = graph.cast(torch.float64)
        # In training mode forces stay on the autograd graph.
        out: Mapping[str, torch.Tensor] = variant.model(data, training=True)
        names, inputs = _inputs(calls)
        of_energy = _weighted([out["energy"].sum()], inputs)
        of_forces = [0.0] * len(inputs)
        for _ in range(n_probes):
            signs = torch.randint(2, out["forces"].shape, generator=generator, device=reference.device) * 2.0 - 1.0
            squares = [float((gx**2).sum()) for gx in _weighted([(out["forces"] * signs).sum()], inputs)]
            of_forces = [mean + square / n_probes for mean, square in zip(of_forces, squares, strict=True)]
    return {
        name: (float(gx.abs().sum()), float((gx**2).sum()), forces)
        for name, gx, forces in zip(names, of_energy, of_forces, strict=True)
    }


def _inputs(calls: Sequence[Call]) -> tuple[list[tuple[str, str]], list[torch.Tensor]]:
    """What enters the blocks: its names (block, input), and the tensors."""
    inputs = {(call.block.name, port.name): tensor for call in calls for port, tensor in call.inputs.items()}
    return list(inputs), list(inputs.values())


def _weighted(outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """∂output/∂x · x for each input x."""
    grads = torch.autograd.grad(outputs, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
    return [grad * x.detach() for grad, x in zip(grads, inputs, strict=True)]
