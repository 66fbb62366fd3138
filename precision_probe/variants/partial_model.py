"""A float64 MACE some of whose parts compute in a precision, each as it does where the whole model is cast to it.

Beside the blocks two parts have no module of their own: the *geometry*, edge vectors and lengths from positions, shifts
and cell; and the *sums*, in which the energies of layers and atoms are added up.
"""

import contextlib
from collections.abc import Collection, Iterator

import torch

from precision_probe.models.backends import clone
from precision_probe.models.blocks import default_blocks
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.evaluation import MaceData, Prediction, mace_evaluation
from precision_probe.models.graphs import Graph
from precision_probe.precisions import PRECISIONS, Precision
from precision_probe.variants.assembly import assembled
from precision_probe.variants.devices import matmul_mode

__all__ = ["GEOMETRY", "SUMS", "PartialModel"]

GEOMETRY, SUMS = "geometry", "sums"
_ISOLATED_ATOMS = "atomic_energies_fn"  # their energies are summed for themselves, and added last
_SUMMANDS = ("pair_repulsion_fn", "embedding_readout", "readouts", "scale_shift")
_OF_VECTORS, _OF_LENGTHS = ("spherical_harmonics",), ("radial_embedding", "pair_repulsion_fn")  # first arguments


class PartialModel:
    """A MACE in float64 and in one precision, of whose parts any choice computes in the second.

    Args:
        model: A MACE that predicts energies; it is copied and not changed.
        precision: One that hardware has.
        device: Where the copies live.

    Attributes:
        parts: Names of all parts, in the order in which a run needs them: the geometry, the blocks, the sums.
    """

    def __init__(self, model: torch.nn.Module, precision: Precision, device: torch.device) -> None:
        self._precision = precision
        self._dtype: torch.dtype = getattr(torch, precision.dtype)
        self._clones = {dtype: clone(model, dtype, device) for dtype in (torch.float64, self._dtype)}
        self._evaluation = mace_evaluation(model)
        self.parts = (GEOMETRY, *(block.name for block in default_blocks(model)), SUMS)

    def predict(self, graph: Graph, parts: Collection[str]) -> Prediction:
        """What the model predicts with some parts in the precision and the rest in float64; not timed.

        All but the stress is float64, and what the precision made is widened.
        """
        model = assembled(_Chosen(parts, self._precision), self._clones)
        data = graph.cast(torch.float64)
        in_precision = [
            *([_geometry(model, data, self._dtype)] if GEOMETRY in parts else []),
            *([_outputs(model, (_ISOLATED_ATOMS,), self._dtype)] if _ISOLATED_ATOMS in parts else []),
            *([_outputs(model, _SUMMANDS, self._dtype)] if SUMS in parts else []),
        ]
        with contextlib.ExitStack() as stack, matmul_mode(self._precision.matmul_mode), default_dtype(torch.float64):
            for each in in_precision:
                stack.enter_context(each)
            values = self._evaluation.predict(model, data, graph)
        for quantity, tensor in values.items():
            is_sum = SUMS in parts and quantity.dims == ("structure",)
            values[quantity] = (tensor.to(self._dtype) if is_sum else tensor).double()
        return Prediction(values, float("nan"))


class _Chosen:
    """Says that some modules, and what they are made of, compute in a precision."""

    def __init__(self, names: Collection[str], precision: Precision) -> None:
        self._names, self._precision = names, precision

    def precision_of(self, name: str) -> Precision:
        parts = name.split(".")
        is_chosen = any(".".join(parts[:depth]) in self._names for depth in range(1, len(parts) + 1))
        return self._precision if is_chosen else PRECISIONS["float64"]


@contextlib.contextmanager
def _geometry(model: torch.nn.Module, data: MaceData, dtype: torch.dtype) -> Iterator[None]:
    """While this lasts, edge vectors and lengths are computed in a dtype, and gradients through them too.

    They have no module, but all who use them are called with them first, and are handed others here: made of what MACE
    has put into ``data`` by then, the strain that its virials are derivatives by included.
    """
    made: dict[str, torch.Tensor] = {}

    def edges() -> dict[str, torch.Tensor]:
        if not made:
            sender, receiver = data["edge_index"]
            positions, shifts = data["positions"].to(dtype), data["shifts"].to(dtype)
            vectors = positions[receiver] - positions[sender] + shifts  # as mace-torch computes them
            made["vectors"] = vectors.double()
            made["lengths"] = torch.linalg.norm(vectors, dim=-1, keepdim=True).double()
        return made

    with contextlib.ExitStack() as stack:
        for kind, names in (("vectors", _OF_VECTORS), ("lengths", _OF_LENGTHS)):

            def hand_over(_: object, args: tuple[object, ...], kind: str = kind) -> tuple[object, ...]:
                return (edges()[kind], *args[1:])

            for name in names:
                if hasattr(model, name):
                    stack.callback(model.get_submodule(name).register_forward_pre_hook(hand_over).remove)
        yield


@contextlib.contextmanager
def _outputs(model: torch.nn.Module, names: Collection[str], dtype: torch.dtype) -> Iterator[None]:
    """While this lasts, some modules, or members of lists of these names, return a dtype, and sums are made in it."""

    def cast(_: object, __: object, returned: torch.Tensor) -> torch.Tensor:
        return returned.to(dtype)

    with contextlib.ExitStack() as stack:
        for name in names:
            module = getattr(model, name, None)
            for each in module if isinstance(module, torch.nn.ModuleList) else [module]:
                if each is not None:
                    stack.callback(each.register_forward_hook(cast).remove)
        yield
