"""Which precision each block of a model computes in: a short list of rules, in memory and as a JSON file.

Nothing here imports torch or mace, so a policy is read and written anywhere;
:mod:`precision_probe.variants.mixed` runs it.
"""

import difflib
import importlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from precision_probe.exceptions import InputError
from precision_probe.files import check_writable, replacing
from precision_probe.globs import matches
from precision_probe.notebook import as_html
from precision_probe.precisions import PRECISIONS, Precision, parse_precision

if TYPE_CHECKING:  # both import torch
    import torch

    from precision_probe.fast.torch_sim import GraphModel
    from precision_probe.models.loading import Calculator, ModelSource

__all__ = ["SCHEMA_VERSION", "SUMMED", "Policy", "Rule"]

SCHEMA_VERSION = 1
SUMMED = ("atomic_energies_fn", "scale_shift")  # what energies are summed from: float64 under every policy


@dataclass(frozen=True)
class Rule:
    """The precision of some blocks.

    Args:
        blocks: A glob over PyTorch module names; a ``*`` stays between two dots, so that ``interactions.*`` is each
            interaction and ``interactions.*.linear`` a part of each.
        compute: Name or alias of a precision that hardware has: float64, float32, tf32, bfloat16, float16.

    Raises:
        InputError: If the glob is empty, or there is no such precision.

    Example:
        >>> rule = Rule("interactions.*", "half")
        >>> rule.compute, rule.accumulate, rule.matches("interactions.0"), rule.matches("interactions.0.linear")
        ('float16', 'float32', True, False)
    """

    blocks: str
    compute: str

    def __post_init__(self) -> None:
        if not isinstance(self.blocks, str) or not self.blocks.strip() or self.blocks.startswith("!"):
            raise InputError(
                f"A rule names blocks by a glob over their names, such as 'interactions.*'; got {self.blocks!r}. "
                "Blocks to leave out get a rule of their own, before this one."
            )
        if not isinstance(self.compute, str) or parse_precision(self.compute).emulated:
            raise InputError(
                f"A model runs in precisions that hardware has, {', '.join(PRECISIONS)}; got {self.compute!r} for "
                f"{self.blocks!r}. Emulated formats are for measuring."
            )
        object.__setattr__(self, "compute", self.precision.name)

    @property
    def precision(self) -> Precision:
        """The precision that ``compute`` names."""
        return parse_precision(self.compute)

    @property
    def accumulate(self) -> str:
        """Name of the dtype in which matrix products are accumulated."""
        return "float64" if self.compute == "float64" else "float32"

    def matches(self, name: str) -> bool:
        """Whether the glob matches the name of a module, as globs of blocks do everywhere in this package."""
        return matches(name, self.blocks)


