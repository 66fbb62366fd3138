"""Hooks on a live model: which of its calls are observed, and what a training loss asks of its outputs."""

import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

import torch
from torch.utils.hooks import RemovableHandle

from precision_probe.exceptions import InputError
from precision_probe.models.inputs import named_tensors
from precision_probe.probe import bare_copies
from precision_probe.probe.bare_copies import ProbeHook, copied_as_it_is, copied_bare
from precision_probe.probe.turns import TURNS, is_running

__all__ = ["Calls", "Observing", "observe_calls", "on_loss_gradients", "training_options"]


_OF_HOOKS = (__file__, bare_copies.__file__)


class Observing(Protocol):
    """What the hooks tell of calls: one at a time, but calls may be made within calls."""

    def before_call(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        """The model is about to be called with these; what is returned is handed to one of the other two."""

    def after_call(self, call: object, returned: object) -> None:
        """It returned this."""

    def call_failed(self, call: object) -> None:
        """It returned nothing: it raised an exception, or was interrupted."""


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

    def has_failed(self) -> None:
        """Forget that a call was chosen, as nothing came of it: it is no part of the limit."""
        self._n_chosen -= 1


def observe_calls(model: torch.nn.Module, observer: Observing) -> Callable[[], object]:
    """Hook a model; what is returned unhooks it, as does the end of the observer's life.

    The hooks hold the observer weakly: a model that outlives it would keep it, and its clones, alive. They are no part
    of copies of the model, nor of its files.
    """
    hooks = _Hooks(model, observer)
    handles = (
        model.register_forward_pre_hook(ProbeHook(hooks.before), with_kwargs=True),
        model.register_forward_hook(ProbeHook(hooks.after), always_call=True),
    )
    hooks.last = handles[1].id
    copied_bare(model)

    def unhook() -> None:
        for handle in handles:
            handle.remove()
        copied_as_it_is(model)

    return weakref.finalize(observer, unhook)


@dataclass(frozen=True)
class _OpenCall:
    """A call that has begun.

    Attributes:
        frame: That runs the model, from the hooks of the beginning to those of the end. Torch leaves it before it runs
            the hooks of a call that has raised an exception, and runs none for one that was interrupted.
        handled: The exception that was being handled as it began: a model may be called by who handles one.
        told: What the observer returned.
    """

    frame: FrameType
    handled: BaseException | None
    told: object


class _Hooks:
    """What is done before and after a call of a model, and who is told of it."""

    def __init__(self, model: torch.nn.Module, observer: Observing) -> None:
        self.last = 0  # number of the hook that is to run last, so that what others make of the outputs is seen
        self._model, self._observer = weakref.ref(model), weakref.ref(observer)
        self._open: list[_OpenCall] = []

    def before(self, model: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        observer = self._observer()
        if observer is None or model is not self._model():  # a shallow copy has its original's hooks
            return
        frame = _caller()
        TURNS.take(frame)
        self._end_failed(observer)
        hooks = model._forward_hooks
        if self.last in hooks:  # not if an earlier hook has detached the probe
            hooks[self.last] = hooks.pop(self.last)
        self._open.append(_OpenCall(frame, sys.exc_info()[1], observer.before_call(args, kwargs)))

    def after(self, model: torch.nn.Module, _: tuple[object, ...], returned: object) -> None:
        observer = self._observer()
        if observer is None or model is not self._model():
            return
        self._end_failed(observer)
        has_returned = bool(self._open) and self._open[-1].handled is sys.exc_info()[1]
        call = self._open.pop() if has_returned else None
        try:
            if call is not None:
                observer.after_call(call.told, returned)
        finally:
            TURNS.give_back(_caller() if call is None else call.frame)

    def _end_failed(self, observer: Observing) -> None:
        """Tell of calls that are over without having returned."""
        me = threading.get_ident()
        while self._open and not is_running(self._open[-1].frame, me):
            observer.call_failed(self._open.pop().told)


def _caller() -> FrameType:
    """The frame that calls a hook: beyond the hook, and what keeps it out of compiled graphs."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (frame.f_code.co_filename in _OF_HOOKS or "_dynamo" in frame.f_code.co_filename):
        frame = frame.f_back
    return frame


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
