"""Structures from wherever the user has them: anything ASE reads → ``Atoms`` that can be run."""

from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TypeAlias

import ase
import ase.io
import numpy as np
from ase.io.formats import parse_filename

from precision_probe.exceptions import InputError

__all__ = ["DEMO", "StructureSource", "read_structures"]

DEMO = "demo"
# Å³. Far below the volume of any atom, far above what rounding leaves of the determinant of a flat cell (at most
# 1e-9 of 200,000 random ones with vectors of 100 Å).
_NO_VOLUME = 1e-6
_LONGEST_MESSAGE = 120  # characters of what a reader of ASE says: some repeat the file
StructureSource: TypeAlias = ase.Atoms | Iterable[ase.Atoms] | str | Path


def read_structures(source: StructureSource) -> list[ase.Atoms]:
    """Return the structures of a source, each with a name in ``info["name"]`` and finite positions.

    Args:
        source: ``"demo"``; a path of anything ASE reads, with ASE's own ``file@0:16`` to select; an ``Atoms``; or
            several ``Atoms``. What is given is copied, not changed.

    Raises:
        InputError: If there is no such file, ASE cannot read it, it holds no structure, or a structure has no atoms,
            positions that are not finite, or a cell without volume along its periodic directions.

    Example:
        >>> water = ase.Atoms("OHH", [(0, 0, 0), (0.96, 0, 0), (-0.24, 0.93, 0)])
        >>> [atoms.info["name"] for atoms in read_structures(water)]
        ['H2O']
    """
    structures: Sequence[ase.Atoms]
    if isinstance(source, ase.Atoms):  # asked first: Atoms are iterable themselves
        structures, stem = [source], ""
    elif isinstance(source, str | Path):
        structures, stem = _read_file(source)
    elif isinstance(source, Iterable):
        structures, stem = list(source), ""
    else:
        raise InputError(f"Structures are Atoms, a list of them or a path; got {type(source).__name__}.")
    if not structures:
        raise InputError(f"{source if stem else 'The list given'} holds no structures. At least one is needed.")
    named = []
    for index, atoms in enumerate(structures):
        if not isinstance(atoms, ase.Atoms):
            raise InputError(f"Structure {index} is a {type(atoms).__name__}, not an ASE Atoms.")
        copy = atoms.copy()
        copy.calc = atoms.calc  # which Atoms.copy leaves out, and which has the labels of a file
        default = f"{stem}[{index}]" if stem else atoms.get_chemical_formula()
        copy.info["name"] = str(atoms.info.get("name", default))
        _check(copy)
        named.append(copy)
    return named


def _read_file(source: str | Path) -> tuple[Sequence[ase.Atoms], str]:
    """The structures of a file, or of the demo, and the stem that their names are made of."""
    if source == DEMO:
        with resources.as_file(resources.files("precision_probe") / "demo" / "structures.xyz") as path:
            return ase.io.read(path, ":"), DEMO
    filename, index = parse_filename(str(source))
    path = Path(filename)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise InputError(f"The structure file {path} {what}. Give any file that ASE reads, or {DEMO!r}.")
    try:
        structures = ase.io.read(path, slice(None) if index is None else index)
    except Exception as error:  # the many readers of ASE raise whatever they meet
        raise InputError(
            f"ASE cannot read structures from {source} ({type(error).__name__}: {str(error)[:_LONGEST_MESSAGE]}). "
            "Check that the file is whole and its ending names its format."
        ) from error
    return structures if isinstance(structures, list) else [structures], path.stem  # one Atoms for an index such as @3


def _check(atoms: ase.Atoms) -> None:
    """Refuse, by its name, what would come back from a model as NaN or as an error of an array's shape."""
    name = atoms.info["name"]
    if not len(atoms):
        raise InputError(f"Structure {name} has no atoms.")
    if not np.isfinite(atoms.positions).all():
        bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
        raise InputError(f"Structure {name}: the positions of atoms {bad.tolist()[:5]} are NaN or infinite.")
    if atoms.pbc.any():
        _check_cell(atoms)


def _check_cell(atoms: ase.Atoms) -> None:
    """Refuse a cell that spans no volume, which has no neighbours and no stress; or a left-handed one."""
    cell = np.asarray(atoms.cell)
    if not np.isfinite(cell).all():
        raise InputError(f"Structure {atoms.info['name']}: its cell is NaN or infinite.")
    spanned = np.linalg.norm(cell[atoms.pbc], axis=1).min() > 0
    # Where it is not periodic a cell may have no vector: complete() puts one perpendicular to the others.
    volume = float(np.linalg.det(atoms.cell.complete())) if spanned else 0.0
    if not volume > _NO_VOLUME:
        kind = "negative" if volume < -_NO_VOLUME else "zero"
        raise InputError(
            f"Structure {atoms.info['name']} is periodic along {np.flatnonzero(atoms.pbc).tolist()} but its cell has "
            f"{kind} volume ({volume:.3g} Å³). Give right-handed cell vectors along those directions, or pbc=False."
        )
