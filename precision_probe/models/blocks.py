"""The blocks of a MACE model: which modules can be hooked, and what enters and leaves each.

A block is any eager submodule, by its PyTorch name. The six families that every MACE model has are the default, and
this module knows what their inputs and outputs are called, whether rows are atoms or edges, and which irreps they hold.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import torch

from precision_probe.exceptions import InputError
from precision_probe.globs import matches
from precision_probe.models._mace import o3
from precision_probe.models.backends import irreps_layout
from precision_probe.models.inputs import named_tensors

__all__ = ["Block", "Port", "default_blocks", "select_blocks"]


@dataclass(frozen=True)
class Port:
    """One tensor that enters or leaves a block.

    Attributes:
        name: Its name in the trace.
        rows: What its first dimension counts: ``"atom"`` or ``"edge"``; empty where only the sizes can tell.
        irreps: Its irreps, where known: of its last dimension, or of the last two (channel, component).
        unit: Its physical unit; ``"1"`` for features.
        layout: How its irreps lie in memory: e3nn's ``"mul_ir"``, or ``"ir_mul"``, components before channels.
    """

    name: str
    rows: str = ""
    irreps: o3.Irreps | None = None
    unit: str = "1"
    layout: str = "mul_ir"

    def to_mul_ir(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor in e3nn's layout, so that it compares with any other backend's."""
        if self.layout == "mul_ir" or self.irreps is None:
            return tensor
        if tensor.ndim == 3:  # [rows, components, channels]
            return tensor.transpose(1, 2)
        if tensor.ndim != 2 or tensor.shape[1] != self.irreps.dim:
            return tensor
        parts = torch.split(tensor, [mul * ir.dim for mul, ir in self.irreps], dim=1)
        shaped = zip(self.irreps, parts, strict=True)
        return torch.cat([part.reshape(-1, ir.dim, mul).mT.flatten(1) for (mul, ir), part in shaped], dim=1)


@dataclass(frozen=True)
class Block:
    """One hooked module.

    Attributes:
        name: Its PyTorch name, such as ``interactions.0``.
        inputs: For each parameter of its ``forward`` whose gradient is recorded, what it is. Empty where the block is
            not one of MACE's own families: then every floating-point input is recorded under its parameter's name.
        outputs: What it returns, in order; empty likewise.
        other: What is known of any other output: its irreps, and their layout.
    """

    name: str
    inputs: Mapping[str, Port] = field(default_factory=dict)
    outputs: tuple[Port, ...] = ()
    other: Port = Port("")

    def input_ports(self, arguments: Mapping[str, Any]) -> dict[str, Port]:
        """The arguments of one call whose gradients are recorded."""
        given = {key for key, value in arguments.items() if torch.is_tensor(value) and value.is_floating_point()}
        if self.inputs:
            return {key: port for key, port in self.inputs.items() if key in given}
        return {key: replace(self.other, name=key, irreps=None) for key in arguments if key in given}

    def output_tensors(self, returned: Any) -> dict[Port, torch.Tensor]:
        """The tensors in what one call returned: a tensor, or a tuple or dictionary with tensors in it."""
        if self.outputs and not isinstance(returned, Mapping):
            returned = (returned,) if torch.is_tensor(returned) else returned
            named = zip(self.outputs, returned, strict=False)
            return {port: value for port, value in named if torch.is_tensor(value) and value.is_floating_point()}
        return {replace(self.other, name=name): value for name, value in named_tensors(returned).items()}


def default_blocks(model: torch.nn.Module) -> list[Block]:
    """The embeddings, interactions, products and readouts of a MACE model, in the order in which they run."""
    present = [name for name, _ in model.named_modules() if _family(name)]
    order = list(_FAMILIES)
    layered = [name for name in present if order.index(_family(name)) in (3, 4)]
    layered.sort(key=lambda name: (int(name.rsplit(".", 1)[1]), order.index(_family(name))))
    before = sorted((name for name in present if order.index(_family(name)) < 3), key=order.index)
    after = [name for name in present if _family(name) == "readouts"]
    return [_block(model, name) for name in (*before, *layered, *after)]


def select_blocks(model: torch.nn.Module, patterns: str | Sequence[str] | None) -> list[Block]:
    """The blocks that patterns name, in the order in which the model lists them.

    Args:
        model: A MACE model.
        patterns: Globs over PyTorch module names, one or several; a ``*`` stays between two dots, so that
            ``interactions.*`` is each interaction and ``interactions.*.*`` what lies one level deeper. One that begins
            with ``!`` takes blocks away from what the others chose. ``None`` is the default blocks, and so is what
            exclusions alone are taken from.

    Raises:
        InputError: If a pattern matches no module that can be hooked.

    Example:
        >>> from precision_probe.models.loading import build, default_config
        >>> [block.name for block in select_blocks(build(default_config()), "interactions.*")]
        ['interactions.0', 'interactions.1']
        >>> [block.name for block in select_blocks(build(default_config()), ["!*ions.*", "!products.*", "!*embedding"])]
        ['spherical_harmonics', 'readouts.0', 'readouts.1']
    """
    if patterns is None:
        return default_blocks(model)
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        raise InputError("No block pattern was given. Give one such as 'interactions.*', or None for the usual blocks.")
    modules = {name: module for name, module in model.named_modules() if name}
    eager = [name for name, module in modules.items() if _can_be_hooked(module)]
    usual = [block.name for block in default_blocks(model)]
    included = [pattern for pattern in patterns if not pattern.startswith("!")]
    chosen = set() if included else set(usual)
    for pattern in (*included, *(pattern for pattern in patterns if pattern.startswith("!"))):
        matched = {name for name in eager if matches(name, pattern.removeprefix("!"))}
        if not matched:
            raise InputError(_nothing_matches(pattern.removeprefix("!"), modules, usual, eager))
        chosen = chosen - matched if pattern.startswith("!") else chosen | matched
    if not chosen:
        raise InputError(f"The block patterns {', '.join(map(repr, patterns))} leave no block. Exclude fewer.")
    ordered = [name for name in usual if name in chosen] + [n for n in eager if n in chosen and n not in usual]
    return [_block(model, name) for name in ordered]


