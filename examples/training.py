"""Fit a MACE to labelled structures: what the training examples share.

A structure's energy is learnt as what is left of it after a constant for each element. Those are subtracted in float64,
so that energies of any size can be learnt in float32.
"""

import argparse
import copy
import json
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import mace
import numpy as np
import torch
from ase import Atoms
from mace import data as mace_data
from mace.tools import AtomicNumberTable
from mace.tools.torch_geometric import Batch
from mace.tools.torch_geometric.dataloader import DataLoader

from precision_probe import models

__all__ = ["Recipe", "add_train_options", "train_model"]

Residuals = tuple[torch.Tensor, torch.Tensor]  # of energies per atom, eV, (graphs,); of forces, eV/Å, (atoms, 3)


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        loss: Of the two residuals.
        batch_size: Structures.
        learning_rate: At the start; a cosine takes it to zero.
        ema_decay: Of the averaged weights, which are the ones that are kept.
        dtype: What is computed in while training. The averaged weights are float64 in any case.
        seed: Of the first weights and the order of structures.
    """

    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    batch_size: int
    learning_rate: float = 0.01
    ema_decay: float = 0.99
    dtype: torch.dtype = torch.float64
    seed: int = 1


# ---------------------------------------------------------------------------------------------------------------- data


def fitted_atomic_energies(structures: list[Atoms], atomic_numbers: list[int]) -> np.ndarray:
    """The constants (eV) of elements that come closest to the energies, (elements,).

    Free atoms of a tight-binding method without spin are poor zeros; what these leave over for the network is tenths of
    an eV per atom.
    """
    counts = np.array([[np.sum(atoms.numbers == z) for z in atomic_numbers] for atoms in structures])
    energies = np.array([atoms.get_potential_energy() for atoms in structures])
    found: np.ndarray = np.linalg.lstsq(counts, energies, rcond=None)[0]
    return found


def graph(atoms: Atoms, config: Mapping[str, Any], atomic_energies: np.ndarray) -> mace_data.AtomicData:
    """One structure as MACE's float64 graph, with its forces and what atomic energies leave of its energy."""
    constants = dict(zip(config["atomic_numbers"], atomic_energies, strict=True))
    left = atoms.get_potential_energy() - sum(constants[z] for z in atoms.numbers.tolist())
    configuration = mace_data.Configuration(
        atomic_numbers=atoms.numbers,
        positions=atoms.positions,
        cell=np.array(atoms.cell),
        pbc=tuple(atoms.pbc),
        properties={"energy": left, "forces": atoms.get_forces()},
        property_weights={},
    )
    with models.default_dtype(torch.float64):
        return mace_data.AtomicData.from_config(
            configuration, z_table=AtomicNumberTable(config["atomic_numbers"]), cutoff=config["r_max"]
        )


def numbers_from(graphs: list[mace_data.AtomicData]) -> dict[str, float]:
    """What an architecture takes from its training data, but for the atomic energies."""
    n_atoms = [len(each.positions) for each in graphs]
    forces = torch.cat([each.forces for each in graphs])
    per_atom = [each.energy.item() / n for each, n in zip(graphs, n_atoms, strict=True)]
    return {
        "avg_num_neighbors": sum(each.edge_index.shape[1] for each in graphs) / sum(n_atoms),
        "atomic_inter_scale": forces.square().mean().sqrt().item(),
        "atomic_inter_shift": float(np.mean(per_atom)),
    }


# ------------------------------------------------------------------------------------------------------------ training


