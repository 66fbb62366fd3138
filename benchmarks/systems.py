"""What benchmarks run on: by default a MACE-MP with random weights and supercells of SiC; or a structure of a file."""

import re
from collections.abc import Iterable
from typing import Any

import ase
import ase.build
import numpy as np

from precision_probe import models
from precision_probe.exceptions import InputError
from precision_probe.policy import Policy, Rule
from precision_probe.structures import read_structures

__all__ = ["AFTER", "DIGITS", "architecture", "parse_sizes", "structure_at", "supercells"]

# Policies by the precision of interactions, products and readouts; geometry, embeddings and sums are float64
AFTER = {
    name: Policy(tuple(Rule(f"{family}.*", name) for family in ("interactions", "products", "readouts")))
    for name in ("float32", "float16")
}
# Half of the error of forces that float32 leaves in 64 atoms of SiC is of the first radial network
DIGITS = Policy((Rule("interactions.0.conv_tp_weights", "float64"), *AFTER["float32"].rules))
LATTICE_CONSTANT, DISPLACEMENT = 4.36, 0.05  # Å, of zincblende SiC; standard deviation


def architecture(seed: int, smoke: bool) -> dict[str, Any]:
    """The default model's architecture, in the form that ``precision_probe.models.build`` takes."""
    channels, max_ell, radial = (16, 2, 16) if smoke else (128, 3, 64)
    energies = np.random.default_rng(seed).uniform(-10, -1, size=89).round(3)
    return models.default_config() | {
        "atomic_numbers": list(range(1, 90)),
        "atomic_energies": energies.tolist(),
        "r_max": 5.0,
        "max_ell": max_ell,
        "hidden_irreps": f"{channels}x0e + {channels}x1o",
        "radial_MLP": [radial] * 3,
        "avg_num_neighbors": 46.0,  # of SiC within 5 Å
    }


def parse_sizes(sizes: str, option: str = "--sizes") -> list[int]:
    """Numbers of atoms, separated by commas.

    Raises:
        InputError: If the text of the option is not that.
    """
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", sizes) or any(int(size) < 1 for size in sizes.split(",")):
        raise InputError(f"{option} {sizes!r} is not a list of numbers of atoms, such as 64,512.")
    return [int(size) for size in sizes.split(",")]


def supercells(sizes: Iterable[int], seed: int) -> list[ase.Atoms]:
    """Displaced SiC supercells with about as many atoms as asked for, 8 n³."""
    cells = []
    for n in sorted({max(1, round((size / 8) ** (1 / 3))) for size in sizes}):
        atoms = ase.build.bulk("SiC", "zincblende", a=LATTICE_CONSTANT, cubic=True).repeat(n)
        atoms.positions += np.random.default_rng(seed).normal(0, DISPLACEMENT, atoms.positions.shape)
        atoms.info["name"] = f"SiC {n}×{n}×{n}"
        cells.append(atoms)
    return cells


def structure_at(place: str) -> ase.Atoms:
    """The structure at ``path@index``.

    Raises:
        InputError: If the place is not written so, or there is no such structure.
    """
    path, _, index = place.rpartition("@")
    if not path or not index.isdigit():
        raise InputError(f"Give a structure as path@index, such as my.xyz@0; got {place!r}.")
    structures = read_structures(path)
    if int(index) >= len(structures):
        raise InputError(f"{path} holds {len(structures)} structures, counted from 0; got {place!r}.")
    return structures[int(index)]
