"""Energy, forces and stress of structures that move, by a model that is launched as one CUDA graph.

Structures of the same size share a graph; one is captured anew when its edges are outgrown. On a CPU, and where a model
cannot be captured, the same is computed call by call.
"""

import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import ase
import torch

from precision_probe.exceptions import InputError
from precision_probe.fast.capture import Captured, NotCapturedError, Outputs, Room
from precision_probe.fast.inputs import Inputs, Shape
from precision_probe.fast.neighbors import VerletList
from precision_probe.models.attributes import cutoff
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.evaluation import interaction_energy
from precision_probe.models.graphs import Graph, build_graph, joined
from precision_probe.models.memory import attempt
from precision_probe.variants.devices import current, undisturbed

__all__ = ["SKIN", "Launcher", "Results", "Structures"]

_LOG = logging.getLogger(__name__)

Call: TypeAlias = Callable[..., Mapping[str, Any]]  # as a model is called

SKIN = 1.0  # Å: at 5 Å a list has 1.7 times as many pairs, which cost little, and at 300 K holds for tens of steps
_MOST_GRAPHS = 4  # that are kept: their inputs stay in memory, while what they compute in is shared


@dataclass(frozen=True)
class Results:
    """What a model predicts of structures, on its device.

    Attributes:
        energy: (n_structures,) float64, eV.
        interaction: The same less the isolated atoms', as the model computes it; ``None`` for models that do not.
        energies: (n_atoms,) float64, eV, each atom's share; ``None`` for models that do not give it.
        forces: (n_atoms, 3) float64, eV/Å.
        stress: (n_structures, 3, 3) float64, eV/Å³; ``None`` if it was not asked for, NaN where not periodic.
    """

    energy: torch.Tensor
    interaction: torch.Tensor | None
    energies: torch.Tensor | None
    forces: torch.Tensor
    stress: torch.Tensor | None


class Structures:
    """Structures that a launcher evaluates: which atoms there are, and pairs of them.

    Args:
        graph: They, as the model takes them; positions and cells may differ in every evaluation.
        pairs: Their pairs, to be built.
    """

    def __init__(self, graph: Graph, pairs: VerletList) -> None:
        self.graph, self.pairs = graph, pairs
        self.n_edges = graph.n_edges
        self.is_periodic = torch.as_tensor(graph.periodic)

    @property
    def n(self) -> int:
        """How many structures."""
        return self.graph.n_structures


