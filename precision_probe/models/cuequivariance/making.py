"""The surroundings in which a model is made, whichever library computes it."""

import contextlib
import warnings
from collections.abc import Iterator

import torch

from precision_probe.models.cuequivariance.contractions import shared_contractions
from precision_probe.models.dtypes import default_dtype

__all__ = ["making"]


@contextlib.contextmanager
def making(dtype: torch.dtype) -> Iterator[None]:
    """Make models in a dtype: contractions are compiled once, and the caller's random state is left as it was.

    TorchScript's notices about e3nn's own code are dropped; what this package has to say is heard.
    """
    with (
        default_dtype(dtype),
        torch.random.fork_rng(devices=[]),
        shared_contractions(),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "(?!precision_probe: )")
        yield
