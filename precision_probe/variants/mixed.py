"""A MACE whose blocks each compute in the precision that a policy gives them.

The blocks are taken from clones of the model, one clone for each dtype, and put together in the float64 one. What
enters a block is cast to its dtype; energies are summed in float64. Callers give and get float64 unless they ask for
float32: rounded positions would cost more digits than most policies do.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, SupportsIndex

import numpy as np
import torch

from precision_probe.exceptions import InputError
from precision_probe.models.attributes import cutoff, elements, heads, weights_sha256
from precision_probe.models.backends import Architecture, backend, clone, to_cuequivariance
from precision_probe.models.blocks import select_blocks
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.evaluation import Prediction, mace_evaluation
from precision_probe.models.graphs import Graph
from precision_probe.models.loading import Calculator, ModelSource, load_model
from precision_probe.variants.assembly import GENERATED, RunnablePolicy, assembled, cast_floats
from precision_probe.variants.devices import check_device, check_precisions, matmul_mode

__all__ = ["INTERFACES", "Assembly", "MixedModel", "MixedVariant", "apply", "calculator", "check_interface"]

INTERFACES = ("float64", "float32")  # the dtypes that mace-torch's callers prepare inputs in
_NOT_CONVERTED = (
    "A model in mixed precision is not converted: for cuEquivariance or OpenEquivariance convert the model that it was "
    "made from and apply the policy to that; torch.compile, TorchScript and LAMMPS cannot take it, so call it eagerly, "
    "as MACECalculator does with its defaults."
)


class MixedModel(torch.nn.Module):
    """A model whose blocks compute in precisions of their own; made by :func:`apply`.

    It is called as the model that it was made from, and has its attributes. Its weights are frozen.

    Args:
        model: The blocks, put together.
        policy: What they compute in.
        dtype: Of the outputs, of the model's first parameter, and of the inputs that callers prepare.
    """

    def __init__(self, model: torch.nn.Module, policy: RunnablePolicy, dtype: torch.dtype) -> None:
        super().__init__()
        device = next(model.parameters()).device
        # callers take the dtype of the first parameter for that of the model
        self.interface = torch.nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)
        for name, tensor in _missing_tensors(model, device).items():  # before the model, whose own would be in the way
            self.register_buffer(name, tensor)
        self.model = model
        self.policy = policy
        if not getattr(model, "heads", None):
            self.heads = heads(model)
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

    def __prepare_scriptable__(self) -> NoReturn:
        """What torch.jit.script asks for first.

        Raises:
            InputError: Always.
        """
        raise InputError(_NOT_CONVERTED)

    @property
    def __e3nn_compile_mode__(self) -> NoReturn:
        """What e3nn's compiler asks for first, which mace-torch makes models for LAMMPS with; raises InputError."""
        raise InputError(_NOT_CONVERTED)

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
                f"cannot be cast to {dtype}. Apply the policy to the model that it was made from, with the interface "
                "that is needed, float64 or float32."
            )

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            changed = fn(tensor)
            return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self


class _Name(str):
    """The name of a class that refuses to be compared with that of one which mace-torch converts.

    That is what each of its conversions does first: to cuEquivariance, to OpenEquivariance, and for torch.compile.
    """

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        self._check(other)
        return str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        self._check(other)
        return str.__ne__(self, other)

    @staticmethod
    def _check(other: object) -> None:
        if str(other) == "ScaleShiftMACE":
            raise InputError(_NOT_CONVERTED)


MixedModel.__name__ = _Name(MixedModel.__name__)


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
        """Energy, forces and stress of a structure in the dtype of the interface, as a caller gives it; not timed."""
        data = sample.cast(self.model.interface.dtype)
        return Prediction(self._evaluation.predict(self.model, data, sample), np.nan)


