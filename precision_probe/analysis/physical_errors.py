"""Errors in physical terms, by structure and by element, from a trace alone: nothing here imports torch or mace."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ase.data
import ase.units
import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from precision_probe.exceptions import InputError
from precision_probe.trace.trace import Trace

__all__ = ["ALL", "by_element", "by_structure", "has_energies_and_forces"]

ALL = "all"
_PERCENTILES = (50, 95, 99)
_MILLI = 1e3  # eV to meV
_PERCENT = 100
_NEEDED = (
    *("energy", "interaction_energy", "forces", "stress"),  # of precisions, and labels
    *("name", "n_atoms", "structure_of_atom", "atomic_numbers", "positions", "pbc"),
)


@dataclass(frozen=True)
class _Arrays:
    """Arrays of a group, read once: xarray takes longer to find one than a small structure's errors take.

    Attributes:
        values: By name.
        of_atoms: Which have a row for each atom; others have one for each structure.
    """

    values: Mapping[str, NDArray[Any]]
    of_atoms: Collection[str]

    @classmethod
    def of(cls, group: xr.Dataset) -> "_Arrays":
        """What is needed of a group, as far as it has that."""
        found = {name: group[name] for name in _NEEDED if name in group}
        return cls(
            {name: array.values for name, array in found.items()},
            {name for name, array in found.items() if "atom" in array.dims},
        )


@dataclass(frozen=True)
class _Part:
    """What one precision gives for some atoms and structures, beside the reference and the labels."""

    atoms: NDArray[np.intp]
    index: NDArray[np.intp]
    structures: _Arrays
    reference: _Arrays
    variant: _Arrays

    def of(self, group: _Arrays, name: str) -> NDArray[np.float64] | None:
        """The part of an array that is of these atoms or structures, float64; ``None`` if there is none."""
        if name not in group.values:
            return None
        rows = self.atoms if name in group.of_atoms else self.index
        values = group.values[name][rows].astype(np.float64)
        is_unlabelled = group is self.structures and np.isnan(values).all()  # NaN stands for labels that are not there
        return None if is_unlabelled else values

    def delta(self, name: str) -> NDArray[np.float64] | None:
        """How far the variant is off the reference, or ``None`` if there is no such quantity."""
        y, y_hat = self.of(self.reference, name), self.of(self.variant, name)
        return None if y is None or y_hat is None else y_hat - y

    @property
    def owners(self) -> NDArray[np.int64]:
        """The structure that each atom belongs to."""
        return np.asarray(self.structures.values["structure_of_atom"][self.atoms])

    @property
    def n_atoms(self) -> NDArray[np.int64]:
        """How many atoms each structure has."""
        return np.asarray(self.structures.values["n_atoms"][self.index])


def by_structure(trace: Trace) -> pd.DataFrame:
    """What each precision does to energies, forces and stress, in the units that people use.

    Args:
        trace: Of a model that predicts energies and forces.

    Returns:
        One row for each precision (float64 first) and structure, then one over ``all``, with

        - ``energy``, ``interaction_energy``: |Δ| per atom, meV/atom (over all: the mean);
        - ``forces_mae``, ``forces_rmse``, ``forces_p50``, ``forces_p95``, ``forces_p99``, ``forces_max`` (meV/Å): mean,
          root mean square, percentiles and largest of |Δ| over components;
        - ``forces_slope`` (%): by how much forces are too large, which is the slope of the straight line through zero
          that fits them best as a function of the reference's, less one; ``forces_slope_error`` (%), its standard
          error if components err independently. A slope of several standard errors is systematic;
        - ``forces_cosine`` with the reference's, and ``worst_atom``, such as ``O3``: element and index of the atom with
          the largest |Δ| vector;
        - ``stress``: largest |Δ| over components, GPa; NaN where not periodic;
        - ``net_force`` (meV/Å) and ``net_torque`` (meV, about the centre of the atoms): the lengths of what must be
          zero for an isolated molecule, of the precision itself; NaN where periodic;
        - where the input file has labels, ``model_forces_mae`` (meV/Å) and ``model_energy`` (meV/atom): float64's own
          error against them, and ``forces_share``, ``energy_share``: this precision's error as a share of that.

    Raises:
        InputError: If the trace is of a model without energies and forces.
    """
    _check_forces(trace)
    reference, structures = _Arrays.of(trace.group("propagated", "float64")), _Arrays.of(trace.structures)
    names = [*map(str, structures.values["name"]), ALL]
    rows = []
    for precision in ("float64", *map(str, trace.precisions)):
        variant = _Arrays.of(trace.group("propagated", precision))
        for name, part in zip(names, _parts(structures, reference, variant), strict=True):
            rows.append({"precision": precision, "structure": name, **_row(part)})
    return pd.DataFrame(rows)


def by_element(trace: Trace) -> pd.DataFrame:
    """What each precision does to the forces on the atoms of each element.

    Args:
        trace: Of a model that predicts energies and forces.

    Returns:
        One row for each precision (float64 first) and ``element``, in order of atomic number, with ``n_atoms`` over all
        structures, and of :func:`by_structure` the columns of forces, ``model_forces_mae`` and ``forces_share`` where
        the input file has labels.

    Raises:
        InputError: If the trace is of a model without energies and forces.
    """
    _check_forces(trace)
    reference, structures = _Arrays.of(trace.group("propagated", "float64")), _Arrays.of(trace.structures)
    numbers = structures.values["atomic_numbers"]
    rows = []
    for precision in ("float64", *map(str, trace.precisions)):
        variant = _Arrays.of(trace.group("propagated", precision))
        for number in np.unique(numbers):
            atoms = np.flatnonzero(numbers == number)
            part = _Part(atoms, np.arange(len(structures.values["name"])), structures, reference, variant)
            errors = _forces(part)
            labels = _against_label(part, errors, "forces", "model_forces_mae", "forces_mae")
            of_what = {"element": ase.data.chemical_symbols[number], "n_atoms": len(atoms)}
            rows.append({"precision": precision, **of_what, **errors, **labels})
    return pd.DataFrame(rows)


def _check_forces(trace: Trace) -> None:
    if not has_energies_and_forces(trace):
        raise InputError("The trace is of a model that predicts no energies and forces.")


def has_energies_and_forces(trace: Trace) -> bool:
    """Whether a trace is of energies and forces of atoms; another module's outputs may have these names too."""
    reference = trace.group("propagated", "float64")
    return "energy" in reference and "forces" in reference and "n_atoms" in trace.structures


