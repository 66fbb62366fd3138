"""What a precision is, and the names that people type for it.

A precision is a storage dtype and, for ``tf32``, a matrix-multiplication mode. Its numbers (unit roundoff,
largest finite value, …) follow from two integers of the IEEE 754 description of its format: how many bits
its significand has and how many its exponent has. Nothing here imports torch.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from precision_probe.exceptions import InputError

__all__ = ["PRECISIONS", "Precision", "PrecisionSource", "emulated", "parse_precision", "parse_precisions"]


@dataclass(frozen=True)
class Precision:
    """One way to compute.

    Attributes:
        name: The name used in traces and tables.
        significand_bits: Bits of the significand, the leading one included (53 for float64).
        exponent_bits: Bits of the exponent (11 for float64).
        dtype: Name of the dtype that stores the numbers. ``tf32`` stores float32: only the inputs of its
            matrix products are rounded to 11 bits. Emulated formats are stored in float64.
        products_only: Whether only the inputs of matrix products are rounded to the format, and everything else is
            computed in the dtype that stores the numbers: so NVIDIA's tensor cores have tf32.
        emulated: Whether the results of operations are rounded to the format in software, whatever computed them:
            ``precision_probe.variants.rounding`` says what does.
        has_range: Whether numbers too large or too small for the format overflow, lose digits or become zero. An
            emulated format may have float64's exponents instead, so that rounding is all that differs.
        stochastic: Whether results are rounded up or down at random, in proportion to their distance, rather than to
            the nearest number (ties to even).

    Example:
        >>> PRECISIONS["float16"].unit_roundoff == 2**-11
        True
        >>> PRECISIONS["float16"].largest
        65504.0
    """

    name: str
    significand_bits: int
    exponent_bits: int
    dtype: str
    products_only: bool = False
    emulated: bool = False
    has_range: bool = True
    stochastic: bool = False

    @property
    def unit_roundoff(self) -> float:
        """Largest relative error of one rounded operation: 2⁻ᵖ to nearest (Higham 2002, section 2.1), else 2¹⁻ᵖ."""
        return 2.0 ** (1 - self.significand_bits if self.stochastic else -self.significand_bits)

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number, 2 to this power (IEEE 754-2019, section 3.3)."""
        return 2 - (1 << (self.exponent_bits - 1))

    @property
    def max_exponent(self) -> int:
        """Exponent of the binade that holds the largest finite number."""
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def largest(self) -> float:
        """Largest finite number."""
        return (2.0 - 2.0 ** (1 - self.significand_bits)) * 2.0**self.max_exponent

    @property
    def smallest_normal(self) -> float:
        """Smallest positive normal number; below it digits are lost."""
        return 2.0**self.min_exponent

    @property
    def smallest_subnormal(self) -> float:
        """Smallest positive number; half of it and less becomes zero."""
        return 2.0 ** (self.min_exponent - self.significand_bits + 1)

    @property
    def needs_cuda(self) -> bool:
        """Whether only a CUDA device computes in it."""
        return self.products_only

    @property
    def matmul_mode(self) -> str:
        """How float32 matrix products are computed: torch's ``fp32_precision``."""
        return "tf32" if self.products_only else "ieee"

    @property
    def storage(self) -> "Precision":
        """The precision that numbers are stored in and most operations computed: float32 of tf32, else itself."""
        return PRECISIONS[self.dtype] if self.products_only else self

    def __str__(self) -> str:
        return self.name


PRECISIONS: dict[str, Precision] = {
    precision.name: precision
    for precision in (
        Precision("float64", 53, 11, "float64"),
        Precision("float32", 24, 8, "float32"),
        Precision("tf32", 11, 8, "float32", products_only=True),
        Precision("bfloat16", 8, 8, "bfloat16"),
        Precision("float16", 11, 5, "float16"),
    )
}

_ALIASES = {
    "fp64": "float64",
    "f64": "float64",
    "double": "float64",
    "fp32": "float32",
    "f32": "float32",
    "single": "float32",
    "float": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
}


