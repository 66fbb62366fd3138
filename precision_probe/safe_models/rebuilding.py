"""A model from its description and its tensors, by mace-torch's own classes."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from precision_probe.exceptions import InputError, first_line
from precision_probe.models.building import build
from precision_probe.models.dtypes import default_dtype
from precision_probe.safe_models.description import Adapters, Description, Plain
from precision_probe.safe_models.schema import UnfitError
from precision_probe.variants.mixed import Assembly, check_interface

__all__ = ["State", "is_code", "rebuilt", "unloaded"]

State = Mapping[str, torch.Tensor]

_MIXED = "model."  # what the names of tensors begin with in a model in mixed precision, where it holds another
_CODE = (torch.jit.ScriptModule, torch.fx.GraphModule)
_CPU = torch.device("cpu")


def rebuilt(description: Description, state: State) -> torch.nn.Module:
    """The model that was described, on the CPU and in evaluation mode, with these tensors bit for bit.

    Raises:
        UnfitError: If it cannot be built, or a tensor is missing, not known, or of another shape or kind.
    """
    if description.policy is None or description.interface is None:
        return _built(description, state)
    original = _built(description, {name.removeprefix(_MIXED): tensor for name, tensor in _widened(state)})
    mixed = Assembly(original, _CPU, check_interface(description.interface)).model(description.policy)
    _load(mixed, state)
    return mixed


def _built(description: Description, state: State) -> torch.nn.Module:
    """The same without its policy."""
    model = unloaded(description, _most_common_dtype(state))
    _cast(model, state)
    _load(model, state)
    frozen = set(description.frozen)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return model.eval()


def unloaded(description: Description, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """The same in float64 with random weights, or in the dtype in which cuEquivariance is to compute.

    Raises:
        UnfitError: If it cannot be built.
    """
    try:
        is_converted = "cueq_layout" in description.architecture  # and would compute as it was built after a cast
        model = build(description.architecture, dtype=dtype if is_converted else torch.float64)
        if description.adapters is not None:
            _adapt(model, description.adapters)
    except InputError as error:  # says what of the architecture it is
        raise UnfitError(str(error).rstrip(".")) from error
    except Exception as error:  # mace-torch and e3nn raise whatever they meet
        raise UnfitError(f"its architecture cannot be built ({type(error).__name__}: {first_line(error)})") from error
    for name, value in description.attributes.items():
        _set_attribute(model, name, value)
    for name in description.absent:
        _remove_buffer(model, name)
    return model


def is_code(module: torch.nn.Module) -> bool:
    """Whether a module is code that e3nn generated for the module that it is a part of."""
    return isinstance(module, _CODE)


def _widened(state: State) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the model that a model in mixed precision holds, in float64, which loses nothing."""
    for name, tensor in state.items():
        if name.startswith(_MIXED):
            yield name, tensor.double() if tensor.is_floating_point() else tensor


def _adapt(model: torch.nn.Module, adapters: Adapters) -> None:
    from mace.modules.lora import inject_LoRAs  # not in every version of mace-torch

    with default_dtype(torch.float64), torch.random.fork_rng(devices=[]):
        inject_LoRAs(model, rank=adapters.rank, alpha=adapters.alpha)


def _set_attribute(model: torch.nn.Module, name: str, value: Plain) -> None:
    """Give a part a value that its class does not give it; none may take the place of a method or of another part."""
    path, _, leaf = name.rpartition(".")
    try:
        part: Any = model.get_submodule(path)
    except AttributeError as missing:
        raise UnfitError(f"its attribute {name!r:.60} is of a part that the model does not have") from missing
    before = getattr(part, leaf, None)
    if is_code(part) or not leaf.isidentifier() or leaf.startswith("_") or hasattr(type(part), leaf):
        raise UnfitError(f"its attribute {name!r:.60} is none that can be set")
    if isinstance(before, torch.nn.Module | torch.nn.Parameter) or callable(before):
        raise UnfitError(f"its attribute {name!r:.60} would take the place of a part of the model")
    if leaf in part._buffers:  # a number in checkpoints of 2022, a tensor since
        delattr(part, leaf)
    setattr(part, leaf, tuple(value) if isinstance(before, tuple) and isinstance(value, list) else value)


def _remove_buffer(model: torch.nn.Module, name: str) -> None:
    """Take away a buffer, as that of a flag which models made by an earlier mace-torch do without."""
    path, _, leaf = name.rpartition(".")
    buffers = dict(model.named_modules()).get(path, torch.nn.Module())._buffers
    if leaf not in buffers:
        raise UnfitError(f"it is said to lack {name!r:.60}, which no model like it has")
    del buffers[leaf]


def _cast(model: torch.nn.Module, state: State) -> None:
    """Give each tensor of a model the dtype that it has in a state: most have one, and a few are always float64."""
    model.to(_most_common_dtype(state))
    for name, tensor in state.items():
        path, _, leaf = name.rpartition(".")
        try:
            part: Any = model.get_submodule(path)
            current: torch.Tensor = getattr(part, leaf)
        except AttributeError:  # which loading will say
            continue
        if not isinstance(current, torch.Tensor) or current.dtype == tensor.dtype:
            continue
        if isinstance(current, torch.nn.Parameter):
            if not tensor.is_floating_point():
                raise UnfitError(f"its tensor {name!r:.60} is {tensor.dtype} and not {current.dtype}")
            current.data = current.data.to(tensor.dtype)
        else:  # whole numbers in some versions of mace-torch are floating-point ones in others
            setattr(part, leaf, current.to(tensor.dtype))


def _most_common_dtype(state: State) -> torch.dtype:
    dtypes = [tensor.dtype for tensor in state.values() if tensor.is_floating_point()]
    if not dtypes:
        raise UnfitError("it holds no numbers")
    return max(set(dtypes), key=dtypes.count)


def _load(model: torch.nn.Module, state: State) -> None:
    """Load every tensor, and refuse any that is missing, not known, or of another shape."""
    own = model.state_dict()
    wrong = [
        *(f"lacks {name}" for name in own.keys() - state.keys()),
        *(f"has {name}, which the model lacks" for name in state.keys() - own.keys()),
        *(
            f"has {name} of the shape {tuple(state[name].shape)} and not {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in state and state[name].shape != tensor.shape
        ),
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UnfitError(f"its tensors do not fit its architecture: it {min(wrong)}{more}")
    model.load_state_dict(state, strict=True)
