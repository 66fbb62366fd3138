"""What a module that is not a MACE is called with: tensors, nested as it likes them."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

__all__ = ["Inputs", "map_tensors", "named_tensors", "overwrites"]

Nest = TypeVar("Nest")


@dataclass(frozen=True)
class Inputs:
    """One call of a module, with its floating-point tensors in the precision they were given in.

    Attributes:
        name: A name for it.
        args: Positional arguments; tensors may be nested in tuples, lists and dictionaries.
        kwargs: Keyword arguments, likewise.
        is_call: Whether these are arguments of the module's own ``forward``; else the one input of the user's callable.
    """

    name: str
    args: tuple[object, ...]
    kwargs: Mapping[str, object] = field(default_factory=dict)
    is_call: bool = False

    @property
    def n_structures(self) -> int:
        """As many as a trace counts: one input is one."""
        return 1

    def to(self, device: torch.device | str) -> "Inputs":
        """The same inputs with their tensors on a device."""
        return self.changed(lambda tensor: tensor.to(device))

    def copied(self) -> "Inputs":
        """The same inputs off any autograd graph, safe from later changes in place."""
        return self.changed(lambda tensor: tensor.detach().clone())

    def cast(self, dtype: torch.dtype) -> "Inputs":
        """Copies of the inputs in a dtype, asking for gradients; integers as they are."""
        return self.changed(
            lambda x: x.detach().to(dtype, copy=True).requires_grad_() if x.is_floating_point() else x.detach().clone()
        )

    def changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Inputs":
        """The same inputs with every tensor changed."""
        args, kwargs = map_tensors(change, self.args), map_tensors(change, dict(self.kwargs))
        return dataclasses.replace(self, args=args, kwargs=kwargs)


def overwrites(module: torch.nn.Module) -> bool:
    """Whether a module, or a part of it, says that it overwrites what it is called with: ``ReLU(inplace=True)``."""
    return any(getattr(part, "inplace", False) is True for part in module.modules())


def map_tensors(change: Callable[[torch.Tensor], torch.Tensor], value: Nest) -> Nest:
    """The same nest of tuples, lists and dictionaries with its tensors changed; any mapping becomes a dictionary."""
    changed: Any = value  # which of these a nest is, types cannot follow
    if torch.is_tensor(value):
        changed = change(value)
    elif isinstance(value, Mapping):
        changed = {key: map_tensors(change, item) for key, item in value.items()}
    elif isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple takes its items one by one
        changed = type(value)(*(map_tensors(change, item) for item in value))
    elif isinstance(value, list | tuple):
        changed = type(value)(map_tensors(change, item) for item in value)
    nest: Nest = changed
    return nest


def named_tensors(returned: object) -> dict[str, torch.Tensor]:
    """The floating-point tensors in what a module returned: a tensor, or a tuple or dictionary with tensors in it.

    Those of a dictionary are called by their keys, one alone ``output``, and several ``output0``, ``output1``, ….
    """
    if not isinstance(returned, Mapping | list | tuple):
        returned = (returned,)
    if isinstance(returned, Mapping):
        named = {str(key): value for key, value in returned.items()}
    elif len(returned) == 1:
        named = {"output": returned[0]}
    else:
        named = {f"output{index}": value for index, value in enumerate(returned)}
    return {name: value for name, value in named.items() if torch.is_tensor(value) and value.is_floating_point()}
