"""Chosen blocks of a float64 model computed in emulated formats, forward and backward; the rest stays as it is."""

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from precision_probe.precisions import Precision
from precision_probe.variants.rounding import Rounding, round_to

__all__ = ["PARTS", "rounded_blocks", "rounded_weights"]

PARTS = ("inputs", "weights", "arithmetic")


@contextlib.contextmanager
def rounded_blocks(
    model: torch.nn.Module, formats: Mapping[str, Precision], parts: Collection[str] = PARTS, *, seed: int = 0
) -> Iterator[None]:
    """While this lasts, blocks of a model compute in formats of their own.

    Args:
        model: A float64 model that is called for energies and their gradients (not for second derivatives).
        formats: For each block, by its PyTorch name, an emulated format.
        parts: What is rounded: the block's floating-point ``inputs`` (and the gradients that enter its backward
            pass), its ``weights`` and buffers, and its ``arithmetic``, the result of every operation in it, forward
            and backward.
        seed: Of stochastic rounding; all blocks draw from one generator, so that they err independently.
    """
    generator = torch.Generator(_device_of(model)).manual_seed(seed)
    with contextlib.ExitStack() as stack:
        for name, precision in formats.items():
            module = model.get_submodule(name)
            if "weights" in parts:
                stack.enter_context(_rounded_state(module, precision, generator))
            if "inputs" in parts or "arithmetic" in parts:
                # by setattr, since types let nobody assign to a method
                setattr(module, "forward", _Forward(module, precision, parts, generator))  # noqa: B010
                stack.callback(vars(module).pop, "forward")
        yield


@contextlib.contextmanager
def rounded_weights(module: torch.nn.Module, precision: Precision, *, seed: int = 0) -> Iterator[None]:
    """While this lasts, the parameters and buffers of a module are rounded.

    Args:
        module: A float64 module.
        precision: An emulated format.
        seed: Of stochastic rounding.
    """
    with _rounded_state(module, precision, torch.Generator(_device_of(module)).manual_seed(seed)):
        yield


@contextlib.contextmanager
def _rounded_state(module: torch.nn.Module, precision: Precision, generator: torch.Generator) -> Iterator[None]:
    """While this lasts, every floating-point tensor of a module's state is rounded in place."""
    tensors = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
    kept = [tensor.detach().clone() for tensor in tensors]
    with torch.no_grad():
        try:
            for tensor in tensors:
                tensor.copy_(round_to(tensor, precision, generator))
            with torch.enable_grad():
                yield
        finally:
            for tensor, before in zip(tensors, kept, strict=True):
                tensor.copy_(before)


def _device_of(module: torch.nn.Module) -> torch.device:
    return next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))


class _Forward:
    """A block's ``forward`` in an emulated format.

    The block runs on inputs cut off from the graph outside, and has a graph of its own inside; :class:`_Joined` makes
    one node of it in the graph outside. So its backward pass too can be rounded, and nothing else is.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        precision: Precision,
        parts: Collection[str],
        generator: torch.Generator,
    ) -> None:
        self.run = module.forward
        self.rounded: Callable[[torch.Tensor], torch.Tensor] = (
            partial(round_to, precision=precision, generator=generator) if "inputs" in parts else torch.Tensor.detach
        )
        self.mode: Callable[[], contextlib.AbstractContextManager[object]] = (
            partial(Rounding, precision, generator) if "arithmetic" in parts else contextlib.nullcontext
        )
        self.__signature__ = inspect.signature(module.forward)  # by which hooks tell arguments apart

    def __call__(self, *args: object, **kwargs: object) -> Any:
        given, with_given = _taken_apart((args, kwargs))
        with torch.enable_grad():
            inputs = [self.rounded(x.detach()).requires_grad_(x.requires_grad) for x in given]
            args, kwargs = with_given(inputs)
            with self.mode():
                returned = self.run(*args, **kwargs)
        outputs, with_outputs = _taken_apart(returned)
        return with_outputs(_Joined.apply(self, inputs, outputs, *given))  # type: ignore[no-untyped-call]


class _Context(Protocol):
    """What autograd keeps of one call of a block until its backward pass."""

    block: _Forward
    inputs: Sequence[torch.Tensor]
    outputs: Sequence[torch.Tensor]


class _Joined(torch.autograd.Function):
    """A block that has run on copies of what it was given, as one node of the autograd graph outside."""

    @staticmethod
    def forward(
        ctx: _Context,
        block: _Forward,
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
        *_: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """What the block returned, which comes from here as autograd sees it, and so from what the block was given."""
        ctx.block, ctx.inputs, ctx.outputs = block, inputs, outputs
        return tuple(tensor.detach() for tensor in outputs)

    @staticmethod
    def backward(ctx: _Context, *cotangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """Gradients with respect to what the block was given, through the graph inside, in the block's arithmetic."""
        wanted = [tensor for tensor in ctx.inputs if tensor.requires_grad]
        given = zip(ctx.outputs, cotangents, strict=True)
        reached = [(y, cotangent) for y, cotangent in given if y.requires_grad and cotangent is not None]
        if not wanted or not reached:
            return (None,) * (3 + len(ctx.inputs))  # three: block, inputs and outputs
        ys, rounded = zip(*((y, ctx.block.rounded(cotangent)) for y, cotangent in reached), strict=True)
        with ctx.block.mode():
            grads = iter(torch.autograd.grad(ys, wanted, rounded, allow_unused=True))
        return None, None, None, *(next(grads) if tensor.requires_grad else None for tensor in ctx.inputs)


def _taken_apart(nested: object) -> tuple[list[torch.Tensor], Callable[[Iterable[torch.Tensor]], Any]]:
    """The floating-point tensors in a nest of tuples, lists and dictionaries, and what makes it anew with others."""
    leaves, spec = tree_flatten(nested)
    is_taken = [isinstance(leaf, torch.Tensor) and leaf.is_floating_point() for leaf in leaves]

    def with_tensors(tensors: Iterable[torch.Tensor]) -> Any:
        others = iter(tensors)
        filled = [next(others) if taken else leaf for leaf, taken in zip(leaves, is_taken, strict=True)]
        return tree_unflatten(filled, spec)

    return [leaf for leaf, taken in zip(leaves, is_taken, strict=True) if taken], with_tensors
