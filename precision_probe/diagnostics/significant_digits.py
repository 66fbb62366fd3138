"""Significant digits without a reference: a run rounded stochastically, several times, scatters where it is unsure.

Stochastic arithmetic (Parker 1997, Monte Carlo arithmetic; Sohier et al. 2021, ACM Trans. Math. Softw. 47(2), 13): of N
samples with mean μ and standard deviation σ, −log₁₀(σ/|μ|) decimal digits agree from run to run.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from precision_probe.diagnostics.reference import Reference
from precision_probe.exceptions import InputError
from precision_probe.precisions import PRECISIONS, Precision, emulated, parse_precision
from precision_probe.variants.variant import Variant

__all__ = ["significant_digits"]

_SPARE_BITS = 4  # that a float64 computation needs beyond the format, to round up or down with odds true to 1/16

_Array = NDArray[np.float64]


def significant_digits(
    reference: Reference, precisions: Sequence[str | Precision], *, n_samples: int = 6, seed: int = 0
) -> pd.DataFrame:
    """Run a model several times with stochastic rounding and count the digits that do not change.

    Args:
        reference: The model and the structures. Its float64 results are not used.
        precisions: Formats to round to, with their own range. float64 is among those possible: it is rounded to 48
            stored bits, and the four bits that are missing, 1.2 digits, are added, errors being proportional to the
            unit roundoff. tf32, which rounds but the inputs of matrix products, is not.
        n_samples: Runs of each.
        seed: Of the rounding.

    Returns:
        One row for each precision and quantity (``energy``, ``interaction_energy``, ``forces``): ``digits``, decimal
        and the fewest over structures (for forces of the whole vector: σ and |μ| are root mean squares over
        components), and ``spread``, σ in eV/atom or eV/Å, the largest over structures.

    Stochastic rounding makes errors up to √2 larger than rounding to nearest. Digits that agree may still be wrong
    where the rounding of the weights and the geometry, which is sampled too, is not what limits accuracy.

    Raises:
        InputError: For fewer than two samples, or tf32.
    """
    if n_samples < 2:
        raise InputError(f"A spread needs two samples or more; got {n_samples}.")
    formats = [(precision, *_stochastic(precision)) for precision in map(parse_precision, precisions)]
    rows = []
    for precision, sampled, missing in formats:
        samples = [_results(reference, sampled, seed + number) for number in range(n_samples)]
        for quantity in samples[0]:
            values = [np.stack(runs) for runs in zip(*(sample[quantity] for sample in samples), strict=True)]
            deviations = [_rms(of_one.std(axis=0, ddof=1)) / 2.0**missing for of_one in values]
            means = [_rms(of_one.mean(axis=0)) for of_one in values]
            with np.errstate(divide="ignore", invalid="ignore"):
                digits = -np.log10(np.asarray(deviations) / np.asarray(means))
            rows.append(
                {
                    "precision": str(precision),
                    "quantity": quantity,
                    "digits": float(digits.min()),
                    "spread": max(deviations),
                }
            )
    return pd.DataFrame(rows)


def _stochastic(precision: Precision) -> tuple[Precision, int]:
    """The stochastic format to sample, and how many bits the precision has more than that, as float64 has to spare."""
    if precision.products_only:
        raise InputError("tf32 rounds the inputs of matrix products alone, which stochastic rounding cannot sample.")
    if precision.stochastic:
        return precision, 0
    stored = precision.significand_bits - 1
    missing = max(0, stored - (PRECISIONS["float64"].significand_bits - 1 - _SPARE_BITS))
    exponent_bits = precision.exponent_bits if precision.has_range else None
    return emulated(precision.significand_bits - missing, exponent_bits, stochastic=True), missing


def _results(reference: Reference, precision: Precision, seed: int) -> dict[str, list[_Array]]:
    """For each quantity its values, structure by structure; energies per atom."""
    variant = Variant(reference.model, precision, reference.device, seed=seed)
    results: dict[str, list[_Array]] = {}
    for graph in reference.graphs:
        for quantity, tensor in variant.predict(graph).values.items():
            if quantity.name in ("energy", "interaction_energy", "forces"):
                values = tensor.double().cpu().numpy()
                results.setdefault(quantity.name, []).append(
                    values if quantity.name == "forces" else values / graph.n_atoms
                )
    return results


def _rms(values: _Array) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
