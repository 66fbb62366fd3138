"""Structures → float64 MACE graphs, built once and shared by every variant.

A rounded geometry has other neighbours, so the graph is made in float64 whatever precision the model then runs in.
"""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import ase
import ase.data
import ase.io
import numpy as np
import torch
from numpy.typing import NDArray

from precision_probe.exceptions import InputError
from precision_probe.labels import UnreadableError, numbers, read_labels
from precision_probe.models._mace import data as mace_data
from precision_probe.models._mace import tools, torch_geometric
from precision_probe.models.attributes import cutoff, elements, heads, inputs_needed
from precision_probe.models.dtypes import default_dtype

__all__ = ["Graph", "Species", "batch_sizes", "build_graph", "choose_head", "graph_of_call", "joined", "told_beside"]

# Å; nearer than this two atoms are on the same place. A choice: an atom listed twice differs from itself by no more
# than the last digits of a file, the shortest bond, that of H2, is 0.74 Å, and at 0 the direction of an edge is NaN.
_COINCIDENT = 1e-4
_SHOWN = 30  # characters of a value that cannot be read
# Where what some models take stands in a structure: as ``MACECalculator`` has it, else as training has it.
_OF_STRUCTURE = {
    "total_charge": ("charge", "total_charge"),
    "total_spin": ("spin", "total_spin"),
    "external_field": ("external_field",),
    "elec_temp": ("elec_temp",),
}
_OF_ATOMS = {"charges": ("Qs", "REF_charges")}
_WEIGHTS = ("config_weight", *(f"config_{name}_weight" for name in (*_OF_STRUCTURE, *_OF_ATOMS)))  # of a loss


@dataclass(frozen=True)
class Species:
    """The elements of each structure of a graph, by structure and atomic number.

    Attributes:
        atomic_numbers: (n_species,).
        per_structure: (n_structures,) how many each has.
        of_atom: (n_atoms,) which of them each atom is.
    """

    atomic_numbers: NDArray[np.int64]
    per_structure: NDArray[np.int64]
    of_atom: NDArray[np.int64]


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
            those that the input has and that can be read.
        notes: What was left out of the input, each to be read after the structure's name.
    """

    data: dict[str, torch.Tensor]
    names: tuple[str, ...]
    atomic_numbers: NDArray[np.int64]
    pbc: NDArray[np.bool_]
    labels: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

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

    @cached_property
    def species(self) -> Species:
        """The elements of each structure."""
        structure = np.repeat(np.arange(self.n_structures), np.diff(self.data["ptr"].cpu().numpy()))
        pairs = np.stack([structure, self.atomic_numbers], axis=1)
        found, of_atom = np.unique(pairs, axis=0, return_inverse=True)
        return Species(found[:, 1], np.bincount(found[:, 0], minlength=self.n_structures), of_atom.reshape(-1))

    def to(self, device: torch.device | str) -> "Graph":
        """The same graph with its tensors on a device."""
        return dataclasses.replace(self, data={key: value.to(device) for key, value in self.data.items()})

    def cast(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """MACE's input in another dtype; integers, and so the neighbour list, as they are."""
        return {
            key: (value.to(dtype) if value.is_floating_point() else value).detach() for key, value in self.data.items()
        }

    def displaced(self, shift: NDArray[np.float64]) -> "Graph":
        """The same graph with its atoms moved by (n_atoms, 3) Å, and the edges that it had."""
        positions = self.data["positions"]
        return dataclasses.replace(
            self, data={**self.data, "positions": positions + torch.as_tensor(shift).to(positions)}
        )

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


def build_graph(atoms: ase.Atoms, model: torch.nn.Module, head: str | None = None) -> Graph:
    """Build the float64 graph of one structure for a MACE model, on the CPU.

    Args:
        atoms: A structure as :func:`read_structures` returns it.
        model: The MACE model: its cutoff, elements and heads shape the graph.
        head: Which head of a multi-head model; by default ``Default``, or the last if none is called so, which is
            mace-torch's own choice.

    Raises:
        InputError: If the model does not know an element or the head, needs a charge, spin or the like that cannot be
            read, or two atoms are on the same place.
    """
    name = str(atoms.info.get("name", atoms.symbols))
    known = elements(model)
    _check_elements(atoms, name, known)
    read, notes = _readable(atoms, name, inputs_needed(model))
    labels = read_labels(atoms)
    with default_dtype(torch.float64):  # which mace-torch makes its tensors in
        entry = mace_data.AtomicData.from_config(
            mace_data.config_from_atoms(read, _keys(read), head_name=choose_head(model, head)),
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
        labels=labels.values,
        notes=(*labels.notes, *notes),
    )
    lacking = inputs_needed(model) - graph.data.keys()
    if lacking:
        raise InputError(
            f"Structure {name}: the model embeds {', '.join(sorted(lacking))}, which is not read from structures. "
            "Attach a probe and call the model with it."
        )
    _check_distances(graph)
    return graph


