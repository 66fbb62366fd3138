"""The blocks of a MACE model: which modules can be hooked, and what enters and leaves each.

A block is any eager submodule, by its PyTorch name. The six families that every MACE model has are the default, and
this module knows what their inputs and outputs are called, whether rows are atoms or edges, and which irreps they hold.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from operator import attrgetter

import torch

from precision_probe.exceptions import InputError
from precision_probe.globs import matches
from precision_probe.models._mace import o3
from precision_probe.models.backends import irreps_layout
from precision_probe.models.inputs import named_tensors

__all__ = ["Block", "Port", "default_blocks", "is_called", "select_blocks"]


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

    def input_ports(self, arguments: Mapping[str, object]) -> dict[str, Port]:
        """The arguments of one call whose gradients are recorded."""
        given = {key for key, value in arguments.items() if torch.is_tensor(value) and value.is_floating_point()}
        if self.inputs:
            return {key: port for key, port in self.inputs.items() if key in given}
        return {key: replace(self.other, name=key, irreps=None) for key in arguments if key in given}

    def output_tensors(self, returned: object) -> dict[Port, torch.Tensor]:
        """The tensors in what one call returned: a tensor, or a tuple or dictionary with tensors in it."""
        if self.outputs and isinstance(returned, torch.Tensor | list | tuple):
            values = (returned,) if torch.is_tensor(returned) else returned
            named = zip(self.outputs, values, strict=False)  # a block that returns fewer is taken as far as it goes
            return {port: value for port, value in named if torch.is_tensor(value) and value.is_floating_point()}
        return {replace(self.other, name=name): value for name, value in named_tensors(returned).items()}


def default_blocks(model: torch.nn.Module) -> list[Block]:
    """Every part of a MACE model that computes, in the order in which they run.

    MACE's forward pass runs its embeddings and the repulsion of near nuclei once, then layer after layer an interaction
    and a product, then all readouts, and sums: the scaled and shifted energies of atoms, and those of isolated atoms.
    Models of dipoles read each layer out at once; their blocks are listed in the same order. What a model has beside
    these, as fields and charges of polar models, is listed before the sums, in the order of the model's attributes.
    """
    turns = {name: family.turn(name) for name, _ in model.named_modules() if (family := _family_of(name))}
    others = _other_parts(model) if turns else []
    known = sorted(turns, key=turns.__getitem__)
    summing = [name for name in known if turns[name][0] is _Stage.SUMS]
    return [_block(model, name) for name in (*(name for name in known if name not in summing), *others, *summing)]


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
        >>> from precision_probe.models import build, default_config
        >>> [block.name for block in select_blocks(build(default_config()), "interactions.*")]
        ['interactions.0', 'interactions.1']
        >>> [block.name for block in select_blocks(build(default_config()), ["!*ions.*", "!products.*", "!*embedding"])]
        ['spherical_harmonics', 'readouts.0', 'readouts.1', 'scale_shift', 'atomic_energies_fn']
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
    """The message for a pattern that matches no block: what can be named instead, nearest first."""
    unhookable = next((name for name in modules if name not in eager and matches(name, pattern)), None)
    if unhookable is not None:
        if "." not in unhookable:
            return f"{unhookable} is a list of blocks; name its members with {unhookable}.*"
        parent = unhookable.rsplit(".", 1)[0]
        while parent not in eager and "." in parent:
            parent = parent.rsplit(".", 1)[0]
        return (
            f"{unhookable} is TorchScript or a container and refuses hooks; the nearest block that can be is {parent}."
        )
    close = difflib.get_close_matches(pattern, eager, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"No block matches {pattern!r}.{hint} The model's blocks: {', '.join(usual)}; submodules of these also match."
    )


def _can_be_hooked(module: torch.nn.Module) -> bool:
    return not isinstance(module, torch.jit.ScriptModule | _CONTAINERS)


def _other_parts(model: torch.nn.Module) -> list[str]:
    """What else of a MACE computes: its own modules, and members of its lists, that are of none of the families."""
    return [
        name
        for name, module in model.named_modules()
        if name
        and name not in _NOT_RECORDED
        and _family_of(name) is None
        and _is_part(model, name)
        and is_called(module)
    ]


def _is_part(model: torch.nn.Module, name: str) -> bool:
    """Whether a module stands in the model itself, or in a list that does."""
    holder, _, _ = name.rpartition(".")
    return not holder or ("." not in holder and isinstance(model.get_submodule(holder), torch.nn.ModuleList))


def is_called(module: torch.nn.Module) -> bool:
    """Whether a module can be hooked and has something to run: not what TorchScript compiled, nor a list."""
    return not isinstance(module, torch.jit.ScriptModule) and type(module).forward is not torch.nn.Module.forward


class _Stage(IntEnum):
    """When MACE's forward pass runs a family of blocks."""

    BEFORE_LAYERS = 0
    IN_LAYERS = 1
    AFTER_LAYERS = 2
    SUMS = 3


