"""Contractions that cuEquivariance compiles in Python: each compiled once, and shared by all models that compute it.

Where it has no CUDA kernel, cuEquivariance makes a program of each contraction, with lines for every path of its
polynomial: torch.fx writes it and opt_einsum orders it, which takes minutes where there are thousands of paths. Between
the precisions of a model only the dtype in which the program multiplies and adds differs.
"""

import contextlib
import functools
import importlib
import warnings
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch

__all__ = ["shared_contractions"]

# By what was compiled, how and in which dtype; for the life of the process, as torch.fx keeps the source of all that it
# compiles, and cuEquivariance the polynomials.
_COMPILED: dict[Hashable, torch.fx.GraphModule] = {}
_MANY = 1000  # paths, a choice; features up to l = 2, max_ell 3 and correlation 3 have one of 5,296, in 50 s


@contextlib.contextmanager
def shared_contractions() -> Iterator[None]:
    """Have cuEquivariance compile no contraction that was compiled here before, in whatever dtype.

    What it makes is the same as without this: the same code, with constants of its own.

    Warns:
        RuntimeWarning: If there is one whose compilation takes long.
    """
    try:
        compiler: Any = importlib.import_module("cuequivariance_torch.primitives.segmented_polynomial_naive")
        compiled = compiler._tensor_product_fx
    except (ImportError, AttributeError):  # there is no cuEquivariance, or one that compiles in another way
        yield
        return

    def keeping_dtype(constant: torch.Tensor) -> torch.Tensor:
        """Constants stay in the dtype of the arithmetic when the model is cast."""
        kept: torch.Tensor = compiler.disable_type_conv(constant)
        return kept

    compiler._tensor_product_fx = functools.partial(_shared, compiled, keeping_dtype)
    try:
        yield
    finally:
        compiler._tensor_product_fx = compiled


def _shared(
    compiled: Callable[..., torch.fx.GraphModule],
    keeping_dtype: Callable[[torch.Tensor], torch.Tensor],
    descriptor: Any,
    *,
    math_dtype: torch.dtype | None,
    **options: Any,
) -> torch.fx.GraphModule:
    """What cuEquivariance compiles of a contraction: a copy of what it has compiled of an equal one, if it has.

    Without a dtype, the program computes in that of its inputs.
    """
    key = (descriptor, math_dtype, *sorted(options.items()))
    if key not in _COMPILED:
        has_program = descriptor.num_operands > 1  # else there are constants alone
        if math_dtype in (None, torch.float64) or not has_program:
            _tell(descriptor.num_paths)
            _COMPILED[key] = compiled(descriptor, math_dtype=math_dtype, **options)
        else:
            exact = _shared(compiled, keeping_dtype, descriptor, math_dtype=torch.float64, **options)
            _COMPILED[key] = _in_dtype(exact, math_dtype)
    return _copy(_COMPILED[key], torch.clone if math_dtype is None else lambda each: keeping_dtype(each.clone()))


def _in_dtype(module: torch.fx.GraphModule, dtype: torch.dtype) -> torch.fx.GraphModule:
    """The same program with another dtype where it has float64, and its constants rounded to that."""
    graph = torch.fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in graph.nodes:
        if node.kwargs.get("dtype") is torch.float64:
            node.kwargs = {**node.kwargs, "dtype": dtype}
    constants = {name: constant.type(dtype) for name, constant in module.named_buffers()}  # to() keeps their dtype
    return torch.fx.GraphModule(constants, graph)


def _copy(module: torch.fx.GraphModule, constant: Callable[[torch.Tensor], torch.Tensor]) -> torch.fx.GraphModule:
    """Another module with the same code, which is its class's, and with constants and hooks of its own."""
    copied: torch.fx.GraphModule = object.__new__(type(module))  # its own __new__ makes another class
    for name, value in vars(module).items():
        copied.__dict__[name] = value.copy() if isinstance(value, dict | set) else value
    copied._buffers = {name: None if buffer is None else constant(buffer) for name, buffer in module._buffers.items()}
    return copied


def _tell(n_paths: int) -> None:
    """Say that what begins takes long, if it does."""
    if n_paths > _MANY:
        warnings.warn(
            f"precision_probe: Without its CUDA kernels, cuEquivariance compiles a contraction of {n_paths:,} paths in "
            "Python, about a hundred of them in a second. That is done once; other precisions are made of it.",
            RuntimeWarning,
            stacklevel=2,
        )
