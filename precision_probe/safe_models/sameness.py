"""Whether two models are the same: part by part, and in what they compute."""

import types
from collections.abc import Iterator, Mapping
from typing import Any

import ase
import numpy as np
import torch

from precision_probe.models._mace import o3
from precision_probe.models.attributes import cutoff, elements, heads, inputs_needed
from precision_probe.models.evaluation import mace_evaluation
from precision_probe.models.graphs import build_graph
from precision_probe.safe_models.description import Plain
from precision_probe.safe_models.rebuilding import is_code

__all__ = ["differences", "plain_differences", "predictions", "same_bits"]

_OF_TORCH = frozenset(vars(torch.nn.Module()))  # parameters, buffers, parts and hooks: compared as such, or not kept
_ABSENT = object()


def plain_differences(model: torch.nn.Module, other: torch.nn.Module) -> dict[str, Plain]:
    """The numbers, texts and lists of these that parts of a model have, where another model's parts have others.

    Returns:
        The values of the first, by the dotted name of each.
    """
    found: dict[str, Plain] = {}
    parts = dict(other.named_modules())
    for path, part in model.named_modules():
        if path not in parts or is_code(part):
            continue
        for name, value in _attributes(part).items():
            theirs = getattr(parts[path], name, _ABSENT)
            if _is_plain(value) and not name.startswith("_") and not _same(value, theirs):
                found[f"{path}.{name}".lstrip(".")] = _as_json(value)
    return found


def differences(model: torch.nn.Module, other: torch.nn.Module) -> Iterator[str]:
    """What is not the same in two models: the names of tensors, parts and attributes.

    What only the second has is no difference: each version of mace-torch gives its classes attributes that models made
    by earlier ones do without.
    """
    ours, theirs = model.state_dict(), other.state_dict()
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs or not _same(ours[name], theirs[name]):
            yield name
    parts = dict(other.named_modules())
    for path, part in model.named_modules():
        twin = parts.get(path)
        if twin is None or not _same_class(part, twin):
            yield path
        elif not is_code(part):
            for name, value in _attributes(part).items():
                if value is not None and not _same(value, getattr(twin, name, _ABSENT)):
                    yield f"{path}.{name}".lstrip(".")


def predictions(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a model predicts for a small crystal of its elements, with each head: energy, forces, stress, dipole, …."""
    predicted: dict[str, torch.Tensor] = {}
    evaluation = mace_evaluation(model)
    dtype = next(model.parameters()).dtype
    for head in heads(model):
        graph = build_graph(_crystal(model), model, head)
        for quantity, tensor in evaluation.predict(model, graph.cast(dtype), graph).items():
            predicted[f"{head}: {quantity.name}"] = tensor
    return predicted


def _crystal(model: torch.nn.Module) -> ase.Atoms:
    """Eight atoms without any symmetry, of as many of the model's elements, near enough to be neighbours."""
    spacing = min(2.0, 0.6 * cutoff(model))  # Å
    grid = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
    moved = grid + 0.1 * np.sin(np.arange(24.0)).reshape(8, 3)
    known = elements(model)
    numbers = [known[round(at)] for at in np.linspace(0, len(known) - 1, 8)]
    cell = 2 * spacing * (np.eye(3) + 0.05 * np.cos(np.arange(9.0)).reshape(3, 3))
    atoms = ase.Atoms(numbers, positions=moved * spacing, cell=cell, pbc=True)
    if "charges" in inputs_needed(model):
        atoms.arrays["Qs"] = 0.1 * np.cos(np.arange(8.0))
    return atoms


def _attributes(part: torch.nn.Module) -> dict[str, object]:
    """What a part has beside what every module of torch has."""
    return {name: value for name, value in vars(part).items() if name not in _OF_TORCH}


def _same_class(part: torch.nn.Module, twin: torch.nn.Module) -> bool:
    """Code that was generated is the same class whether it was loaded or made."""
    return type(part) is type(twin) or (is_code(part) and is_code(twin))


def _same(value: Any, other: Any) -> bool:
    """Whether two attributes are the same, bit for bit, whatever they are."""
    if isinstance(value, torch.Tensor):
        return isinstance(other, torch.Tensor) and same_bits(value, other)
    if _is_number(value) or isinstance(value, str | None):
        return (_is_number(other) or type(value) is type(other)) and bool(value == other)
    if isinstance(value, o3.Irreps) or isinstance(other, o3.Irreps):  # kept as text by some classes
        return str(value) == str(other)
    if isinstance(value, list | tuple):
        return isinstance(other, list | tuple) and len(value) == len(other) and all(map(_same, value, other))
    if isinstance(value, Mapping):
        return (
            isinstance(other, Mapping)
            and value.keys() == other.keys()
            and all(_same(value[k], other[k]) for k in value)
        )
    if isinstance(value, torch.nn.Module):  # a part, which is compared where it stands
        return type(value) is type(other)
    if isinstance(value, types.MethodType):
        return isinstance(other, types.MethodType) and value.__func__ is other.__func__
    if type(value) is not type(other):
        return False
    return value is other or bool(value == other) or (hasattr(value, "__dict__") and _same(vars(value), vars(other)))


def same_bits(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same, NaN and the sign of zero included."""
    if tensor.dtype != other.dtype or tensor.shape != other.shape:
        return False
    first, second = (each.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for each in (tensor, other))
    return torch.equal(first, second)


def _is_number(value: object) -> bool:
    """Whether something is one number, of Python or of NumPy."""
    return isinstance(value, bool | int | float | np.number | np.bool_)


def _is_plain(value: object) -> bool:
    if type(value) in (list, tuple):
        return all(_is_plain(each) for each in value)  # type: ignore[attr-defined]
    return isinstance(value, str) or _is_number(value)


def _as_json(value: Any) -> Plain:
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    plain: Plain = value.item() if isinstance(value, np.generic) else value
    return plain
