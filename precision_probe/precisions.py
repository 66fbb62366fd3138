"""What a precision is, and the names that people type for it.

A precision is a storage dtype and, for ``tf32``, a matrix-multiplication mode. Its numbers (unit roundoff,
largest finite value, …) follow from two integers of the IEEE 754 description of its format: how many bits
its significand has and how many its exponent has. Nothing here imports torch.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from precision_probe.exceptions import InputError

__all__ = ["DEFAULT_PRECISIONS", "PRECISIONS", "Precision", "parse_precision", "parse_precisions"]


@dataclass(frozen=True)
class Precision:
    """One way to compute.

    Attributes:
        name: The name used in traces and tables.
        significand_bits: Bits of the significand, the leading one included (53 for float64).
        exponent_bits: Bits of the exponent (11 for float64).
        dtype: Name of the dtype that stores the numbers. ``tf32`` stores float32: only the inputs of its
            matrix products are rounded to 11 bits.

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

    @property
    def unit_roundoff(self) -> float:
        """Largest relative error of one correctly rounded operation, 2⁻ᵖ (Higham 2002, section 2.1)."""
        return 2.0**-self.significand_bits

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
        return self.name == "tf32"

    def __str__(self) -> str:
        return self.name


PRECISIONS: dict[str, Precision] = {
    precision.name: precision
    for precision in (
        Precision("float64", 53, 11, "float64"),
        Precision("float32", 24, 8, "float32"),
        Precision("tf32", 11, 8, "float32"),
        Precision("bfloat16", 8, 8, "bfloat16"),
        Precision("float16", 11, 5, "float16"),
    )
}

DEFAULT_PRECISIONS = ("float32", "bfloat16", "float16")

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

    Args:
        name: A name (``"float16"``), an alias (``"fp16"``, ``"half"``, …) or a :class:`Precision`.

    Raises:
        InputError: If no precision has this name.

    Example:
        >>> parse_precision("bf16").name
        'bfloat16'
    """
    if isinstance(name, Precision):
        return name
    key = name.strip().lower().removeprefix("torch.")
    key = _ALIASES.get(key, key)
    if key in PRECISIONS:
        return PRECISIONS[key]
    close = difflib.get_close_matches(key, PRECISIONS, n=1) or difflib.get_close_matches(key, _ALIASES, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise InputError(
        f"Unknown precision {name!r}. Known: {', '.join(PRECISIONS)} (and the aliases {', '.join(_ALIASES)}).{hint}"
    )


def parse_precisions(names: str | Precision | Iterable[str | Precision]) -> tuple[Precision, ...]:
    """Return the reduced precisions asked for, in order, each once.

    Args:
        names: One name, several separated by commas, or an iterable of names.

    Raises:
        InputError: If a name is unknown or none is given.

    ``float64`` is always run as the reference, so naming it is allowed and adds nothing.

    Example:
        >>> [str(p) for p in parse_precisions("fp32, half, float64")]
        ['float32', 'float16']
    """
    if isinstance(names, Precision):
        names = [names]
    elif isinstance(names, str):
        names = [name for name in names.split(",") if name.strip()]
    found = list(dict.fromkeys(parse_precision(name) for name in names))
    if not found:
        raise InputError(f"No precision was given. Name one or more of {', '.join(PRECISIONS)}.")
    return tuple(precision for precision in found if precision.name != "float64")
