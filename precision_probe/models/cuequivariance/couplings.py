"""Clebsch-Gordan coefficients, which mace-torch hands to cuEquivariance, in full precision."""

import contextlib
from collections.abc import Iterator

import torch

from precision_probe.models.dtypes import default_dtype

__all__ = ["exact_couplings"]


@contextlib.contextmanager
def exact_couplings() -> Iterator[None]:
    """Let cuEquivariance take Clebsch-Gordan coefficients in float64 whatever the default dtype is.

    mace-torch hands them over through NumPy, which has no bfloat16; cuEquivariance rounds them once, at the end.
    """
    from mace.tools import cg

    group = cg.O3_e3nn
    ours = group.__dict__.get("clebsch_gordan")
    if ours is None:  # cuEquivariance is not installed
        yield
        return

    def clebsch_gordan(cls: type, *representations: object) -> object:
        with default_dtype(torch.float64):
            return ours.__func__(cls, *representations)

    group.clebsch_gordan = classmethod(clebsch_gordan)
    try:
        yield
    finally:
        group.clebsch_gordan = ours
