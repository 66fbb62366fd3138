"""A model into the safe format, and proof that what was written is that model."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from precision_probe.exceptions import InputError
from precision_probe.files import check_writable, replacing
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.building import build
from precision_probe.models.loading import ModelSource, load_model
from precision_probe.policy import Policy
from precision_probe.safe_models.architecture import architecture
from precision_probe.safe_models.description import Adapters, Description
from precision_probe.safe_models.files import read, write
from precision_probe.safe_models.rebuilding import State, unloaded
from precision_probe.safe_models.sameness import differences, plain_differences, predictions, same_bits
from precision_probe.safe_models.schema import UnfitError
from precision_probe.variants.mixed import MixedModel

__all__ = ["SUFFIX", "Converted", "convert"]

SUFFIX = ".safetensors"
_RUNS = 3  # the first call of a process can differ in its last bit from the others, which are the same
_SHOWN = 3  # differences in a message


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        path: The file.
        sha256: Of the names, dtypes, shapes and bytes of the model's tensors, as ``inspect`` shows it.
        compared: What was predicted by the model and by the file, and is the same bit for bit: ``Default: energy``, …
    """

    path: Path
    sha256: str
    compared: tuple[str, ...]


def convert(model: ModelSource, path: str | Path, *, force: bool = False) -> Converted:
    """Write a model in a format that is loaded without running code from the file.

    The file holds the model's architecture as JSON, from which mace-torch's own classes build it again, and its
    tensors. It is read back before it gets its name: every tensor and attribute, and what is predicted for a small
    crystal with each head, must be the same bit for bit.

    Args:
        model: A MACE, or whatever :func:`precision_probe.models.loading.load_model` takes. Loading a checkpoint
            (``.model``) runs code from it, so convert it where you trust it.
        path: Where to; it ends in ``.safetensors``.
        force: Replace a file that is there.

    Raises:
        InputError: If the path cannot be written, or the model is one that cannot be built again exactly, such as one
            with convolutions that are fused for a GPU. Nothing is written then.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     written = convert("demo", Path(folder) / "demo.safetensors")
        >>> written.compared
        ('Default: energy', 'Default: interaction_energy', 'Default: forces', 'Default: stress')
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise InputError(f"The output {path} must end in {SUFFIX}: by that it is known not to be a pickle.")
    check_writable(path, force=force)
    module, name = load_model(model)
    with replacing(path) as unfinished:
        try:
            description = describe(module)
            write(description, module.state_dict(), unfinished)
            compared = _check_same(module, read(unfinished))
        except (UnfitError, InputError) as error:
            raise InputError(f"{name} cannot be converted: {str(error).rstrip('.')}. Nothing was written.") from error
    return Converted(path, description.sha256, compared)


def describe(model: torch.nn.Module) -> Description:
    """What a model is built from, beside its tensors.

    Raises:
        UnfitError: If it cannot be told, or cannot be built.
    """
    inner, policy, interface = model, None, None
    if isinstance(model, MixedModel):
        if not isinstance(model.policy, Policy):
            raise UnfitError(f"its policy is a {type(model.policy).__name__}, which cannot be written")
        inner, policy, interface = model.model, model.policy, str(model.interface.dtype).removeprefix("torch.")
    bare = Description(
        _fitting(architecture(inner), inner.state_dict()),
        frozen=tuple(name for name, parameter in inner.named_parameters() if not parameter.requires_grad),
        adapters=_adapters(inner),
        policy=policy,
        interface=interface,
        sha256=weights_sha256(model),
    )
    made, own = unloaded(bare, next(inner.parameters()).dtype), dict(inner.named_buffers())
    attributes = plain_differences(inner, made)
    absent = (name for name, _ in made.named_buffers() if name not in own and name not in attributes)
    return replace(bare, attributes=attributes, absent=tuple(absent))


def _fitting(config: dict[str, Any], state: State) -> dict[str, Any]:
    """The architecture with ``use_reduced_cg`` as it was carried out: without cuEquivariance it asks in vain."""
    if not config.get("use_reduced_cg") or "cueq_layout" in config:
        return config
    plain = config | {"use_reduced_cg": False}
    made = build(plain).state_dict()
    contractions = [name for name in made if "symmetric_contractions" in name and name in state]
    return plain if all(made[name].shape == state[name].shape for name in contractions) else config


def _adapters(model: torch.nn.Module) -> Adapters | None:
    """The LoRA layers of a model, all of which have one rank and scale; those that differ are found when comparing."""
    for part in model.modules():
        if type(part).__name__ == "LoRAO3Linear":
            layer: Any = part
            rank = int(layer.lora_irreps[0].mul)
            return Adapters(rank, float(layer.scaling) * rank)
    return None


def _check_same(model: torch.nn.Module, loaded: torch.nn.Module) -> tuple[str, ...]:
    """Refuse what was written if it is not the model, or does not compute the same; else say what it computes."""
    found = list(differences(model, loaded))
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise UnfitError(
            f"built again it differs in {', '.join(found[:_SHOWN])}{more}, which is not as mace-torch makes it"
        )
    before: list[dict[str, torch.Tensor]] = []
    after: list[dict[str, torch.Tensor]] = []
    for _ in range(_RUNS):
        before.append(_predicted(model))
        after.append(_predicted(loaded))
        other = [quantity for quantity in before[0] if not _meet(before, after, quantity)]
        if not other:
            return tuple(before[0])
    difference = float((before[-1][other[0]] - after[-1][other[0]]).abs().max())
    raise UnfitError(
        f"built again with the same tensors it computes another {other[0]} (by {difference:.1e}), as its compiled "
        "parts are those of another version"
    )


def _meet(before: list[dict[str, torch.Tensor]], after: list[dict[str, torch.Tensor]], quantity: str) -> bool:
    """Whether a quantity is the same in one run of each of two models."""
    return any(same_bits(first[quantity], second[quantity]) for first in before for second in after)


def _predicted(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a model predicts on a CPU, where the same sums are taken in the same order."""
    if next(model.parameters()).device.type != "cpu":
        model = copy.deepcopy(model).cpu()
    try:
        return predictions(model)
    except InputError as error:  # of what a structure would have to say, for one
        raise UnfitError(f"it cannot be proved that it computes the same: {error}") from error