def told_beside(atoms: ase.Atoms, needed: Collection[str]) -> tuple[tuple[str, bytes], ...]:
    """What a structure says beside its geometry of what a model needs, to be compared.

    Args:
        atoms: The structure.
        needed: As :func:`precision_probe.models.attributes.inputs_needed` gives it.
    """
    places: list[tuple[Mapping[str, object], Mapping[str, tuple[str, ...]]]]
    places = [(atoms.info, _OF_STRUCTURE), (atoms.arrays, _OF_ATOMS)]
    given = [(place, keys) for place, names in places for quantity, keys in names.items() if quantity in needed]
    found = [(key, place[key]) for place, keys in given for key in keys if key in place]
    return tuple((key, np.asarray(value).tobytes()) for key, value in found)


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


def graph_of_call(data: Mapping[str, object], model: torch.nn.Module, name: str) -> Graph:
    """Copy what a MACE model was called with, one structure or several, widened to float64.

    Args:
        data: The dictionary that the model was called with.
        model: The model, which knows which element each column of ``node_attrs`` is.
        name: Name of the call; each structure's number is added where there are several.
    """
    tensors = {key: value.detach().clone() for key, value in data.items() if torch.is_tensor(value)}
    tensors = {key: value.double() if value.is_floating_point() else value for key, value in tensors.items()}
    n_structures = int(tensors["ptr"].numel()) - 1
    if data.get("pbc") is None:  # as before mace-torch 0.3.15: unknown, and taken from the edges that cross a boundary
        edges = tensors["batch"][tensors["edge_index"][0]]
        crossed = torch.zeros(n_structures, 3, dtype=torch.bool, device=edges.device)
        for structure in range(n_structures):
            crossed[structure] = tensors["unit_shifts"][edges == structure].bool().any(dim=0)
        pbc = crossed.cpu().numpy()
    else:  # one row for each structure, one for all, or a single yes or no
        given = torch.as_tensor(data["pbc"]).cpu().numpy().astype(bool)
        pbc = np.array(np.broadcast_to(given.reshape(-1, 3) if given.size > 1 else given, (n_structures, 3)))
    return Graph(
        data=tensors,
        names=(name,) if n_structures == 1 else tuple(f"{name}[{index}]" for index in range(n_structures)),
        atomic_numbers=np.asarray(elements(model))[tensors["node_attrs"].argmax(dim=-1).cpu().numpy()],
        pbc=pbc,
    )


def joined(graphs: Sequence[Graph]) -> Graph:
    """One graph of several of the same model, as mace-torch batches structures; labels that one lacks are NaN.

    Args:
        graphs: One or more, on one device.
    """
    first_atom = np.cumsum([0, *(graph.n_atoms for graph in graphs)]).tolist()
    first_structure = np.cumsum([0, *(graph.n_structures for graph in graphs)]).tolist()
    data = {}
    for key in graphs[0].data:
        parts = [graph.data[key] for graph in graphs]
        if key == "edge_index":
            parts = [part + first for part, first in zip(parts, first_atom, strict=False)]
        elif key == "batch":
            parts = [part + first for part, first in zip(parts, first_structure, strict=False)]
        elif key == "ptr":  # where each structure begins, and where the last ends: which is where the next begins
            parts = [parts[0][:1], *(part[1:] + first for part, first in zip(parts, first_atom, strict=False))]
        data[key] = torch.cat(parts, dim=1 if key == "edge_index" else 0)
    return Graph(
        data=data,
        names=tuple(name for graph in graphs for name in graph.names),
        atomic_numbers=np.concatenate([graph.atomic_numbers for graph in graphs]),
        pbc=np.concatenate([graph.pbc for graph in graphs]),
        labels=_joined_labels(graphs),
    )