def _parts(structures: _Arrays, reference: _Arrays, variant: _Arrays) -> Iterator[_Part]:
    """Each structure alone, then all of them together."""
    owner, n = structures.values["structure_of_atom"], len(structures.values["name"])
    ordered = np.argsort(owner, kind="stable")
    ends = np.searchsorted(owner[ordered], np.arange(n), side="right")
    for index, atoms in enumerate(np.split(ordered, ends)[:n]):
        yield _Part(atoms, np.asarray([index]), structures, reference, variant)
    yield _Part(np.arange(len(owner)), np.arange(n), structures, reference, variant)


def _row(part: _Part) -> dict[str, float | str]:
    """The columns of :func:`by_structure`, in their order; those that the trace does not tell are left out."""
    errors = _energies(part) | _forces(part)
    rest = _stress(part) | _conservation(part) | _against_labels(part, errors)
    return {**errors, **_worst_atom(part), **rest}


def _energies(part: _Part) -> dict[str, float]:
    deltas = {name: part.delta(name) for name in ("energy", "interaction_energy")}
    return {
        name: _MILLI * float(np.mean(np.abs(delta) / part.n_atoms))
        for name, delta in deltas.items()
        if delta is not None
    }


def _forces(part: _Part) -> dict[str, float]:
    """How large the forces' errors are, and how well they keep length and direction: one angle in all."""
    y, y_hat = part.of(part.reference, "forces"), part.of(part.variant, "forces")
    if y is None or y_hat is None:
        return {}
    delta = y_hat - y
    norms = np.linalg.norm(y) * np.linalg.norm(y_hat)
    percentiles = np.percentile(np.abs(delta), _PERCENTILES)
    slope, error = _slope(y.ravel(), delta.ravel())
    return {
        "forces_mae": _MILLI * float(np.abs(delta).mean()),
        "forces_rmse": _MILLI * float(np.sqrt((delta**2).mean())),
        **{f"forces_p{p}": _MILLI * float(value) for p, value in zip(_PERCENTILES, percentiles, strict=True)},
        "forces_max": _MILLI * float(np.abs(delta).max()),
        "forces_slope": _PERCENT * slope,
        "forces_slope_error": _PERCENT * error,
        "forces_cosine": float((y * y_hat).sum() / norms) if norms else np.nan,
    }


