"""Structures from wherever the user has them: anything ASE reads → ``Atoms`` that can be run."""

import itertools
import os
import re
import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TypeAlias

import ase
import ase.io
import numpy as np
from ase.io.cif import NoStructureData, parse_cif
from ase.io.formats import ioformats, parse_filename

from precision_probe.exceptions import InputError, first_line
from precision_probe.labels import LabelKeys

__all__ = ["DEMO", "StructureSource", "read_structures"]

DEMO = "demo"
# Å³. Far below the volume of any atom, far above what rounding leaves of the determinant of a flat cell (at most
# 1e-9 of 200,000 random ones with vectors of 100 Å).
_NO_VOLUME = 1e-6
_XYZ = ("xyz", "extxyz")  # ASE's names of formats that begin with a number of atoms, and suffixes of their files
_DIGITS = 18  # of a number of atoms; Python itself refuses to read numbers of some thousands
_BEGINNING = 2000  # bytes of a file that are looked at, as many as ASE does
_LAMMPS_DATA = re.compile(rb"^\s*\d+\s+atom(s| types)\s*$", re.MULTILINE)
_ONE_PLACE = 1e-3  # in cell vectors: how near ASE takes two sites of a CIF for one
_WHOLE = 1e-3  # how far below 1 the occupancy of a whole atom may be, for the digits that a file gives it
StructureSource: TypeAlias = ase.Atoms | Iterable[ase.Atoms] | str | Path


def read_structures(
    source: StructureSource,
    *,
    keys: LabelKeys | None = None,
    format: str | None = None,  # noqa: A002
) -> list[ase.Atoms]:
    """Return the structures of a source, each with a name in ``info["name"]`` and finite positions.

    Args:
        source: ``"demo"``; a path of anything ASE reads, with ASE's own ``file@0:16`` to select, and
            ``file:lammps-data`` to say which of ASE's formats it has; an ``Atoms``; or several ``Atoms``. What is given
            is copied, not changed.
        keys: Where the reference labels stand, if not where ASE and MACE have them.
        format: ASE's name of the file's format, where neither its name nor its beginning tells.

    Raises:
        InputError: If there is no such file, ASE cannot read it, it holds no structure, no structure has a label that
            ``keys`` names, or a structure has no atoms, positions that are not finite, a site that is not one whole
            atom, or a cell without volume along its periodic directions.

    Example:
        >>> water = ase.Atoms("OHH", [(0, 0, 0), (0.96, 0, 0), (-0.24, 0.93, 0)])
        >>> [atoms.info["name"] for atoms in read_structures(water)]
        ['H2O']
    """
    structures: Sequence[ase.Atoms]
    if isinstance(source, ase.Atoms):  # asked first: Atoms are iterable themselves
        structures, stem = [source], ""
    elif isinstance(source, str | Path):
        structures, stem = _read_file(source, format)
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
    (keys or LabelKeys()).put_on(named)
    return named


def _read_file(source: str | Path, format: str | None) -> tuple[Sequence[ase.Atoms], str]:  # noqa: A002
    """The structures of a file, or of the demo, and the stem that their names are made of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an index that is none, which reading refuses below
        filename, index = parse_filename(str(source))
    if filename == DEMO and isinstance(source, str):
        with resources.as_file(resources.files("precision_probe") / "demo" / "structures.xyz") as path:
            return _read(path, index, None, source), DEMO
    path, (stem, _, named) = Path(filename), filename.rpartition(":")
    if named in ioformats and not path.exists():
        path, format = Path(stem), named  # noqa: A001
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise InputError(f"The structure file {path} {what}. Give any file that ASE reads, or {DEMO!r}.")
    return _read(path, index, format, str(source)), path.stem


def _read(path: Path, index: str | int | slice | None, format: str | None, source: str) -> Sequence[ase.Atoms]:  # noqa: A002
    """What ASE reads of a file, as a list; of an empty one it may say nothing, or raise whatever it meets."""
    if format in _XYZ or (format is None and path.suffix.lower().removeprefix(".") in _XYZ):
        _check_counts(path)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            structures = ase.io.read(path, slice(None) if index is None else index, format=format)
    except Exception as error:
        raise InputError(
            f"ASE cannot read structures from {source} ({type(error).__name__}: {first_line(error)}). "
            f"Check that the file is whole and its ending names its format. {_how_to_name_a_format(path, format)}"
        ) from error
    for each in said:
        if "are equivalent" in str(each.message):  # of two sites at one place ASE drops one
            _check_shared_sites(path)
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    if isinstance(structures, ase.Atoms):  # for an index such as @3
        return [structures]
    if not structures:
        raise InputError(
            f"{source} holds no structures that ASE sees. At least one is needed. {_how_to_name_a_format(path, format)}"
        )
    return list(structures)


def _check_counts(path: Path) -> None:
    """Refuse an XYZ file that says it has more atoms than bytes: ASE would look for each of them, for hours."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for number, line in enumerate(file):
            count = line.strip()
            if not count.isdigit():
                return  # no XYZ file, or another kind of it: ASE will see
            if len(count) > _DIGITS or int(count) > size:
                raise InputError(
                    f"{path} says that its structure {number} has {count.decode()[:_DIGITS]} atoms, and has {size} "
                    "bytes in all. Check that the file is whole."
                )
            deque(itertools.islice(file, int(count) + 1), maxlen=0)  # a comment and the atoms


