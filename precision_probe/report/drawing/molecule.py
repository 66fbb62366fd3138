"""A structure seen along the axis in which it is thinnest, each atom coloured by the error of its force.

The page's script turns it: the drawing has the points that it needs for that.
"""

import math
from itertools import product

import ase.data
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from precision_probe.report.drawing.scales import CIVIDIS, LogScale, ink
from precision_probe.report.drawing.svg import drawing, element, path, text
from precision_probe.report.numbers import entry

__all__ = ["MOST_ATOMS", "molecule", "nearest"]

MOST_ATOMS = 400  # more are no picture; a choice
_SIZE, _MARGIN = 440.0, 26.0
_SMALLEST_EXTENT = 2.0  # Å: a single atom does not fill the picture
_BOND = 1.2  # times the sum of covalent radii: closer atoms are joined by a line
_SMALLEST, _LARGEST, _LABELLED = 3.0, 17.0, 9.0  # radii of atoms, and from which on they have their symbol


def molecule(
    numbers: NDArray[np.int64],
    positions: NDArray[np.float64],
    errors: NDArray[np.float64],
    names: list[str],
    title: str,
    cell: NDArray[np.float64] | None = None,
) -> Markup:
    """Draw atoms, the nearer over the farther.

    Args:
        numbers: (n_atoms,) atomic numbers.
        positions: (n_atoms, 3) Å.
        errors: (n_atoms,) lengths of the errors of forces, meV/Å.
        names: (n_atoms,) such as ``O3``.
        title: What is shown.
        cell: (3, 3) Å, the cell's vectors, where it is to be drawn.
    """
    points, lines = positions, [(*pair, "bond") for pair in _bonds(numbers, positions)]
    if cell is not None:
        lines += [(len(points) + i, len(points) + j, "cell") for i, j in _EDGES]
        points = np.vstack([points, _CORNERS @ cell])
    points = _turned(points)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = (_SIZE - 2 * _MARGIN) / max(high[0] - low[0], high[1] - low[1], _SMALLEST_EXTENT)
    height = scale * (high[1] - low[1]) + 2 * _MARGIN
    middle = (low + high) / 2
    points = scale * (points - middle) * (1, -1, 1) + (_SIZE / 2, height / 2, 0)  # y is counted downwards
    radii = np.clip(0.45 * scale * ase.data.covalent_radii[numbers], _SMALLEST, _LARGEST)
    shades = LogScale.tight(errors.tolist())
    parts = [
        (
            min(points[i, 2], points[j, 2]),
            path([tuple(points[i, :2]), tuple(points[j, :2])], class_=kind, data_ends=f"{i} {j}"),
        )
        for i, j, kind in lines
    ]
    parts += [
        (points[at, 2], _atom(at, points[at], float(radii[at]), name, float(errors[at]), shades))
        for at, name in enumerate(names)
    ]
    drawn = [part for _, part in sorted(parts, key=lambda part: part[0])]
    said = (
        f"{len(names)} atoms. The lighter an atom, the larger the error of its force. Lines join atoms that are near."
    )
    written = " ".join(f"{x:.1f}" for x in points.ravel())
    return drawing((_SIZE, height), title, said, element("g", *drawn, data_points=written), class_="molecule")


_CORNERS = np.array(list(product((0.0, 1.0), repeat=3)))  # of a cell, in its vectors
_EDGES = [(i, j) for i in range(8) for j in range(i) if np.abs(_CORNERS[i] - _CORNERS[j]).sum() == 1]


def nearest(positions: NDArray[np.float64], centre: int) -> NDArray[np.intp]:
    """Of a large structure the atoms nearest to one, in their order: :data:`MOST_ATOMS` at most."""
    distance = np.linalg.norm(positions - positions[centre], axis=1)
    return np.sort(np.argsort(distance, kind="stable")[:MOST_ATOMS])


def _turned(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points along their principal axes, the longest first."""
    centred = points - points.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    axes = axes if len(axes) == 3 else np.eye(3)  # of one or two points
    return np.asarray(centred @ axes.T)


def _bonds(numbers: NDArray[np.int64], positions: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs of atoms near enough to be bonded, not across the cell's faces."""
    radii = ase.data.covalent_radii[numbers]
    apart = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    near = np.triu(apart < _BOND * (radii[:, None] + radii[None]), k=1)
    return [(int(i), int(j)) for i, j in np.argwhere(near)]


def _atom(at: int, place: NDArray[np.float64], radius: float, name: str, error: float, shades: LogScale) -> Markup:
    shade = shades.shade(error)
    fill = "none" if shade is None else CIVIDIS[shade]
    ball = element("circle", r=radius, fill=fill, class_="atom")
    symbol = "".join(character for character in name if character.isalpha())
    label = text((0, 4), symbol, fill=None if shade is None else ink(shade), class_="number")
    said = element("title", f"{name}: {entry(error) if math.isfinite(error) else 'NaN'} meV/Å")
    parts = (said, ball, label) if radius > _LABELLED else (said, ball)
    return element("g", *parts, transform=f"translate({place[0]:.1f} {place[1]:.1f})", data_at=at)
