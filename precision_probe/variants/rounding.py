"""Rounding to any floating-point format, and arithmetic in it: the result of every operation is rounded.

That reproduces hardware formats on any machine, forward and backward, TorchScript included: what float32 can hold is
computed in float32, as kernels for half precisions do, and anything else in float64.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from precision_probe.precisions import PRECISIONS, Precision

__all__ = ["Rounding", "round_to"]

_STORED_BITS = 52  # of float64's significand


def round_to(x: torch.Tensor, precision: Precision, generator: torch.Generator | None = None) -> torch.Tensor:
    """Round float64 numbers to a format.

    To nearest, ties to even, by adding to the bits of the significand, whose carry goes into the exponent; NaN and
    infinities stay. Below the smallest normal number the spacing is that of subnormals, and what rounds beyond the
    largest number is infinite (IEEE 754-2019, section 4.3.1). Stochastic rounding adds a uniformly random number of
    the same bits instead, so that the mean of many roundings is exact.

    Args:
        x: float64.
        precision: The format.
        generator: Source of randomness, for stochastic formats.

    Returns:
        float64 of the same shape; every number is one of the format.

    Example:
        >>> from precision_probe.precisions import parse_precision
        >>> round_to(torch.tensor([1.0009765625, 70000.0], dtype=torch.float64), parse_precision("e5m9")).tolist()
        [1.0, inf]
    """
    dropped = _STORED_BITS - (precision.significand_bits - 1)
    y = _round_significand(x, dropped, precision.stochastic, generator) if dropped else x
    if precision.has_range:
        step = precision.smallest_subnormal
        scaled = x / step
        whole = torch.floor(scaled + _uniform(x, generator)) if precision.stochastic else torch.round(scaled)
        y = torch.where(x.abs() < precision.smallest_normal, torch.copysign(whole * step, x), y)
        y = torch.where(y.abs() > precision.largest, torch.copysign(torch.full_like(y, torch.inf), y), y)
    return torch.where(torch.isfinite(x), y, x)


class Rounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While this mode is on, the result of every operation on float64 tensors is rounded to a format.

    An operation on a format that float32 can hold, range included, is computed in float32, sums and matrix products
    too, and rounded once: as on a CPU or in tensor cores, so that ``e8m23``, ``e8m7`` and ``e5m10`` are like float32,
    bfloat16 and float16. Operations on other formats, and those to be rounded stochastically, are computed in float64.

    Args:
        precision: The format.
        generator: Source of randomness, for stochastic formats.
    """

    def __init__(self, precision: Precision, generator: torch.Generator | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._precision, self._generator = precision, generator
        self._is_narrow = _within_float32(precision) and not precision.stochastic

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation; views are left alone, what is written in place is rounded in place."""
        aliases = [found.alias_info for found in func._schema.returns if found.alias_info is not None]
        writes = any(alias.is_write for alias in aliases)
        if aliases and not writes:
            return func(*args, **(kwargs or {}))
        in_place = func._schema.name.endswith("_")
        run = _in_float32 if self._is_narrow and (in_place or not writes) else _as_it_is
        returned = run(func, args, kwargs or {})

        def rounded(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.dtype != torch.float64 or not tensor.numel():
                return tensor
            found = round_to(tensor, self._precision, self._generator)
            return tensor.copy_(found) if writes else found

        return tree_map_only(torch.Tensor, rounded, returned)


def _within_float32(precision: Precision) -> bool:
    float32 = PRECISIONS["float32"]
    return precision.significand_bits <= float32.significand_bits and precision.exponent_bits <= float32.exponent_bits


def _as_it_is(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _in_float32(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on float32 copies; its float64 result goes where the operation would have put it."""
    narrow = tree_map_only(torch.Tensor, lambda x: x.float() if x.dtype == torch.float64 else x, (args, kwargs))
    found = func(*narrow[0], **narrow[1])
    if func._schema.is_mutable:
        return args[0].copy_(found)
    return tree_map_only(torch.Tensor, lambda x: x.double() if x.dtype == torch.float32 else x, found)


def _round_significand(
    x: torch.Tensor, dropped: int, stochastic: bool, generator: torch.Generator | None
) -> torch.Tensor:
    bits = x.contiguous().view(torch.int64)
    if stochastic:
        device = generator.device if generator is not None else bits.device  # scalars are on the CPU
        bits = bits + torch.randint(1 << dropped, bits.shape, generator=generator, device=device).to(bits.device)
    else:
        bits = bits + ((1 << (dropped - 1)) - 1) + ((bits >> dropped) & 1)
    return (bits & -(1 << dropped)).view(torch.float64)


def _uniform(x: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    device = generator.device if generator is not None else x.device
    return torch.rand(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
