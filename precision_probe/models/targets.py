"""What a probe is attached to: a MACE model, which runs structures, or any other module, run by a callable.

The two differ in what a user may run them on, in how one input is run, and in what gradients are of. All of that is
here, behind one protocol, so that the probe itself need not ask which of the two it has.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import ase
import numpy as np
import torch

from precision_probe.exceptions import InputError
from precision_probe.labels import grouped
from precision_probe.models.attributes import cutoff, heads
from precision_probe.models.evaluation import AnyModule, Evaluation, MaceEnergy, Sample, mace_evaluation
from precision_probe.models.graphs import Graph, build_graph, choose_head, graph_of_call
from precision_probe.models.inputs import Inputs
from precision_probe.structures import StructureSource, read_structures

__all__ = ["CallInput", "Mace", "Module", "Subject"]


@dataclass(frozen=True)
class CallInput:
    """What an attached module was called with.

    Attributes:
        sample: The input.
        is_rounded: Whether it is a geometry that came in a reduced precision, and is not known better: then the
            reference is of rounded positions, and errors lack geometry's share.
    """

    sample: Sample
    is_rounded: bool = False


class Subject(Protocol):
    """What the probe must know of the module that it is attached to: how it is run, and on what.

    It makes samples, each of which is one input, and has the evaluation that runs a variant on one of them.

    Attributes:
        evaluation: How the module, or a variant of it, is run on one sample.
        gradient_unit: Unit of what the blocks' propagated gradients are of: eV of an energy, else 1.
        about: Attributes that the trace is given: for a MACE model, its ``head``.
        notes: What a reader of the results should know, in whole sentences; running adds to them.
    """

    evaluation: Evaluation
    gradient_unit: str
    about: dict[str, str]
    notes: list[str]

    def samples(self, source: object) -> list[Sample]:
        """What a user gave to ``run()``, ready for any variant.

        Raises:
            InputError: If it is nothing that this module can be run on.
        """

    def sample_of_call(self, args: tuple[object, ...], kwargs: Mapping[str, object], name: str) -> CallInput:
        """What the attached module was called with, copied, so that what changes it later does no harm."""


class Mace:
    """A MACE model, run on structures; what it is called with is a graph already.

    Args:
        model: The model.
        head: The head that structures are evaluated with; by default mace-torch's own choice.
        holder: What the model was given as. If it is an ASE calculator, it knows the positions of a call in float64.
    """

    def __init__(self, model: torch.nn.Module, head: str | None, holder: object = None) -> None:
        self._model, self._holder = model, holder
        self._head = choose_head(model, head)
        self.evaluation: Evaluation = mace_evaluation(model)
        self.gradient_unit = "eV" if isinstance(self.evaluation, MaceEnergy) else "1"
        self.about: dict[str, str] = {"head": self._head}
        self.notes: list[str] = []
        if len(heads(model)) > 1:
            self.notes.append(
                f"of the model's heads, {', '.join(heads(model))}, structures given to run() are evaluated with "
                f"{self._head}."
            )

    def samples(self, source: object) -> list[Sample]:
        """The float64 graphs of structures."""
        structures = read_structures(cast("StructureSource", source))  # which refuses anything else
        graphs = [build_graph(atoms, self._model, self._head) for atoms in structures]
        self.notes += grouped((graph.names[0], note) for graph in graphs for note in graph.notes)
        lonely = [graph.names[0] for graph in graphs if not graph.n_edges]
        if lonely:
            self.notes.append(
                f"{', '.join(dict.fromkeys(lonely))}: no two atoms are within the cutoff of {cutoff(self._model):g} Å, "
                "so there are no edges, and no forces to compare."
            )
        return list(graphs)

    def sample_of_call(self, args: tuple[object, ...], kwargs: Mapping[str, object], name: str) -> CallInput:
        """The graph that MACE was called with; its geometry in float64 where the calculator has it so."""
        data = cast("Mapping[str, torch.Tensor]", kwargs["data"] if "data" in kwargs else args[0])
        graph = graph_of_call(data, self._model, name)
        dtype = data["positions"].dtype
        if dtype == torch.float64:
            return CallInput(graph)
        atoms = getattr(self._holder, "atoms", None)  # of its latest calculation, which called the model
        exact = _in_float64(graph, atoms, dtype) if isinstance(atoms, ase.Atoms) else None
        return CallInput(graph, is_rounded=True) if exact is None else CallInput(exact)


class Module:
    """A module that is not a MACE, run on whatever the user's callable takes.

    Args:
        call: Runs the module on one input: called with the module and the input.
    """

    gradient_unit = "1"

    def __init__(self, call: Callable[..., object]) -> None:
        self.evaluation: Evaluation = AnyModule(call)
        self.about: dict[str, str] = {}
        self.notes: list[str] = []
        self._n_inputs = 0

    def samples(self, source: object) -> list[Sample]:
        """The inputs of a list, or one alone; numbered on from those of earlier runs, so that each has its own name."""
        inputs = source if isinstance(source, list) else [source]
        if not inputs:
            raise InputError("The list of inputs is empty. Give at least one.")
        first, self._n_inputs = self._n_inputs, self._n_inputs + len(inputs)
        return [Inputs(f"input {first + index}", (value,)).copied() for index, value in enumerate(inputs)]

    def sample_of_call(self, args: tuple[object, ...], kwargs: Mapping[str, object], name: str) -> CallInput:
        """The arguments that the module was called with."""
        return CallInput(Inputs(name, args, kwargs, is_call=True).copied())


def _in_float64(graph: Graph, atoms: ase.Atoms, dtype: torch.dtype) -> Graph | None:
    """The same graph with the positions, cell and shifts of atoms, if they round to those that it has; else nothing.

    Args:
        graph: What a model was called with, widened to float64.
        atoms: What it may have been made of.
        dtype: What its numbers were rounded to.
    """
    if len(atoms) != graph.n_atoms or graph.n_structures != 1:
        return None
    widened = graph.data["cell"].cpu().numpy()
    # mace-torch makes up the vectors along which nothing repeats, and no edge crosses those
    cell = np.where(np.reshape(atoms.pbc, (3, 1)), atoms.cell.array, widened)
    made = {
        "positions": atoms.positions,
        "cell": cell,
        "shifts": np.dot(graph.data["unit_shifts"].cpu().numpy(), cell),  # as mace-torch computes them
    }
    exact = {name: torch.as_tensor(values).to(graph.data[name]) for name, values in made.items()}
    is_same = [(tensor.to(dtype).double() == graph.data[name]).all() for name, tensor in exact.items()]
    return dataclasses.replace(graph, data={**graph.data, **exact}) if bool(torch.stack(is_same).all()) else None
