"""How long calls take and how much memory they need, measured side by side."""

import gc
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["Timed", "side_by_side"]

_WARM_UP = 2  # calls; TorchScript compiles in the second


@dataclass(frozen=True)
class Timed:
    """What repeated calls took.

    Attributes:
        seconds: Of each round; empty if the memory did not suffice.
        peak_bytes: The most memory in use during a call, over what was before; ``None`` on a CPU.
    """

    seconds: tuple[float, ...]
    peak_bytes: int | None

    @property
    def median(self) -> float:
        """Median over rounds, s; infinite if the memory did not suffice."""
        return float(np.median(self.seconds)) if self.seconds else np.inf


def side_by_side(calls: Mapping[str, Callable[[], Any]], device: torch.device, *, rounds: int = 7) -> dict[str, Timed]:
    """Time calls in turn, round after round, each round beginning with another one, so that drifts meet all alike.

    Args:
        calls: What to call, by name.
        device: Where they run; it is waited for before and after each.
        rounds: How often each is timed, after two calls to warm up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    peaks: dict[str, int | None] = {}
    fitting = dict(calls)
    for name, call in calls.items():
        try:
            for _ in range(_WARM_UP):
                call()
            peaks[name] = _peak(call, device)
        except RuntimeError as error:  # TorchScript turns torch.OutOfMemoryError into a plain RuntimeError
            if not re.search("out of memory|can't allocate memory", str(error)):
                raise
            del fitting[name]
            peaks[name] = None
            _free(device)
    names = list(fitting)
    for turn in range(rounds):
        start = turn % max(1, len(names))
        for name in (*names[start:], *names[:start]):
            _synchronize(device)
            begin = time.perf_counter()
            fitting[name]()
            _synchronize(device)
            seconds[name].append(time.perf_counter() - begin)
    return {name: Timed(tuple(seconds[name]), peaks[name]) for name in calls}


def _peak(call: Callable[[], Any], device: torch.device) -> int | None:
    if device.type != "cuda":
        call()
        return None
    _free(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
