"""Rounding to any floating-point format, and arithmetic in it: the result of every operation is rounded.

That reproduces hardware formats on any machine, forward and backward, TorchScript included. What float32 can hold is
computed in float32, as kernels for half precisions do; anything else, and what is rounded stochastically, in float64.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from precision_probe.precisions import PRECISIONS, Precision

__all__ = ["Rounding", "generator_of", "round_to"]

_STORED_BITS = 52  # of float64's significand


def generator_of(precision: Precision, device: torch.device | str, seed: int = 0) -> torch.Generator | None:
    """A seeded source of randomness on a device, for a format that needs one."""
    return torch.Generator(device).manual_seed(seed) if precision.stochastic else None


def round_to(x: torch.Tensor, precision: Precision, generator: torch.Generator | None = None) -> torch.Tensor:
    """Round float64 numbers to a format.

    To nearest, ties to even, by adding to the bits of the significand, whose carry goes into the exponent; NaN and
    infinities stay. Below the smallest normal number the spacing is that of subnormals, and what rounds beyond the
    largest number is infinite (IEEE 754-2019, section 4.3.1). Stochastic rounding adds a uniformly random number of
    the same bits instead, so that the mean of many roundings is exact.

    Args:
        x: float64.
        precision: The format.
        generator: Source of randomness, which stochastic formats need: see :func:`generator_of`.

    Returns:
        float64 of the same shape; every number is one of the format.

    Raises:
        ValueError: If a stochastic format is given no generator.

    Example:
        >>> from precision_probe.precisions import parse_precision
        >>> round_to(torch.tensor([1.0009765625, 70000.0], dtype=torch.float64), parse_precision("e5m9")).tolist()
        [1.0, inf]
    """
    drawn_from = _checked(generator, precision)
    dropped = _STORED_BITS - (precision.significand_bits - 1)
    y = _round_significand(x, dropped, drawn_from) if dropped else x
    if precision.has_range:
        spacing = precision.smallest_subnormal
        scaled = x / spacing
        whole = torch.round(scaled) if drawn_from is None else torch.floor(scaled + _uniform(x, drawn_from))
        y = torch.where(x.abs() < precision.smallest_normal, torch.copysign(whole * spacing, x), y)
        y = torch.where(y.abs() > precision.largest, torch.copysign(torch.full_like(y, torch.inf), y), y)
    return torch.where(torch.isfinite(x), y, x)


class Rounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While this mode is on, the result of every operation on float64 tensors is rounded to a format.

    An operation on a format that float32 can hold, range included, is computed in float32, sums and matrix products
    too, and rounded once: as on a CPU or in tensor cores, so that ``e8m23``, ``e8m7`` and ``e5m10`` are like float32,
    bfloat16 and float16. Operations on other formats, and those to be rounded stochastically, are computed in float64.

    Args:
        precision: The format.
        generator: Source of randomness, which stochastic formats need: see :func:`generator_of`.

    Raises:
        ValueError: If a stochastic format is given no generator.
    """

    def __init__(self, precision: Precision, generator: torch.Generator | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._precision, self._generator = precision, _checked(generator, precision)
        # float32 would round to nearest before chance has its say: e8m23sr would not be random at all
        self._is_narrow = _within_float32(precision) and not precision.stochastic

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operation; views are left alone, what is written in place is rounded in place."""
        aliases = [returned.alias_info for returned in func._schema.returns if returned.alias_info is not None]
        writes = any(alias.is_write for alias in aliases)
        if aliases and not writes:
            return func(*args, **(kwargs or {}))
        # Operations with out=… are left in float64: _in_float32 knows where one in place writes to, and no other place.
        in_place = func._schema.name.endswith("_")
        run = _in_float32 if self._is_narrow and (in_place or not writes) else _as_it_is
        returned = run(func, args, kwargs or {})

        def rounded(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.dtype != torch.float64 or not tensor.numel():
                return tensor
            of_the_format = round_to(tensor, self._precision, self._generator)
            return tensor.copy_(of_the_format) if writes else of_the_format

        return tree_map_only(torch.Tensor, rounded, returned)


def _checked(generator: torch.Generator | None, precision: Precision) -> torch.Generator | None:
    """What a format draws its random numbers from, nothing if it is rounded to nearest.

    Torch's own generator is no substitute: it is the user's, whose numbers would change, and has no fixed seed.
    """
    if not precision.stochastic:
        return None
    if generator is None:
        raise ValueError(f"{precision} is rounded at random and needs a generator; generator_of() makes one.")
    return generator


def _within_float32(precision: Precision) -> bool:
    float32 = PRECISIONS["float32"]
    return precision.significand_bits <= float32.significand_bits and precision.exponent_bits <= float32.exponent_bits


def _as_it_is(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _in_float32(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on float32 copies; its float64 result goes where the operation would have put it."""
    narrow = tree_map_only(torch.Tensor, lambda x: x.float() if x.dtype == torch.float64 else x, (args, kwargs))
    result = func(*narrow[0], **narrow[1])
    if func._schema.is_mutable:
        return args[0].copy_(result)
    return tree_map_only(torch.Tensor, lambda x: x.double() if x.dtype == torch.float32 else x, result)


def _round_significand(x: torch.Tensor, dropped: int, generator: torch.Generator | None) -> torch.Tensor:
    """Numbers without so many of their last bits, rounded at random if there is a generator, else ties to even."""
    bits = x.contiguous().view(torch.int64)
    if generator is not None:
        drawn = torch.randint(1 << dropped, bits.shape, generator=generator, device=generator.device)
        bits = bits + drawn.to(bits.device)  # a scalar is on the CPU even where the generator is not
    else:
        # half of the last kept bit, less one unless that bit is odd: so a tie is carried to the even neighbour
        bits = bits + ((1 << (dropped - 1)) - 1) + ((bits >> dropped) & 1)
    return (bits & -(1 << dropped)).view(torch.float64)


def _uniform(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random numbers from 0 to 1, one for each of x."""
    return torch.rand(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)
