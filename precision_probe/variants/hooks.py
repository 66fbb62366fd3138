"""The hooks: what enters and leaves each block, forward and backward.

MACE calls its blocks by keyword and gives the same ``edge_attrs`` and ``edge_feats`` to every layer. So each block's
inputs are aliased on their way in (a view of the same numbers), and the gradient of the energy with respect to the
aliases is that block's own share. It is asked of autograd explicitly, so that inputs without a path to the positions,
such as the first layer's ``node_feats``, have one too.

A block that overwrites its input, as ``ReLU(inplace=True)`` does, would overwrite the alias, and the gradient would be
that of its output. Where a model has modules that say so, blocks are handed copies of the aliases, and what a block
wrote is written where it would have been. Whatever else overwrites a recorded input is found out by autograd's count of
how often a tensor was written, and refused by the block's name.
"""

import contextlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
from torch.utils._pytree import tree_leaves

from precision_probe.exceptions import InputError
from precision_probe.models.blocks import Block, Port
from precision_probe.models.inputs import map_tensors, overwrites

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
        kept: The tensors among the arguments, by parameter, and how often each had been written before the block ran.
        arrived: The gradients that arrived at the inputs as the model differentiated by itself, where that was watched.
    """

    block: Block
    arguments: dict[str, Any]
    inputs: dict[Port, torch.Tensor]
    outputs: dict[Port, torch.Tensor]
    number: int = 0
    kept: Sequence[tuple[str, torch.Tensor, int]] = ()
    arrived: dict[Port, torch.Tensor] = field(default_factory=dict)

    def arrived_gradients(self) -> dict[Port, torch.Tensor]:
        """Those gradients; zeros where none arrived, as what was differentiated does not depend on an input."""
        return {
            port: self.arrived[port].detach() if port in self.arrived else torch.zeros_like(tensor)
            for port, tensor in self.inputs.items()
        }

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
def capture(
    model: torch.nn.Module, blocks: Sequence[Block], *, shared: bool = False, watched: bool = False
) -> Iterator[list[Call]]:
    """Hook blocks of a model and collect their calls; every hook is gone when the block ends.

    Args:
        model: The model; its results change in nothing forward, and backward only in the order of accumulation.
        blocks: Which blocks.
        shared: Leave the blocks' inputs as they are. Then nothing changes backward either, but a tensor that several
            blocks are given has one gradient, the total, and one without a path to the positions has none.
        watched: Keep the gradients that arrive at shared inputs while the model differentiates by itself.

    Yields:
        A list that grows by one :class:`Call` for each call of each block, in order.

    Raises:
        InputError: If a block's input is overwritten by a module that does not say that it does so, or by any where
            the inputs are left as they are.
    """
    capturing = _Capturing(shared, overwrites(model), watched)
    with contextlib.ExitStack() as stack:
        for block in blocks:
            module = model.get_submodule(block.name)
            before, after = capturing.hooks(block, inspect.signature(module.forward))
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after).remove)
        try:
            yield capturing.calls
        except RuntimeError as error:
            if capturing.running and "in-place operation" in str(error):  # on what gradients are asked for
                raise InputError(_overwritten(capturing.running[-1].block.name, "its input")) from error
            raise
        _check_kept(capturing.calls)


class _Capturing:
    """The calls of one run of a model.

    Attributes:
        calls: Those that have ended, in order.
        running: Those that have not, the innermost last.
    """

    def __init__(self, shared: bool, overwrites: bool, watched: bool) -> None:
        self.calls: list[Call] = []
        self.running: list[Call] = []
        self._shared, self._overwrites, self._watched = shared, overwrites, watched
        self._handed: list[list[tuple[torch.Tensor, torch.Tensor]]] = []  # for each running call: originals, copies

    def hooks(self, block: Block, signature: inspect.Signature) -> tuple[_PreHook, _Hook]:
        """What to do before and after a block runs: together they add one call to the list for each run."""

        def before(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Arguments:
            bound = signature.bind(*args, **kwargs)
            self._begin(block, bound.arguments)
            return bound.args, bound.kwargs

        def after(_: torch.nn.Module, __: tuple[Any, ...], returned: object) -> None:
            self._end(returned)

        return before, after

    def _begin(self, block: Block, arguments: dict[str, Any]) -> None:
        """Keep what a block is about to be called with, and exchange it for aliases, or for copies of them."""
        given = dict(arguments)
        copied = self._overwrites and not self._shared
        inputs = _shared(block, arguments) if self._shared else _alias(block, arguments, copied=copied)
        kept = dict(arguments)
        if copied:
            handed = {key: arguments[key].clone() for key in block.input_ports(arguments)}
            arguments |= handed
            self._handed.append([(given[key], tensor) for key, tensor in handed.items()])
        call = Call(block, kept, inputs, {}, kept=_versions(kept))
        for port, tensor in inputs.items() if self._watched else ():
            tensor.register_hook(partial(call.arrived.__setitem__, port))  # type: ignore[no-untyped-call]
        self.running.append(call)

    def _end(self, returned: object) -> None:
        """Keep what a block returned, and write what it overwrote where it would have."""
        call = self.running.pop()
        call.number = sum(earlier.block is call.block for earlier in self.calls)
        call.outputs = {port: tensor.detach().clone() for port, tensor in call.block.output_tensors(returned).items()}
        self.calls.append(call)
        for original, handed in self._handed.pop() if self._handed else ():
            if handed._version:
                original.copy_(handed if original.requires_grad else handed.detach())


def replay(module: torch.nn.Module, call: Call, dtype: torch.dtype) -> Call:
    """Run a block alone on the inputs of a recorded call, cast to a dtype."""
    arguments = {key: _detached(value, dtype) for key, value in call.arguments.items()}
    inputs = _alias(call.block, arguments)
    handed = {key: arguments[key].clone() for key in call.block.input_ports(arguments)} if overwrites(module) else {}
    bound = inspect.BoundArguments(inspect.signature(module.forward), OrderedDict(arguments | handed))
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

    Raises:
        InputError: If an input has been overwritten since its block was called.
    """
    _check_kept(calls)
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