def apply(
    policy: RunnablePolicy,
    model: ModelSource,
    device: str | None = None,
    *,
    interface: str = "float64",
    enable_cueq: bool = False,
) -> MixedModel:
    """Return a copy of a model whose blocks compute as a policy says.

    Args:
        policy: The policy.
        model: A MACE, or whatever :func:`precision_probe.models.loading.load_model` takes; it is not changed.
        device: Where the copy lives; by default where the model is.
        interface: What the copy takes and gives: ``float64``, or ``float32`` for callers that cannot give it more;
            their positions are rounded before any block computes.
        enable_cueq: Whether to convert a model of e3nn's to cuEquivariance before.

    Raises:
        InputError: If a rule matches no block, the device or the library of a converted model cannot compute in a
            precision, there is no such interface, or the model is no MACE, or in mixed precision already.

    Warns:
        UserWarning: If the policy was made for a model with other weights, or tested with another interface.
    """
    dtype = check_interface(interface)
    module, _ = load_model(model)
    if isinstance(module, MixedModel):
        raise InputError(
            "The model is in mixed precision already. Apply the policy to the model that it was made from."
        )
    place = check_device(device or next(module.parameters()).device)
    made_for = policy.model.get("sha256")
    if made_for is not None and made_for != weights_sha256(module):
        warnings.warn(
            # twelve digits, as Git shows: enough to tell models apart
            f"The policy was made for a model with other weights (SHA-256 {str(made_for)[:12]}…), so the errors that "
            "were measured then need not be those of this one.",
            UserWarning,
            stacklevel=2,
        )
    tested_with = policy.evidence.get("interface", interface)  # files made before there was a choice do not say
    if tested_with != interface:
        warnings.warn(
            f"The policy was tested with a {tested_with} interface and is applied with a {interface} one, so the "
            "errors that were measured then need not be those of this model.",
            UserWarning,
            stacklevel=2,
        )
    if enable_cueq and backend(module) == "e3nn":
        module = to_cuequivariance(module, place)
    for rule in policy.rules:
        _check_blocks(rule.blocks, module)
    check_precisions(policy.precisions, place, module)
    return Assembly(module, place, dtype).model(policy)


def check_interface(name: str) -> torch.dtype:
    """The dtype of an interface.

    Raises:
        InputError: If there is no such interface.
    """
    if name not in INTERFACES:
        raise InputError(
            f"A model in mixed precision takes and gives {' or '.join(INTERFACES)}; got the interface {name!r}."
        )
    dtype: torch.dtype = getattr(torch, name)
    return dtype


class Assembly:
    """Clones of a model, one in each dtype, from which models for any number of policies are put together.

    They share their weights and compiled code, so that another policy costs next to nothing. Nothing is checked here.

    Args:
        model: The model, which is not changed.
        device: Where the clones live.
        interface: Of what is made.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device, interface: torch.dtype = torch.float64) -> None:
        self._original, self._device, self._interface = model, device, interface
        self._clones: dict[torch.dtype, torch.nn.Module] = {}

    def model(self, policy: RunnablePolicy) -> MixedModel:
        """The model under a policy; moving it moves all."""
        for dtype in (torch.float64, *(getattr(torch, precision.dtype) for precision in policy.precisions)):
            if dtype not in self._clones:
                self._clones[dtype] = clone(self._original, dtype, self._device)
        return MixedModel(assembled(policy, self._clones), policy, self._interface)


def calculator(
    policy: RunnablePolicy,
    model: ModelSource,
    device: str = "cpu",
    *,
    interface: str = "float64",
    enable_cueq: bool = False,
    **options: object,
) -> Calculator:
    """Return an ASE calculator that computes as a policy says.

    Args:
        policy: The policy.
        model: As :func:`apply` takes it.
        device: Where to compute.
        interface: As :func:`apply` takes it.
        enable_cueq: As :func:`apply` takes it.
        options: Of mace-torch's ``MACECalculator``, such as ``head``.

    Raises:
        InputError: As :func:`apply`.
    """
    from mace.calculators import MACECalculator  # slow to import, and few need it

    mixed = apply(policy, model, device, interface=interface, enable_cueq=enable_cueq)
    made: Calculator = MACECalculator(models=[mixed], device=device, **{"default_dtype": interface, **options})
    return made


def _missing_tensors(model: torch.nn.Module, device: torch.device) -> dict[str, torch.Tensor]:
    """What callers read as tensors and a model made by an older mace-torch has as something else, or not at all."""
    interactions: Any = getattr(model, "interactions")  # noqa: B009  torch's types know nothing of it
    read = {
        "r_max": torch.tensor(cutoff(model), dtype=torch.float64, device=device),
        "atomic_numbers": torch.tensor(elements(model), dtype=torch.int64, device=device),
        "num_interactions": torch.tensor(len(interactions), dtype=torch.int64, device=device),
    }
    return {name: tensor for name, tensor in read.items() if not torch.is_tensor(getattr(model, name, None))}


def _restored(
    architecture: Architecture, state: Mapping[str, torch.Tensor], policy: RunnablePolicy, interface: torch.dtype
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
