"""Chosen blocks of a float64 model computed in emulated formats, forward and backward; the rest stays as it is."""

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from precision_probe.models.inputs import map_tensors
from precision_probe.precisions import Precision
from precision_probe.variants.rounding import Rounding, round_to

__all__ = ["PARTS", "rounded_blocks", "rounded_weights"]

PARTS = ("inputs", "weights", "arithmetic")


@contextlib.contextmanager
def rounded_blocks(
    model: torch.nn.Module, formats: Mapping[str, Precision], parts: Collection[str] = PARTS
) -> Iterator[None]:
    """While this lasts, blocks of a model compute in formats of their own.

    Args:
        model: A float64 model that is called for energies and their gradients (not for second derivatives).
        formats: For each block, by its PyTorch name, an emulated format.
        parts: What is rounded: the block's floating-point ``inputs`` (and the gradients that enter its backward
            pass), its ``weights`` and buffers, and its ``arithmetic``, the result of every operation in it, forward
            and backward.
    """
    with contextlib.ExitStack() as stack:
        for name, precision in formats.items():
            module = model.get_submodule(name)
            if "weights" in parts:
                stack.enter_context(rounded_weights(module, precision))
            if "inputs" in parts or "arithmetic" in parts:
                setattr(module, "forward", _Forward(module, precision, parts))  # noqa: B010
                stack.callback(vars(module).pop, "forward")
        yield


@contextlib.contextmanager
def rounded_weights(module: torch.nn.Module, precision: Precision) -> Iterator[None]:
    """While this lasts, the parameters and buffers of a module are rounded."""
    tensors = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
    kept = [tensor.detach().clone() for tensor in tensors]
    with torch.no_grad():
        try:
            for tensor in tensors:
                tensor.copy_(round_to(tensor, precision))
            with torch.enable_grad():
                yield
        finally:
            for tensor, before in zip(tensors, kept, strict=True):
                tensor.copy_(before)


class _Forward:
    """A block's ``forward`` in an emulated format."""

    def __init__(self, module: torch.nn.Module, precision: Precision, parts: Collection[str]) -> None:
        self.run = module.forward
        self.rounded: Callable[[torch.Tensor], torch.Tensor] = (
            partial(round_to, precision=precision) if "inputs" in parts else torch.Tensor.detach
        )
        self.mode: Callable[[], Any] = partial(Rounding, precision) if "arithmetic" in parts else contextlib.nullcontext
        self.__signature__ = inspect.signature(module.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensors: list[torch.Tensor] = []
        layout: list[Any] = []
        nested = _taken((args, kwargs), tensors)
        found = _Rounded.apply(self, nested, layout, *tensors)  # type: ignore[no-untyped-call]
        return _filled(layout[0], found)


class _Place:
    """Where in a nest of arguments a tensor was."""

    def __init__(self, index: int) -> None:
        self.index = index


class _Rounded(torch.autograd.Function):
    """A block as one node of the autograd graph, with a graph of its own inside."""

    @staticmethod
    def forward(ctx: Any, block: _Forward, nested: Any, layout: list[Any], *tensors: torch.Tensor) -> Any:
        with torch.enable_grad():
            inputs = [block.rounded(x.detach()).requires_grad_(x.requires_grad) for x in tensors]
            args, kwargs = _filled(nested, inputs)
            with block.mode():
                returned = block.run(*args, **kwargs)
        outputs: list[torch.Tensor] = []
        layout.append(_taken(returned, outputs))
        ctx.block, ctx.inputs, ctx.outputs = block, inputs, outputs
        return tuple(tensor.detach() for tensor in outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        wanted = [tensor for tensor in ctx.inputs if tensor.requires_grad]
        pairs = [(y, g) for y, g in zip(ctx.outputs, cotangents, strict=True) if y.requires_grad and g is not None]
        if not wanted or not pairs:
            return (None,) * (3 + len(ctx.inputs))
        ys, gs = zip(*((y, ctx.block.rounded(g)) for y, g in pairs), strict=True)
        with ctx.block.mode():
            found = iter(torch.autograd.grad(ys, wanted, gs, allow_unused=True))
        return None, None, None, *(next(found) if tensor.requires_grad else None for tensor in ctx.inputs)


def _taken(nested: Any, tensors: list[torch.Tensor]) -> Any:
    """The same nest with places for its floating-point tensors, which are put into a list."""

    def take(tensor: torch.Tensor) -> Any:
        if not tensor.is_floating_point():
            return tensor
        tensors.append(tensor)
        return _Place(len(tensors) - 1)

    return map_tensors(take, nested)


def _filled(nested: Any, tensors: Any) -> Any:
    """The same nest with tensors in their places."""
    if isinstance(nested, _Place):
        return tensors[nested.index]
    if isinstance(nested, dict):
        return {key: _filled(value, tensors) for key, value in nested.items()}
    if isinstance(nested, list | tuple):
        return type(nested)(_filled(value, tensors) for value in nested)
    return nested
