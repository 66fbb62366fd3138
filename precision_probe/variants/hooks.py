"""The hooks: what enters and leaves each block, forward and backward.

MACE calls its blocks by keyword and gives the same ``edge_attrs`` and ``edge_feats`` to every layer. So each block's
inputs are aliased on their way in (a view of the same numbers), and the gradient of the energy with respect to the
aliases is that block's own share. It is asked of autograd explicitly, so that inputs without a path to the positions,
such as the first layer's ``node_feats``, have one too.
"""

import contextlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch

from precision_probe.models.blocks import Block, Port
from precision_probe.models.inputs import map_tensors

__all__ = ["Call", "capture", "gradients", "input_gradients", "replay"]

Nest = TypeVar("Nest")
_Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]  # positional and by keyword
_PreHook: TypeAlias = Callable[[torch.nn.Module, tuple[Any, ...], dict[str, Any]], _Arguments]
_Hook: TypeAlias = Callable[[torch.nn.Module, tuple[Any, ...], Any], None]


@dataclass
class Call:
    """One call of a block.

    Attributes:
        block: Which block.
        arguments: Everything it was called with, by parameter.
        inputs: The inputs whose gradients are recorded, attached to the autograd graph.
        outputs: What it returned: copies where a whole model ran, since what comes after may change them in place;
            attached to the graph where the block ran alone.
        number: How many times the block had run before, in this run of the model.
    """

    block: Block
    arguments: dict[str, Any]
    inputs: dict[Port, torch.Tensor]
    outputs: dict[Port, torch.Tensor]
    number: int = 0

    def detach(self) -> "Call":
        """The same call with its tensors off the graph, so that the graph's memory can go."""
        return Call(
            self.block,
            {key: _detached(value) for key, value in self.arguments.items()},
            {port: tensor.detach() for port, tensor in self.inputs.items()},
            self.outputs,
            self.number,
        )


@contextlib.contextmanager
def capture(model: torch.nn.Module, blocks: Sequence[Block], *, shared: bool = False) -> Iterator[list[Call]]:
    """Hook blocks of a model and collect their calls; every hook is gone when the block ends.

    Args:
        model: The model; its results change in nothing forward, and backward only in the order of accumulation.
        blocks: Which blocks.
        shared: Leave the blocks' inputs as they are. Then nothing changes backward either, but a tensor that several
            blocks are given has one gradient, the total, and one without a path to the positions has none.

    Yields:
        A list that grows by one :class:`Call` for each call of each block, in order.
    """
    calls: list[Call] = []
    with contextlib.ExitStack() as stack:
        for block in blocks:
            module = model.get_submodule(block.name)
            signature = inspect.signature(module.forward)
            pre_hook, hook = _hooks(block, signature, calls, shared)
            stack.callback(module.register_forward_pre_hook(pre_hook, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(hook).remove)
        yield calls


def _hooks(block: Block, signature: inspect.Signature, calls: list[Call], shared: bool) -> tuple[_PreHook, _Hook]:
    """What to do before and after a block runs: together they add one call to a list for each run."""
    open_calls: list[Call] = []  # several, where a block calls itself

    def before(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Arguments:
        bound = signature.bind(*args, **kwargs)
        inputs = _shared(block, bound.arguments) if shared else _alias(block, bound.arguments)
        open_calls.append(Call(block, dict(bound.arguments), inputs, {}))
        return bound.args, bound.kwargs

    def after(_: torch.nn.Module, __: tuple[Any, ...], returned: object) -> None:
        call = open_calls.pop()
        call.number = sum(earlier.block is block for earlier in calls)
        call.outputs = {port: tensor.detach().clone() for port, tensor in block.output_tensors(returned).items()}
        calls.append(call)

    return before, after


def replay(module: torch.nn.Module, call: Call, dtype: torch.dtype) -> Call:
    """Run a block alone on the inputs of a recorded call, cast to a dtype."""
    arguments = {key: _detached(value, dtype) for key, value in call.arguments.items()}
    inputs = _alias(call.block, arguments)
    bound = inspect.BoundArguments(inspect.signature(module.forward), OrderedDict(arguments))
    returned = module(*bound.args, **bound.kwargs)
    return Call(call.block, arguments, inputs, call.block.output_tensors(returned), call.number)


def gradients(
    calls: Sequence[Call], outputs: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> list[dict[Port, torch.Tensor]]:
    """Gradient of a model's outputs with respect to every recorded input, for each call.

    Args:
        calls: The calls, their graph still alive.
        outputs: What is differentiated, each tensor with its cotangent: for energies, (n_structures,) eV, ones.

    Returns:
        For each call, its inputs' gradients; zeros where the outputs do not depend on an input.
    """
    flat = [tensor for call in calls for tensor in call.inputs.values()]
    grads = iter(_vjp(outputs, flat))
    return [{port: next(grads) for port in call.inputs} for call in calls]


def input_gradients(call: Call) -> dict[Port, torch.Tensor]:
    """Gradient of the sum of one call's squared outputs with respect to its inputs.

    The cotangent 2·output is given to autograd directly: the sum itself would overflow in float16.
    """
    grads = _vjp([(y, 2 * y.detach()) for y in call.outputs.values()], list(call.inputs.values()))
    return dict(zip(call.inputs, grads, strict=True))


def _vjp(
    outputs: Sequence[tuple[torch.Tensor, torch.Tensor]], inputs: Sequence[torch.Tensor]
) -> Sequence[torch.Tensor]:
    """Vector-Jacobian products: Σ cotangent · ∂y/∂x for each input x, zeros where no output y depends on it."""
    with_path = [(y, cotangent) for y, cotangent in outputs if y.requires_grad]
    if not with_path or not inputs:
        return [torch.zeros_like(tensor) for tensor in inputs]
    ys, cotangents = zip(*with_path, strict=True)
    return torch.autograd.grad(ys, inputs, grad_outputs=cotangents, allow_unused=True, materialize_grads=True)


def _shared(block: Block, arguments: dict[str, Any]) -> dict[Port, torch.Tensor]:
    """Recorded inputs as they are, those that autograd follows."""
    ports = block.input_ports(arguments)
    return {port: arguments[key] for key, port in ports.items() if arguments[key].requires_grad}


def _alias(block: Block, arguments: dict[str, Any]) -> dict[Port, torch.Tensor]:
    """Replace recorded inputs by aliases that autograd can tell apart, in place; return them."""
    inputs = {}
    for key, port in block.input_ports(arguments).items():
        tensor = arguments[key]
        alias = tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()
        arguments[key] = inputs[port] = alias
    return inputs


def _detached(value: Nest, dtype: torch.dtype | None = None) -> Nest:
    """The same nest with its tensors off the graph, floating-point ones in a dtype if one is given."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach()
        return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

    return map_tensors(change, value)