def _slope(y: NDArray[np.float64], delta: NDArray[np.float64]) -> tuple[float, float]:
    """The slope of Δ on y through zero, by least squares, and its standard error; NaN where there are no forces."""
    squares = float(y @ y)
    if not squares:
        return np.nan, np.nan
    slope = float(y @ delta) / squares
    variance = float(np.square(delta - slope * y).sum()) / (len(y) - 1)  # the fit takes one of so many components
    return slope, float(np.sqrt(variance / squares))


def _worst_atom(part: _Part) -> dict[str, str]:
    """Where the largest error of a force is, counted within its structure; an empty name if there is no error."""
    delta = part.delta("forces")
    if delta is None:
        return {}
    length = np.linalg.norm(delta, axis=1)
    worst = int(np.argmax(length))
    owners = part.owners
    within = int(worst - np.flatnonzero(owners == owners[worst])[0])
    symbol = ase.data.chemical_symbols[int(part.structures.values["atomic_numbers"][part.atoms[worst]])]
    of_which = f" of {part.structures.values['name'][owners[worst]]}" if len(part.index) > 1 else ""
    return {"worst_atom": f"{symbol}{within}{of_which}" if length[worst] > 0 else ""}


def _stress(part: _Part) -> dict[str, float]:
    delta = part.delta("stress")
    if delta is None:
        return {}
    periodic = part.structures.values["pbc"][part.index].astype(bool).all(axis=1)
    return {"stress": float(np.abs(delta)[periodic].max() / ase.units.GPa) if periodic.any() else np.nan}


def _conservation(part: _Part) -> dict[str, float]:
    """Length of the sums of forces and of torques, which are zero where nothing outside acts; over all, the largest."""
    forces, positions = part.of(part.variant, "forces"), part.of(part.structures, "positions")
    if forces is None or positions is None:
        return {}
    is_isolated = ~part.structures.values["pbc"][part.index].astype(bool).any(axis=1)
    if not is_isolated.any():
        return {"net_force": np.nan, "net_torque": np.nan}
    owner = np.searchsorted(part.index, part.owners)
    arms = positions - (_sums(positions, owner, len(part.index)) / part.n_atoms[:, None])[owner]
    of_structures = {"net_force": forces, "net_torque": np.cross(arms, forces)}
    sums = {name: _sums(values, owner, len(part.index))[is_isolated] for name, values in of_structures.items()}
    return {name: _MILLI * float(np.linalg.norm(each, axis=1).max()) for name, each in sums.items()}


def _sums(values: NDArray[np.float64], owner: NDArray[np.intp], n: int) -> NDArray[np.float64]:
    """(n, 3) sums of the rows that each of n owners has."""
    return np.stack([np.bincount(owner, weights=column, minlength=n) for column in values.T], axis=1)


def _against_labels(part: _Part, errors: Mapping[str, float]) -> dict[str, float]:
    """float64's own errors against the labels of the input file, and what share of them rounding adds."""
    of_energies = _against_label(part, errors, "energy", "model_energy", "energy")
    return of_energies | _against_label(part, errors, "forces", "model_forces_mae", "forces_mae")


def _against_label(part: _Part, errors: Mapping[str, float], name: str, key: str, own: str) -> dict[str, float]:
    """The same of one quantity: float64's error under a key, and the share that the error called ``own`` is of it."""
    label, y = part.of(part.structures, name), part.of(part.reference, name)
    if label is None or y is None:
        return {}
    delta = np.abs(y - label) / (part.n_atoms if name == "energy" else 1)
    mean = _MILLI * float(np.nanmean(delta))  # over all: of the structures that have labels
    return {key: mean, f"{name}_share": errors[own] / mean if mean else np.nan}
