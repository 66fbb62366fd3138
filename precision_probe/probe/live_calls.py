"""Hooks on a live model: which of its calls are observed, and what a training loss asks of its outputs."""

import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.utils.hooks import RemovableHandle

from precision_probe.exceptions import InputError
from precision_probe.models.inputs import named_tensors

__all__ = ["Calls", "Observing", "observe_calls", "on_loss_gradients", "training_options"]


class Observing(Protocol):
    """What the hooks tell of calls."""

    def before_call(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        """The model is about to be called with these."""

    def after_call(self, returned: object) -> None:
        """It returned this."""


@dataclass
class Calls:
    """Which calls are observed.

    Attributes:
        every: Each ``every``-th.
        limit: No more than this many; ``None`` for all.
        when: Only those for whose arguments this is true.
        number: How many calls there have been.
    """

    every: int = 1
    limit: int | None = None
    when: Callable[..., bool] | None = None
    number: int = 0
    _n_chosen: int = 0

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"every must be 1 or more, got {self.every}.")
        if self.limit is not None and self.limit < 0:
            raise InputError(f"limit must be 0 or more, got {self.limit}.")

    def chooses_next(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> bool:
        """Count a call; whether it is to be observed."""
        self.number += 1
        if self.number % self.every or (self.limit is not None and self._n_chosen >= self.limit):
            return False
        if self.when is not None and not self.when(*args, **kwargs):
            return False
        self._n_chosen += 1
        return True


def observe_calls(model: torch.nn.Module, observer: Observing) -> Callable[[], object]:
    """Hook a model; what is returned unhooks it, as does the end of the observer's life.

    The hooks hold the observer weakly: a model that outlives it would keep it, and its clones, alive.
    """
    held = weakref.ref(observer)

    def before(_: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if (alive := held()) is not None:
            alive.before_call(args, kwargs)

    def after(_: torch.nn.Module, __: tuple[object, ...], returned: object) -> None:
        if (alive := held()) is not None:
            alive.after_call(returned)

    handles = (
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after),
    )

    def unhook() -> None:
        for handle in handles:
            handle.remove()

    return weakref.finalize(observer, unhook)


def training_options(
    model: torch.nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> dict[str, object] | None:
    """With which options a model is called, if it is in training; else ``None``.

    MACE is told so by ``training=True``, without which its forces cannot be differentiated; others by their mode.
    """
    signature = inspect.signature(model.forward)
    arguments = dict(signature.bind(*args, **kwargs).arguments)
    data = next(iter(arguments), "")  # what the model is run on comes first; each variant has its own copy of that
    is_training = arguments.get("training", False) if "training" in signature.parameters else model.training
    return {key: value for key, value in arguments.items() if key != data} if is_training else None


def on_loss_gradients(returned: object, tell: Callable[[dict[str, torch.Tensor]], None]) -> RemovableHandle | None:
    """Ask autograd what a loss makes of a model's outputs; the numbers of its pass are not changed.

    Args:
        returned: What the model returned.
        tell: Called with the gradients of the loss with respect to the outputs it uses, by name, once they are all
            known.

    Returns:
        A handle whose ``remove()`` ends it, or ``None`` where no output can be differentiated.
    """
    outputs = {name: tensor for name, tensor in named_tensors(returned).items() if tensor.requires_grad}
    if not outputs:
        return None

    def hook(grads: Sequence[torch.Tensor | None]) -> None:
        with torch.no_grad():
            # cloned, as the loss's own pass goes on with these tensors and may change them in place
            named = zip(outputs, grads, strict=True)
            tell({name: grad.detach().clone() for name, grad in named if grad is not None})

    return torch.autograd.graph.register_multi_grad_hook(list(outputs.values()), hook)
