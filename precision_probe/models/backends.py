"""Which library computes a model's tensor products, and the model built anew in another precision.

cuEquivariance and OpenEquivariance fix the precision of their arithmetic when a module is built: casting such a model
changes what it stores and not how it computes, and copying it can break its fused convolutions. So a variant of a
converted model is built anew from its architecture, in its own precision, and given the model's weights.
"""

import copy
import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

from precision_probe.exceptions import InputError, first_line
from precision_probe.models._mace import scripts_utils
from precision_probe.models.cuequivariance.convolutions import sum_in_arithmetic
from precision_probe.models.cuequivariance.couplings import exact_couplings
from precision_probe.models.cuequivariance.making import making

__all__ = [
    "KERNEL_DTYPES",
    "Architecture",
    "backend",
    "clone",
    "has_cuequivariance_kernels",
    "has_fused_convolutions",
    "irreps_layout",
    "math_dtype",
    "to_cuequivariance",
]

_LIBRARIES = {"cueq_config": "cuEquivariance", "oeq_config": "OpenEquivariance"}  # where mace-torch keeps which is on
# torch.nn.utils.weight_norm and spectral_norm, the older ones: since 2.0 parametrizations compute weights when asked
_COMPUTING_HOOKS = (WeightNorm, SpectralNorm)
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
KERNEL_DTYPES = (torch.float64, torch.float32)  # in which the compiled kernels of both libraries multiply and add


class Architecture:
    """What a converted model is built from. It can be copied and pickled; the model's fused convolutions cannot.

    Args:
        model: The model.

    Raises:
        InputError: If mace-torch cannot tell its architecture.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        mace: Any = model  # of whose attributes torch's types know nothing
        options = scripts_utils.extract_config_mace_model(mace)
        self._made_from, self._library = type(mace), backend(model)
        if "error" in options:
            raise InputError(
                f"The model is a {type(model).__name__} converted to {self._library}, which mace-torch cannot build "
                "anew in another precision. Give the e3nn model that it was converted from."
            )
        self._options = options | {name: _config(model, name) for name in _LIBRARIES}
        self._neighbors = [interaction.avg_num_neighbors for interaction in mace.interactions]

    def built(self, state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.nn.Module:
        """The same class and architecture with this arithmetic, on the device of the weights and buffers it is given.

        Raises:
            InputError: If a library refuses.
        """
        try:
            with making(dtype), exact_couplings():
                made = self._made_from(**self._options).to(next(iter(state.values())).device)
                made.load_state_dict(state)
        except Exception as error:  # mace-torch and both libraries raise whatever they meet
            raise InputError(
                f"The {self._made_from.__name__} converted to {self._library} cannot be built anew in {dtype} "
                f"({type(error).__name__}: {error}). Give the e3nn model that it was converted from."
            ) from error
        for interaction, neighbors in zip(made.interactions, self._neighbors, strict=True):
            interaction.avg_num_neighbors = neighbors  # not part of the state in every class
        built: torch.nn.Module = made
        return built


def backend(model: torch.nn.Module) -> str:
    """What computes the tensor products: ``e3nn``, ``cuEquivariance``, ``OpenEquivariance``, or the last two."""
    used = [library for config, library in _LIBRARIES.items() if getattr(_config(model, config), "enabled", False)]
    return " and ".join(used) or "e3nn"


def irreps_layout(model: torch.nn.Module) -> str:
    """How features are laid out in memory: e3nn's ``mul_ir``, or ``ir_mul``, where components come before channels."""
    config = _config(model, "cueq_config")
    return str(getattr(config, "layout_str", "mul_ir")) if getattr(config, "enabled", False) else "mul_ir"


def has_fused_convolutions(model: torch.nn.Module) -> bool:
    """Whether tensor products are summed over edges as they are made, by kernels for one GPU."""
    return any(getattr(_config(model, name), "conv_fusion", None) for name in _LIBRARIES)


