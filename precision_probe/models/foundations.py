"""Foundation models by name, through mace-torch's own downloader and its cache."""

import contextlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from precision_probe.exceptions import InputError
from precision_probe.pickles import check_pickle

__all__ = ["load_foundation"]

# Before version 0.3.16 mace-torch has no table of these, but a function that knows them.
_MACE_OFF = {
    size: f"https://github.com/ACEsuit/mace-off/raw/main/mace_off23/MACE-OFF23_{size}.model"
    for size in ("small", "medium", "large")
}


def load_foundation(name: str) -> torch.nn.Module:
    """Load a foundation model, downloading it unless it is in mace-torch's cache.

    Args:
        name: The family and mace-torch's own name for the model, such as ``"mace-mp:small"`` or ``"mace-off:medium"``.

    Returns:
        The model as its file holds it, on the CPU. Licence notices of mace-torch go to stderr.

    Raises:
        InputError: If there is no such model, or it is not in the cache and cannot be downloaded.
    """
    from mace.calculators import foundations_models

    family, _, size = name.partition(":")
    urls: dict[str, str] = getattr(foundations_models, f"{family.replace('-', '_')}_urls", _MACE_OFF)
    if size not in urls:
        raise InputError(
            f"mace-torch knows no foundation model {name!r}. Known: {', '.join(f'{family}:{key}' for key in urls)}."
        )
    cached = _cached(family, urls[size])
    if cached.is_file():  # else mace-torch loads it as soon as it has it
        check_pickle(cached)
    load: Any = getattr(foundations_models, family.replace("-", "_"))  # a function of mace-torch, which has no types
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():  # stdout is for results
            warnings.simplefilter("ignore")  # of torch and e3nn about how the pickle is read
            model: torch.nn.Module = load(model=size, device="cpu", return_raw_model=True)
    except Exception as error:  # mace-torch wraps whatever the network raised
        raise InputError(
            f"{name} is not in the cache and cannot be downloaded ({error.__cause__ or error}). "
            f"Fetch {urls[size]} on a machine with a network and save it as {cached}."
        ) from error
    return model


def _cached(family: str, url: str) -> Path:
    """Where mace-torch looks for a downloaded model: MACE-MP files lose the punctuation of their names."""
    from mace.tools.utils import get_cache_dir

    file_name = os.path.basename(url)  # noqa: PTH119  (of a URL)
    if family == "mace-mp":
        file_name = "".join(character for character in file_name if character.isalnum() or character == "_")
    return Path(get_cache_dir()) / file_name