class Average:
    """A float64 copy of a model whose parameters are exponential averages of the model's over its steps.

    Averages of numbers that are rounded to float32 are not: the weights have all of float64's digits. Everything else,
    the atomic energies among it, stays as it was built in float64.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.model, self._decay, self._started = copy.deepcopy(model), decay, False

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """Take in the parameters that a step has led to."""
        weight = 1 - self._decay if self._started else 1.0
        for mean, each in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(each.to(mean.dtype), weight)
        self._started = True


def residuals(
    model: torch.nn.Module, batch: Batch, dtype: torch.dtype = torch.float64, training: bool = False
) -> Residuals:
    """The errors of one batch, computed in a dtype."""
    inputs = {
        name: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in batch.to_dict().items()
    }
    with models.default_dtype(dtype):
        output = model(inputs, training=training, compute_force=True)
    n_atoms = batch.ptr[1:] - batch.ptr[:-1]
    return (output["interaction_energy"] - inputs["energy"]) / n_atoms, output["forces"] - inputs["forces"]


def validate(model: torch.nn.Module, loader: DataLoader, device: str) -> Residuals:
    """The residuals of a whole data set in float64, on the CPU."""
    energy, forces = [], []
    for batch in loader:
        parts = residuals(model, batch.to(device))
        energy.append(parts[0].detach().cpu())
        forces.append(parts[1].detach().cpu())
    return torch.cat(energy), torch.cat(forces)


def fit(
    config: dict[str, Any],
    recipe: Recipe,
    loaders: dict[str, DataLoader],
    out: Path,
    device: str,
    epochs: int,
    minutes: float,
) -> dict[str, int]:
    """Train, keeping on disk whichever averaged model is best on the validation set.

    The learning rate follows a cosine down to zero at the last epoch or minute, whichever comes first.
    """
    train, valid = loaders["train"], loaders["valid"]
    model = models.build(config, seed=recipe.seed).to(device).train()
    average = Average(model, recipe.ema_decay)
    model.to(recipe.dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, amsgrad=True)
    start, progress, best, best_epoch, epoch = time.monotonic(), 0.0, math.inf, 0, 0
    try:
        for epoch in range(1, epochs + 1):
            total = torch.zeros((), device=device)
            for step, batch in enumerate(train):
                progress = max(
                    (epoch - 1 + (step + 1) / len(train)) / epochs, (time.monotonic() - start) / (60 * minutes)
                )
                optimizer.param_groups[0]["lr"] = recipe.learning_rate * (1 + math.cos(math.pi * min(progress, 1))) / 2
                optimizer.zero_grad()
                loss = recipe.loss(*residuals(model, batch.to(device), recipe.dtype, training=True))
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
                optimizer.step()
                average.update(model)
                total += loss.detach() / len(train)
                if progress >= 1:
                    break
            energy, forces = validate(average.model, valid, device)
            if (valid_loss := recipe.loss(energy, forces).item()) < best:
                best, best_epoch = valid_loss, epoch
                models.save_model(average.model, config, out / "model")
            if epoch % 2 == 0 or progress >= 1:
                mae = [1e3 * part.abs().mean().item() for part in (energy, forces)]
                print(
                    f"epoch {epoch:4d} {time.monotonic() - start:5.0f} s  loss {total.item():9.4f}  "
                    f"valid {valid_loss:9.4f}  energy {mae[0]:7.2f} meV/atom  forces {mae[1]:7.2f} meV/Å",
                    flush=True,
                )
            if progress >= 1:
                break
    except KeyboardInterrupt:
        print("Interrupted; the best model so far is kept.")
    return {"epochs": epoch, "best_epoch": best_epoch}


def errors_of(energy: torch.Tensor, forces: torch.Tensor) -> dict[str, float]:
    """Residuals in numbers."""
    return {
        "energy_mae_meV_per_atom": 1e3 * energy.abs().mean().item(),
        "energy_rmse_meV_per_atom": 1e3 * energy.square().mean().sqrt().item(),
        "forces_mae_meV_per_A": 1e3 * forces.abs().mean().item(),
        "forces_rmse_meV_per_A": 1e3 * forces.square().mean().sqrt().item(),
    }


def errors_by_kind(structures: list[Atoms], energy: torch.Tensor, forces: torch.Tensor) -> dict[str, Any]:
    """The same for each ``kind`` that structures say they are of."""
    kinds = np.array([atoms.info.get("kind", "") for atoms in structures])
    of_atoms = np.repeat(kinds, [len(atoms) for atoms in structures])
    return {
        kind: {"structures": int(np.sum(kinds == kind))}
        | errors_of(energy[torch.as_tensor(kinds == kind)], forces[torch.as_tensor(of_atoms == kind)])
        for kind in dict.fromkeys(kinds.tolist())
        if kind
    }


def train_model(
    options: argparse.Namespace,
    config: dict[str, Any],
    recipe: Recipe,
    isolated_atoms: Mapping[int, float] | None = None,
) -> None:
    """Fit a model, read it back from disk and write what it achieves on the validation set.

    Args:
        options: What :func:`add_train_options` has read.
        config: The architecture, as of ``precision_probe.models.default_config``; what comes from data is filled in.
        recipe: How.
        isolated_atoms: Energies (eV) by atomic number that the model is to have instead of those that fit the labels
            best. It then predicts labels shifted by the differences, and the same forces.
    """
    torch.manual_seed(recipe.seed)
    structures = ase.io.read(options.data, index=":")
    split = {name: [a for a in structures if a.info["split"] == name] for name in ("train", "valid")}
    fitted = fitted_atomic_energies(split["train"], config["atomic_numbers"])
    graphs = {name: [graph(a, config, fitted) for a in part] for name, part in split.items()}
    atomic_energies = [isolated_atoms[z] for z in config["atomic_numbers"]] if isolated_atoms else fitted.tolist()
    config = config | {"atomic_energies": atomic_energies} | numbers_from(graphs["train"])
    print(f"{len(split['train'])} training and {len(split['valid'])} validation structures; {json.dumps(config)}")
    loaders = {
        name: DataLoader(
            [each.to(options.device) for each in part], batch_size=recipe.batch_size, shuffle=name == "train"
        )
        for name, part in graphs.items()
    }
    options.out.mkdir(parents=True, exist_ok=True)
    run = fit(config, recipe, loaders, options.out, options.device, options.epochs, options.minutes)

    model, _ = models.load_model(options.out / "model.json")
    energy, forces = validate(model.to(options.device), loaders["valid"], options.device)
    kinds = errors_by_kind(split["valid"], energy, forces)
    report = {
        "method": structures[0].info["method"],
        "train_structures": len(split["train"]),
        "validation_structures": len(split["valid"]),
        **errors_of(energy, forces),
        **({"kinds": kinds} if kinds else {}),
        **run,
        "seed": recipe.seed,
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else f"cpu ({platform.machine()})",
        "mace": mace.__version__,
        "torch": torch.__version__,
    }
    (options.out / "validation.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


def add_train_options(command: argparse.ArgumentParser, epochs: int = 100) -> None:
    """Add the options of a train command."""
    command.add_argument("data", type=Path, help="the file that the data command wrote")
    command.add_argument("-o", "--out", type=Path, required=True, help="the folder to write to")
    command.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    command.add_argument("--epochs", type=int, default=epochs, help="stop after so many (default: %(default)s)")
    command.add_argument("--minutes", type=float, default=math.inf, help="or after so long (default: no limit)")
