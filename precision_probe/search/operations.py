"""How many operations an evaluation takes in float64 and in lower precisions.

On GPUs for data centres float64 is as fast as float32, or half as fast; on others it is 1/64 as fast, and Apple's have
none. There it matters little how few blocks are left in float64, and much how many operations.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["SLOW_RATE", "Operations", "count", "slowdown"]

SLOW_RATE = 64  # times slower than float32 is float64 on NVIDIA's GPUs for games since 2018 (CUDA's programming guide)
_aten = torch.ops.aten
_ONE_OF_EACH_INPUT = {
    *(_aten.sum, _aten.mean, _aten.cumsum, _aten.linalg_vector_norm, _aten.index_add, _aten.index_add_),
    *(_aten.scatter_add, _aten.scatter_add_, _aten.prod),
}


class Operations(NamedTuple):
    """Numbers of floating-point operations.

    Attributes:
        in_float64: Those.
        others: Those in lower precisions.
    """

    in_float64: int
    others: int

    @property
    def share(self) -> float:
        """Which part is in float64; NaN if none was counted."""
        total = self.in_float64 + self.others
        return self.in_float64 / total if total else float("nan")


def slowdown(share: float) -> float:
    """How many times as long all takes where float64 is 1/64 as fast, if arithmetic alone took time.

    Args:
        share: The part of the operations that is in float64.
    """
    return 1 + (SLOW_RATE - 1) * share


def count(call: Callable[[], object]) -> Operations:
    """Count the operations of a call, backward passes within it included.

    Matrix products take two operations for each product of numbers, as torch's own counter has it; what is computed
    element by element takes one for each, and sums one for each number that is summed. Nothing is known of kernels that
    torch does not have, such as cuEquivariance's: these count nothing.

    Example:
        >>> x = torch.ones(4, 8, dtype=torch.float64)
        >>> count(lambda: (x @ x.T).float() + 1)
        Operations(in_float64=256, others=16)
    """
    counter = _Counter()
    with counter:
        call()
    exact = counter.found[torch.float64]
    return Operations(exact, sum(counter.found.values()) - exact)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation that torch does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [each for each in tree_leaves(out) if torch.is_tensor(each) and each.is_floating_point()]
        if made:
            self.found[made[0].dtype] += _operations(func, args, kwargs or {}, out, made)
        return out


def _operations(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: object, made: list[torch.Tensor]
) -> int:
    """Of one operation of torch's."""
    packet = func._overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    if packet in _ONE_OF_EACH_INPUT:
        given = [each.numel() for each in tree_leaves((args, kwargs)) if torch.is_tensor(each)]
        return max(given, default=0)
    is_computed = torch.Tag.pointwise in func.tags and packet is not _aten.clone
    return sum(each.numel() for each in made) if is_computed else 0
