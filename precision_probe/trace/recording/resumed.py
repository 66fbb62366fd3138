"""What an earlier run left in its file: which structures, and of what run, so that another can go on from there."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from precision_probe.exceptions import InputError

__all__ = ["OF_RUN", "Resumed"]

# Attributes that decide what numbers come out.
OF_RUN = (
    *("model_class", "model_dtype", "model_sha256", "backend", "head"),
    *("precisions", "math_dtypes", "blocks", "modes", "gradients", "keep", "batch_edges", "seed"),
)
_OF_PART = ("part", "n_parts", "first_structure")
_CALL = re.compile(r"call (\d+)")  # begins the name of what a live model was called with
_OF_STRUCTURES = ("name", "n_atoms", "n_edges")
_OF_ATOMS = ("atomic_numbers", "positions")


class Resumed:
    """The structures of an unfinished file.

    Args:
        path: The file.
        attributes: Of its root.
        structures: Its ``/structures``.

    Attributes:
        attributes: As given.
        n_structures: How many structures it has.
        n_passed: How many of these have been met again.
    """

    def __init__(self, path: Path, attributes: Mapping[str, Any], structures: xr.Dataset) -> None:
        self._path, self.attributes, self._structures = path, attributes, structures.load()
        self.n_structures = int(self._structures.sizes["structure"])
        self.n_passed = 0
        n_atoms = self._structures["n_atoms"].values if "n_atoms" in self._structures else np.zeros(0, dtype=int)
        self._first_atoms = np.concatenate([[0], np.cumsum(n_atoms)])

    @property
    def last_call(self) -> int:
        """The number of the last call of a live model that the file has; 0 without any."""
        calls = (_CALL.match(str(name)) for name in self._structures["name"].values)
        return max((int(call.group(1)) for call in calls if call), default=0)

    def check(self, attributes: Mapping[str, object]) -> None:
        """Refuse to go on with another run than the file is of.

        Raises:
            InputError: If a model, its weights, precisions, blocks, … differ.
        """
        now = json.loads(json.dumps({key: attributes.get(key) for key in (*OF_RUN, *_OF_PART)}))
        for key, value in now.items():
            if (earlier := self.attributes.get(key)) != value:
                raise InputError(
                    f"{self._path} is of another run: its {key} is {_short(earlier)}, and here it is {_short(value)}. "
                    "Run what it is of, or begin anew with --force (force=True) and without --resume (resume=True)."
                )

    def passes(self, structures: Mapping[str, NDArray[Any]]) -> bool:
        """Whether the file has the next structures to be run, which then are not to be run again.

        Args:
            structures: Of these, the variables of ``/structures``.

        Raises:
            InputError: If it has others in their place.
        """
        names = structures["name"]
        first, last = self.n_passed, self.n_passed + len(names)
        if first >= self.n_structures:
            return False
        for variable, rows in self._rows(first, last).items():
            if variable in structures and variable in self._structures:
                ours, theirs = structures[variable], self._structures[variable].values[rows]
                if not np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f"):
                    name = self._structures["name"].values[first]
                    raise InputError(
                        f"Structure {first} of {self._path} is {name}, and the one to be run in its place, {names[0]}, "
                        f"has other {variable}. Run the structures that it is of, or begin anew with --force "
                        "(force=True) and without --resume (resume=True)."
                    )
        self.n_passed = last
        return True

    def _rows(self, first: int, last: int) -> dict[str, slice]:
        """Which rows of each variable some structures have."""
        rows = dict.fromkeys((*_OF_STRUCTURES, "cell", "pbc"), slice(first, last))
        if len(self._first_atoms) > last:
            rows |= dict.fromkeys(_OF_ATOMS, slice(self._first_atoms[first], self._first_atoms[last]))
        return rows


def _short(value: object) -> str:
    """A value as a sentence can hold it."""
    text = ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
    return text if len(text) <= 100 else f"{text[:97]}…"
