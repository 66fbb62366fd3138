"""What part of a model makes how much of the error of its energies and forces: shares that add up to the whole.

One part after the other, in the order in which a run needs them, is taken from the model in float64 to the model in the
precision. What each step changes is what that part adds, with the inputs that it gets there; all steps together are the
whole error Δ, exactly. The share of a step s is ⟨s, Δ⟩ / ‖Δ‖², its length along the error in lengths of the error, so
that shares add up to one. Steps that know nothing of one another have shares near ‖s‖² / ‖Δ‖², off by about
‖s‖ / (‖Δ‖ √n) for n numbers; one that undoes what others did has a negative share.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from precision_probe.diagnostics.reference import Predict, Reference
from precision_probe.variants.partial_model import PartialModel
from precision_probe.variants.variant import Variant

__all__ = ["REST", "UNITS", "contributions"]

REST = "the rest"
UNITS = {"energy": "eV/atom", "forces": "eV/Å"}

_Array = NDArray[np.float64]


def contributions(reference: Reference, variants: Sequence[Variant]) -> pd.DataFrame:
    """Divide the error of each precision among the parts of the model.

    Args:
        reference: The model and structures.
        variants: The model in precisions that hardware has; emulated ones are passed over.

    Returns:
        One row for each precision and part (``geometry``: edge vectors and lengths; the blocks; ``sums`` of energies),
        and ``the rest``, which is by what a variant differs from all parts together. Columns: ``energy`` (eV/atom) and
        ``forces`` (eV/Å), the root mean square over structures or components of what the part adds;
        ``energy_share`` and ``forces_share``, of the error's square. From the first part that makes a result NaN or
        infinite on, its numbers are NaN, and the shares of all parts are.
    """
    rows = []
    for variant in variants:
        if not variant.precision.emulated:
            rows += [{"precision": variant.precision.name, **row} for row in _of_variant(reference, variant)]
    return pd.DataFrame(rows, columns=["precision", "part", "energy", "forces", "energy_share", "forces_share"])


def _of_variant(reference: Reference, variant: Variant) -> list[dict[str, object]]:
    """The rows of one precision: the reference, then one part more with each run, at last the variant itself."""
    model = PartialModel(reference.model, variant.precision, reference.device)
    cumulative: list[Predict] = [partial(model.predict, parts=model.parts[:n]) for n in range(1, len(model.parts) + 1)]
    predictors: list[Predict] = [reference.variant.predict, *cumulative, variant.predict]
    results = [_results(reference, predict) for predict in predictors]
    rows: list[dict[str, object]] = [{"part": part} for part in (*model.parts, REST)]
    for name in UNITS:
        whole = results[-1][name] - results[0][name]  # the reference is finite
        for row, before, after in zip(rows, results, results[1:], strict=False):
            with np.errstate(invalid="ignore"):  # ∞ − ∞, where a part has overflowed
                step = after[name] - before[name]
            row[name] = float(np.sqrt(np.mean(step**2)))
            row[f"{name}_share"] = _share(step, whole)
    return rows


def _results(reference: Reference, predict: Predict) -> dict[str, _Array]:
    """Energies per atom, (n_structures,) eV, and all components of forces, eV/Å, in one array each."""
    predictions = [(graph.n_atoms, predict(graph)) for graph in reference.graphs]
    energies = [prediction["energy"].double() / n_atoms for n_atoms, prediction in predictions]
    forces = [prediction["forces"].double().flatten() for _, prediction in predictions]
    return {"energy": torch.cat(energies).cpu().numpy(), "forces": torch.cat(forces).cpu().numpy()}


def _share(step: _Array, whole: _Array) -> float:
    """⟨s, Δ⟩ / ‖Δ‖²; NaN where there is no error to share, or one that is not finite."""
    squared = float(whole @ whole)
    return float(step @ whole) / squared if squared else np.nan
