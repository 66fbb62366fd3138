"""Tensors → arrays of the host, from a GPU while it works on."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["ToHost", "to_numpy"]

Arrays = list[NDArray[Any]]
_HALVES = (torch.float16, torch.bfloat16)
_BUFFER = 2**26  # bytes of page-locked memory, which is dear: a choice, filled in some milliseconds


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """On the host, half precisions widened exactly to float32 (netCDF has no bfloat16), with one row at least."""
    tensor = tensor.detach()
    if tensor.dtype in _HALVES:
        tensor = tensor.float()
    return np.atleast_1d(tensor.cpu().numpy())


class ToHost:
    """Takes tensors to the host as :func:`to_numpy` does; those of a GPU in a thread, on a stream of its own.

    One bunch of tensors is on its way at a time, so that no more than these wait in the GPU's memory.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "to_host")
        self._last: Future[Arrays] | None = None

    def begin(self, tensors: Sequence[torch.Tensor]) -> "Future[Arrays]":
        """Begin to take tensors to the host, which must not be changed any more, as soon as they are computed.

        Raises:
            Exception: If those before them could not be taken.
        """
        if self._last is not None:
            self._last.result()
        device = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
        if device is not None:
            computed = torch.cuda.current_stream(device).record_event()
            self._last = self._thread.submit(_from_gpu, [tensor.detach() for tensor in tensors], device, computed)
        else:
            self._last = Future()
            self._last.set_result([to_numpy(tensor) for tensor in tensors])
        return self._last


def _from_gpu(tensors: list[torch.Tensor], device: torch.device, computed: torch.cuda.Event) -> Arrays:
    """Tensors through one page-locked buffer, piece by piece; what has been copied is let go."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    arrays = []
    with torch.cuda.stream(stream):
        stream.wait_event(computed)
        buffer = torch.empty(_BUFFER, dtype=torch.uint8, device="cpu", pin_memory=True)
        tensors.reverse()
        while tensors:
            tensor = tensors.pop()
            arrays.append(_through(buffer, tensor, stream) if tensor.is_cuda else to_numpy(tensor))
    return arrays


def _through(buffer: torch.Tensor, tensor: torch.Tensor, stream: torch.cuda.Stream) -> NDArray[Any]:
    """A tensor that was taken through a buffer: widened where it leaves that, so that half the bytes come to it."""
    dtype = torch.float32 if tensor.dtype in _HALVES else tensor.dtype
    values = torch.empty(tensor.shape, dtype=dtype, device="cpu")
    locked = buffer.view(tensor.dtype)
    source, target, most = tensor.reshape(-1), values.view(-1), len(locked)
    for first in range(0, len(source), most):
        piece = source[first : first + most]
        locked[: len(piece)].copy_(piece, non_blocking=True)
        stream.synchronize()
        target[first : first + most].copy_(locked[: len(piece)])
    return np.atleast_1d(values.numpy())
