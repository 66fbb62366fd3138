"""What groups, variables and attributes a trace has, as ``docs/trace-schema.md`` says, and whether a file has them.

What is missing, or is not as it must be, is said with the name of the variable, before anything is computed of it:
a number that is taken for another, or left out, would be worse than none.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from precision_probe.exceptions import InputError, printable

__all__ = [
    "COUNTED",
    "ERRORS",
    "LOSS",
    "MODES",
    "REFERENCE",
    "SCHEMA_VERSION",
    "TABLES",
    "BrokenError",
    "check_schema",
    "value_checks",
]

SCHEMA_VERSION = 1
MODES = ("propagated", "isolated")
TABLES = "tables"
ERRORS = "errors"  # of arrays that were too large to keep
REFERENCE = "float64"
LOSS = "loss"  # gradients of a training loss, where the attached model was trained

COUNTED = ("structure", "atom", "edge", "species")
_NUMBER = (int, float)

_ROOT: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(
        ("precisions", "blocks", "modes", "atomic_numbers", "interactions", "heads", "failures", "statistics"), list
    ),
    **dict.fromkeys(("versions", "settings", "math_dtypes", "not_of_the_called_model", "configuration"), dict),
    **dict.fromkeys(("created", "platform", "device", "model_name", "model_class", "model_dtype"), str),
    **dict.fromkeys(("model_sha256", "reference", "backend", "hidden_irreps", "edge_irreps", "gradients", "keep"), str),
    **dict.fromkeys(("complete", "weights_changed"), bool),
    **dict.fromkeys(("n_parameters", "calls_with_rounded_geometry", "batch_edges", "batch_edges_fitting"), int),
    **dict.fromkeys(("part", "n_parts", "first_structure"), int),
    "cutoff": _NUMBER,
}
_NEEDED = ("precisions", "blocks", "modes")

_STRUCTURES: dict[str, tuple[tuple[str, ...], str]] = {
    "name": (("structure",), "text"),
    "n_atoms": (("structure",), "integers"),
    "n_edges": (("structure",), "integers"),
    "sender": (("edge",), "integers"),
    "receiver": (("edge",), "integers"),
    "image": (("edge", "cell_vector"), "integers"),
    "atomic_numbers": (("atom",), "integers"),
    "positions": (("atom", "xyz"), "numbers"),
    "cell": (("structure", "cell_vector", "xyz"), "numbers"),
    "pbc": (("structure", "cell_vector"), "truth values"),
    "structure_of_atom": (("atom",), "integers"),
    "n_species": (("structure",), "integers"),
    "species_numbers": (("species",), "integers"),
    "energy": (("structure",), "numbers"),
    "forces": (("atom", "xyz"), "numbers"),
    "stress": (("structure", "xyz", "xyz_2"), "numbers"),
}
_BY_SPECIES = ("n_species", "species_numbers")  # where errors are kept by them
_OPTIONAL = ("energy", "forces", "stress", *_BY_SPECIES)
_RESULTS: dict[str, tuple[str, ...]] = {
    "energy": ("structure",),
    "interaction_energy": ("structure",),
    "forces": ("atom", "xyz"),
    "stress": ("structure", "xyz", "xyz_2"),
    "seconds": ("structure",),
}
_KINDS = {"text": "OUTS", "integers": "iu", "numbers": "f", "truth values": "b"}
_SIZES = {"xyz": 3, "xyz_2": 3, "cell_vector": 3}
_BLOCK_ATTRIBUTES = ("tensor", "direction")
_SAME = ("units", "block", "tensor", "direction")
_AXIS = re.compile(r".*\.(feature|channel|component|axis\d+)", re.DOTALL)
_IRREP = re.compile(r"\d+[eo]")
# What CF conventions make of numbers on the way from a file: a trace asks for none of it but NaN where nothing is.
_CHANGES_NUMBERS = ("scale_factor", "add_offset", "missing_value", "_Unsigned")

# Columns of known tables that tell what a row is of; those of numbers that older traces lack are left out.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "range": ("precision", "structure", "pass", "kind", "block", "tensor", "where", "value", "limit", "message"),
    "noise": ("precision", "block", "tensor", "direction", "spread"),
    "contributions": ("precision", "part", "energy", "forces", "energy_share", "forces_share"),
    "budget": ("source", "block", "precision", "forces_mae"),
    "sweep": ("block", "bits", "forces"),
    "prediction": ("precision", "energy_bound", "energy_expected", "energy", "forces_expected", "forces"),
    "equivariance": ("precision", "motion", "block", "tensor", "irrep", "rel_l2"),
    "finite_differences": ("precision", "difference", "relative", "expected", "step", "energy_noise"),
    "displacement": ("precision", "position", "energy", "force"),
    "digits": ("precision", "quantity", "digits"),
    "drift": ("precision", "drift", "confidence", "fluctuation"),
}
_TEXTS = ("precision", "block", "tensor", "direction", "part", "source", "motion", "irrep", "quantity", "pass", "kind")


class BrokenError(InputError):
    """A trace that is not as the schema says; the message names the variable, and does not name the file."""


def check_schema(tree: xr.DataTree, attributes: Mapping[str, Any]) -> None:
    """See whether a trace has what it must have, as it must be. No array is read but the numbers of atoms and edges.

    Args:
        tree: The trace.
        attributes: Of its root, as Python values.

    Raises:
        BrokenError: If not.
    """
    _check_attributes(attributes)
    precisions = [str(name) for name in attributes["precisions"]]
    for node in tree.subtree:
        _check_variables(node)
    _check_groups(tree, precisions, attributes["modes"], keeps_errors=attributes.get("keep") == ERRORS)
    sizes = _check_structures(tree) if "structures" in tree.children else {}
    for mode in (*MODES, LOSS):
        if mode in tree.children:
            _check_mode(tree, mode, precisions, sizes, attributes["blocks"])
    if ERRORS in tree.children:
        _check_errors(tree.children[ERRORS], attributes, precisions, sizes)
    if TABLES in tree.children:
        for name, node in tree.children[TABLES].children.items():
            _check_table(str(name), node)


def _check_attributes(attributes: Mapping[str, Any]) -> None:
    """The attributes of the root are there, and are of the types that they are documented to have."""
    for name in _NEEDED:
        if name not in attributes:
            raise BrokenError(f"the attribute {name} is missing")
    for name, types in _ROOT.items():
        value = attributes.get(name)
        is_wrong = not isinstance(value, types) or (isinstance(value, bool) and types in (int, _NUMBER))
        if name in attributes and value is not None and is_wrong:
            raise BrokenError(f"the attribute {name} is {type(value).__name__}, {printable(value)[:60]}")
    for name, allowed in (("precisions", None), ("modes", MODES), ("blocks", None)):
        wrong = [each for each in attributes[name] or [None] if not isinstance(each, str)] if attributes[name] else []
        wrong += [each for each in attributes[name] or [] if allowed is not None and each not in allowed]
        if attributes[name] is None or wrong or len(set(map(str, attributes[name]))) != len(attributes[name]):
            raise BrokenError(f"the attribute {name} is {printable(attributes[name])[:60]}")
    if REFERENCE not in attributes["precisions"]:
        raise BrokenError(f"the attribute precisions has no {REFERENCE}, the reference")


def _check_variables(node: xr.DataTree) -> None:
    """Every variable says what it is in which unit, and its numbers are taken as they are stored."""
    for name, variable in node.to_dataset(inherit=False).variables.items():
        path = f"{node.path.rstrip('/')}/{name}"
        for attribute in ("units", "long_name"):
            if not isinstance(variable.attrs.get(attribute), str):
                raise BrokenError(f"{printable(path)} has no attribute {attribute}")
        if any(key in {**variable.attrs, **variable.encoding} for key in _CHANGES_NUMBERS):
            raise BrokenError(f"{printable(path)} has an attribute that changes its numbers")
        fill = variable.encoding.get("_FillValue", variable.attrs.get("_FillValue", np.nan))
        if not _is_nan(fill):
            raise BrokenError(f"{printable(path)} has the fill value {fill}, which would be read as NaN")
        if variable.dtype.kind not in "OUTSiubf":
            raise BrokenError(f"{printable(path)} holds {variable.dtype}")
        if name in variable.dims and (
            variable.ndim != 1 or not all(map(_IRREP.fullmatch, map(str, set(variable.values))))
        ):
            raise BrokenError(f"{printable(path)} is not a row of irreps such as 1o")
        for dim, size in zip(variable.dims, variable.shape, strict=True):
            if size != _SIZES.get(str(dim), size):
                raise BrokenError(f"{printable(path)} has {size} entries along {dim}")


def _is_nan(fill: object) -> bool:
    """Whether a fill value is NaN; text has none that matters."""
    return isinstance(fill, str | bytes) or (isinstance(fill, float | np.floating) and bool(np.isnan(fill)))


def _check_groups(tree: xr.DataTree, precisions: list[str], modes: list[str], *, keeps_errors: bool) -> None:
    """There are the groups that the attributes promise, and no others, which would be passed over."""
    known = {"structures", TABLES, ERRORS, LOSS, *MODES}
    for name in tree.children:
        if name not in known:
            raise BrokenError(f"the group {printable(name)} is none that a trace has")
    if tree.data_vars:
        raise BrokenError(f"the variable {printable(next(iter(tree.data_vars)))} lies in no group")
    for name in ("structures", TABLES, LOSS, *MODES):
        if name not in tree.children:
            continue
        allowed = [] if name == "structures" else precisions if name != TABLES else list(tree.children[name].children)
        for child, node in tree.children[name].children.items():
            odd = next(iter(node.children.values()), None) if child in allowed else node
            if odd is not None:
                raise BrokenError(f"the group {printable(odd.path)} is not one of a precision that the trace names")
        if name != "structures" and tree.children[name].to_dataset(inherit=False).variables:
            raise BrokenError(f"the group {name} has variables, where it has groups of precisions or tables only")
    if not any(tree.children[name].children for name in (*MODES, LOSS) if name in tree.children):
        if "structures" in tree.children and tree["structures"].sizes.get("structure", 0):
            raise BrokenError("the group propagated is missing")
        return  # nothing was recorded
    if "structures" not in tree.children:
        raise BrokenError("the group structures is missing")
    if "isolated" in tree.children and "isolated" not in modes:
        raise BrokenError("the attribute modes leaves the group isolated out")
    reduced = [precision for precision in precisions if precision != REFERENCE]
    needed = [("propagated", precision) for precision in precisions]
    if keeps_errors:
        needed += [(f"{ERRORS}/{mode}", precision) for mode in modes for precision in reduced]
    else:
        needed += [(mode, precision) for mode in modes for precision in precisions]
    there = set(tree.groups)
    for path, precision in needed:
        if f"/{path}/{precision}" not in there:
            raise BrokenError(f"the group {path}/{precision} is missing")


def _check_structures(tree: xr.DataTree) -> dict[str, int]:
    """The variables of ``/structures``; how many structures, atoms and edges there are."""
    group = tree.children["structures"].to_dataset(inherit=False)
    is_graph = any(name in group for name in _STRUCTURES if name != "name")
    for name in [name for name in _STRUCTURES if name not in _OPTIONAL] if is_graph else ["name"]:
        if name not in group and group.variables:
            raise BrokenError(f"/structures/{name} is missing")
    for key, variable in group.variables.items():
        name = str(key)
        if name not in _STRUCTURES:
            raise BrokenError(f"/structures/{printable(name)} is none that a trace has")
        dims, kind = _STRUCTURES[name]
        _check_one(f"/structures/{name}", variable, dims, kind)
    sizes = {dim: int(group.sizes[dim]) for dim in COUNTED if dim in group.sizes}
    for counts, dim in (("n_atoms", "atom"), ("n_edges", "edge"), ("n_species", "species")):
        if counts in group:
            numbers = group[counts].values
            if (numbers < 0).any() or sum(map(int, numbers)) != sizes.get(dim):
                raise BrokenError(
                    f"/structures/{counts} counts {sum(map(int, numbers))} {dim}s, and there are {sizes.get(dim, 0)}"
                )
    return sizes


def _check_one(path: str, variable: xr.Variable, dims: tuple[str, ...], kind: str) -> None:
    """One variable has its dimensions, and holds what it must."""
    if variable.dims != dims:
        raise BrokenError(f"{path} has the dimensions {printable(variable.dims)}, which must be {dims}")
    if variable.dtype.kind not in _KINDS[kind] and variable.size:
        raise BrokenError(f"{path} holds {variable.dtype}, which must be {kind}")


def _check_mode(
    tree: xr.DataTree, mode: str, precisions: list[str], sizes: Mapping[str, int], blocks: list[str]
) -> None:
    """The groups of one mode: what the reference has, every precision has, with as many rows, and nothing else."""
    groups = {
        name: tree.children[mode].children[name].to_dataset(inherit=False)
        for name in precisions
        if name in tree.children[mode].children
    }
    if REFERENCE not in groups:
        raise BrokenError(f"the group {mode}/{REFERENCE} is missing")
    reference = groups[REFERENCE]
    for precision, group in groups.items():
        path = f"/{mode}/{precision}"
        for name in (*reference.variables, *group.variables):
            if name not in group.variables or name not in reference.variables:
                where = path if name not in group.variables else f"/{mode}/{REFERENCE}"
                raise BrokenError(f"{where}/{printable(name)} is missing")
        for name, variable in group.variables.items():
            _check_array(f"{path}/{printable(name)}", variable, reference.variables[name], sizes)
            _check_identity(f"{path}/{printable(name)}", str(name), variable, blocks)
            _check_axes(f"{path}/{printable(name)}", variable)
            if "irreps" in variable.attrs and variable.dims[-1] not in tree.coords:
                raise BrokenError(
                    f"/{printable(variable.dims[-1])}, the irreps of {path}/{printable(name)}, is missing"
                )


def _check_array(path: str, variable: xr.Variable, reference: xr.Variable, sizes: Mapping[str, int]) -> None:
    """One array beside the reference's: the same dimensions, shape and meaning; rows as there are structures."""
    if (variable.dims, variable.shape) != (reference.dims, reference.shape):
        raise BrokenError(
            f"{path} has the shape {variable.shape} along {printable(variable.dims)}, and float64's has "
            f"{reference.shape} along {printable(reference.dims)}"
        )
    for key in _SAME:
        if variable.attrs.get(key) != reference.attrs.get(key):
            raise BrokenError(f"the attribute {key} of {path} is another than float64's")
    if not variable.dims:
        raise BrokenError(f"{path} has no dimension")
    if variable.dtype.kind not in "fiub":
        raise BrokenError(f"{path} holds {variable.dtype}, which must be numbers")
    for dim, size in zip(variable.dims, variable.shape, strict=True):
        if dim in COUNTED and size != sizes.get(str(dim)):
            raise BrokenError(f"{path} has {size} rows, and there are {sizes.get(str(dim), 0)} {dim}s")


