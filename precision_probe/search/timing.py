"""How long calls take and how much memory they need, measured side by side."""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from precision_probe.models.memory import attempt

__all__ = ["Timed", "peak_bytes", "peak_of", "seconds_of", "side_by_side"]

T = TypeVar("T")

_N_WARM_UP = 2  # calls; TorchScript compiles in the second


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


@dataclass(frozen=True)
class _Fits:
    """That the memory sufficed for a call; what it needed is known on CUDA only."""

    peak_bytes: int | None


def side_by_side(
    calls: Mapping[str, Callable[[], object]], device: torch.device, *, rounds: int = 7
) -> dict[str, Timed]:
    """Time calls in turn, round after round, each round beginning with another one, so that drifts meet all alike.

    Args:
        calls: What to call, by name.
        device: Where they run; it is waited for before and after each.
        rounds: How often each is timed, after two calls to warm up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    warmed_up = {name: attempt(_warmed_up, call, device) for name, call in calls.items()}
    fitting = {name: fits for name, fits in warmed_up.items() if fits is not None}
    names = list(fitting)
    for turn in range(rounds):
        start = turn % max(1, len(names))
        for name in (*names[start:], *names[:start]):
            seconds[name].append(seconds_of(calls[name], device))
    too_large = Timed((), None)
    timed = {name: Timed(tuple(seconds[name]), fits.peak_bytes) for name, fits in fitting.items()}
    return {name: timed.get(name, too_large) for name in calls}


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """The time of one call, for which the device is waited before and after."""
    _synchronize(device)
    begin = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - begin


def peak_of(device: torch.device, function: Callable[[], T]) -> tuple[T, int | None]:
    """A function's result, and the most memory (bytes) that was in use meanwhile, over what was before; CUDA only."""
    if device.type != "cuda":
        return function(), None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = function()
    torch.cuda.synchronize(device)
    return result, torch.cuda.max_memory_allocated(device) - before


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """The most memory in use during a call, over what was before; ``None`` on a CPU, or if it did not suffice."""
    fits = attempt(_warmed_up, call, device)
    return None if fits is None else fits.peak_bytes


def _warmed_up(call: Callable[[], object], device: torch.device) -> _Fits:
    """Call until nothing is compiled any more, then once for the memory; raises what :func:`attempt` looks for."""
    for _ in range(_N_WARM_UP):
        call()
    if device.type == "cuda":
        gc.collect()  # what the calls left must not count as memory in use before the next
        torch.cuda.empty_cache()
    _, peak_bytes = peak_of(device, call)
    return _Fits(peak_bytes)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
