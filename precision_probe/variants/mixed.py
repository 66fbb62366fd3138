"""A MACE whose blocks each compute in the precision that a policy gives them.

The blocks are taken from clones of the model, one clone for each dtype, and put together in the float64 one. What
enters a block is cast to its dtype; energies are summed in float64.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, SupportsIndex

import numpy as np
import torch

from precision_probe.exceptions import InputError
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.backends import Architecture, backend, clone
from precision_probe.models.blocks import select_blocks
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.evaluation import Prediction, mace_evaluation
from precision_probe.models.graphs import Graph
from precision_probe.models.loading import Calculator, ModelSource, load_model
from precision_probe.policy import Policy
from precision_probe.variants.assembly import GENERATED, assembled, cast_floats
from precision_probe.variants.devices import check_device, check_precisions, matmul_mode

__all__ = ["Assembly", "MixedModel", "MixedVariant", "apply", "calculator"]


class MixedModel(torch.nn.Module):
    """A model whose blocks compute in precisions of their own; made by :func:`apply`.

    It is called as the model that it was made from, and has its attributes. Its weights are frozen.

    Args:
        model: The blocks, put together.
        policy: What they compute in.
        dtype: Of the outputs, of the model's first parameter, and of the inputs that callers prepare: that of the model
            that it was made from.
    """

    def __init__(self, model: torch.nn.Module, policy: Policy, dtype: torch.dtype) -> None:
        super().__init__()
        device = next(model.parameters()).device
        # callers take the dtype of the first parameter for that of the model
        self.interface = torch.nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)
        self.model = model
        self.policy = policy
        super().train(False)  # which may come from a model in training; its own train() refuses nothing else

    def forward(self, data: Mapping[str, Any], *args: object, **options: object) -> dict[str, torch.Tensor | None]:
        """Compute what the model computes.

        Args:
            data: As MACE takes it, in any floating-point dtype; its positions are made to require gradients, as MACE
                makes them.
            args: As the model's own ``forward`` takes them.
            options: Likewise: ``compute_force``, ``compute_stress``, ``training``, …

        Returns:
            What the model returns, floating-point tensors in the dtype of the interface.
        """
        if "positions" in data:
            data["positions"].requires_grad_(True)
        with matmul_mode(self.policy.matmul_mode), default_dtype(torch.float64):
            returned: dict[str, torch.Tensor | None] = self.model(
                cast_floats(dict(data), torch.float64), *args, **options
            )
        return cast_floats(returned, self.interface.dtype)

    def train(self, mode: bool = True) -> "MixedModel":
        """Only evaluation mode is possible.

        Raises:
            InputError: If training mode is asked for.
        """
        if mode:
            raise InputError(
                "A model in mixed precision cannot be trained: its weights are frozen. Train the model it was made "
                "from, and apply the policy again. For differentiable forces, pass training=True when calling it."
            )
        return super().train(mode)

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """Take converted models apart: fused convolutions lose their arguments when they are copied or pickled."""
        if backend(self.model) == "e3nn":
            return super().__reduce_ex__(protocol)
        return _restored, (Architecture(self.model), self.model.state_dict(), self.policy, self.interface.dtype)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "MixedModel":
        """Move the model; ``to()``, ``float()``, ``cuda()`` and their like all end here."""
        if (dtype := fn(self.interface).dtype) != self.interface.dtype:
            raise InputError(
                f"A model in mixed precision keeps those of its policy, takes and gives {self.interface.dtype}, and "
                f"cannot be cast to {dtype}. Cast the model that it was made from, and apply the policy to that."
            )

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            changed = fn(tensor)
            return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self


class MixedVariant:
    """A model in mixed precision that predicts as a :class:`precision_probe.variants.variant.Variant` does.

    Args:
        model: The model.
        device: Where it is.
    """

    def __init__(self, model: MixedModel, device: torch.device) -> None:
        self.model, self.device = model, device
        self._evaluation = mace_evaluation(model)

    def predict(self, sample: Graph) -> Prediction:
        """Energy, forces and stress; not timed."""
        return Prediction(self._evaluation.predict(self.model, sample.cast(torch.float64), sample), np.nan)


def apply(policy: Policy, model: ModelSource, device: str | None = None) -> MixedModel:
    """Return a copy of a model whose blocks compute as a policy says.

    Args:
        policy: The policy.
        model: A MACE, or whatever :func:`precision_probe.models.loading.load_model` takes; it is not changed.
        device: Where the copy lives; by default where the model is.

    Raises:
        InputError: If a rule matches no block, the device or the library of a converted model cannot compute in a
            precision, or the model is no MACE, or in mixed precision already.

    Warns:
        UserWarning: If the policy was made for a model with other weights.
    """
    module, _ = load_model(model)
    if isinstance(module, MixedModel):
        raise InputError(
            "The model is in mixed precision already. Apply the policy to the model that it was made from."
        )
    for rule in policy.rules:
        _check_blocks(rule.blocks, module)
    first = next(module.parameters())
    place = check_device(device or first.device)
    check_precisions(policy.precisions, place, module)
    made_for = policy.model.get("sha256")
    if made_for is not None and made_for != weights_sha256(module):
        warnings.warn(
            # twelve digits, as Git shows: enough to tell models apart
            f"The policy was made for a model with other weights (SHA-256 {str(made_for)[:12]}…), so the errors that "
            "were measured then need not be those of this one.",
            UserWarning,
            stacklevel=2,
        )
    return Assembly(module, place).model(policy)


class Assembly:
    """Clones of a model, one in each dtype, from which models for any number of policies are put together.

    They share their weights and compiled code, so that another policy costs next to nothing. Nothing is checked here.

    Args:
        model: The model, which is not changed.
        device: Where the clones live.
        interface: Of what is made; by default the dtype of the model's first parameter.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device, interface: torch.dtype | None = None) -> None:
        self._original, self._device = model, device
        self._interface = interface or next(model.parameters()).dtype
        self._clones: dict[torch.dtype, torch.nn.Module] = {}

    def model(self, policy: Policy) -> MixedModel:
        """The model under a policy; moving it moves all."""
        for dtype in (torch.float64, *(getattr(torch, precision.dtype) for precision in policy.precisions)):
            if dtype not in self._clones:
                self._clones[dtype] = clone(self._original, dtype, self._device)
        return MixedModel(assembled(policy, self._clones), policy, self._interface)


