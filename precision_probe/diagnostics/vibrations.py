"""Vibrations in a precision: the Hessian by differences of its forces, and the frequencies that follow."""

import ase
import ase.units
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from precision_probe.diagnostics.reference import Reference
from precision_probe.exceptions import InputError
from precision_probe.models.graphs import Graph
from precision_probe.models.loading import ModelSource
from precision_probe.precisions import PrecisionSource, parse_precisions
from precision_probe.variants.devices import check_precisions
from precision_probe.variants.variant import Variant

__all__ = ["frequencies", "hessian", "vibrations"]

_IMAGINARY = -10.0  # cm⁻¹; a choice: translations are not exactly at zero, and are not to count

_Array = NDArray[np.float64]


def vibrations(
    model: ModelSource,
    atoms: ase.Atoms,
    precisions: PrecisionSource,
    *,
    displacement: float = 0.01,
    device: str = "cpu",
) -> pd.DataFrame:
    """Compute the harmonic frequencies of a structure in float64 and in each precision.

    The structure should be a minimum of the model's energy, else float64 itself has imaginary frequencies. Of a
    periodic cell the frequencies are those at Γ. A precision rounds the displaced positions as well as all else: in
    bfloat16 the numbers next to 1 Å are 0.008 Å apart, most of the usual displacement.

    Args:
        model: As :func:`precision_probe.attach` takes it; it must predict energies and forces.
        atoms: The structure.
        precisions: The precisions.
        displacement: How far each atom is moved each way, Å.
        device: Where to run. Each precision computes forces 6 n_atoms times.

    Returns:
        Indexed by precision, float64 first:

        - ``asymmetry``: ‖H − Hᵀ‖ / ‖H + Hᵀ‖ of the Hessian H;
        - ``hessian``: ‖H − H₆₄‖ / ‖H₆₄‖;
        - ``frequency_mae``, ``frequency_max`` (cm⁻¹): the mean and largest error over all 3 n_atoms frequencies, both
          spectra sorted, imaginary frequencies counted as negative;
        - ``translations`` (cm⁻¹): the largest magnitude among the frequencies of the three modes most like
          translations, which cost no energy;
        - ``n_imaginary``: how many frequencies are more imaginary than 10 cm⁻¹.

        Asymmetry and translations are zero for an exact Hessian; float64's own are due to the length of the
        displacement. All are NaN where forces overflow.

    Raises:
        InputError: If the model, the structure, a precision or the device cannot be used, or the displacement is not
            above zero.
    """
    if not displacement > 0:
        raise InputError(f"The displacement is {displacement} Å. Give a length above zero, such as 0.01.")
    asked = parse_precisions(precisions)
    reference = Reference(model, atoms, device=device)
    check_precisions(asked, reference.device, reference.model)
    variants = [reference.variant, *(Variant(reference.model, precision, reference.device) for precision in asked)]
    hessians = [hessian(variant, reference.graphs[0], displacement) for variant in variants]
    exact, masses = hessians[0], atoms.get_masses()
    rows = {
        str(variant.precision): _compared(exact, own, masses) for variant, own in zip(variants, hessians, strict=True)
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("precision")


def hessian(variant: Variant, graph: Graph, displacement: float) -> _Array:
    """The Hessian of one structure by central differences of a variant's forces, its edges kept.

    Args:
        variant: The model in a precision.
        graph: One structure, on the variant's device.
        displacement: Å, each way.

    Returns:
        −∂F/∂x, (3 n_atoms, 3 n_atoms) eV/Å², as it comes, which rounding leaves a little asymmetric; NaN where
        forces overflow.
    """
    columns = []
    for shift in displacement * np.eye(3 * graph.n_atoms).reshape(-1, graph.n_atoms, 3):
        ahead, behind = (variant.predict(graph.displaced(way * shift))["forces"].double() for way in (1, -1))
        columns.append(((behind - ahead) / (2 * displacement)).flatten().cpu().numpy())
    matrix = np.stack(columns, axis=1)
    return np.where(np.isfinite(matrix), matrix, np.nan)


def frequencies(matrix: _Array, masses: _Array) -> tuple[_Array, _Array]:
    """Harmonic frequencies of a Hessian, made symmetric, and their modes.

    Args:
        matrix: (3 n_atoms, 3 n_atoms) eV/Å².
        masses: (n_atoms,) u.

    Returns:
        Frequencies (3 n_atoms,) cm⁻¹, ascending, imaginary ones as negative numbers; and orthonormal mass-weighted
        modes in columns. The square roots of the eigenvalues of M^(−1/2)·H·M^(−1/2) are the angular frequencies
        (Wilson, Decius & Cross 1955, Molecular Vibrations, chapter 2). NaN if the Hessian is not finite.

    Example:
        >>> spring = np.kron([[1, -1], [-1, 1]], np.diag([0, 0, 20.0]))  # 20 eV/Å² between two atoms along z
        >>> frequencies(spring, np.array([1.0, 1.0]))[0].round(3).tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0, 3298.072]
    """
    if not np.isfinite(matrix).all():
        return np.full(len(matrix), np.nan), np.full_like(matrix, np.nan)
    weights = np.repeat(masses, 3) ** -0.5
    squares, modes = np.linalg.eigh(weights[:, None] * (matrix + matrix.T) / 2 * weights)
    per_second = np.sqrt(ase.units._e / ase.units._amu) * 1e10  # √(eV/Å²/u)
    in_cm = per_second / (2 * np.pi * 100 * ase.units._c)
    return np.sign(squares) * np.sqrt(np.abs(squares)) * in_cm, modes


def _compared(exact: _Array, own: _Array, masses: _Array) -> dict[str, float]:
    """What the table says of a precision's own Hessian beside float64's."""
    values, modes = frequencies(own, masses)
    errors = np.abs(values - frequencies(exact, masses)[0])
    return {
        "asymmetry": float(np.linalg.norm(own - own.T) / np.linalg.norm(own + own.T)),
        "hessian": float(np.linalg.norm(own - exact) / np.linalg.norm(exact)),
        "frequency_mae": float(errors.mean()),
        "frequency_max": float(errors.max()),
        "translations": float(np.abs(values[_translations(modes, masses)]).max()),
        "n_imaginary": np.nan if np.isnan(values).any() else int((values < _IMAGINARY).sum()),
    }


def _translations(modes: _Array, masses: _Array) -> NDArray[np.intp]:
    """Which three modes are the most like moving all atoms together."""
    together = np.kron(np.sqrt(masses / masses.sum())[:, None], np.eye(3))  # orthonormal, mass-weighted
    overlap = np.square(together.T @ modes).sum(axis=0)
    return np.argsort(overlap)[-3:]
