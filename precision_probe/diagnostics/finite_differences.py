"""Smoothness: whether forces are the gradient of the energy, and the steps that rounding makes in both.

Everywhere here the edges stay those of the structure as it is given and only positions move, so that the energy is one
smooth function: with edges of its own, each geometry might have others, and atoms that come within the cutoff would
appear. Atoms that leave it fade out, as MACE's cutoff has it. A precision rounds positions too: where its numbers are
further apart than a displacement is long, nothing moves.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from precision_probe.analysis.energy_steps import step_sizes
from precision_probe.exceptions import InputError
from precision_probe.models.evaluation import Prediction
from precision_probe.models.graphs import Graph
from precision_probe.variants.variant import Variant

__all__ = ["along_displacement", "finite_differences"]

_LADDER = 0.1 / 4.0 ** np.arange(9)  # Å, from 0.1, where half precisions are at their best, to 1.5e-6, below float64's
_MIN_POINTS = 20  # of which a cubic takes four: the other 16 know the size of the noise to 1/√32 = 18 %
_MILLI = 1e3

_Array = NDArray[np.float64]


def finite_differences(
    variants: Sequence[Variant], graph: Graph, *, n_directions: int = 4, seed: int = 0
) -> pd.DataFrame:
    """Compare each variant's forces with central differences of its own energy, along random directions.

    Forces F are the gradient of the energy E if (E(x + hd) − E(x − hd)) / 2h = −F·d for every unit vector d of all
    atoms' coordinates. A step h that is too long truncates, with an error that grows as h²; noise σ of the energy makes
    one of σ / (√2 h). Each variant takes that step of 0.1 Å, 0.1/4 Å, 0.1/16 Å, … for which their sum is least (Gill et
    al. 1983, SIAM J. Sci. Stat. Comput. 4, 310). Truncation is what the reference's difference changes by from a step
    to the next, about its distance from their Richardson extrapolation (Press et al., Numerical Recipes, section 5.7);
    the variant's own would mistake an energy that does not change at all for a converged one. Forces have no say in it.

    Args:
        variants: Float64 first, so that its own error stands beside the others'.
        graph: One structure, on the variants' device.
        n_directions: How many directions.
        seed: Of the directions.

    Returns:
        Indexed by precision: ``difference`` (eV/Å: root mean square over directions of what the two sides differ by),
        ``relative`` (to the root mean square of the reference's F·d), ``expected`` (eV/Å: the difference that
        truncation and noise alone make, roughly; only one well above says that forces are not the gradient), ``step``
        (Å) and ``energy_noise`` (eV: how far the energy is off a smooth curve, as
        :func:`precision_probe.analysis.energy_steps.step_sizes` has it, at least the rounding of a number of its size).
    """
    directions = _directions(graph, n_directions, seed)
    truncation = _truncation(variants[0], graph, directions)
    scale = _rms(_projected(variants[0].predict(graph), directions))
    line = pd.concat(_along_line(variants, graph, np.linspace(0, _LADDER[0], 2 * _MIN_POINTS), seed))
    measured = step_sizes(line)["energy_step"]
    rows = {}
    for variant in variants:
        name, prediction = str(variant.precision), variant.predict(graph)
        # An energy that does not move at all shows no noise: then it is that of rounding, spread evenly over ±u·|E|.
        least = variant.precision.unit_roundoff * abs(_energy(prediction)) / np.sqrt(3)
        noise = np.maximum(measured[name], least)
        expected = truncation + noise / (np.sqrt(2) * _LADDER)
        best = int(np.argmin(expected))
        slopes = _slopes(variant, graph, directions, _LADDER[best])
        difference = _rms(slopes + _projected(prediction, directions))
        rows[name] = {
            "difference": difference,
            "relative": difference / scale if scale else np.nan,
            "expected": expected[best],
            "step": _LADDER[best],
            "energy_noise": noise,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("precision")


def along_displacement(
    variants: Sequence[Variant], graph: Graph, *, length: float = 0.01, n_points: int = 101, seed: int = 0
) -> pd.DataFrame:
    """Energy and force of each variant along a straight line through all atoms' coordinates.

    Args:
        variants: Float64 first.
        graph: One structure, on the variants' device; the line starts there.
        length: Of the line, Å: the root of the sum over atoms of squared displacements.
        n_points: Points on the line, evenly spaced.
        seed: Of its direction.

    Returns:
        One row for each precision and point: ``position`` (Å), ``energy`` (meV/atom, less that of the first point; of
        the interaction energy where the model has it) and ``force`` (meV/Å, along the line).

    Raises:
        InputError: If the line has no length or fewer than 20 points, too few to tell a smooth curve from steps.
    """
    if n_points < _MIN_POINTS or not length > 0:
        raise InputError(
            f"A displacement of {length} Å with {n_points} points was asked for. Give a length above zero and at "
            f"least {_MIN_POINTS} points."
        )
    table = pd.concat(_along_line(variants, graph, np.linspace(0, length, n_points), seed), ignore_index=True)
    return table.assign(energy=_MILLI * table["energy"] / graph.n_atoms, force=_MILLI * table["force"])


def _along_line(variants: Sequence[Variant], graph: Graph, points: _Array, seed: int) -> Iterator[pd.DataFrame]:
    """The columns of :func:`along_displacement` for one variant after the other: energy in eV, force in eV/Å."""
    directions = _directions(graph, 1, seed)
    for variant in variants:
        predictions = [variant.predict(graph.displaced(point * directions[0])) for point in points]
        energy = np.asarray([_energy(prediction) for prediction in predictions])
        force = np.concatenate([_projected(prediction, directions) for prediction in predictions])
        columns = {"position": points, "energy": energy - energy[0], "force": force}
        yield pd.DataFrame({"precision": str(variant.precision), **columns})


def _directions(graph: Graph, n: int, seed: int) -> _Array:
    """Unit vectors, evenly distributed over all directions, (n, n_atoms, 3)."""
    vectors = np.random.default_rng(seed).normal(size=(n, graph.n_atoms, 3))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=(1, 2), keepdims=True))


def _truncation(reference: Variant, graph: Graph, directions: _Array) -> _Array:
    """The error that each step's length makes, (9,) eV/Å: by how much the reference's slopes change in the next."""
    slopes = [_slopes(reference, graph, directions, step) for step in (*_LADDER, _LADDER[-1] / 4)]
    return np.asarray([_rms(change) for change in np.diff(slopes, axis=0)])


def _slopes(variant: Variant, graph: Graph, directions: _Array, step: float) -> _Array:
    """Central differences of the energy along each direction, (n_directions,) eV/Å."""
    ahead, behind = (
        np.asarray([_energy(variant.predict(graph.displaced(way * step * d))) for d in directions]) for way in (1, -1)
    )
    return np.asarray((ahead - behind) / (2 * step))


def _projected(prediction: Prediction, directions: _Array) -> _Array:
    """The forces along each direction, (n_directions,) eV/Å."""
    forces = prediction["forces"].double().cpu().numpy()
    return np.asarray((directions * forces).sum(axis=(1, 2)))


def _energy(prediction: Prediction) -> float:
    return float(prediction.changing_energy.sum())


def _rms(values: _Array) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
