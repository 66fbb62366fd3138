"""A function of tensors that stay where they are, launched as one CUDA graph."""

import gc
import logging
from collections.abc import Callable, Mapping

import torch

from precision_probe.exceptions import first_line

__all__ = ["Captured", "NotCapturedError", "Outputs", "Room"]

_LOG = logging.getLogger(__name__)

Outputs = Mapping[str, torch.Tensor]

_N_WARM_UP = 4  # calls: TorchScript compiles forward and backward passes in the first three
_TRIES = 3  # while something still compiles, capturing fails


class NotCapturedError(Exception):
    """Why a function cannot be launched as a graph, in one line."""


class Room:
    """Memory that graphs compute in one after another, as what one has left is free for the next.

    Args:
        device: A GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # one, as memory is kept for the stream that had it
        self.pool = torch.cuda.graph_pool_handle()


class Captured:
    """What a function launches, recorded once; calling it launches all of that again.

    Args:
        function: It reads tensors that stay where they are, returns tensors, and needs no number on the host. It is
            called several times before.
        room: Where it computes; graphs that have it in common must never run at the same time.

    Raises:
        NotCapturedError: If it does what a graph cannot hold.
        RuntimeError: What the function raises, such as that the memory does not suffice.
    """

    def __init__(self, function: Callable[[], Outputs], room: "Room") -> None:
        self._graph = torch.cuda.CUDAGraph()
        stream, device = room.stream, room.stream.device
        problem = ""
        for n_tries in range(1, _TRIES + 1):
            _give_back()  # memory is kept for one stream each, and would be taken twice
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(_N_WARM_UP):
                    function()
            torch.cuda.current_stream(device).wait_stream(stream)
            torch.cuda.synchronize(device)
            gc.collect()
            _give_back()  # what products work in is now made in the pool, where nobody else, as torch.compile, frees it
            try:
                with torch.cuda.graph(self._graph, pool=room.pool, stream=stream):
                    self._outputs = function()
                _give_back()  # what cuBLAS took of the pool is for the next that is captured in it
                return
            except Exception as error:  # of CUDA, of torch or of a kernel's library
                problem = f"{type(error).__name__}: {first_line(error)}"
                _LOG.info("not captured, try %d of %d: %s", n_tries, _TRIES, problem)
                self._graph = torch.cuda.CUDAGraph()
        raise NotCapturedError(problem)

    def __call__(self) -> Outputs:
        """Launch it; what is returned lies where it always does, and is overwritten by the next call."""
        self._graph.replay()
        return self._outputs


def _give_back() -> None:
    """Return what is not in use to the device: memory that torch keeps, and what matrix products work in."""
    torch._C._cuda_clearCublasWorkspaces()  # on an H200 twice 32 MiB for each stream, made anew when one is needed
    torch.cuda.empty_cache()
