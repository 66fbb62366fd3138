"""What a run hands over to its trace: one array of a block, one of the model, and how many rows each has."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

__all__ = ["BlockArray", "ModelArray", "Sizes"]


@dataclass(frozen=True)
class BlockArray:
    """One array of one block.

    Attributes:
        block: The block's name.
        tensor: The name of the output, or of the input whose gradient this is.
        values: NumPy array, half precisions widened to float32; first dimension atoms, edges or structures.
        native_dtype: The dtype that computed it.
        computed_in: The pass: ``forward``, ``backward`` (gradients of the energy, or of the block's outputs) or
            ``double_backward`` (of a training loss). In all but the first, the gradient with respect to an input.
        rows: What the first dimension counts, where known.
        components: The irrep of each entry of the last dimension, such as ``"1o"``, where known.
        irreps: All of them, as e3nn writes them.
        unit: Unit of the values.
        layout: How irreps lie in memory: e3nn's ``mul_ir``, or ``ir_mul``.
    """

    block: str
    tensor: str
    values: NDArray[Any]
    native_dtype: str
    computed_in: str = "forward"
    rows: str = ""
    components: tuple[str, ...] = ()
    irreps: str = ""
    unit: str = "1"
    layout: str = "mul_ir"

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
    """How many of each first dimension one graph has; other modules' inputs have no atoms and edges."""

    structure: int
    atom: int | None = None
    edge: int | None = None

    def fitting(self, captured: BlockArray) -> set[str]:
        """What the first dimension of an array may count: what it says, else what has as many."""
        if captured.rows:
            return {captured.rows}
        if self.atom is None:
            return set()
        return {name for name in ("structure", "atom", "edge") if getattr(self, name) == len(captured.values)}