class Launcher:
    """Evaluates structures by a model.

    Args:
        model: A MACE that predicts energies, in mixed precision or not, in evaluation mode, on its device.
        head: Of a model with several; by default mace-torch's own choice.
        captures: Whether to capture graphs; by default on a GPU.
        skin: Å, of the pairs that edges are chosen from.
        room: Memory for graphs, shared with launchers that evaluate at other times; by default its own.
        call: How the model is called, if not as it is.

    Attributes:
        why_not: Why the model is called as it is, without a graph, where it is; empty otherwise.

    Raises:
        InputError: If the model predicts no energies.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        head: str | None = None,
        *,
        captures: bool | None = None,
        skin: float = SKIN,
        room: Room | None = None,
        call: Call | None = None,
    ) -> None:
        if not hasattr(model, "atomic_energies_fn"):
            raise InputError(f"A {type(model).__name__} predicts no energy, and is not launched as a graph.")
        self.model, self.head, self._skin = model, head, skin
        first = next(model.parameters())
        self.device, self._dtype = first.device, first.dtype
        self._captures = self.device.type == "cuda" if captures is None else captures
        self.why_not = "" if self._captures else f"the device is {self.device}, which has no graphs"
        self._sized: OrderedDict[tuple[Shape, bool], _Sized] = OrderedDict()
        self._room, self._call = room, call or model

    def structures(self, atoms: Sequence[ase.Atoms]) -> Structures:
        """Structures to be evaluated, once or often.

        Raises:
            InputError: If the model does not know an element, or the like.
        """
        return self.structures_of(joined([build_graph(each, self.model, self.head) for each in atoms]))

    def structures_of(self, graph: Graph) -> Structures:
        """Those of a graph that was made for the model and the head."""
        graph = graph.to("cpu")
        pbc = torch.as_tensor(graph.pbc)
        return Structures(graph, VerletList(cutoff(self.model), self._skin, pbc, graph.data["ptr"]))

    def evaluate(
        self, structures: Structures, positions: torch.Tensor, cells: torch.Tensor, *, stress: bool = False
    ) -> Results:
        """Energy, forces and stress.

        Args:
            structures: What they are of.
            positions: (n_atoms, 3) float64, Å, on any device.
            cells: (n_structures, 3, 3) float64, Å, on any device; not singular.
            stress: Whether it is wanted.

        Raises:
            InputError: If there are not as many atoms or structures, or a position or a cell is NaN or infinite.
        """
        expected = (structures.graph.n_atoms, 3), (structures.n, 3, 3)
        if (tuple(positions.shape), tuple(cells.shape)) != expected:
            raise InputError(
                f"Positions and cells of these structures have the shapes {expected[0]} and {expected[1]}; got "
                f"{tuple(positions.shape)} and {tuple(cells.shape)}."
            )
        with undisturbed(), current(self.device), torch.no_grad():
            return self._evaluate(structures, positions.to(torch.float64), cells.to(torch.float64), stress)

    def _evaluate(self, structures: Structures, positions: torch.Tensor, cells: torch.Tensor, stress: bool) -> Results:
        sized = self._held(structures, stress)
        is_new = sized is None or sized.is_running_out
        while True:
            if sized is None or is_new:
                sized = self._with_pairs(structures, positions, cells, stress)
            else:
                sized.inputs.move(positions, cells)
            out = self._run(sized)
            n_edges, left = out["status"].tolist()  # which waits for the GPU
            if n_edges > sized.inputs.shape.n_edges:
                structures.n_edges = int(n_edges)
            elif is_new or left >= 0:
                break
            is_new = True
        sized.note(left, is_new)
        return self._results(structures, out, stress)

    def _held(self, structures: Structures, stress: bool) -> "_Sized | None":
        """What was captured and has these structures in it."""
        for key, sized in reversed(self._sized.items()):  # the last, as structures can have outgrown others
            if sized.structures is structures and key[1] == stress:
                self._sized.move_to_end(key)
                return sized
        return None

    def _with_pairs(
        self, structures: Structures, positions: torch.Tensor, cells: torch.Tensor, stress: bool
    ) -> "_Sized":
        """A graph in which structures fit, with their present pairs in it."""
        if not (positions.isfinite().all() and cells.isfinite().all()):  # with which no pairs hold
            raise InputError(
                "A position or a cell is NaN or infinite: a step too long, or forces that were not finite?"
            )
        pairs = structures.pairs.build(positions, cells, self.device)
        n_atoms, n_edges = structures.graph.n_atoms, structures.n_edges
        sized = self._held(structures, stress)
        if sized is None or not sized.inputs.shape.holds(n_atoms, n_edges, pairs.n):
            shape = Shape.fitting(structures.n, n_atoms, n_edges, pairs.n)
            sized = self._sized.get((shape, stress))
            inputs = Inputs(shape, structures.graph, self.model, self.head, self._skin, self.device)
            if sized is None:
                sized = self._made(inputs, stress)
            else:
                self._sized.move_to_end((shape, stress))
                sized.inputs.take(inputs)
            sized.structures = structures
        sized.inputs.move(positions, cells)
        sized.inputs.set_pairs(pairs)
        return sized

    def _made(self, inputs: Inputs, stress: bool) -> "_Sized":
        """What computes structures of a new size; older ones make room."""
        while len(self._sized) >= _MOST_GRAPHS:
            self._sized.popitem(last=False)
        sized = self._sized[inputs.shape, stress] = _Sized(inputs, self._call, self._dtype, stress)
        return sized

    def _run(self, sized: "_Sized") -> Outputs:
        """Compute once more; captured the second time, as sizes that come once only are not worth the while."""
        if self._captures and sized.has_run and sized.captured is None:
            try:
                sized.captured = self._captured(sized)
            except NotCapturedError as why:
                self._captures, self._room = False, None
                for other in self._sized.values():
                    other.captured = None
                self.why_not = str(why)
                _LOG.warning("no graph: %s", why)
                warnings.warn(f"No CUDA graph is used, and calls take longer: {why}", UserWarning, stacklevel=5)
        sized.has_run = True
        return sized.compute(filled=self._captures) if sized.captured is None else sized.captured()

    def _captured(self, sized: "_Sized") -> Captured:
        """A graph; where the memory does not suffice, without the others.

        Raises:
            NotCapturedError: If there can be none.
        """
        _LOG.info("capturing a graph of %s", sized.inputs.shape)
        self._room = self._room or Room(self.device)
        captured = attempt(Captured, sized.compute, self._room)
        if captured is None and len(self._sized) > 1:
            _LOG.warning("the memory does not suffice for %d graphs: only this one is kept", len(self._sized))
            for key in [key for key, other in self._sized.items() if other is not sized]:
                del self._sized[key]
            self._room = Room(self.device)
            captured = attempt(Captured, sized.compute, self._room)
        if captured is None:
            raise NotCapturedError("the memory does not suffice for one")
        return captured

    def _results(self, structures: Structures, out: Outputs, stress: bool) -> Results:
        """What is of the structures, and not of what fills up."""
        n, n_atoms = structures.n, structures.graph.n_atoms
        energies = out["energies"][:n_atoms].clone() if "energies" in out else None
        interaction = out["interaction"][:n].clone() if "interaction" in out else None
        made = None
        if stress:
            made = out["stress"][:n].clone()
            if not structures.is_periodic.all():
                made[~structures.is_periodic.to(made.device)] = torch.nan
        return Results(out["energy"][:n].clone(), interaction, energies, out["forces"][:n_atoms].clone(), made)


class _Sized:
    """What a model computes of inputs of one shape, captured or not."""

    def __init__(self, inputs: Inputs, call: Call, dtype: torch.dtype, stress: bool) -> None:
        self.inputs, self._call, self._dtype, self._stress = inputs, call, dtype, stress
        self.captured: Captured | None = None
        self.has_run = False
        self.structures: Structures | None = None
        self._left, self._less = 0.0, 0.0

    @property
    def is_running_out(self) -> bool:
        """Whether the slack of the pairs would not last for one more step like the last."""
        return self._left < self._less

    def note(self, left: float, is_new: bool) -> None:
        """Take down the slack of the pairs after an evaluation, Å, with new pairs or those of before."""
        self._less = 0.0 if is_new else self._left - left
        self._left = left

    def compute(self, *, filled: bool = True) -> Outputs:
        """Call the model; where inputs are filled up nothing here waits for the GPU."""
        given, status = self.inputs.data(filled=filled)
        cells = given["cell"].view(-1, 3, 3)
        cast = {key: value.to(self._dtype) if value.is_floating_point() else value for key, value in given.items()}
        with torch.enable_grad(), default_dtype(self._dtype):
            out = self._call(cast, compute_force=True, compute_virials=self._stress)
        found = {"energy": out["energy"], "energies": out.get("node_energy"), "forces": out["forces"]}
        found["interaction"] = interaction_energy(out)
        made = {name: value.detach().double() for name, value in found.items() if value is not None}
        made["status"] = status
        if self._stress:  # as mace-torch defines it, with the volume in float64 and without a decomposition
            volume = torch.linalg.cross(cells[:, 0], cells[:, 1]).mul(cells[:, 2]).sum(dim=-1).abs()
            made["stress"] = -out["virials"].detach().double() / volume[:, None, None]
        return made
