"""Clebsch-Gordan coefficients, which mace-torch hands to cuEquivariance, in full precision."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch

from precision_probe.models.dtypes import default_dtype

__all__ = ["exact_couplings"]


@contextlib.contextmanager
def exact_couplings() -> Iterator[None]:
    """Let cuEquivariance take Clebsch-Gordan coefficients in float64 whatever the default dtype is.

    mace-torch hands them over through NumPy in torch's default dtype (and NumPy has no bfloat16), and cuEquivariance
    remembers what it makes of them as long as the process lives: a model that somebody converted in float32 would leave
    an error of some 1e-9 in the forces of the next one in float64. So what others had made is forgotten, and made anew.
    """
    from mace.tools import cg

    group = cg.O3_e3nn
    theirs = group.__dict__.get("clebsch_gordan")
    if theirs is None:  # cuEquivariance is not installed
        yield
        return

    def clebsch_gordan(cls: type, *representations: object) -> object:
        with default_dtype(torch.float64):
            return theirs.__func__(cls, *representations)

    _REMEMBERED.forget_what_others_made()
    group.clebsch_gordan = classmethod(clebsch_gordan)
    try:
        yield
    finally:
        group.clebsch_gordan = theirs
        _REMEMBERED.count()


class _Remembered:
    """What cuEquivariance remembers, in functions with caches and in dictionaries."""

    def __init__(self) -> None:
        self._n_exact = 0

    def forget_what_others_made(self) -> None:
        """Empty its caches, if there is more in them than was made of exact coefficients."""
        if _n_remembered() != self._n_exact:
            for cache in _caches():
                clear = cache.clear if isinstance(cache, dict) else cache.cache_clear
                clear()

    def count(self) -> None:
        """Take down that all that is there was made of exact coefficients."""
        self._n_exact = _n_remembered()


def _n_remembered() -> int:
    return sum(len(each) if isinstance(each, dict) else each.cache_info().currsize for each in _caches())


def _caches() -> list[Any]:
    """Each once, though modules import functions of one another."""
    modules = [module for name, module in sys.modules.items() if name.startswith("cuequivariance.")]
    named = [(name, value) for module in modules for name, value in vars(module).items()]
    found = {
        id(value): value
        for name, value in named
        if hasattr(value, "cache_clear") or (isinstance(value, dict) and name.startswith("_cache"))
    }
    return list(found.values())


_REMEMBERED = _Remembered()
