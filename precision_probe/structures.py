"""Anything ASE reads → float64 MACE graphs, built once and shared by every variant.

A rounded geometry has other neighbours, so the graph is made in float64 whatever precision the model then runs in.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import ase
import ase.data
import ase.io
import numpy as np
import torch
from ase.io.formats import parse_filename
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from precision_probe._mace import data as mace_data
from precision_probe._mace import tools, torch_geometric
from precision_probe.exceptions import InputError
from precision_probe.models import DEMO, cutoff, default_dtype, elements, heads

__all__ = ["Graph", "build_graph", "choose_head", "graph_of_call", "read_structures"]

_COINCIDENT = 1e-4  # Å; nearer than this two atoms are on the same place
_LABELS = ("energy", "forces", "stress")


@dataclass(frozen=True)
class Graph:
    """One or more structures as MACE takes them, in float64.

    Attributes:
        data: MACE's input: positions (n_atoms, 3) Å, node_attrs (n_atoms, n_elements) one-hot, edge_index
            (2, n_edges), shifts (n_edges, 3) Å, cell (3 n_structures, 3) Å, batch (n_atoms,), ptr, …
        names: A name for each structure.
        atomic_numbers: (n_atoms,).
        pbc: (n_structures, 3).
        labels: Reference energy (n_structures,) eV, forces (n_atoms, 3) eV/Å and stress (n_structures, 3, 3) eV/Å³,
            those that the input has.
    """

    data: dict[str, torch.Tensor]
    names: tuple[str, ...]
    atomic_numbers: NDArray[np.int64]
    pbc: NDArray[np.bool_]
    labels: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def n_structures(self) -> int:
        """How many structures the graph holds."""
        return int(self.data["ptr"].numel()) - 1

    @property
    def n_atoms(self) -> int:
        """How many atoms, over all structures."""
        return int(self.data["positions"].shape[0])

    @property
    def n_edges(self) -> int:
        """How many directed edges, over all structures."""
        return int(self.data["edge_index"].shape[1])

    @property
    def cells(self) -> torch.Tensor:
        """Cell vectors in rows, (n_structures, 3, 3) Å."""
        return self.data["cell"].view(-1, 3, 3)

    @property
    def periodic(self) -> NDArray[np.bool_]:
        """Whether each structure is periodic in all three directions, so that it has a stress."""
        return np.asarray(self.pbc.all(axis=1))

    def to(self, device: torch.device | str) -> "Graph":
        """The same graph with its tensors on a device."""
        return dataclasses.replace(self, data={key: value.to(device) for key, value in self.data.items()})

    def cast(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """MACE's input in another dtype; integers, and so the neighbour list, as they are."""
        return {
            key: (value.to(dtype) if value.is_floating_point() else value).detach() for key, value in self.data.items()
        }

    def edges_per_structure(self) -> NDArray[np.int64]:
        """Directed edges of each structure, (n_structures,)."""
        structure = self.data["batch"][self.data["edge_index"][0]]
        return torch.bincount(structure, minlength=self.n_structures).cpu().numpy()

    def edge_lengths(self) -> torch.Tensor:
        """Length of each edge, (n_edges,) Å."""
        sender, receiver = self.data["edge_index"]
        positions = self.data["positions"]
        lengths: torch.Tensor = (positions[receiver] - positions[sender] + self.data["shifts"]).norm(dim=-1)
        return lengths


