"""A model put together from clones of it, one in each dtype: every module from the clone that is in its precision.

What enters a block is cast to its dtype, and what leaves it is handed on in that, or widened to be summed in float64.
"""

import types
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import torch

from precision_probe.models.dtypes import default_dtype
from precision_probe.models.inputs import map_tensors
from precision_probe.precisions import Precision

__all__ = ["GENERATED", "Assignment", "RunnablePolicy", "assembled", "cast_floats"]

# Their outputs are inputs of other blocks, which cast them; those of any other block are summed.
_HANDED_ON = (
    "node_embedding",
    "radial_embedding",
    "spherical_harmonics",
    "joint_embedding",
    "interactions",
    "products",
)

GENERATED = (torch.jit.ScriptModule, torch.fx.GraphModule)  # code of the module that they are a part of

Nest = TypeVar("Nest")


class Assignment(Protocol):
    """What says which precision a module computes in: a policy, for one."""

    def precision_of(self, name: str) -> Precision:
        """What the module of this name computes in; the model itself has the empty name."""


class RunnablePolicy(Assignment, Protocol):
    """What of a :class:`precision_probe.Policy` it takes to run a model: policies find this package, not it them."""

    @property
    def rules(self) -> Sequence["Matching"]:
        """Globs over the names of modules, and what these compute in."""

    @property
    def precisions(self) -> Sequence[Precision]:
        """Those that the rules name."""

    @property
    def matmul_mode(self) -> str:
        """How float32 matrix products are computed."""

    @property
    def model(self) -> Mapping[str, object]:
        """Which model it was made for."""

    @property
    def evidence(self) -> Mapping[str, object]:
        """What was measured when it was made."""


class Matching(Protocol):
    """A rule, as far as it says which modules it is of."""

    @property
    def blocks(self) -> str:
        """A glob over the names of modules."""


def assembled(
    policy: Assignment,
    clones: Mapping[torch.dtype, torch.nn.Module],
    name: str = "",
    caller: torch.dtype | None = None,
) -> torch.nn.Module:
    """The module of this name, taken like every module in it from the clone that is in its precision.

    Args:
        policy: What each module computes in.
        clones: The whole model in each dtype.
        name: Of the module.
        caller: What the block that this is a part of computes in; nothing if it is a block itself.
    """
    dtype: torch.dtype = getattr(torch, policy.precision_of(name).dtype)
    module = _shallow_copy(clones[dtype].get_submodule(name))
    is_called = bool(name) and not isinstance(module, torch.nn.ModuleList | torch.nn.ModuleDict)
    for key, part in list(module._modules.items()):  # named_children() keeps one name of a module that has two
        if part is not None and not isinstance(part, GENERATED):
            inner = assembled(policy, clones, f"{name}.{key}".lstrip("."), dtype if is_called else caller)
            module._modules[key] = inner
    if is_called and dtype != caller:
        returned = caller or (dtype if name.split(".")[0] in _HANDED_ON else torch.float64)
        setattr(module, "forward", _Computing(module, dtype, returned))  # noqa: B010
    return module


def _shallow_copy(module: torch.nn.Module) -> torch.nn.Module:
    """Another module with the same parameters, buffers and parts; copy.copy would copy e3nn's compiled code."""
    made = type(module).__new__(type(module))
    made.__dict__.update(module.__dict__)
    made.__dict__["_modules"] = dict(module._modules)  # its parts will be exchanged, the first module's must not be
    for name, value in module.__dict__.items():
        if isinstance(value, types.MethodType) and value.__self__ is module:  # else it would compute with those parts
            made.__dict__[name] = types.MethodType(value.__func__, made)
    return made


class _Computing:
    """A module's ``forward`` in its own dtype, whatever it is given; an object, so that it can be pickled."""

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype, returned: torch.dtype) -> None:
        self.module = module
        self.own = module.__dict__.get("forward")  # mace-torch gives one to fused convolutions, which their class lacks
        self.dtype = dtype
        self.returned = returned

    def __call__(self, *args: object, **kwargs: object) -> object:
        args, kwargs = cast_floats((args, kwargs), self.dtype)
        forward = self.own or types.MethodType(type(self.module).forward, self.module)
        with default_dtype(self.dtype):  # which the masks of multi-head readouts are made in
            returned = forward(*args, **kwargs)
        return cast_floats(returned, self.returned)


def cast_floats(nested: Nest, dtype: torch.dtype) -> Nest:
    """The same nest with its floating-point tensors in a dtype; those that are in it already as they are."""
    return map_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, nested)