def calculator(policy: Policy, model: ModelSource, device: str = "cpu", **options: object) -> Calculator:
    """Return an ASE calculator that computes as a policy says.

    Args:
        policy: The policy.
        model: As :func:`apply` takes it.
        device: Where to compute.
        options: Of mace-torch's ``MACECalculator``, such as ``head``.

    Raises:
        InputError: As :func:`apply`.
    """
    from mace.calculators import MACECalculator  # slow to import, and few need it

    mixed = apply(policy, model, device)
    dtype = str(mixed.interface.dtype).removeprefix("torch.")
    made: Calculator = MACECalculator(models=[mixed], device=device, **{"default_dtype": dtype, **options})
    return made


def _restored(
    architecture: Architecture, state: Mapping[str, torch.Tensor], policy: Policy, interface: torch.dtype
) -> MixedModel:
    """The same model again; its weights, rounded before, do not change when they are rounded once more."""
    device = next(iter(state.values())).device
    return Assembly(architecture.built(state, torch.float64), device, interface).model(policy)


def _check_blocks(glob: str, model: torch.nn.Module) -> None:
    """Refuse a glob that names nothing which can have a precision of its own."""
    names = [block.name for block in select_blocks(model, glob)]
    if all(isinstance(model.get_submodule(name), GENERATED) for name in names):
        raise InputError(
            f"{names[0]} is code generated for the block that it is a part of, and computes as that one does. "
            f"Name {names[0].rpartition('.')[0]} instead."
        )
