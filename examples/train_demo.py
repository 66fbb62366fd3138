"""Make the data for the bundled demo model and train it.

    python examples/train_demo.py data -o demo_data.xyz                       # needs tblite; minutes on one core
    python examples/train_demo.py structures -o precision_probe/demo/structures.xyz          # needs tblite; seconds
    python examples/train_demo.py train demo_data.xyz -o precision_probe/demo --device cuda --epochs 400 --minutes 6

``data`` labels small H/C/O molecules, pairs of them and two molecular crystals with GFN2-xTB. ``structures`` labels the
bundled example structures, which are not among the data. ``train`` needs no tblite: it reads the data file, fits the
float64 MACE of ``precision_probe.models.default_config`` and writes ``model.json``, ``model.safetensors`` and
``validation.json``. It may be interrupted: the best model so far is on disk. Everything is seeded.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ase.io
import mace
import numpy as np
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.spacegroup import crystal
from mace import data as mace_data
from mace.tools import AtomicNumberTable
from mace.tools.torch_geometric import Batch
from mace.tools.torch_geometric.dataloader import DataLoader
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from precision_probe import models

SEED = 1

# Every closed-shell molecule of H, C and O in the G2 set but O2 and O3, which GFN2 has no business describing.
MOLECULES = (
    "H2 H2O H2O2 CO CO2 CH4 H2CO HCOOH CH3OH C2H2 C2H4 C2H6 H2CCO CH2OCH2 CH3CHO OCHCHO CH3COOH HCOOCH3 CH3CH2OH "
    "CH3OCH3 CH3COCH3 C2H6CHOH CH3CH2OCH3 C3H4_C2v C3H4_C3v C3H4_D2d C3H6_Cs C3H6_D3h C3H8 C4H4O butadiene 2-butyne "
    "methylenecyclopropane bicyclobutane cyclobutene cyclobutane isobutene isobutane trans-butane C5H8 C6H6"
)
PAIRS = ("H2O H2O", "H2O CH3OH", "H2O CH4", "H2O CO2", "H2O HCOOH", "H2O H2CO", "CH3OH CH3OH", "CH4 CH4", "CO2 CO2")
TRAIN_TEMPERATURES = (300, 450, 600)  # K; validation has a trajectory of its own
VALID_TEMPERATURE = 450

BATCH_SIZE = 32
LEARNING_RATE = 0.01
EMA_DECAY = 0.99
ENERGY_WEIGHT, FORCES_WEIGHT = 100.0, 100.0


# ------------------------------------------------------------------------------------------------- geometries, labels


def pair(names: str, rng: np.random.Generator) -> Atoms:
    """Two molecules, turned at random, 2 Å apart where they come closest."""
    first, second = (molecule(name) for name in names.split())
    second.euler_rotate(*rng.uniform(0, 360, 3), center="COM")
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    gap = 0.0
    while gap < 2.0:
        second.positions += 0.05 * direction
        gap = np.linalg.norm(first.positions[:, None] - second.positions, axis=-1).min()
    return first + second


def molecular_crystals() -> dict[str, Atoms]:
    """Dry ice and ice VIII. GFN2 sees the Γ point alone, so covalent crystals as small as these would be wrong."""
    dry_ice = crystal(
        "CO", [(0, 0, 0), (0.118, 0.118, 0.118)], spacegroup=205, cellpar=[5.624, 5.624, 5.624, 90, 90, 90]
    )
    ice = crystal(
        "OH",
        [(0, 0.25, 0.107), (0, 0.4157, 0.1935)],
        spacegroup=141,
        setting=2,
        cellpar=[4.656, 4.656, 6.775, 90, 90, 90],
        primitive_cell=True,
    )
    return {"dry ice": dry_ice, "ice VIII": ice}


def rattled(atoms: Atoms, rng: np.random.Generator, amplitude: float = 0.03, strain: float = 0.02) -> Atoms:
    """A copy with every atom displaced and, if periodic, the cell strained."""
    atoms = atoms.copy()
    if atoms.pbc.any():
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(0, strain, (3, 3))), scale_atoms=True)
    atoms.positions += rng.normal(0, amplitude, atoms.positions.shape)
    return atoms


def gfn2() -> Calculator:
    """A fresh GFN2-xTB calculator. It raises where the self-consistent field does not converge."""
    from tblite.ase import TBLite  # here, because training has no need of it

    calculator: Calculator = TBLite(method="GFN2-xTB", verbosity=0)
    return calculator


def labelled(atoms: Atoms, **info: object) -> Atoms:
    """A bare copy with the GFN2 energy, forces and, if periodic, stress as its results."""
    atoms = atoms.copy()
    atoms.calc = gfn2()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if atoms.pbc.any():
        results["stress"] = atoms.get_stress()
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    bare.info = {**info, "method": f"GFN2-xTB, tblite {version('tblite')}"}
    bare.calc = SinglePointCalculator(bare, **results)
    return bare


def trajectory(start: Atoms, temperature: float, count: int, rng: np.random.Generator) -> Iterator[Atoms]:
    """Geometries 10 fs apart from Langevin dynamics, the first 100 fs left out."""
    atoms = start.copy()
    atoms.calc = gfn2()
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    dynamics = Langevin(
        atoms, 0.5 * units.fs, temperature_K=temperature, friction=0.02 / units.fs, fixcm=False, rng=rng
    )
    dynamics.run(200)
    for _ in range(count):
        dynamics.run(20)
        yield atoms


def make_data() -> Iterator[Atoms]:
    """All labelled structures, each with its ``name`` and ``split`` (train or valid; whole trajectories go to one)."""
    rng = np.random.default_rng(SEED)
    starts = {name: molecule(name) for name in MOLECULES.split()} | {names: pair(names, rng) for names in PAIRS}
    for name, start in starts.items():
        for temperature in TRAIN_TEMPERATURES:
            for atoms in trajectory(start, temperature, 9, rng):
                yield labelled(atoms, name=name, split="train")
        for _ in range(6):
            yield labelled(rattled(start, rng), name=name, split="train")
        for atoms in trajectory(start, VALID_TEMPERATURE, 5, rng):
            yield labelled(atoms, name=name, split="valid")
        print(name, flush=True)
    for name, start in molecular_crystals().items():
        for split, count in (("train", 40), ("valid", 8)):
            for _ in range(count):
                yield labelled(rattled(start, rng), name=name, split=split)
        print(name, flush=True)


def make_structures() -> list[Atoms]:
    """The bundled structures: geometries of their own seed, so none of them was trained on."""
    rng = np.random.default_rng(SEED + 1)
    starts = {
        "water": molecule("H2O"),
        "methanol": molecule("CH3OH"),
        "ethanol": molecule("CH3CH2OH"),
        "acetic acid": molecule("CH3COOH"),
        "benzene": molecule("C6H6"),
        "water dimer": pair("H2O H2O", rng),
        "ice VIII": molecular_crystals()["ice VIII"],
    }
    return [labelled(rattled(start, rng), name=name) for name, start in starts.items()]


# ------------------------------------------------------------------------------------------------------------ training


def graph(atoms: Atoms, config: dict[str, Any]) -> mace_data.AtomicData:
    """One structure with its labels as MACE's float64 graph."""
    configuration = mace_data.Configuration(
        atomic_numbers=atoms.numbers,
        positions=atoms.positions,
        cell=np.array(atoms.cell),
        pbc=tuple(atoms.pbc),
        properties={"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()},
        property_weights={},
    )
    with models.default_dtype(torch.float64):
        return mace_data.AtomicData.from_config(
            configuration, z_table=AtomicNumberTable(config["atomic_numbers"]), cutoff=config["r_max"]
        )


def fit_config(train: list[Atoms]) -> dict[str, Any]:
    """The demo's architecture with the numbers that come from data.

    The atomic energies are the least-squares ones: GFN2 atoms without spin are poor zeros, and what these leave over
    for the network is tenths of an eV per atom.
    """
    config = models.default_config()
    counts = np.array([[np.sum(atoms.numbers == z) for z in config["atomic_numbers"]] for atoms in train])
    energies = np.array([atoms.get_potential_energy() for atoms in train])
    atomic_energies = np.linalg.lstsq(counts, energies, rcond=None)[0]
    per_atom = (energies - counts @ atomic_energies) / counts.sum(axis=1)
    forces = np.concatenate([atoms.get_forces() for atoms in train])
    graphs = [graph(atoms, config) for atoms in train]
    return config | {
        "avg_num_neighbors": sum(g.edge_index.shape[1] for g in graphs) / counts.sum().item(),
        "atomic_energies": atomic_energies.tolist(),
        "atomic_inter_scale": float(np.sqrt(np.mean(forces**2))),
        "atomic_inter_shift": float(per_atom.mean()),
    }


def residuals(model: torch.nn.Module, batch: Batch, training: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Energy errors per atom (eV) and force errors (eV/Å) of one batch."""
    output = model(batch.to_dict(), training=training, compute_force=True)
    n_atoms = batch.ptr[1:] - batch.ptr[:-1]
    return (output["energy"] - batch.energy) / n_atoms, output["forces"] - batch.forces


def validate(model: torch.nn.Module, loader: DataLoader, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The residuals of a whole data set, on the CPU."""
    energy, forces = [], []
    for batch in loader:
        parts = residuals(model, batch.to(device))
        energy.append(parts[0].detach().cpu())
        forces.append(parts[1].detach().cpu())
    return torch.cat(energy), torch.cat(forces)


def loss_of(energy: torch.Tensor, forces: torch.Tensor) -> torch.Tensor:
    """The weighted sum of the two mean squares."""
    return ENERGY_WEIGHT * energy.square().mean() + FORCES_WEIGHT * forces.square().mean()


def fit(
    config: dict[str, Any], train: DataLoader, valid: DataLoader, out: Path, device: str, epochs: int, minutes: float
) -> dict[str, int]:
    """Train, keeping on disk whichever averaged model is best on the validation set.

    The learning rate follows a cosine down to zero at the last epoch or minute, whichever comes first.
    """
    model = models.build(config, seed=SEED).to(device).train()
    average = get_ema_multi_avg_fn(EMA_DECAY)  # type: ignore[no-untyped-call]
    averaged = AveragedModel(model, multi_avg_fn=average)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, amsgrad=True)
    start, progress, best, best_epoch, epoch = time.monotonic(), 0.0, math.inf, 0, 0
    try:
        for epoch in range(1, epochs + 1):
            total = 0.0
            for step, batch in enumerate(train):
                progress = max(
                    (epoch - 1 + (step + 1) / len(train)) / epochs, (time.monotonic() - start) / (60 * minutes)
                )
                optimizer.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
                optimizer.zero_grad()
                loss = loss_of(*residuals(model, batch.to(device), training=True))
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
                optimizer.step()
                averaged.update_parameters(model)
                total += loss.item() / len(train)
                if progress >= 1:
                    break
            energy, forces = validate(averaged.module, valid, device)
            if (valid_loss := loss_of(energy, forces).item()) < best:
                best, best_epoch = valid_loss, epoch
                models.save_model(averaged.module, config, out / "model")
            if epoch % 2 == 0 or progress >= 1:
                mae = [1e3 * part.abs().mean().item() for part in (energy, forces)]
                print(
                    f"epoch {epoch:4d} {time.monotonic() - start:5.0f} s  loss {total:9.4f}  valid {valid_loss:9.4f}  "
                    f"energy {mae[0]:7.2f} meV/atom  forces {mae[1]:7.2f} meV/Å",
                    flush=True,
                )
            if progress >= 1:
                break
    except KeyboardInterrupt:
        print("Interrupted; the best model so far is kept.")
    return {"epochs": epoch, "best_epoch": best_epoch}


def train_model(source: Path, out: Path, device: str, epochs: int, minutes: float) -> None:
    """Fit the model, read it back from disk and write what it achieves on the validation set."""
    torch.manual_seed(SEED)
    structures = ase.io.read(source, index=":")
    split = {name: [a for a in structures if a.info["split"] == name] for name in ("train", "valid")}
    config = fit_config(split["train"])
    print(f"{len(split['train'])} training and {len(split['valid'])} validation structures; {json.dumps(config)}")
    loaders = {
        name: DataLoader([graph(a, config) for a in part], batch_size=BATCH_SIZE, shuffle=name == "train")
        for name, part in split.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    run = fit(config, loaders["train"], loaders["valid"], out, device, epochs, minutes)

    model, _ = models.load_model(out / "model.json")
    energy, forces = validate(model, loaders["valid"], "cpu")
    report = {
        "method": structures[0].info["method"],
        "train_structures": len(split["train"]),
        "validation_structures": len(split["valid"]),
        "energy_mae_meV_per_atom": 1e3 * energy.abs().mean().item(),
        "energy_rmse_meV_per_atom": 1e3 * energy.square().mean().sqrt().item(),
        "forces_mae_meV_per_A": 1e3 * forces.abs().mean().item(),
        "forces_rmse_meV_per_A": 1e3 * forces.square().mean().sqrt().item(),
        **run,
        "seed": SEED,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else f"cpu ({platform.machine()})",
        "mace": mace.__version__,
        "torch": torch.__version__,
    }
    (out / "validation.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("data", "label the training data"), ("structures", "label the bundled structures")):
        command = commands.add_parser(name, help=text)
        command.add_argument("-o", "--out", type=Path, required=True, help="the extended XYZ file to write")
    command = commands.add_parser("train", help="train the demo model")
    command.add_argument("data", type=Path, help="the file that the data command wrote")
    command.add_argument("-o", "--out", type=Path, required=True, help="the folder to write to")
    command.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    command.add_argument("--epochs", type=int, default=100, help="stop after so many (default: 100)")
    command.add_argument("--minutes", type=float, default=math.inf, help="or after so long (default: no limit)")
    arguments = parser.parse_args()
    if arguments.command == "train":
        train_model(arguments.data, arguments.out, arguments.device, arguments.epochs, arguments.minutes)
    else:
        structures = list(make_data()) if arguments.command == "data" else make_structures()
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        ase.io.write(arguments.out, structures)
        print(f"{len(structures)} structures in {arguments.out}")


if __name__ == "__main__":
    main()