def _alias(block: Block, arguments: dict[str, Any], *, copied: bool = False) -> dict[Port, torch.Tensor]:
    """Replace recorded inputs by aliases that autograd can tell apart, in place; return them.

    An alias has the numbers of what it stands for, and shares their memory unless it is to be ``copied``.
    """
    inputs = {}
    for key, port in block.input_ports(arguments).items():
        tensor = arguments[key].clone() if copied else arguments[key]
        alias = tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()
        arguments[key] = inputs[port] = alias
    return inputs


def _versions(arguments: Mapping[str, Any]) -> list[tuple[str, torch.Tensor, int]]:
    """Every tensor among arguments, with the parameter it was given as and how often it has been written."""
    leaves = ((key, leaf) for key, value in arguments.items() for leaf in tree_leaves(value))
    return [(key, leaf, leaf._version) for key, leaf in leaves if torch.is_tensor(leaf)]


def _check_kept(calls: Iterable[Call]) -> None:
    """Refuse calls whose recorded inputs were overwritten: autograd's gradients would be those of what came after."""
    for call in calls:
        for key, tensor, version in call.kept:
            if tensor._version != version:
                raise InputError(_overwritten(call.block.name, f"its input {key}"))


def _overwritten(block: str, what: str) -> str:
    """The message for a block whose input does not stay what it was."""
    return (
        f"Block {block} cannot be recorded: {what} is overwritten in place while the model runs, so that neither its "
        "values nor gradients with respect to it are kept. Use the operation that makes a new tensor (relu, not "
        "relu_), set gradients='per_block' if it is a module with inplace=True, or leave the block out: "
        f"blocks='!{block}'."
    )


def _detached(value: Nest, dtype: torch.dtype | None = None) -> Nest:
    """The same nest with its tensors off the graph, floating-point ones in a dtype if one is given."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach()
        return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

    return map_tensors(change, value)
