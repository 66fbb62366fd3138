"""Copies and files of an attached model are of the bare one: a probe's hooks stay where they were put.

``copy`` and ``pickle``, and so ``torch.save``, ask an object for its state by an attribute that may be its own:
``__getstate__``. While a model has hooks of a probe, it has one that leaves them out, and itself.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch

__all__ = ["ProbeHook", "copied_as_it_is", "copied_bare"]

_DICTIONARIES = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
_ASKED = ("__getstate__", "__reduce_ex__", "__deepcopy__")  # what copy and pickle look up on an object


class ProbeHook:
    """A hook that is no part of the model that it is put on."""

    def __init__(self, function: Callable[..., None]) -> None:
        # part of no graph, where a compiled model calls the one that is hooked
        self._function = torch.compiler.disable(function)  # type: ignore[no-untyped-call]

    def __call__(self, *args: object) -> None:
        """Run with what torch gives to hooks; what the model is given and returns is left as it is."""
        self._function(*args)


def copied_bare(model: torch.nn.Module) -> None:
    """Let copies and files of a model be of the model without probes' hooks."""

    def of_the_bare(name: str) -> Callable[..., object]:
        return lambda *args: getattr(_bare(model), name)(*args)

    made = type(model)
    is_asked = {
        "__getstate__": True,
        # a class may have ways of its own to be copied, which look at the whole object
        "__reduce_ex__": made.__reduce_ex__ is not object.__reduce_ex__ or made.__reduce__ is not object.__reduce__,
        "__deepcopy__": hasattr(made, "__deepcopy__"),
    }
    vars(model).update({name: of_the_bare(name) for name in _ASKED if is_asked[name]})


def copied_as_it_is(model: torch.nn.Module) -> None:
    """Undo :func:`copied_bare`, unless the model still has a hook of some probe."""
    if not _ours(model):
        for name in _ASKED:
            vars(model).pop(name, None)


def _ours(model: torch.nn.Module) -> set[int]:
    """The numbers of probes' hooks among a model's."""
    hooks = (*model._forward_pre_hooks.items(), *model._forward_hooks.items())
    return {number for number, hook in hooks if isinstance(hook, ProbeHook)}


def _bare(model: torch.nn.Module) -> torch.nn.Module:
    """Another object with all that a model has, probes' hooks left out."""
    ours = _ours(model)
    bare = object.__new__(type(model))
    bare.__dict__.update({name: value for name, value in vars(model).items() if name not in _ASKED})
    for name in _DICTIONARIES:
        bare.__dict__[name] = OrderedDict(item for item in vars(model)[name].items() if item[0] not in ours)
    return bare