def _check_identity(path: str, name: str, variable: xr.Variable, blocks: list[str]) -> None:
    """What an array is of is what its name says."""
    block = variable.attrs.get("block")
    if block is None:
        dims = _RESULTS.get(name)
        if dims is not None and "atom" in dims and variable.dims != dims:
            raise BrokenError(f"{path} has the dimensions {printable(variable.dims)}, which must be {dims}")
        return
    if block not in blocks:
        raise BrokenError(f"{path} is of the block {printable(block)}, which the trace does not name")
    for key in _BLOCK_ATTRIBUTES:
        if not isinstance(variable.attrs.get(key), str):
            raise BrokenError(f"{path} has no attribute {key}")
    tensor, direction = variable.attrs["tensor"], variable.attrs["direction"]
    if direction not in ("forward", "backward"):
        raise BrokenError(f"the attribute direction of {path} is {printable(direction)}")
    if name != f"{block}.{tensor}" + (".grad" if direction == "backward" else ""):
        raise BrokenError(f"{path} says that it is {printable(tensor)} of {printable(block)}, {direction}")


def _check_axes(path: str, variable: xr.Variable) -> None:
    """The dimensions of a block's array are called as its are."""
    block = variable.attrs.get("block")
    for dim in map(str, variable.dims[1:] if block is not None else ()):
        if not _AXIS.fullmatch(dim) or not dim.startswith(f"{block}."):
            raise BrokenError(f"{path} has the dimension {printable(dim)}, which no block has")


