"""What a probe is attached to: a MACE model, which runs structures, or any other module, run by a callable."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from precision_probe.exceptions import InputError
from precision_probe.models.attributes import cutoff, heads
from precision_probe.models.evaluation import AnyModule, Evaluation, MaceEnergy, mace_evaluation
from precision_probe.models.graphs import Graph, build_graph, choose_head, graph_of_call
from precision_probe.models.inputs import Inputs
from precision_probe.structures import read_structures

__all__ = ["Mace", "Module", "Sample", "Subject"]

Sample = Graph | Inputs


class Subject(Protocol):
    """A module, and what it is run on.

    Attributes:
        evaluation: How it is run.
        gradient_unit: Unit of what the blocks' propagated gradients are of.
        about: What the trace should say of it.
        notes: What a reader of the results should know.
    """

    evaluation: Evaluation
    gradient_unit: str
    about: dict[str, Any]
    notes: list[str]

    def samples(self, source: Any) -> list[Sample]:
        """What a user gave to ``run()``, ready for any variant."""

    def sample_of_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> Sample:
        """What the attached model was called with, copied, so that what changes it later does no harm."""


class Mace:
    """A MACE model.

    Args:
        model: The model.
        head: The head that structures are evaluated with; by default mace-torch's own choice.
    """

    def __init__(self, model: torch.nn.Module, head: str | None) -> None:
        self._model = model
        self._head = choose_head(model, head)
        self.evaluation: Evaluation = mace_evaluation(model)
        self.gradient_unit = "eV" if isinstance(self.evaluation, MaceEnergy) else "1"
        self.about: dict[str, Any] = {"head": self._head}
        self.notes: list[str] = []
        if len(heads(model)) > 1:
            self.notes.append(
                f"of the model's heads, {', '.join(heads(model))}, structures given to run() are evaluated with "
                f"{self._head}."
            )

    def samples(self, source: Any) -> list[Sample]:
        """The float64 graphs of structures."""
        graphs = [build_graph(atoms, self._model, self._head) for atoms in read_structures(source)]
        lonely = [graph.names[0] for graph in graphs if not graph.n_edges]
        if lonely:
            self.notes.append(
                f"{', '.join(dict.fromkeys(lonely))}: no two atoms are within the cutoff of {cutoff(self._model):g} Å, "
                "so there are no edges, and no forces to compare."
            )
        return list(graphs)

    def sample_of_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> Sample:
        """The graph that MACE was called with."""
        return graph_of_call(kwargs["data"] if "data" in kwargs else args[0], self._model, name)


class Module:
    """A module that is not a MACE.

    Args:
        call: Runs the module on one input.
    """

    gradient_unit = "1"

    def __init__(self, call: Callable[..., Any]) -> None:
        self.evaluation: Evaluation = AnyModule(call)
        self.about: dict[str, Any] = {}
        self.notes: list[str] = []
        self._n_inputs = 0

    def samples(self, source: Any) -> list[Sample]:
        """The inputs of a list, or one alone."""
        inputs = source if isinstance(source, list) else [source]
        if not inputs:
            raise InputError("The list of inputs is empty. Give at least one.")
        first, self._n_inputs = self._n_inputs, self._n_inputs + len(inputs)
        return [Inputs(f"input {first + index}", (value,)).copied() for index, value in enumerate(inputs)]

    def sample_of_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> Sample:
        """The arguments that the module was called with."""
        return Inputs(name, args, kwargs, is_call=True).copied()