def _how_to_name_a_format(path: Path, format: str | None) -> str:  # noqa: A002
    """What to try when ASE takes a file for another kind than it is, as it does with data files of LAMMPS."""
    if format is not None:
        return f"It was read as {format!r}; `ase info --formats` lists the names of all formats."
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING)
    seems = "It looks like a LAMMPS data file. " if _LAMMPS_DATA.search(beginning) else ""
    return (
        f"{seems}Where that does not tell, name the format: --structures-format lammps-data, or "
        f"{path.name}:lammps-data."
    )


def _check(atoms: ase.Atoms) -> None:
    """Refuse, by its name, what would come back from a model as NaN or as an error of an array's shape."""
    name = atoms.info["name"]
    if not len(atoms):
        raise InputError(f"Structure {name} has no atoms.")
    if not np.isfinite(atoms.positions).all():
        bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
        raise InputError(f"Structure {name}: the positions of atoms {bad.tolist()[:5]} are NaN or infinite.")
    _check_occupancy(atoms)
    if atoms.pbc.any():
        _check_cell(atoms)


def _check_occupancy(atoms: ase.Atoms) -> None:
    """Refuse sites that are empty in part or shared by elements, of which ASE makes one whole atom each."""
    of_kind: Mapping[str, Mapping[str, object]] = atoms.info.get("occupancy") or {}  # as ASE has it of a CIF
    kinds = atoms.arrays.get("spacegroup_kinds", np.arange(len(atoms)))
    of_atom = next((atoms.arrays[key] for key in ("occupancy", "occupancies") if key in atoms.arrays), None)
    for index, kind in enumerate(kinds):
        site = dict(of_kind.get(str(kind), {}))
        if of_atom is not None and of_atom[index]:  # 0 is what many programs write where they know none
            site = {atoms.symbols[index]: of_atom[index]}
        shares = {symbol: share for symbol, share in site.items() if isinstance(share, int | float | np.number)}
        if len(shares) > 1 or any(share < 1 - _WHOLE for share in shares.values()):
            held = " and ".join(f"{symbol} ({share:g})" for symbol, share in shares.items())
            raise InputError(
                f"Structure {atoms.info['name']}: site {index} is occupied by {held}, which is not one whole atom. "
                "Give an ordered structure, with one element or none on each site and no occupancies."
            )


def _check_shared_sites(path: Path) -> None:
    """Refuse a CIF that puts two elements on one site without saying in what shares."""
    with path.open("rb") as file:
        blocks = list(parse_cif(file))
    for block in blocks:
        try:
            sites = block.get_unsymmetrized_structure()
        except (KeyError, NoStructureData):
            continue
        i, j = np.triu_indices(len(sites), 1)
        apart = sites.get_scaled_positions(wrap=False)[i] - sites.get_scaled_positions(wrap=False)[j]
        is_shared = np.abs(apart - np.round(apart)).max(axis=1) < _ONE_PLACE
        for first, second in zip(i[is_shared], j[is_shared], strict=True):
            elements = sites.symbols[first], sites.symbols[second]
            if elements[0] != elements[1]:
                raise InputError(
                    f"{path}, data_{block.name}: sites {first} and {second} are {' and '.join(elements)} at one place, "
                    "which is not one whole atom. Give an ordered structure, with one element or none on each site."
                )


def _check_cell(atoms: ase.Atoms) -> None:
    """Refuse a cell that spans no volume, which has no neighbours and no stress; it may be left-handed."""
    cell = np.asarray(atoms.cell)
    if not np.isfinite(cell).all():
        raise InputError(f"Structure {atoms.info['name']}: its cell is NaN or infinite.")
    spanned = np.linalg.norm(cell[atoms.pbc], axis=1).min() > 0
    # Where it is not periodic a cell may have no vector: complete() puts one perpendicular to the others.
    volume = abs(float(np.linalg.det(atoms.cell.complete()))) if spanned else 0.0
    if not volume > _NO_VOLUME:
        raise InputError(
            f"Structure {atoms.info['name']} is periodic along {np.flatnonzero(atoms.pbc).tolist()} but its cell has "
            f"zero volume ({volume:.3g} Å³). Give cell vectors that span a volume along those directions, or pbc=False."
        )