def batch_sizes(n_edges: Iterable[int], most_edges: int) -> Iterator[int]:
    """How many graphs that follow one another have no more edges together; one that has more by itself is alone.

    Args:
        n_edges: Of each graph.
        most_edges: Of several together.
    """
    size = total = 0
    for n in n_edges:
        if size and total + n > most_edges:
            yield size
            size = total = 0
        size, total = size + 1, total + n
    if size:
        yield size


def _joined_labels(graphs: Sequence[Graph]) -> dict[str, NDArray[np.float64]]:
    """Every label that any graph has, NaN for those that lack it."""
    labels = {}
    for name in dict.fromkeys(name for graph in graphs for name in graph.labels):
        shapes = {"energy": ("n_structures",), "forces": ("n_atoms", 3), "stress": ("n_structures", 3, 3)}[name]
        parts = []
        for graph in graphs:
            shape = [getattr(graph, size) if isinstance(size, str) else size for size in shapes]
            parts.append(graph.labels.get(name, np.full(shape, np.nan)))
        labels[name] = np.concatenate(parts)
    return labels


def _check_elements(atoms: ase.Atoms, name: str, known: Collection[int]) -> None:
    """Refuse elements that the model has no column for; mace-torch's own error does not say whose they are."""
    unknown = sorted(set(atoms.numbers.tolist()) - set(known))
    if unknown:
        symbols = [ase.data.chemical_symbols[z] for z in known]
        raise InputError(
            f"Structure {name} has {', '.join(ase.data.chemical_symbols[z] for z in unknown)}, which the model does "
            f"not know. It knows {', '.join(symbols)}. Remove the structure or use a model trained on these elements."
        )


def _check_distances(graph: Graph) -> None:
    """Refuse two atoms on one place; edges are looked at, so that images across a boundary count too."""
    lengths = graph.edge_lengths()
    if lengths.numel() and float(lengths.min()) < _COINCIDENT:
        first, second = graph.data["edge_index"][:, int(lengths.argmin())].tolist()
        raise InputError(
            f"Structure {graph.names[0]}: atoms {first} and {second} are on the same place "
            f"({float(lengths.min()):.1e} Å apart; at least {_COINCIDENT} Å is needed). Remove one of them."
        )


def _readable(atoms: ase.Atoms, name: str, needed: Collection[str]) -> tuple[ase.Atoms, list[str]]:
    """The structure with nothing on it but what mace-torch can read, and notes of what is left out.

    mace-torch makes tensors of all that it looks at: for a charge that is a word it raises what names neither the
    structure nor the key.
    """
    read, notes = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc), []
    given = [(atoms.info, read.info, keys, quantity) for quantity, keys in _OF_STRUCTURE.items()]
    given += [(atoms.arrays, read.arrays, keys, quantity) for quantity, keys in _OF_ATOMS.items()]
    given += [(atoms.info, read.info, (key,), key) for key in _WEIGHTS]
    for place, target, keys, quantity in given:
        key = next((key for key in keys if key in place), None)
        if key is None:
            continue
        try:
            value = _finite(place[key], quantity, len(atoms))
        except UnreadableError as why:
            if quantity in needed:
                raise InputError(
                    f"Structure {name}: {key!r} {why} ({' '.join(str(place[key]).split())[:_SHOWN]}), and the model "
                    "needs it. Correct it, or remove it for mace-torch's default."
                ) from why
            notes.append(f"{key!r} {why}, and is left out; the model does not use it.")
        else:
            target[key] = value
    return read, notes


def _finite(value: object, quantity: str, n_atoms: int) -> float | NDArray[np.float64]:
    """A quantity that mace-torch can make a tensor of: one number, an external field, or a number for each atom."""
    shapes = {"external_field": ((3,), (1, 3)), "charges": ((n_atoms,),)}
    array = numbers(value, *shapes.get(quantity, ((),)))
    if np.isnan(array).any():
        raise UnreadableError("is NaN in part")
    return array if array.shape else float(array)


def _keys(atoms: ase.Atoms) -> mace_data.KeySpecification:
    """Under which key each quantity stands."""
    return mace_data.KeySpecification(
        info_keys={name: next((k for k in keys if k in atoms.info), keys[0]) for name, keys in _OF_STRUCTURE.items()},
        arrays_keys={name: next((k for k in keys if k in atoms.arrays), keys[0]) for name, keys in _OF_ATOMS.items()},
    )