def _check_errors(
    node: xr.DataTree, attributes: Mapping[str, Any], precisions: list[str], sizes: Mapping[str, int]
) -> None:
    """The groups of errors, one of each mode and precision: statistics of the same arrays in every precision."""
    if attributes.get("keep") != ERRORS or not attributes.get("statistics"):
        raise BrokenError("the group errors is there, and the attributes keep and statistics do not tell of it")
    if node.to_dataset(inherit=False).variables:
        raise BrokenError("the group errors has variables, where it has groups of modes only")
    for mode, of_mode in node.children.items():
        if mode not in (*attributes["modes"], LOSS) or of_mode.to_dataset(inherit=False).variables:
            raise BrokenError(f"the group errors/{printable(mode)} is not one of a mode that the trace names")
        names: set[str] | None = None
        for precision, group in of_mode.children.items():
            path = f"/errors/{mode}/{printable(precision)}"
            if precision not in precisions or precision == REFERENCE or group.children:
                raise BrokenError(f"the group {path} is not one of a precision that the trace names")
            variables = group.to_dataset(inherit=False).variables
            found = {str(name) for name in variables}
            if names is not None and found != names:
                raise BrokenError(f"{path} has not the variables that other precisions have")
            names = found
            for name, variable in variables.items():
                _check_statistics(f"{path}/{printable(name)}", str(name), variable, attributes, sizes)