@dataclass(frozen=True)
class Policy:
    """A precision for every block of a model.

    The first rule that matches the name of a module decides. A module that no rule matches computes as the module that
    contains it, and the model itself (edge vectors and lengths, sums of energies) always in float64: an empty policy
    is the model in float64. Whatever the rules say, the isolated atoms' energies, and what scales and shifts the
    interaction energy, stay in float64.

    Args:
        rules: In order of precedence.
        tolerance: The errors that it was made for, by quantity, as ``--tolerance`` takes them: ``energy`` eV/atom,
            ``forces`` eV/Å, ``stress`` eV/Å³.
        evidence: What was measured when it was made; JSON values.
        model: Which model it was made for: ``class``, and ``sha256`` of its weights; JSON values.

    Raises:
        InputError: If both float32 and tf32 are asked for: torch has one mode for all matrix products.

    Example:
        >>> policy = Policy((Rule("interactions.0.linear_up", "float32"), Rule("interactions.*", "float16")))
        >>> for name in ("interactions.0", "interactions.0.linear", "interactions.0.linear_up", "products.0"):
        ...     print(name, policy.precision_of(name))
        interactions.0 float16
        interactions.0.linear float16
        interactions.0.linear_up float32
        products.0 float64
        >>> Policy.from_json(policy.to_json()) == policy
        True
    """

    rules: tuple[Rule, ...]
    tolerance: Mapping[str, float] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if {PRECISIONS["float32"], PRECISIONS["tf32"]} <= set(self.precisions):
            raise InputError(
                "A policy has float32 and tf32, but torch computes all float32 matrix products one way or the other. "
                "Choose one of them for all rules."
            )

    def __repr__(self) -> str:
        rules = ", ".join(f"{rule.blocks} {rule.compute}" for rule in self.rules) or "no rules: float64"
        tolerance = ", ".join(f"{name} {limit:g}" for name, limit in self.tolerance.items())
        return f"<Policy: {rules}{f'; made for {tolerance}' if tolerance else ''}>"

    def _repr_html_(self) -> str:
        rules = {rule.blocks: rule.compute for rule in self.rules}
        tolerance = {f"tolerance of {name}": f"{limit:g}" for name, limit in self.tolerance.items()}
        return as_html("Policy", {**rules, "the rest": "float64", **tolerance})

    @classmethod
    def uniform(cls, compute: str) -> "Policy":
        """Every block in one precision.

        Raises:
            InputError: If there is no such precision.
        """
        return cls((Rule("*", compute),))

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Those that the rules name, each once, in order."""
        return tuple(dict.fromkeys(rule.precision for rule in self.rules))

    @property
    def matmul_mode(self) -> str:
        """How float32 matrix products are computed, all of them: torch's ``fp32_precision``."""
        return next((each.matmul_mode for each in self.precisions if each.products_only), "ieee")

    def precision_of(self, name: str) -> Precision:
        """What the module of this name computes in; the model itself has the empty name."""
        parts = name.split(".") if name and name.split(".")[0] not in SUMMED else []
        for depth in range(len(parts), 0, -1):
            for rule in self.rules:
                if rule.matches(".".join(parts[:depth])):
                    return rule.precision
        return PRECISIONS["float64"]

    def assignments(self, names: Iterable[str]) -> dict[str, Precision]:
        """What each of some modules computes in."""
        return {name: self.precision_of(name) for name in names}

    def apply(
        self, model: "ModelSource", device: str | None = None, *, interface: str = "float64"
    ) -> "torch.nn.Module":
        """A copy of a model that computes so: see :func:`precision_probe.variants.mixed.apply`."""
        return _mixed().apply(self, model, device, interface=interface)

    def calculator(
        self,
        model: "ModelSource",
        device: str = "cpu",
        *,
        run: str | None = None,
        interface: str = "float64",
        **options: object,
    ) -> "Calculator":
        """An ASE calculator that computes so: see :func:`precision_probe.fast.drivers.calculator`."""
        return _drivers().calculator(self, model, device, run=run, interface=interface, **options)

    def torch_sim_model(self, model: "ModelSource", device: str | None = None, **options: object) -> "GraphModel":
        """A model for torch-sim that computes so: see :func:`precision_probe.fast.drivers.torch_sim_model`."""
        return _drivers().torch_sim_model(self, model, device, **options)

    def to_json(self) -> str:
        """The policy as JSON text.

        Raises:
            InputError: If the tolerance, the evidence or what is said of the model is no JSON, such as a NaN.
        """
        content = {
            "schema_version": SCHEMA_VERSION,
            "rules": [{key: getattr(rule, key) for key in _RULE_KEYS} for rule in self.rules],
            **{key: dict(getattr(self, key)) for key in _ABOUT},
        }
        try:
            return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise InputError(
                f"The policy cannot be written as JSON ({error}). Its {', '.join(_ABOUT)} hold text, finite numbers, "
                "lists and dictionaries only."
            ) from error

    @classmethod
    def from_json(cls, text: str) -> "Policy":
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError: If it is not a policy.
        """
        return _policy(text, "The policy")

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the policy as JSON; the file appears only when it is complete.

        Args:
            path: Where to.
            force: Replace a file that is there.

        Raises:
            InputError: If the path cannot be written, or is there and ``force`` is not given.
        """
        text = self.to_json()
        path = check_writable(path, force=force)
        with replacing(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Policy":
        """Read a policy from its file.

        Raises:
            InputError: If there is no such file, or it is not a policy.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise InputError(
                f"The policy {path} cannot be read ({why}). Expected is JSON, as save() writes."
            ) from error
        return _policy(text, f"The policy {path}")


class _Mixed(Protocol):
    """What of :mod:`precision_probe.variants.mixed` is used here."""

    def apply(self, policy: Policy, model: "ModelSource", device: str | None, *, interface: str) -> "torch.nn.Module":
        """A copy of a model that computes as a policy says."""


class _Drivers(Protocol):
    """What of :mod:`precision_probe.fast.drivers` is used here."""

    def calculator(
        self,
        policy: Policy,
        model: "ModelSource",
        device: str,
        *,
        run: str | None,
        interface: str,
        **options: object,
    ) -> "Calculator":
        """An ASE calculator that does."""

    def torch_sim_model(
        self, policy: Policy, model: "ModelSource", device: str | None, **options: object
    ) -> "GraphModel":
        """A model for torch-sim that does."""


def _mixed() -> _Mixed:
    """What makes models of policies, found by name: it needs torch, and imports this module."""
    return cast(_Mixed, importlib.import_module("precision_probe.variants.mixed"))


def _drivers() -> _Drivers:
    """What runs them, likewise."""
    return cast(_Drivers, importlib.import_module("precision_probe.fast.drivers"))


_RULE_KEYS = ("blocks", "compute", "accumulate")
_ABOUT = ("tolerance", "evidence", "model")


def _policy(text: str, what: str) -> Policy:
    """Read JSON text; errors begin with what it is, and quote 60 characters of it at most, so that they stay short."""
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError) as error:  # the latter of brackets in brackets in brackets, …
        raise InputError(f"{what} is not JSON ({error}). Expected is what save() writes.") from error
    content = _checked(loaded, ("schema_version", "rules"), _ABOUT, what)
    if (version := content["schema_version"]) != SCHEMA_VERSION:
        raise InputError(
            f"{what} has schema version {version!r:.60}; this precision_probe reads version {SCHEMA_VERSION}. "
            "Read it with the version that wrote it, or make it anew."
        )
    if not isinstance(content["rules"], list):
        raise InputError(f"{what}: its rules are a list; got {content['rules']!r:.60}.")
    for key in _ABOUT:
        if not isinstance(content.get(key, {}), dict):
            raise InputError(f"{what}: its {key} is a dictionary; got {content[key]!r:.60}.")
    for name, limit in content.get("tolerance", {}).items():
        if not _is_number(limit) or not 0 < limit < math.inf:
            raise InputError(
                f"{what}: the tolerance of {name!r:.60} is a number above zero, such as 1e-3; got {limit!r:.60}."
            )
    try:
        rules = tuple(_rule(entry, f"rule {index}") for index, entry in enumerate(content["rules"]))
        return Policy(rules, **{key: content.get(key, {}) for key in _ABOUT})
    except InputError as error:
        raise InputError(f"{what}: {error}") from error


def _rule(loaded: object, what: str) -> Rule:
    """One rule read; what a file says is accumulated in must be what its precision has, since nobody can choose it."""
    entry = _checked(loaded, ("blocks", "compute"), ("accumulate",), what)
    rule = Rule(entry["blocks"], entry["compute"])
    if entry.get("accumulate", rule.accumulate) != rule.accumulate:
        raise InputError(
            f"{what} accumulates in {entry['accumulate']!r:.60}, but what computes in {rule.compute} accumulates in "
            f"{rule.accumulate}. Leave accumulate out, or correct it."
        )
    return rule


def _checked(content: object, needed: tuple[str, ...], optional: tuple[str, ...], what: str) -> dict[str, Any]:
    """A JSON object, once it is known to have the keys that it needs and none that are unknown, such as misspelt ones.

    Raises:
        InputError: If it has not.
    """
    if not isinstance(content, dict):
        raise InputError(f"{what} is a JSON object with the keys {', '.join(needed)}; got {content!r:.60}.")
    allowed = (*needed, *optional)
    for key in content:
        if key not in allowed:
            close = difflib.get_close_matches(key, allowed, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise InputError(f"{what} has an unknown key {key!r}. Allowed: {', '.join(allowed)}.{hint}")
    for key in needed:
        if key not in content:
            raise InputError(
                f"{what} lacks {key!r}. Allowed: {', '.join(allowed)}; of these it needs {', '.join(needed)}."
            )
    return content


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)  # Python counts True among the integers
