"""A float64 model run with something rounded, and how far that moves its energies and forces."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch

from precision_probe.exceptions import InputError
from precision_probe.models import load_model
from precision_probe.precisions import PRECISIONS
from precision_probe.structures import Graph, build_graph, read_structures
from precision_probe.variants import Prediction, Variant, check_device

__all__ = ["ERROR_UNITS", "Trials"]

ERROR_UNITS = {
    "energy": "eV/atom",
    "interaction_energy": "eV/atom",
    "forces": "eV/Å",
    "forces_mae": "eV/Å",
    "forces_rms": "eV/Å",
}


class Trials:
    """A MACE model's float64 variant, structures, and what it predicts for them exactly.

    Args:
        model: As :func:`precision_probe.attach` takes it; it must predict energies and forces.
        structures: As ``probe.run()`` takes them.
        head: Which head of a multi-head model.
        device: Where to run; by default a GPU if there is one.

    Raises:
        InputError: If the model, a structure or the device cannot be used.
    """

    def __init__(self, model: Any, structures: Any, *, head: str | None = None, device: str | None = None) -> None:
        self.model, self.name = load_model(model)
        if not hasattr(self.model, "atomic_energies_fn"):
            raise InputError(f"The model {self.name} predicts no energies and forces, which this needs.")
        self.device = check_device(device or ("cuda" if torch.cuda.is_available() else "cpu"), ())
        self.reference = Variant(self.model, PRECISIONS["float64"], self.device)
        self._run(structures, head)

    def on(self, structures: Any, *, head: str | None = None) -> "Trials":
        """Trials of the same model on other structures.

        Raises:
            InputError: If a structure cannot be used.
        """
        other = copy.copy(self)
        other._run(structures, head)
        return other

    def _run(self, structures: Any, head: str | None) -> None:
        graphs = [build_graph(atoms, self.model, head) for atoms in read_structures(structures)]
        self.graphs = [graph.to(self.device) for graph in graphs]
        self.reference.predict(self.graphs[0])
        self.reference.predict(self.graphs[0])  # TorchScript compiles in the second call
        self.exact = [self.reference.predict(graph) for graph in self.graphs]

    def not_finite(self) -> list[tuple[str, list[str]]]:
        """The structures for which float64 itself gives NaN or infinity, with the quantities: energy, forces."""
        found = [
            (graph.names[0], [name for name in ("energy", "forces") if not torch.isfinite(exact[name]).all()])
            for graph, exact in zip(self.graphs, self.exact, strict=True)
        ]
        return [(name, bad) for name, bad in found if bad]

    def errors(self, predict: Callable[[Graph], Prediction]) -> dict[str, float]:
        """How far predictions are from the exact ones.

        Returns:
            ``energy`` and, if the model has it, ``interaction_energy`` (eV/atom: largest |Δ|/n_atoms), ``forces``
            (eV/Å: largest |Δ|), ``forces_mae``, ``forces_rms``, ``forces_rel_l2``; over all structures.
        """
        found = [predict(graph) for graph in self.graphs]
        n_atoms = np.asarray([graph.n_atoms for graph in self.graphs])
        names = [quantity.name for quantity in self.exact[0].values]
        energies = {
            name: float(np.max(np.abs(_numbers(found, name) - _numbers(self.exact, name)) / n_atoms))
            for name in ("energy", "interaction_energy")
            if name in names
        }
        y, y_hat = _numbers(self.exact, "forces"), _numbers(found, "forces")
        delta = y_hat - y
        return energies | {
            "forces": float(np.abs(delta).max()),
            "forces_mae": float(np.abs(delta).mean()),
            "forces_rms": float(np.sqrt(np.mean(delta**2))),
            "forces_rel_l2": float(np.linalg.norm(delta) / np.linalg.norm(y)),
        }

    def errors_by_structure(self, predict: Callable[[Graph], Prediction]) -> pd.DataFrame:
        """The same, structure by structure.

        Returns:
            One row for each structure: ``energy`` (eV/atom), ``forces`` (eV/Å: largest |Δ|), ``stress`` (eV/Å³:
            largest |Δ|; NaN where not periodic), and ``forces_l2`` and ``forces_norm`` (eV/Å), the lengths of the error
            and of the forces. What is NaN or infinite stays so.
        """
        rows = []
        for graph, exact in zip(self.graphs, self.exact, strict=True):
            found = predict(graph)
            delta = {
                name: (found[name].double() - exact[name].double()).abs().cpu().numpy()
                for name in ("energy", "forces", "stress")
            }
            rows.append(
                {
                    "energy": float(delta["energy"].max()) / graph.n_atoms,
                    "forces": float(delta["forces"].max(initial=0.0)),
                    "stress": float(delta["stress"].max()) if graph.periodic.all() else np.nan,
                    "forces_l2": float(np.linalg.norm(delta["forces"])),
                    "forces_norm": float(exact["forces"].double().norm()),
                }
            )
        return pd.DataFrame(rows)


def _numbers(predictions: list[Prediction], name: str) -> np.ndarray[Any, Any]:
    return np.concatenate([prediction[name].double().cpu().numpy() for prediction in predictions])