def _nothing_matches(
    pattern: str, modules: Mapping[str, torch.nn.Module], usual: Sequence[str], eager: Sequence[str]
) -> str:
    scripted = [name for name in modules if name not in eager and matches(name, pattern)]
    if scripted:
        if "." not in scripted[0]:
            return f"{scripted[0]} is a list of blocks; name its members with {scripted[0]}.*"
        parent = scripted[0].rsplit(".", 1)[0]
        while parent not in eager and "." in parent:
            parent = parent.rsplit(".", 1)[0]
        return (
            f"{scripted[0]} is TorchScript or a container and refuses hooks; the nearest block that can be is {parent}."
        )
    close = difflib.get_close_matches(pattern, eager, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"No block matches {pattern!r}.{hint} The model's blocks: {', '.join(usual)}; submodules of these also match."
    )


def _can_be_hooked(module: torch.nn.Module) -> bool:
    return not isinstance(module, torch.jit.ScriptModule | _CONTAINERS)


def _family(name: str) -> str:
    for family in _FAMILIES:
        if re.fullmatch(rf"{family}(\.\d+)?" if family.endswith("s") else family, name) and name not in _LISTS:
            return family
    return ""


def _block(model: torch.nn.Module, name: str) -> Block:
    family, module, layout = _family(name), model.get_submodule(name), irreps_layout(model)
    block = (
        _FAMILIES[family](name, module) if family else Block(name, other=Port("", "", _irreps(module, "irreps_out")))
    )
    return Block(
        name,
        {key: replace(port, layout=layout) for key, port in block.inputs.items()},
        tuple(replace(port, layout=layout) for port in block.outputs),
        replace(block.other, layout=layout),
    )


def _irreps(module: torch.nn.Module, *paths: str) -> o3.Irreps | None:
    """The irreps at the first of several attribute paths that the module has."""
    for path in paths:
        try:
            return o3.Irreps(str(attrgetter(path)(module)))
        except (AttributeError, ValueError):
            continue
    return None


def _node_embedding(name: str, module: torch.nn.Module) -> Block:
    return Block(
        name,
        {"node_attrs": Port("node_attrs", "atom", _irreps(module, "linear.irreps_in"))},
        (Port("output", "atom", _irreps(module, "linear.irreps_out")),),
    )


def _radial_embedding(name: str, module: torch.nn.Module) -> Block:
    scalars = o3.Irreps(f"{module.out_dim}x0e") if hasattr(module, "out_dim") else None
    return Block(
        name,
        {"edge_lengths": Port("edge_lengths", "edge", o3.Irreps("0e"), unit="Å")},
        (Port("edge_feats", "edge", scalars), Port("cutoff", "edge", o3.Irreps("0e"))),
    )


def _spherical_harmonics(name: str, module: torch.nn.Module) -> Block:
    return Block(
        name,
        {"x": Port("vectors", "edge", o3.Irreps("1o"), unit="Å")},
        (Port("edge_attrs", "edge", _irreps(module, "irreps_out", "_irreps_out")),),
    )


def _interaction(name: str, module: torch.nn.Module) -> Block:
    return Block(
        name,
        {
            "node_feats": Port("node_feats", "atom", _irreps(module, "node_feats_irreps")),
            "edge_attrs": Port("edge_attrs", "edge", _irreps(module, "edge_attrs_irreps")),
            "edge_feats": Port("edge_feats", "edge", _irreps(module, "edge_feats_irreps")),
            "cutoff": Port("cutoff", "edge", o3.Irreps("0e")),
        },
        (
            Port("message", "atom", _irreps(module, "reshape.irreps", "irreps_out", "target_irreps")),
            Port("skip", "atom", _irreps(module, "skip_tp.irreps_out", "hidden_irreps")),
        ),
    )


def _product(name: str, module: torch.nn.Module) -> Block:
    out = _irreps(module, "linear.irreps_out")
    return Block(
        name,
        {
            "node_feats": Port("node_feats", "atom", _irreps(module, "symmetric_contractions.irreps_in")),
            "sc": Port("skip", "atom", out),
        },
        (Port("output", "atom", out),),
    )


def _readout(name: str, module: torch.nn.Module) -> Block:
    return Block(
        name,
        {"x": Port("node_feats", "atom", _irreps(module, "linear.irreps_in", "linear_1.irreps_in"))},
        (Port("output", "atom", _irreps(module, "linear.irreps_out", "linear_2.irreps_out")),),
    )


# in the order in which they run
_FAMILIES = {
    "node_embedding": _node_embedding,
    "radial_embedding": _radial_embedding,
    "spherical_harmonics": _spherical_harmonics,
    "interactions": _interaction,
    "products": _product,
    "readouts": _readout,
}
_CONTAINERS = torch.nn.ModuleList | torch.nn.ModuleDict | torch.nn.ParameterList | torch.nn.ParameterDict
_LISTS = ("interactions", "products", "readouts")
