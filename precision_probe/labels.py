"""Reference labels from wherever a file has them: an energy, forces and a stress that can be read, or a note why not.

No label is needed to run a model, so one that cannot be read is left out.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import ase
import numpy as np
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from precision_probe.exceptions import InputError

__all__ = ["LabelKeys", "Labels", "UnreadableError", "grouped", "numbers", "read_labels"]

_UNITS = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å³"}
_WORDS = {"energy": "energy", "forces": "force", "stress": "stress"}  # what the names of other programs' labels contain
_NO_LABELS = ("ref_", "config_")  # what MACE reads already, and its weights of losses
_CHOSEN = "label_keys"  # of ``Atoms.info``: the keys asked for, which so travel with the structure
_SHOWN = 3  # names of structures in a note


@dataclass(frozen=True)
class LabelKeys:
    """Where a file's labels stand, if neither in ASE's own places nor under MACE's ``REF_energy`` and its like.

    Attributes:
        energy: Key of ``Atoms.info`` for the energy, eV.
        forces: Key of ``Atoms.arrays`` for the forces, eV/Å.
        stress: Key of ``Atoms.info`` for the stress, eV/Å³.
    """

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None

    def put_on(self, structures: Iterable[ase.Atoms]) -> None:
        """Note on structures which keys to read, in place; where there are no keys, nothing.

        Raises:
            InputError: If no structure at all has a key.
        """
        chosen = {name: key for name, key in dataclasses.asdict(self).items() if key is not None}
        if not chosen:
            return
        places = [_places(atoms) for atoms in structures]
        for name, key in chosen.items():
            if not any(key in place for place in places):
                known = sorted({str(other) for place in places for other in place} - {"name", "numbers", "positions"})
                raise InputError(
                    f"No structure has a label {key!r}, which was given as the key of {name}. "
                    f"There are: {', '.join(known) or 'no labels at all'}."
                )
        for atoms in structures:
            atoms.info[_CHOSEN] = chosen


@dataclass(frozen=True)
class Labels:
    """What could be read of one structure's labels.

    Attributes:
        values: Energy (1,) eV, forces (n_atoms, 3) eV/Å and stress (1, 3, 3) eV/Å³, those there are.
        notes: What was left out or stands unused, each to be read after the structure's name.
    """

    values: dict[str, NDArray[np.float64]]
    notes: tuple[str, ...]


class UnreadableError(ValueError):
    """A value that is not the numbers expected; the message says what it is, to be read after its key."""


def numbers(value: object, *shapes: tuple[int, ...]) -> NDArray[np.float64]:
    """A value of a file as float64 numbers in one of some shapes; a shape () is also met by one number in brackets.

    Raises:
        UnreadableError: If it is nothing, text or of another shape, or holds an infinity, or nothing but NaN.

    Example:
        >>> numbers([-7], ())
        array(-7.)
        >>> numbers("neutral", ())
        Traceback (most recent call last):
            ...
        precision_probe.labels.UnreadableError: is text, where a number is expected
    """
    wanted = "a number" if shapes[0] == () else f"an array {' or '.join(map(str, shapes))}"
    if value is None:
        raise UnreadableError(f"is None, where {wanted} is expected")
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        is_text = any(isinstance(each, str) for each in np.ravel(np.asarray(value, dtype=object)))
        what = "text" if is_text else "no array of numbers"
        raise UnreadableError(f"is {what}, where {wanted} is expected") from None
    if shapes[0] == () and array.size == 1:
        array = array.reshape(())
    if array.shape not in shapes:
        raise UnreadableError(f"has the shape {array.shape}, where {wanted} is expected")
    if np.isinf(array).any() or np.isnan(array).all():
        raise UnreadableError(f"is NaN or infinite, where {wanted} is expected")
    return array


def read_labels(atoms: ase.Atoms) -> Labels:
    """The reference labels of one structure.

    They are read from the keys asked for (:class:`LabelKeys`), else from the results of the structure's calculator,
    which is where ASE puts what it knows in a file, else from MACE's ``REF_energy``, ``REF_forces``, ``REF_stress``.
    NaN among forces or in a stress stays: it stands for what has no label.
    """
    results, places = _results(atoms), _places(atoms)
    chosen: Mapping[str, str] = atoms.info.get(_CHOSEN, {})
    values: dict[str, NDArray[np.float64]] = {}
    notes = []
    for name, unit in _UNITS.items():
        if name in chosen and chosen[name] not in places:
            notes.append(f"has no {chosen[name]!r}, which was given as the key of {name}.")
            continue
        if name in chosen:
            candidates = {chosen[name]: places[chosen[name]]}
        else:
            candidates = {key: place[key] for key, place in ((name, results), (f"REF_{name}", places)) if key in place}
        for key, value in candidates.items():
            try:
                values[name] = _shaped(name, value, len(atoms))
                break
            except UnreadableError as why:
                notes.append(f"{key!r} {why} ({unit}), and is left out.")
    unused = _unused(atoms, [name for name in _UNITS if name not in values and name not in chosen])
    return Labels(values, (*notes, *unused))


def grouped(notes: Iterable[tuple[str, str]]) -> list[str]:
    """One sentence for each note, however many structures it is of.

    Args:
        notes: Pairs of a structure's name and what is to be said after it.

    Example:
        >>> grouped([("a", "has no energy."), ("b", "has no energy.")])
        ['a, b: has no energy.']
    """
    names: dict[str, list[str]] = {}
    for name, note in notes:
        names.setdefault(note, []).append(name)
    return [f"{_listed(each)}: {note}" for note, each in names.items()]


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _results(atoms: ase.Atoms) -> dict[str, object]:
    """What the calculator has of these very atoms, not of others, nor of where they were before."""
    fresh = atoms.calc is not None and not atoms.calc.check_state(atoms)
    return dict(atoms.calc.results) if fresh else {}


def _places(atoms: ase.Atoms) -> dict[str, object]:
    """Everything that a structure carries, by its key."""
    return {**_results(atoms), **atoms.arrays, **atoms.info}


def _shaped(name: str, value: object, n_atoms: int) -> NDArray[np.float64]:
    """One label in the shape that the trace has it in."""
    if name == "energy":
        return numbers(value, ()).reshape(1)
    if name == "forces":
        return numbers(value, (n_atoms, 3))
    stress = numbers(value, (6,), (3, 3), (9,))
    return (voigt_6_to_full_3x3_stress(stress) if stress.size == 6 else stress).reshape(1, 3, 3)


def _unused(atoms: ase.Atoms, missing: Iterable[str]) -> list[str]:
    """What looks like a label that is missing, and how to have it read; nothing where there is no such thing."""
    likely: dict[str, str] = {}
    for name in missing:
        for key, value in {**atoms.arrays, **atoms.info}.items():
            if _WORDS[name] in str(key).lower() and not str(key).lower().startswith(_NO_LABELS):
                with contextlib.suppress(UnreadableError):
                    _shaped(name, value, len(atoms))
                    likely.setdefault(name, str(key))
    if not likely:
        return []
    options = " ".join(f"--{name}-key {key}" for name, key in likely.items())
    keys = ", ".join(f"{name}={key!r}" for name, key in likely.items())
    return [
        f"{' and '.join(map(repr, likely.values()))} may be reference labels, and are not used. If they are, say so: "
        f"{options}, or in Python read_structures(…, keys=LabelKeys({keys}))."
    ]
