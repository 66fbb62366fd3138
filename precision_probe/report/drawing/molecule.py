"""A structure seen along the axis in which it is thinnest, each atom coloured by the error of its force."""

import math

import ase.data
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from precision_probe.report.drawing.scales import CIVIDIS, LogScale
from precision_probe.report.drawing.svg import drawing, element, path, text
from precision_probe.report.numbers import entry

__all__ = ["MOST_ATOMS", "molecule", "nearest"]

MOST_ATOMS = 400  # more are no picture; a choice
_SIZE, _MARGIN = 440.0, 26.0
_BOND = 1.2  # times the sum of covalent radii: closer atoms are joined by a line
_SMALLEST, _LARGEST = 3.0, 17.0  # radii of atoms
_TEXT_ON_LIGHT = 16


def molecule(
    numbers: NDArray[np.int64],
    positions: NDArray[np.float64],
    errors: NDArray[np.float64],
    names: list[str],
    title: str,
) -> Markup:
    """Draw atoms, the nearer over the farther.

    Args:
        numbers: (n_atoms,) atomic numbers.
        positions: (n_atoms, 3) Å.
        errors: (n_atoms,) lengths of the errors of forces, meV/Å.
        names: (n_atoms,) such as ``O3``.
        title: What is shown.
    """
    turned = _turned(positions)
    extent = max(float(np.ptp(turned[:, :2], axis=0).max(initial=0.0)), 2.0)
    scale = (_SIZE - 2 * _MARGIN) / extent
    lowest, highest = turned.min(axis=0), turned.max(axis=0)
    height = scale * (highest[1] - lowest[1]) + 2 * _MARGIN
    left = (_SIZE - scale * (highest[0] - lowest[0])) / 2
    places = np.column_stack([left + scale * (turned[:, 0] - lowest[0]), _MARGIN + scale * (highest[1] - turned[:, 1])])
    shades = LogScale.tight(errors.tolist())
    radii = np.clip(0.45 * scale * ase.data.covalent_radii[numbers], _SMALLEST, _LARGEST)
    bonds = [
        (min(turned[i, 2], turned[j, 2]), path([tuple(places[i]), tuple(places[j])], class_="bond"))
        for i, j in _bonds(numbers, positions)
    ]
    atoms = [
        (turned[at, 2], _atom(tuple(places[at]), radii[at], name, float(errors[at]), shades))
        for at, name in enumerate(names)
    ]
    drawn = [each for _, each in sorted([*bonds, *atoms], key=lambda each: each[0])]
    said = (
        f"{len(names)} atoms. The lighter an atom, the larger the error of its force. Bonds join atoms that are near."
    )
    return drawing((_SIZE, height), title, said, *drawn, class_="molecule")


def nearest(positions: NDArray[np.float64], centre: int) -> NDArray[np.intp]:
    """Of a large structure the atoms nearest to one, in their order: :data:`MOST_ATOMS` at most."""
    distance = np.linalg.norm(positions - positions[centre], axis=1)
    return np.sort(np.argsort(distance, kind="stable")[:MOST_ATOMS])


def _turned(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions along their principal axes, the longest first."""
    centred = positions - positions.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=True)[2]
    return np.asarray(centred @ axes.T)


def _bonds(numbers: NDArray[np.int64], positions: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs of atoms near enough to be bonded, not across the cell's faces."""
    radii = ase.data.covalent_radii[numbers]
    apart = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    near = np.triu(apart < _BOND * (radii[:, None] + radii[None]), k=1)
    return [(int(i), int(j)) for i, j in np.argwhere(near)]


def _atom(at: tuple[float, float], radius: float, name: str, error: float, shades: LogScale) -> Markup:
    shade = shades.shade(error)
    fill = "none" if shade is None else CIVIDIS[shade]
    ink = None if shade is None else "#000" if shade >= _TEXT_ON_LIGHT else "#fff"
    ball = element("circle", cx=float(at[0]), cy=float(at[1]), r=float(radius), fill=fill, class_="atom")
    symbol = "".join(character for character in name if character.isalpha())
    label = text((at[0], at[1] + 4), symbol, fill=ink, class_="number") if radius > 9 else Markup("")
    said = element("title", f"{name}: {entry(error) if math.isfinite(error) else 'NaN'} meV/Å")
    return element("g", said, ball, label)
