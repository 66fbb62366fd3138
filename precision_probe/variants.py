"""The model cloned into a precision, and its inputs cast to match."""

import contextlib
import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from precision_probe.exceptions import InputError
from precision_probe.models import default_dtype
from precision_probe.precisions import Precision
from precision_probe.structures import Graph

__all__ = ["Prediction", "Variant", "check_device"]


@dataclass(frozen=True)
class Prediction:
    """What a model says of a graph, in the variant's dtype except stress; not differentiable.

    Attributes:
        energy: Total energy, (n_structures,) eV.
        interaction_energy: Total energy less the isolated atoms', (n_structures,) eV.
        forces: (n_atoms, 3) eV/Å.
        stress: (n_structures, 3, 3) eV/Å³, float64, or ``None`` where no structure is periodic.
        seconds: Wall-clock time of the call, the device synchronised before and after.
    """

    energy: torch.Tensor
    interaction_energy: torch.Tensor
    forces: torch.Tensor
    stress: torch.Tensor | None
    seconds: float


class Variant:
    """A clone of a model in one precision.

    Args:
        model: The model, which is copied and not changed. Hooks on it are not taken along.
        precision: The precision; its dtype becomes that of every floating-point parameter and buffer.
        device: Where the clone lives.
    """

    def __init__(self, model: torch.nn.Module, precision: Precision, device: torch.device) -> None:
        self.precision = precision
        self.device = device
        self.dtype: torch.dtype = getattr(torch, precision.dtype)
        self.model = _clone(model).to(device=device, dtype=self.dtype)

    def follow(self, model: torch.nn.Module) -> None:
        """Take over the present weights of the model that this is a clone of."""
        theirs = model.state_dict()
        with torch.no_grad():
            for name, own in self.model.state_dict().items():
                own.copy_(theirs[name])

    def predict(self, graph: Graph) -> Prediction:
        """Energy, forces and stress as the bare model gives them: no block is hooked.

        In half precision mace-torch cannot compute stress (no ``lu``), so it is made from the virials and the float64
        volume, in every precision alike.
        """
        with self.arithmetic():
            data = self.cast(graph)
            start = self._now()
            out = self.model(data, compute_virials=bool(graph.periodic.any()))
            seconds = self._now() - start
        return Prediction(
            out["energy"].detach(),
            interaction_energy(out).detach(),
            out["forces"].detach(),
            _stress(out, graph),
            seconds,
        )

    def forward(self, graph: Graph) -> torch.Tensor:
        """Interaction energies, (n_structures,) eV, with their autograd graph, for capturing blocks."""
        return interaction_energy(self.model(self.cast(graph), compute_force=False))

    def cast(self, graph: Graph) -> dict[str, torch.Tensor]:
        """MACE's input in this precision; integers, and so the neighbour list, as they are."""
        return {
            key: (value.to(self.dtype) if value.is_floating_point() else value).detach()
            for key, value in graph.data.items()
        }

    @contextlib.contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Compute as the precision says: the matmul mode, and the default dtype that multi-head readouts rely on."""
        with _matmul_mode("tf32" if self.precision.name == "tf32" else "ieee"), default_dtype(self.dtype):
            yield

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def interaction_energy(out: dict[str, Any]) -> torch.Tensor:
    """The energy without the isolated atoms', (n_structures,) eV, from what a MACE model returned."""
    if out.get("interaction_energy") is not None:
        energy: torch.Tensor = out["interaction_energy"]
    else:
        energy = out["contributions"][:, 1:].sum(dim=-1)  # the first contribution is the isolated atoms'
    return energy


def check_device(device: str | torch.device, precisions: tuple[Precision, ...]) -> torch.device:
    """Return the device, once it is known to be there and able to compute in the precisions.

    Raises:
        InputError: If the device's name is unknown, CUDA is asked for and absent, or a precision needs another device.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"Unknown device {device!r}. Give cpu, cuda or cuda:N.") from error
    if found.type not in ("cpu", "cuda"):
        raise InputError(f"Device {device!r} is not supported. Give cpu, cuda or cuda:N.")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"Device {device!r} was asked for, but torch {torch.__version__} sees no CUDA device here. "
            "Use --device cpu, or a CUDA build of torch on a machine with a GPU."
        )
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(f"There is no device {device!r}: torch sees {torch.cuda.device_count()} CUDA device(s).")
    for precision in precisions:
        if precision.needs_cuda and found.type != "cuda":
            raise InputError(
                f"{precision} is arithmetic of NVIDIA tensor cores and needs --device cuda; the device is {found}. "
                "Leave it out, or run on a GPU."
            )
        if precision.needs_cuda and torch.cuda.get_device_capability(found)[0] < 8:
            raise InputError(f"{precision} needs a GPU of compute capability 8.0 or newer; leave it out on this one.")
    return found


def _clone(model: torch.nn.Module) -> torch.nn.Module:
    clone = copy.deepcopy(model)
    for module in clone.modules():
        if not isinstance(module, torch.jit.ScriptModule):  # a script module has none, and refuses the question
            for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
                getattr(module, hooks).clear()
    return clone.requires_grad_(False)


@contextlib.contextmanager
def _matmul_mode(mode: str) -> Iterator[None]:
    """Set how float32 matrix products are computed, on the CPU always exactly, and restore what was set."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul"))  # noqa: B009
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend, value in zip(backends, (mode, "ieee"), strict=True):
            backend.fp32_precision = value
        if torch.backends.cuda.matmul.fp32_precision != mode:
            raise RuntimeError(f"torch did not accept the matmul mode {mode!r}.")
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = "none"  # inherit torch's global setting, as it may have been
            if backend.fp32_precision != value:
                backend.fp32_precision = value


def _stress(out: dict[str, Any], graph: Graph) -> torch.Tensor | None:
    """−virials / volume, as mace-torch defines it, with the volume in float64; NaN where not periodic."""
    if not graph.periodic.any():
        return None
    volume = torch.linalg.det(graph.cells).abs().view(-1, 1, 1)
    stress: torch.Tensor = -out["virials"].detach().to(torch.float64) / volume
    stress[~torch.as_tensor(graph.periodic, device=stress.device)] = torch.nan
    return stress