@dataclass(frozen=True)
class _Family:
    """The blocks that one attribute of every MACE model holds.

    Attributes:
        name: Of the attribute.
        stage: When they run.
        is_list: Whether the attribute is a list with a block for each layer, not a block itself.
        described: Says of a block, by name and module, what enters and leaves it.
    """

    name: str
    stage: _Stage
    is_list: bool
    described: Callable[[str, torch.nn.Module], Block]

    def holds(self, name: str) -> bool:
        """Whether a module's name is that of a block of this family."""
        return bool(re.fullmatch(rf"{self.name}\.\d+" if self.is_list else self.name, name))

    def turn(self, name: str) -> tuple[_Stage, int, int]:
        """When a block runs: its stage, its layer, and among those of one layer the family's place in the list."""
        return self.stage, int(name.rsplit(".", 1)[1]) if self.is_list else 0, _FAMILIES.index(self)


def _family_of(name: str) -> _Family | None:
    return next((family for family in _FAMILIES if family.holds(name)), None)


def _block(model: torch.nn.Module, name: str) -> Block:
    """One module described, its features in the layout that the model's backend keeps them in."""
    family, module, layout = _family_of(name), model.get_submodule(name), irreps_layout(model)
    block = family.described(name, module) if family else _undescribed(name, module)
    return Block(
        name,
        {key: replace(port, layout=layout) for key, port in block.inputs.items()},
        tuple(replace(port, layout=layout) for port in block.outputs),
        replace(block.other, layout=layout),
    )


def _irreps(module: torch.nn.Module, *paths: str) -> o3.Irreps | None:
    """The irreps at the first of several attribute paths that the module has: mace-torch's classes differ in them."""
    for path in paths:
        try:
            return o3.Irreps(str(attrgetter(path)(module)))
        except (AttributeError, ValueError):
            continue
    return None


def _node_embedding(name: str, module: torch.nn.Module) -> Block:
    """One-hot elements → the first features of atoms."""
    return Block(
        name,
        {"node_attrs": Port("node_attrs", "atom", _irreps(module, "linear.irreps_in"))},
        (Port("output", "atom", _irreps(module, "linear.irreps_out")),),
    )


def _radial_embedding(name: str, module: torch.nn.Module) -> Block:
    """Lengths of edges, [n_edges, 1] Å → radial basis, and the cutoff function where it is not multiplied in."""
    scalars = o3.Irreps(f"{module.out_dim}x0e") if hasattr(module, "out_dim") else None
    return Block(
        name,
        {"edge_lengths": Port("edge_lengths", "edge", o3.Irreps("0e"), unit="Å")},
        (Port("edge_feats", "edge", scalars), Port("cutoff", "edge", o3.Irreps("0e"))),
    )


def _spherical_harmonics(name: str, module: torch.nn.Module) -> Block:
    """Vectors of edges, [n_edges, 3] Å → spherical harmonics of their directions."""
    return Block(
        name,
        {"x": Port("vectors", "edge", o3.Irreps("1o"), unit="Å")},
        (Port("edge_attrs", "edge", _irreps(module, "irreps_out", "_irreps_out")),),
    )


