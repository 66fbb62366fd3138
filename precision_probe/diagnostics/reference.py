"""What a float64 model predicts exactly, and how far from it the same structures are with something rounded."""

import copy
import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from precision_probe.exceptions import InputError
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.backends import backend
from precision_probe.models.evaluation import Prediction
from precision_probe.models.graphs import Graph, build_graph
from precision_probe.models.loading import ModelSource, load_model
from precision_probe.models.memory import check_memory
from precision_probe.precisions import PRECISIONS
from precision_probe.structures import StructureSource, read_structures
from precision_probe.variants.devices import check_device
from precision_probe.variants.variant import Variant
from precision_probe.version import __version__

__all__ = ["ERROR_UNITS", "STRUCTURES", "Predict", "Reference"]

STRUCTURES = "choice of structures"  # its name in what errors depend on

ERROR_UNITS = {
    "energy": "eV/atom",
    "interaction_energy": "eV/atom",
    "forces": "eV/Å",
    "forces_mae": "eV/Å",
    "forces_rms": "eV/Å",
}

Predict = Callable[[Graph], Prediction]


class Reference:
    """A MACE model in float64, structures, and what it predicts for them.

    Args:
        model: As :func:`precision_probe.attach` takes it; it must predict energies and forces.
        structures: As ``probe.run()`` takes them.
        head: Which head of a multi-head model.
        device: Where to run; by default a GPU if there is one.
        variant: The model's float64 variant, where there is one already; it says where to run.

    Attributes:
        model: The model as it was given.
        name: A short name for it.
        variant: Its float64 variant.
        device: Where that is.
        graphs: The structures, on the device.
        exact: What the variant predicts for each.

    Raises:
        InputError: If the model, a structure or the device cannot be used.
    """

    def __init__(
        self,
        model: ModelSource,
        structures: StructureSource,
        *,
        head: str | None = None,
        device: str | torch.device | None = None,
        variant: Variant | None = None,
    ) -> None:
        self.model, self.name = load_model(model)
        if not hasattr(self.model, "atomic_energies_fn"):
            raise InputError(f"The model {self.name} predicts no energies and forces, which this needs.")
        self.device = check_device(device) if variant is None else variant.device
        self.variant = variant or Variant(self.model, PRECISIONS["float64"], self.device)
        self._run(structures, head)

    def on(self, structures: StructureSource, *, head: str | None = None) -> "Reference":
        """The same model on other structures.

        Raises:
            InputError: If a structure cannot be used.
        """
        other = copy.copy(self)
        other._run(structures, head)
        return other

    def _run(self, structures: StructureSource, head: str | None) -> None:
        """Predict the structures, once a first prediction is as every later one will be."""
        graphs = [build_graph(atoms, self.model, head) for atoms in read_structures(structures)]
        check_memory(graphs, self.model, self.device)
        self.graphs = [graph.to(self.device) for graph in graphs]
        for _ in range(2):  # TorchScript compiles in the second call, and what it compiles may round otherwise
            self.variant.predict(self.graphs[0])
        self.exact = [self.variant.predict(graph) for graph in self.graphs]

    def about(self) -> dict[str, str]:
        """What errors depend on, by its name in a sentence: what a log of them must be of."""
        digest = hashlib.sha256()
        for graph in self.graphs:
            for key, tensor in sorted(graph.data.items()):
                digest.update(f"{key} {tuple(tensor.shape)}".encode() + tensor.detach().cpu().numpy().tobytes())
        return {
            "model": weights_sha256(self.model),
            "backend": backend(self.model),
            "device": str(self.device),
            STRUCTURES: digest.hexdigest(),
            "version of precision-probe": __version__,
        }

    def not_finite(self) -> list[tuple[str, list[str]]]:
        """The structures for which float64 itself gives NaN or infinity, with the quantities: energy, forces."""
        bad_of_each = [
            (graph.names[0], [name for name in ("energy", "forces") if not torch.isfinite(exact[name]).all()])
            for graph, exact in zip(self.graphs, self.exact, strict=True)
        ]
        return [(name, bad) for name, bad in bad_of_each if bad]

    def errors(self, predict: Predict) -> dict[str, float]:
        """How far predictions are from the exact ones.

        Returns:
            ``energy`` and, if the model has it, ``interaction_energy`` (eV/atom: largest |Δ|/n_atoms), ``forces``
            (eV/Å: largest |Δ|), ``forces_mae``, ``forces_rms`` (eV/Å), ``forces_rel_l2``; over all structures.
        """
        predictions = [predict(graph) for graph in self.graphs]
        n_atoms = np.asarray([graph.n_atoms for graph in self.graphs])
        names = [quantity.name for quantity in self.exact[0].values]
        energies = {
            name: float(np.max(np.abs(_numbers(predictions, name) - _numbers(self.exact, name)) / n_atoms))
            for name in ("energy", "interaction_energy")
            if name in names
        }
        y, y_hat = _numbers(self.exact, "forces"), _numbers(predictions, "forces")
        delta = y_hat - y
        return energies | {
            "forces": float(np.abs(delta).max()),
            "forces_mae": float(np.abs(delta).mean()),
            "forces_rms": float(np.sqrt(np.mean(delta**2))),
            "forces_rel_l2": float(np.linalg.norm(delta) / np.linalg.norm(y)),
        }

    def errors_by_structure(self, predict: Predict) -> pd.DataFrame:
        """The same, structure by structure.

        Returns:
            One row for each structure: ``energy`` (eV/atom), ``forces`` (eV/Å: largest |Δ|), ``stress`` (eV/Å³:
            largest |Δ|; NaN where not periodic), and ``forces_l2`` and ``forces_norm`` (eV/Å), the lengths of the error
            and of the forces. What is NaN or infinite stays so.
        """
        rows = []
        for graph, exact in zip(self.graphs, self.exact, strict=True):
            prediction = predict(graph)
            delta = {
                name: (prediction[name].double() - exact[name].double()).abs().cpu().numpy()
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


def _numbers(predictions: Sequence[Prediction], name: str) -> NDArray[np.float64]:
    """One quantity of all structures, one after the other along the first dimension."""
    return np.concatenate([prediction[name].double().cpu().numpy() for prediction in predictions])