def read_structures(source: Any) -> list[ase.Atoms]:
    """Return the structures of a source, each with a name in ``info["name"]`` and finite positions.

    Args:
        source: ``"demo"``; a path of anything ASE reads, with ASE's own ``file@0:16`` to select; an ``Atoms``; or
            several ``Atoms``. What is given is copied, not changed.

    Raises:
        InputError: If there is no such file, ASE cannot read it, it holds no structure, or a structure has no atoms,
            positions that are not finite, or a cell without volume along its periodic directions.

    Example:
        >>> water = ase.Atoms("OHH", [(0, 0, 0), (0.96, 0, 0), (-0.24, 0.93, 0)])
        >>> [atoms.info["name"] for atoms in read_structures(water)]
        ['H2O']
    """
    found: Sequence[Any]
    if isinstance(source, ase.Atoms):
        found, stem = [source], ""
    elif isinstance(source, str | Path):
        found, stem = _read_file(source)
    elif isinstance(source, Iterable):
        found, stem = list(source), ""
    else:
        raise InputError(f"Structures are Atoms, a list of them or a path; got {type(source).__name__}.")
    if not found:
        raise InputError(f"{source if stem else 'The list given'} holds no structures. At least one is needed.")
    named = []
    for index, atoms in enumerate(found):
        if not isinstance(atoms, ase.Atoms):
            raise InputError(f"Structure {index} is a {type(atoms).__name__}, not an ASE Atoms.")
        copy = atoms.copy()
        copy.calc = atoms.calc
        default = f"{stem}[{index}]" if stem else atoms.get_chemical_formula()
        copy.info["name"] = str(atoms.info.get("name", default))
        _check(copy)
        named.append(copy)
    return named


def build_graph(atoms: ase.Atoms, model: torch.nn.Module, head: str | None = None) -> Graph:
    """Build the float64 graph of one structure for a MACE model, on the CPU.

    Args:
        atoms: A structure as :func:`read_structures` returns it.
        model: The MACE model: its cutoff, elements and heads shape the graph.
        head: Which head of a multi-head model; by default ``Default``, or the last if none is called so, which is
            mace-torch's own choice.

    Raises:
        InputError: If the model does not know an element or the head, or two atoms are on the same place.
    """
    name = str(atoms.info.get("name", atoms.symbols))
    known = elements(model)
    unknown = sorted(set(atoms.numbers.tolist()) - set(known))
    if unknown:
        symbols = [ase.data.chemical_symbols[z] for z in known]
        raise InputError(
            f"Structure {name} has {', '.join(ase.data.chemical_symbols[z] for z in unknown)}, which the model does "
            f"not know. It knows {', '.join(symbols)}. Remove the structure or use a model trained on these elements."
        )
    with default_dtype(torch.float64):
        entry = mace_data.AtomicData.from_config(
            mace_data.config_from_atoms(atoms, _keys(atoms), head_name=choose_head(model, head)),
            z_table=tools.AtomicNumberTable(known),
            cutoff=cutoff(model),
            heads=heads(model),
        )
        batch = torch_geometric.Batch.from_data_list([entry])
    graph = Graph(
        data={key: value for key, value in batch.to_dict().items() if torch.is_tensor(value)},
        names=(name,),
        atomic_numbers=atoms.numbers.astype(np.int64),
        pbc=np.asarray([atoms.pbc], dtype=bool),
        labels=_labels(atoms),
    )
    lengths = graph.edge_lengths()
    if lengths.numel() and float(lengths.min()) < _COINCIDENT:
        first, second = graph.data["edge_index"][:, int(lengths.argmin())].tolist()
        raise InputError(
            f"Structure {name}: atoms {first} and {second} are on the same place ({float(lengths.min()):.1e} Å apart; "
            f"at least {_COINCIDENT} Å is needed). Remove one of them."
        )
    return graph


def choose_head(model: torch.nn.Module, head: str | None) -> str:
    """The head that structures are evaluated with: the one asked for, else the one mace-torch takes by itself.

    Raises:
        InputError: If the model has no such head.
    """
    names = heads(model)
    if head is None:
        return "Default" if "Default" in names else names[-1]
    if head not in names:
        raise InputError(f"The model has no head {head!r}. Its heads: {', '.join(names)}.")
    return head


def graph_of_call(data: Mapping[str, Any], model: torch.nn.Module, name: str) -> Graph:
    """Copy what a MACE model was called with, one structure or several, widened to float64.

    Args:
        data: The dictionary that the model was called with.
        model: The model, which knows which element each column of ``node_attrs`` is.
        name: Name of the call; each structure's number is added where there are several.
    """
    tensors = {key: value.detach().clone() for key, value in data.items() if torch.is_tensor(value)}
    tensors = {key: value.double() if value.is_floating_point() else value for key, value in tensors.items()}
    n_structures = int(tensors["ptr"].numel()) - 1
    if data.get("pbc") is None:
        pbc = np.full((n_structures, 3), bool(tensors["unit_shifts"].any()))
    else:  # one row for each structure, one for all, or a single yes or no
        given = torch.as_tensor(data["pbc"]).cpu().numpy().astype(bool)
        pbc = np.array(np.broadcast_to(given.reshape(-1, 3) if given.size > 1 else given, (n_structures, 3)))
    return Graph(
        data=tensors,
        names=(name,) if n_structures == 1 else tuple(f"{name}[{index}]" for index in range(n_structures)),
        atomic_numbers=np.asarray(elements(model))[tensors["node_attrs"].argmax(dim=-1).cpu().numpy()],
        pbc=pbc,
    )


