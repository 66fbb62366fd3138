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
from collections.abc import Iterator
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.spacegroup import crystal
from labelling import labelled, pair, rattled, tight_binding, trajectory
from training import Recipe, add_train_options, train_model

from precision_probe import models

SEED = 1
METHOD = "GFN2-xTB"

# Every closed-shell molecule of H, C and O in the G2 set but O2 and O3, which GFN2 has no business describing.
MOLECULES = (
    "H2 H2O H2O2 CO CO2 CH4 H2CO HCOOH CH3OH C2H2 C2H4 C2H6 H2CCO CH2OCH2 CH3CHO OCHCHO CH3COOH HCOOCH3 CH3CH2OH "
    "CH3OCH3 CH3COCH3 C2H6CHOH CH3CH2OCH3 C3H4_C2v C3H4_C3v C3H4_D2d C3H6_Cs C3H6_D3h C3H8 C4H4O butadiene 2-butyne "
    "methylenecyclopropane bicyclobutane cyclobutene cyclobutane isobutene isobutane trans-butane C5H8 C6H6"
)
PAIRS = ("H2O H2O", "H2O CH3OH", "H2O CH4", "H2O CO2", "H2O HCOOH", "H2O H2CO", "CH3OH CH3OH", "CH4 CH4", "CO2 CO2")
TRAIN_TEMPERATURES = (300, 450, 600)  # K; validation has a trajectory of its own
VALID_TEMPERATURE = 450


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


def make_data() -> Iterator[Atoms]:
    """All labelled structures, each with its ``name`` and ``split`` (train or valid; whole trajectories go to one)."""
    rng = np.random.default_rng(SEED)
    starts = {name: molecule(name) for name in MOLECULES.split()} | {names: pair(names, rng) for names in PAIRS}
    for name, start in starts.items():
        for temperature in TRAIN_TEMPERATURES:
            for atoms in trajectory(start, tight_binding(METHOD), temperature, 9, rng):
                yield labelled(atoms, METHOD, name=name, split="train")
        for _ in range(6):
            yield labelled(rattled(start, rng), METHOD, name=name, split="train")
        for atoms in trajectory(start, tight_binding(METHOD), VALID_TEMPERATURE, 5, rng):
            yield labelled(atoms, METHOD, name=name, split="valid")
        print(name, flush=True)
    for name, start in molecular_crystals().items():
        for split, count in (("train", 40), ("valid", 8)):
            for _ in range(count):
                yield labelled(rattled(start, rng), METHOD, name=name, split=split)
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
    return [labelled(rattled(start, rng), METHOD, name=name) for name, start in starts.items()]


def weighted_squares(energy: torch.Tensor, forces: torch.Tensor) -> torch.Tensor:
    """The weighted sum of the two mean squares."""
    return 100 * energy.square().mean() + 100 * forces.square().mean()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("data", "label the training data"), ("structures", "label the bundled structures")):
        command = commands.add_parser(name, help=text)
        command.add_argument("-o", "--out", type=Path, required=True, help="the extended XYZ file to write")
    command = commands.add_parser("train", help="train the demo model")
    add_train_options(command)
    arguments = parser.parse_args()
    if arguments.command == "train":
        train_model(arguments, models.default_config(), Recipe(weighted_squares, batch_size=32, seed=SEED))
    else:
        structures = list(make_data()) if arguments.command == "data" else make_structures()
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        ase.io.write(arguments.out, structures)
        print(f"{len(structures)} structures in {arguments.out}")


if __name__ == "__main__":
    main()
