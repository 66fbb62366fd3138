"""Errors in physical terms, structure by structure, from a trace alone: nothing here imports torch or mace."""

from collections.abc import Iterator
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

__all__ = ["ALL", "by_structure", "has_energies_and_forces"]

ALL = "all"
_MILLI = 1e3


@dataclass(frozen=True)
class _Structure:
    """What one precision gives for one structure, or for all, beside the reference and the labels."""

    atoms: NDArray[np.bool_]
    index: NDArray[np.intp]
    structures: xr.Dataset
    reference: xr.Dataset
    variant: xr.Dataset

    def of(self, group: xr.Dataset, name: str) -> NDArray[np.float64] | None:
        """The part of an array that belongs to these structures, float64; ``None`` if there is none."""
        if name not in group:
            return None
        rows = self.atoms if "atom" in group[name].dims else self.index
        found = group[name].values[rows].astype(np.float64)
        return None if np.isnan(found).all() and group is self.structures else found


def by_structure(trace: Trace) -> pd.DataFrame:
    """What each precision does to energies, forces and stress, in the units that people use.

    Args:
        trace: Of a model that predicts energies and forces.

    Returns:
        One row for each precision (float64 first) and structure, then one over ``all``, with

        - ``energy``, ``interaction_energy``: |Δ| per atom, meV/atom (over all: the mean);
        - ``forces_mae``, ``forces_rmse``, ``forces_max`` (meV/Å), ``forces_cosine`` with the reference's, and
          ``worst_atom``, such as ``O3``: element and index of the atom with the largest |Δ| vector;
        - ``stress``: largest |Δ| over components, GPa; NaN where not periodic;
        - ``net_force`` (meV/Å) and ``net_torque`` (meV, about the centre of the atoms): the lengths of what must be
          zero for an isolated molecule, of the precision itself; NaN where periodic;
        - where the input file has labels, ``model_forces_mae`` (meV/Å) and ``model_energy`` (meV/atom): float64's own
          error against them, and ``forces_share``, ``energy_share``: this precision's error as a share of that.

    Raises:
        InputError: If the trace is of a model without energies and forces.
    """
    if not has_energies_and_forces(trace):
        raise InputError("The trace is of a model that predicts no energies and forces.")
    reference, structures = trace.group("propagated", "float64"), trace.structures
    names = [*map(str, structures["name"].values), ALL]
    rows = []
    for precision in ("float64", *map(str, trace.precisions)):
        variant = trace.group("propagated", precision)
        for name, part in zip(names, _parts(structures, reference, variant), strict=True):
            rows.append({"precision": precision, "structure": name, **_row(part)})
    return pd.DataFrame(rows)


def has_energies_and_forces(trace: Trace) -> bool:
    """Whether a trace is of energies and forces of atoms; another module's outputs may have these names too."""
    found = trace.group("propagated", "float64")
    return "energy" in found and "forces" in found and "n_atoms" in trace.structures


def _parts(structures: xr.Dataset, reference: xr.Dataset, variant: xr.Dataset) -> Iterator[_Structure]:
    owner = structures["structure_of_atom"].values
    n = structures.sizes["structure"]
    for index in range(n):
        yield _Structure(owner == index, np.asarray([index]), structures, reference, variant)
    yield _Structure(np.ones(len(owner), dtype=bool), np.arange(n), structures, reference, variant)


def _row(part: _Structure) -> dict[str, Any]:
    n_atoms = part.structures["n_atoms"].values[part.index]
    found: dict[str, Any] = {}
    for name in ("energy", "interaction_energy"):
        y, y_hat = part.of(part.reference, name), part.of(part.variant, name)
        if y is not None and y_hat is not None:
            found[name] = _MILLI * float(np.mean(np.abs(y_hat - y) / n_atoms))
    found |= _forces(part) | _stress(part) | _conservation(part)
    return found | _against_labels(part, n_atoms, found)


def _forces(part: _Structure) -> dict[str, Any]:
    y, y_hat = part.of(part.reference, "forces"), part.of(part.variant, "forces")
    if y is None or y_hat is None:
        return {}
    delta = y_hat - y
    length = np.linalg.norm(delta, axis=1)
    worst = int(np.argmax(length))
    within = int(worst - np.flatnonzero(_owners(part) == _owners(part)[worst])[0])
    symbol = ase.data.chemical_symbols[int(part.structures["atomic_numbers"].values[part.atoms][worst])]
    of_which = f" of {part.structures['name'].values[_owners(part)[worst]]}" if len(part.index) > 1 else ""
    norms = np.linalg.norm(y) * np.linalg.norm(y_hat)
    return {
        "forces_mae": _MILLI * float(np.abs(delta).mean()),
        "forces_rmse": _MILLI * float(np.sqrt((delta**2).mean())),
        "forces_max": _MILLI * float(np.abs(delta).max()),
        "forces_cosine": float((y * y_hat).sum() / norms) if norms else np.nan,
        "worst_atom": f"{symbol}{within}{of_which}" if length[worst] > 0 else "",
    }


def _owners(part: _Structure) -> NDArray[Any]:
    return np.asarray(part.structures["structure_of_atom"].values[part.atoms])


def _stress(part: _Structure) -> dict[str, float]:
    y, y_hat = part.of(part.reference, "stress"), part.of(part.variant, "stress")
    if y is None or y_hat is None:
        return {}
    delta = np.abs(y_hat - y)
    periodic = part.structures["pbc"].values[part.index].astype(bool).all(axis=1)
    return {"stress": float(delta[periodic].max() / ase.units.GPa) if periodic.any() else np.nan}


def _conservation(part: _Structure) -> dict[str, float]:
    """Length of the sums of forces and of torques, which are zero where nothing outside acts; over all, the largest."""
    forces, positions = part.of(part.variant, "forces"), part.of(part.structures, "positions")
    if forces is None or positions is None:
        return {}
    is_isolated = np.asarray(~part.structures["pbc"].values.astype(bool).any(axis=1))
    net_force, net_torque = [], []
    for index in part.index[is_isolated[part.index]]:
        own = _owners(part) == index
        arm = positions[own] - positions[own].mean(axis=0)
        net_force.append(np.linalg.norm(forces[own].sum(axis=0)))
        net_torque.append(np.linalg.norm(np.cross(arm, forces[own]).sum(axis=0)))
    return {
        "net_force": _MILLI * float(max(net_force, default=np.nan)),
        "net_torque": _MILLI * float(max(net_torque, default=np.nan)),
    }


def _against_labels(part: _Structure, n_atoms: NDArray[Any], found: dict[str, Any]) -> dict[str, float]:
    labels: dict[str, float] = {}
    for name, key, own in (("energy", "model_energy", "energy"), ("forces", "model_forces_mae", "forces_mae")):
        label, y = part.of(part.structures, name), part.of(part.reference, name)
        if label is None or y is None:
            continue
        delta = np.abs(y - label) / (n_atoms if name == "energy" else 1)
        labels[key] = _MILLI * float(np.nanmean(delta))
        labels[f"{name}_share"] = found[own] / labels[key] if labels[key] else np.nan
    return labels