def _check_statistics(
    path: str, name: str, variable: xr.Variable, attributes: Mapping[str, Any], sizes: Mapping[str, int]
) -> None:
    """One variable of errors: what it is of, and as many rows, parts and statistics as there must be."""
    if variable.attrs.get("block") is None:
        raise BrokenError(f"{path} has no attribute block")
    _check_identity(path, name, variable, attributes["blocks"])
    rows = str(variable.dims[0]) if variable.dims else ""
    if variable.dims != (rows, f"{name}.part", "statistic") or rows not in ("species", "structure", f"{name}.row"):
        raise BrokenError(f"{path} has the dimensions {printable(variable.dims)}")
    parts = variable.attrs.get("parts")
    n_parts = len(parts.split()) or 1 if isinstance(parts, str) else None
    if variable.shape[1:] != (n_parts, len(attributes["statistics"])) or variable.dtype.kind != "f":
        raise BrokenError(f"{path} has the shape {variable.shape}, and other parts or statistics are named")
    if rows in COUNTED and variable.shape[0] != sizes.get(rows):
        raise BrokenError(f"{path} has {variable.shape[0]} rows, and there are {sizes.get(rows, 0)} {rows}s")


def _check_table(name: str, node: xr.DataTree) -> None:
    """One table: rows alone, with a title, and with the columns that are needed to read it."""
    table = node.to_dataset(inherit=False)
    path = f"/{TABLES}/{printable(name)}"
    if not isinstance(table.attrs.get("title"), str):
        raise BrokenError(f"{path} has no attribute title")
    for column, variable in table.variables.items():
        if variable.dims != (f"{name}.row",):
            raise BrokenError(f"{path}/{printable(column)} has the dimensions {printable(variable.dims)}")
        is_text = variable.dtype.kind in _KINDS["text"]
        if name in _COLUMNS and variable.size and column in _TEXTS and not is_text:
            raise BrokenError(f"{path}/{printable(column)} holds {variable.dtype}, which must be text")
    for column in _COLUMNS.get(name, ()):
        if column not in table:
            raise BrokenError(f"{path}/{column} is missing")


def value_checks(tree: xr.DataTree) -> Iterator[tuple[str, Callable[[NDArray[Any]], bool]]]:
    """Paths of arrays that say where others belong, and what must hold of their values when they are read."""
    structures = (
        tree.children["structures"].to_dataset(inherit=False) if "structures" in tree.children else xr.Dataset()
    )
    if "n_atoms" not in structures:
        return
    n_structures, most = structures.sizes["structure"], max(map(int, structures["n_atoms"].values), default=0)
    yield "/structures/structure_of_atom", lambda values: _within(values, 0, n_structures)
    yield "/structures/sender", lambda values: _within(values, 0, most)
    yield "/structures/receiver", lambda values: _within(values, 0, most)
    if "species_numbers" in structures:
        yield "/structures/species_numbers", lambda values: _within(values, 0, 119)
    yield "/structures/atomic_numbers", lambda values: _within(values, 0, 119)


def _within(values: NDArray[Any], first: int, end: int) -> bool:
    return bool(((values >= first) & (values < end)).all())