def _pair_repulsion(name: str, module: torch.nn.Module) -> Block:
    """Lengths of edges, [n_edges, 1] Å → each atom's share of the repulsion of near nuclei, [n_atoms] eV."""
    return Block(
        name, {"x": Port("edge_lengths", "edge", o3.Irreps("0e"), unit="Å")}, (Port("output", "atom", unit="eV"),)
    )


def _interaction(name: str, module: torch.nn.Module) -> Block:
    """Features of neighbours → each atom's message, [n_atoms, channels, components], and what skips the product."""
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
    """Messages → their products with one another, and with what skipped them the layer's features."""
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
    """A layer's features → its part of what the model predicts, for each atom and head."""
    return Block(
        name,
        {"x": Port("node_feats", "atom", _irreps(module, "linear.irreps_in", "linear_1.irreps_in"))},
        (Port("output", "atom", _irreps(module, "linear.irreps_out", "linear_2.irreps_out")),),
    )


def _undescribed(name: str, module: torch.nn.Module) -> Block:
    """A part of which nothing is known but when it runs: inputs and outputs go by the names that it gives them."""
    return Block(name, other=Port("", "", _irreps(module, "irreps_out")))


def _scale_shift(name: str, module: torch.nn.Module) -> Block:
    """Each atom's interaction energy, [n_atoms], as the readouts give it → the same in eV."""
    return Block(name, {"x": Port("node_energies", "atom")}, (Port("output", "atom", unit="eV"),))


def _isolated_atoms(name: str, module: torch.nn.Module) -> Block:
    """One-hot elements → the energies of isolated atoms, [n_atoms, n_heads] eV."""
    energies = module.get_buffer("atomic_energies")  # [n_elements], or [n_heads, n_elements]
    n_heads, n_elements = energies.reshape(-1, energies.shape[-1]).shape
    elements, heads = o3.Irreps(f"{n_elements}x0e"), o3.Irreps(f"{n_heads}x0e")
    return Block(name, {"x": Port("node_attrs", "atom", elements)}, (Port("output", "atom", heads, unit="eV"),))


# Parts of polar models that hooks cannot follow. The first stacks layers before atoms: its rows are no atoms, and are
# as long as a structure has atoms, which no array of a trace can be. The second computes in place what it is not asked
# to differentiate, and raises where its inputs are given gradients of their own. The third is never called as a module.
_NOT_RECORDED = ("layer_feature_mixer", "coulomb_energy", "electric_potential_descriptor")
# in the order of the trace, which within a layer is that of the forward pass; no embedding needs another's output
_FAMILIES = (
    _Family("node_embedding", _Stage.BEFORE_LAYERS, is_list=False, described=_node_embedding),
    _Family("radial_embedding", _Stage.BEFORE_LAYERS, is_list=False, described=_radial_embedding),
    _Family("spherical_harmonics", _Stage.BEFORE_LAYERS, is_list=False, described=_spherical_harmonics),
    _Family("joint_embedding", _Stage.BEFORE_LAYERS, is_list=False, described=_undescribed),
    _Family("pair_repulsion_fn", _Stage.BEFORE_LAYERS, is_list=False, described=_pair_repulsion),
    _Family("interactions", _Stage.IN_LAYERS, is_list=True, described=_interaction),
    _Family("products", _Stage.IN_LAYERS, is_list=True, described=_product),
    _Family("readouts", _Stage.AFTER_LAYERS, is_list=True, described=_readout),
    _Family("embedding_readout", _Stage.AFTER_LAYERS, is_list=False, described=_undescribed),
    _Family("scale_shift", _Stage.SUMS, is_list=False, described=_scale_shift),
    _Family("atomic_energies_fn", _Stage.SUMS, is_list=False, described=_isolated_atoms),
)
# lists of modules or parameters have no forward to hook
_CONTAINERS = torch.nn.ModuleList | torch.nn.ModuleDict | torch.nn.ParameterList | torch.nn.ParameterDict