def math_dtype(model: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """In which dtype a converted model computes its tensor products when it stores numbers in ``dtype``.

    cuEquivariance's CUDA kernels multiply and add half precisions in float32; over edges, too
    (:func:`precision_probe.models.cuequivariance.convolutions.sum_in_arithmetic`).
    """
    has_kernels = device.type == "cuda" and "cuEquivariance" in backend(model)
    return torch.float32 if has_kernels and dtype not in KERNEL_DTYPES else dtype


def has_cuequivariance_kernels(device: torch.device) -> bool:
    """Whether cuEquivariance's fused kernels are installed and there is a GPU for them."""
    return device.type == "cuda" and importlib.util.find_spec("cuequivariance_ops_torch") is not None


def to_cuequivariance(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """A copy of a model that cuEquivariance computes, as mace-torch converts it, with fused convolutions on a GPU.

    Raises:
        InputError: If mace-torch cannot convert it, or cuEquivariance is not installed.
    """
    from mace.cli.convert_e3nn_cueq import CUEQQ_AVAILABLE, run

    if not CUEQQ_AVAILABLE:
        raise InputError("cuEquivariance is not installed. Install it with: pip install cuequivariance-torch")
    dtype = next(model.parameters()).dtype
    try:
        with making(dtype), exact_couplings():
            made: torch.nn.Module = run(copy.deepcopy(model).to(device), device=device.type)
    except Exception as error:  # mace-torch and cuEquivariance raise whatever they meet
        raise InputError(
            f"This {type(model).__name__} cannot be converted to cuEquivariance ({type(error).__name__}: "
            f"{first_line(error)}). Run it as it is."
        ) from error
    return made.train(model.training)


def clone(model: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """Return a copy in another dtype, without hooks and with frozen weights; the model is not changed.

    Args:
        model: Any module. One converted to cuEquivariance or OpenEquivariance is built anew.
        dtype: Of every floating-point parameter and buffer, and of the arithmetic (see :func:`math_dtype`).
        device: Where the copy lives.

    Raises:
        InputError: If a tensor of it is computed from others, and so cannot be copied.
    """
    if backend(model) == "e3nn":
        _check_leaves(model)
        made = copy.deepcopy(model)
    else:
        arithmetic = math_dtype(model, dtype, device)
        made = Architecture(model).built(model.state_dict(), arithmetic).train(model.training)
        if arithmetic != dtype and getattr(_config(made, "cueq_config"), "conv_fusion", False):
            sum_in_arithmetic(made)
    for module in made.modules():
        if not isinstance(module, torch.jit.ScriptModule):  # a script module has none, and refuses the question
            for hooks in _HOOKS:
                getattr(module, hooks).clear()
    return made.to(device=device, dtype=dtype).requires_grad_(False)


def _check_leaves(model: torch.nn.Module) -> None:
    """Refuse tensors that are computed from others, as weight normalisation computes weights before each call.

    They cannot be copied while they are on an autograd graph, and where they are not, what computes them is a hook:
    without it a copy would never see another weight.
    """
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        computed = [hook.name for hook in module._forward_pre_hooks.values() if isinstance(hook, _COMPUTING_HOOKS)]
        for name, value in {**module._parameters, **module._buffers, **vars(module)}.items():
            tensors = [leaf for leaf in tree_leaves(value) if torch.is_tensor(leaf)]
            if name in computed or not all(tensor.is_leaf for tensor in tensors):
                raise InputError(
                    f"{f'{path}.{name}'.lstrip('.')} is computed from other tensors, and cannot be copied with the "
                    f"{type(module).__name__} that holds it: undo that with torch.nn.utils.remove_weight_norm or "
                    "remove_spectral_norm, use those of torch.nn.utils.parametrizations instead, or detach() it."
                )


def _config(model: torch.nn.Module, name: str) -> object:
    """A library's configuration; mace-torch gives the same one to every block, so the first interaction's will do."""
    interactions: Any = getattr(model, "interactions", None)
    return getattr(interactions[0], name, None) if interactions else None
