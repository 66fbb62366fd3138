"""Which values the description of a model can have: each is checked before any is used.

The bounds are far beyond any model that is known, and keep what is built from a file that was made to do harm within
the memory and time that the largest of these take.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

__all__ = ["UnfitError", "check"]

_DEEPEST = 6  # lists and objects in each other; embedding_specs need three
_LARGEST = 10_000  # irreps of one kind, hidden units, radial functions: ten times the largest of published models


class UnfitError(Exception):
    """Why a file or a model cannot be used, as the second half of a sentence that names it."""


def check(content: Mapping[str, Any]) -> None:
    """Refuse a description that lacks a value, has one that is not known, or has one that no model can have.

    Raises:
        UnfitError: If it has.
    """
    _check_keys("description", content, _CONTENT)
    _check_keys("architecture", content["architecture"], _ARCHITECTURE, needed=_NEEDED)
    if content["adapters"] is not None:
        _check_keys("adapters", content["adapters"], _ADAPTERS)
    if (content["policy"] is None) != (content["interface"] is None):
        raise UnfitError("its description has a policy or an interface without the other")


Check: TypeAlias = Callable[[Any], bool]


def _is_number(value: object) -> bool:
    # compared and not converted: JSON has whole numbers that are too large for a float
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200


def _whole(least: int, most: int) -> Check:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _between(least: float, most: float) -> Check:
    return lambda value: _is_number(value) and least <= value <= most


def _list_of(check: Check, most: int, least: int = 1) -> Check:
    return lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(check, value))


def _either(*checks: Check) -> Check:
    return lambda value: any(check(value) for check in checks)


def _is_none(value: object) -> bool:
    return value is None


def _is_irreps(value: object) -> bool:
    """Irreps as e3nn writes them, such as ``128x0e+128x1o``, with multiplicities and degrees that a model can have."""
    if not isinstance(value, str) or len(value) > 1_000:
        return False
    for part in value.replace(" ", "").split("+"):
        mul, found, irrep = part.rpartition("x")
        degree, parity = irrep[:-1], irrep[-1:]
        if parity not in ("e", "o") or not degree.isascii() or not degree.isdigit() or int(degree) > 11:
            return False
        if found and not (mul.isascii() and mul.isdigit() and 0 < int(mul) <= _LARGEST):
            return False
    return True


def _is_plain(value: object, depth: int = 0) -> bool:
    """Whether something is what JSON holds, not too deep, and finite where it is a number."""
    if isinstance(value, dict):
        inside: list[object] = [*value.values()]
        return depth < _DEEPEST and all(map(_is_name, value)) and all(_is_plain(each, depth + 1) for each in inside)
    if isinstance(value, list):
        return depth < _DEEPEST and all(_is_plain(each, depth + 1) for each in value)
    return value is None or isinstance(value, bool | str) or _is_number(value)


def _is_object(value: object) -> bool:
    return isinstance(value, dict) and _is_plain(value)


def _is_small(value: object) -> bool:
    """Whether an object of options holds no number that would make a part larger than those of any model."""
    if isinstance(value, dict | list):
        return all(map(_is_small, value.values() if isinstance(value, dict) else value))
    return not _is_number(value) or abs(value) <= _LARGEST  # type: ignore[arg-type]


def _is_options(value: object) -> bool:
    return _is_object(value) and _is_small(value)


_PER_HEAD = _either(_is_number, _list_of(_is_number, 1_000))
_ENERGIES = _either(_is_none, _list_of(_is_number, 118), _list_of(_list_of(_is_number, 118), 1_000))
_COUNT = _whole(1, _LARGEST)
_CONTENT: Mapping[str, Check] = {
    "schema_version": _is_number,
    "architecture": lambda value: isinstance(value, dict),
    "attributes": _is_object,
    "absent": _list_of(_is_name, 100_000, least=0),
    "frozen": _list_of(_is_name, 100_000, least=0),
    "adapters": _either(_is_none, _is_object),
    "policy": _either(_is_none, _is_object),
    "interface": _either(_is_none, lambda value: value in ("float64", "float32")),
    "sha256": lambda value: isinstance(value, str) and len(value) == 64,
}
_ADAPTERS: Mapping[str, Check] = {"rank": _COUNT, "alpha": _is_number}
_NEEDED: Mapping[str, Check] = {
    "model": _is_name,
    "atomic_numbers": _list_of(_whole(1, 118), 118),
    "r_max": _between(1e-3, 1e3),
    "num_bessel": _COUNT,
    "num_polynomial_cutoff": _whole(0, 1_000),
    "max_ell": _whole(0, 11),
    "interaction_cls_first": _is_name,
    "interaction_cls": _is_name,
    "num_interactions": _whole(1, 64),
    "hidden_irreps": _is_irreps,
    "MLP_irreps": _is_irreps,
    "gate": _either(_is_none, _is_name),
    "correlation": _either(_whole(1, 8), _list_of(_whole(1, 8), 64)),
    "radial_MLP": _list_of(_COUNT, 64, least=0),
    "avg_num_neighbors": _is_number,
    "atomic_energies": _ENERGIES,
}
_ARCHITECTURE: Mapping[str, Check] = {
    **_NEEDED,
    "apply_cutoff": _is_flag,
    "use_reduced_cg": _is_flag,
    "use_so3": _is_flag,
    "use_agnostic_product": _is_flag,
    "use_last_readout_only": _is_flag,
    "use_edge_irreps_first": _is_flag,
    "use_embedding_readout": _is_flag,
    "keep_last_layer_irreps": _is_flag,
    "lammps_mliap": _is_flag,
    "pair_repulsion": _is_flag,
    "use_polarizability": _is_flag,
    "distance_transform": _is_name,
    "radial_type": _is_name,
    "edge_irreps": _either(_is_none, _is_irreps),
    "readout_cls": _is_name,
    "heads": _list_of(_is_name, 1_000),
    "embedding_specs": _either(_is_none, _is_options),
    "atomic_inter_scale": _PER_HEAD,
    "atomic_inter_shift": _PER_HEAD,
    "kspace_cutoff_factor": _between(0, 100),
    "atomic_multipoles_max_l": _whole(0, 11),
    "atomic_multipoles_smearing_width": _is_number,
    "field_feature_max_l": _whole(0, 11),
    "field_feature_widths": _list_of(_is_number, 100),
    "field_feature_norms": _either(_is_none, _list_of(_is_number, 1_000)),
    "num_recursion_steps": _whole(0, 100),
    "field_si": _is_flag,
    "include_electrostatic_self_interaction": _is_flag,
    "add_local_electron_energy": _is_flag,
    "quadrupole_feature_corrections": _is_flag,
    "return_electrostatic_potentials": _is_flag,
    "field_norm_factor": _either(_is_none, _is_number),
    "fixedpoint_update_config": _is_options,
    "cueq_layout": lambda value: value in ("mul_ir", "ir_mul"),
    "field_readout_config": _is_options,
    "les_arguments": _is_options,
}


def _check_keys(
    what: str, content: Any, checks: Mapping[str, Check], needed: Mapping[str, Check] | None = None
) -> None:
    """Refuse an object that lacks a value, has one that is not known, or has one that a model cannot have."""
    wanted = checks if needed is None else needed
    if missing := [name for name in wanted if name not in content]:
        raise UnfitError(f"its {what} lacks {', '.join(missing)}")
    for name, value in content.items():
        if name not in checks:
            raise UnfitError(
                f"its {what} has a value {name!r:.40}, which this version of precision-probe does not know"
            )
        if not checks[name](value):
            raise UnfitError(f"the {name} of its {what} is {value!r:.60}, which no model can have")