def _read_file(source: str | Path) -> tuple[Sequence[ase.Atoms], str]:
    if source == DEMO:
        with resources.as_file(resources.files("precision_probe") / "demo" / "structures.xyz") as path:
            return ase.io.read(path, ":"), DEMO
    filename, index = parse_filename(str(source))
    path = Path(filename)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise InputError(f"The structure file {path} {what}. Give any file that ASE reads, or {DEMO!r}.")
    try:
        found = ase.io.read(path, slice(None) if index is None else index)
    except Exception as error:  # the many readers of ASE raise whatever they meet
        raise InputError(
            f"ASE cannot read structures from {source} ({type(error).__name__}: {str(error)[:120]}). "
            "Check that the file is whole and its ending names its format."
        ) from error
    return found if isinstance(found, list) else [found], path.stem


def _check(atoms: ase.Atoms) -> None:
    name = atoms.info["name"]
    if not len(atoms):
        raise InputError(f"Structure {name} has no atoms.")
    if not np.isfinite(atoms.positions).all():
        bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
        raise InputError(f"Structure {name}: the positions of atoms {bad.tolist()[:5]} are NaN or infinite.")
    if atoms.pbc.any():
        _check_cell(atoms)


def _check_cell(atoms: ase.Atoms) -> None:
    """Refuse a cell that spans no volume, which has no neighbours and no stress; or a left-handed one."""
    cell = np.asarray(atoms.cell)
    if not np.isfinite(cell).all():
        raise InputError(f"Structure {atoms.info['name']}: its cell is NaN or infinite.")
    spanned = np.linalg.norm(cell[atoms.pbc], axis=1).min() > 0
    volume = float(np.linalg.det(atoms.cell.complete())) if spanned else 0.0
    if not volume > 1e-6:
        kind = "negative" if volume < -1e-6 else "zero"
        raise InputError(
            f"Structure {atoms.info['name']} is periodic along {np.flatnonzero(atoms.pbc).tolist()} but its cell has "
            f"{kind} volume ({volume:.3g} Å³). Give right-handed cell vectors along those directions, or pbc=False."
        )


def _keys(atoms: ase.Atoms) -> mace_data.KeySpecification:
    """Where charge, spin, field and charges of atoms stand: as ``MACECalculator`` has it, else as training has it."""
    info = {"total_charge": ("charge", "total_charge"), "total_spin": ("spin", "total_spin")}
    return mace_data.KeySpecification(
        info_keys={name: next((key for key in keys if key in atoms.info), keys[0]) for name, keys in info.items()}
        | {name: name for name in ("external_field", "elec_temp")},
        arrays_keys={"charges": "Qs" if "Qs" in atoms.arrays else "REF_charges"},
    )


def _labels(atoms: ase.Atoms) -> dict[str, NDArray[np.float64]]:
    """Reference values of one structure: from its calculator's results, else from MACE's REF_ keys."""
    fresh = atoms.calc is not None and not atoms.calc.check_state(atoms)  # results of these very atoms
    results = dict(atoms.calc.results) if fresh else {}
    stored = {**atoms.info, **atoms.arrays}
    found = {key: results.get(key, stored.get(f"REF_{key}")) for key in _LABELS}
    labels = {key: np.asarray(value, dtype=np.float64) for key, value in found.items() if value is not None}
    if "energy" in labels:
        labels["energy"] = labels["energy"].reshape(1)
    if "stress" in labels:
        stress = labels["stress"]
        labels["stress"] = (voigt_6_to_full_3x3_stress(stress) if stress.size == 6 else stress).reshape(1, 3, 3)
    return labels
