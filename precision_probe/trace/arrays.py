"""What a run hands over to its trace: one array of a block, one of the model, and how many rows each has."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from numpy.typing import NDArray

Values = TypeVar("Values")
Other = TypeVar("Other")

__all__ = ["BlockArray", "ModelArray", "Sizes"]


@dataclass(frozen=True)
class BlockArray(Generic[Values]):
    """One array of one block, or what is kept of it.

    Attributes:
        block: The block's name.
        tensor: The name of the output, or of the input whose gradient this is.
        values: NumPy array, half precisions widened to float32, first dimension atoms, edges or structures; a tensor
            before it is taken to the host. Of errors: (n_rows, n_parts, n_statistics).
        native_dtype: The dtype that computed it.
        computed_in: The pass: ``forward``, ``backward`` (gradients of the energy, or of the block's outputs) or
            ``double_backward`` (of a training loss). In all but the first, the gradient with respect to an input.
        rows: What the first dimension counts, where known.
        components: The irrep of each entry of the last dimension, such as ``"1o"``, where known.
        irreps: All of them, as e3nn writes them.
        unit: Unit of the values.
        layout: How irreps lie in memory: e3nn's ``mul_ir``, or ``ir_mul``.
        parts: If the values are statistics of errors, which irrep each part is; one without a name if that is unknown.
    """

    block: str
    tensor: str
    values: Values
    native_dtype: str
    computed_in: str = "forward"
    rows: str = ""
    components: tuple[str, ...] = ()
    irreps: str = ""
    unit: str = "1"
    layout: str = "mul_ir"
    parts: tuple[str, ...] = ()

    def with_values(self, values: Other, **changes: Any) -> "BlockArray[Other]":
        """The same with other values, of another library perhaps."""
        changed: BlockArray[Other] = dataclasses.replace(cast("Any", self), values=values, **changes)
        return changed

    @property
    def gradient(self) -> bool:
        """Whether it is the gradient with respect to an input."""
        return self.computed_in != "forward"

    @property
    def name(self) -> str:
        """The variable's name in the trace."""
        return f"{self.block}.{self.tensor}" + (".grad" if self.gradient else "")


@dataclass(frozen=True)
class ModelArray:
    """One array that the model as a whole gave.

    Attributes:
        name: The variable's name in the trace.
        values: NumPy array, half precisions widened to float32.
        dims: Names of its dimensions.
        unit: Unit of the values.
        long_name: What it is.
        native_dtype: The dtype that computed it; empty for what is not the model's own arithmetic.
    """

    name: str
    values: NDArray[Any]
    dims: tuple[str, ...]
    unit: str
    long_name: str
    native_dtype: str = ""


@dataclass(frozen=True)
class Sizes:
    """How many of each first dimension one graph has; other modules' inputs have no atoms and edges.

    Attributes:
        structure: Structures.
        atom: Atoms.
        edge: Directed edges.
        species: Elements, those of each structure by themselves.
    """

    structure: int
    atom: int | None = None
    edge: int | None = None
    species: int | None = None

    def fitting(self, captured: BlockArray[NDArray[Any]]) -> set[str]:
        """What the first dimension of an array may count: what it says, else what has as many."""
        if captured.rows:
            return {captured.rows}
        if self.atom is None:
            return set()
        return {name for name in ("structure", "atom", "edge") if getattr(self, name) == len(captured.values)}