def parse_precision(name: str | Precision) -> Precision:
    """Return the precision that a name means.

    Any format that hardware lacks is emulated: ``e5m10`` has 5 bits of exponent and 10 stored bits of significand (one
    more counts), overflow and subnormal numbers as IEEE 754 has them; ``m10`` has 10 stored bits and float64's
    exponents; ``sr`` at the end rounds stochastically.

    Args:
        name: A name (``"float16"``), an alias (``"fp16"``, ``"half"``, …) or a :class:`Precision`.

    Raises:
        InputError: If no precision has this name.

    Example:
        >>> parse_precision("bf16").name
        'bfloat16'
        >>> parse_precision("e4m3").largest, parse_precision("m7sr").unit_roundoff
        (240.0, 0.0078125)
    """
    if isinstance(name, Precision):
        return name
    key = name.strip().lower().removeprefix("torch.")
    key = _ALIASES.get(key, key)
    if key in PRECISIONS:
        return PRECISIONS[key]
    if spelled := re.fullmatch(r"(?:e(\d+))?m(\d+)(sr)?", key):
        exponent, stored, stochastic = spelled.groups()
        return emulated(int(stored) + 1, int(exponent) if exponent else None, stochastic=bool(stochastic))
    close = difflib.get_close_matches(key, PRECISIONS, n=1) or difflib.get_close_matches(key, _ALIASES, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise InputError(
        f"Unknown precision {name!r}. Known: {', '.join(PRECISIONS)} (and the aliases {', '.join(_ALIASES)}); "
        f"emulated formats such as e5m10, m10 or e8m7sr.{hint}"
    )


def emulated(significand_bits: int, exponent_bits: int | None = None, *, stochastic: bool = False) -> Precision:
    """Return the emulated format with so many bits.

    Args:
        significand_bits: The leading one included.
        exponent_bits: ``None`` for float64's exponents, so that nothing overflows.
        stochastic: Whether results are rounded up or down at random.

    Raises:
        InputError: If float64 cannot hold its numbers.

    Example:
        >>> emulated(11, 5).name, emulated(8, stochastic=True).name
        ('e5m10', 'm7sr')
    """
    float64 = PRECISIONS["float64"]
    has_range = exponent_bits is not None
    exponent = f"e{exponent_bits}" if has_range else ""
    name = f"{exponent}m{significand_bits - 1}{'sr' if stochastic else ''}"
    exponent_bits = float64.exponent_bits if exponent_bits is None else exponent_bits
    if not 2 <= exponent_bits <= float64.exponent_bits or not 2 <= significand_bits <= float64.significand_bits:
        raise InputError(
            f"The format {name!r} cannot be emulated in float64: 2 to {float64.exponent_bits} bits of exponent and 1 "
            f"to {float64.significand_bits - 1} of significand are possible."
        )
    return Precision(
        name,
        significand_bits,
        exponent_bits,
        "float64",
        emulated=True,
        has_range=has_range,
        stochastic=stochastic,
    )


PrecisionSource: TypeAlias = str | Precision | Iterable[str | Precision]  # what parse_precisions() takes


def parse_precisions(names: PrecisionSource) -> tuple[Precision, ...]:
    """Return the reduced precisions asked for, in order, each once.

    ``float64`` is always run as the reference, so naming it is allowed and adds nothing.

    Args:
        names: One name, several separated by commas, or an iterable of names.

    Raises:
        InputError: If a name is unknown or none is given.

    Example:
        >>> [str(p) for p in parse_precisions("fp32, half, float64")]
        ['float32', 'float16']
    """
    if isinstance(names, Precision):
        names = [names]
    elif isinstance(names, str):
        names = [name for name in names.split(",") if name.strip()]
    precisions = list(dict.fromkeys(parse_precision(name) for name in names))
    if not precisions:
        raise InputError(f"No precision was given. Name one or more of {', '.join(PRECISIONS)}.")
    return tuple(precision for precision in precisions if precision.name != "float64")
