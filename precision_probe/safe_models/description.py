"""What a file in the safe format says of its model, as JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

from precision_probe.policy import Policy
from precision_probe.safe_models.schema import UnfitError, check

__all__ = ["SCHEMA_VERSION", "Adapters", "Description", "Plain"]

SCHEMA_VERSION = 1
Plain: TypeAlias = "bool | int | float | str | list[Plain] | dict[str, Plain] | None"  # what JSON holds
_LONGEST = 1_000_000  # characters; of 89 elements and 2 heads it takes some 6,000


@dataclass(frozen=True)
class Adapters:
    """LoRA layers, as mace-torch injects them.

    Attributes:
        rank: Of each.
        alpha: What their sum is scaled by, times the rank.
    """

    rank: int
    alpha: float


@dataclass(frozen=True)
class Description:
    """What a model is built from, beside its tensors.

    Attributes:
        architecture: As :func:`precision_probe.models.building.build` takes it.
        attributes: Values that parts of the model have and its class does not give them, by the dotted name of each.
        absent: The buffers that models of its class have and it has not.
        frozen: The parameters that require no gradient.
        adapters: Of a model with LoRA layers.
        policy: Of a model in mixed precision, what its blocks compute in; the rest then describes the model that it was
            made from.
        interface: Of a model in mixed precision, what it takes and gives.
        sha256: Of the names, dtypes, shapes and bytes of the tensors.
    """

    architecture: Mapping[str, Any]
    attributes: Mapping[str, Plain] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    adapters: Adapters | None = None
    policy: Policy | None = None
    interface: str | None = None
    sha256: str = ""

    def to_json(self) -> str:
        """The description as JSON text.

        Raises:
            UnfitError: If a value is none that JSON has, such as a NaN or an object.
        """
        content = {name.name: getattr(self, name.name) for name in fields(self)} | {
            "schema_version": SCHEMA_VERSION,
            "architecture": dict(self.architecture),
            "attributes": dict(self.attributes),
            "absent": list(self.absent),
            "frozen": list(self.frozen),
            "adapters": None if self.adapters is None else vars(self.adapters),
            "policy": None if self.policy is None else json.loads(self.policy.to_json()),
        }
        try:
            return json.dumps(content, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UnfitError(f"it cannot be described in JSON ({error})") from error

    @classmethod
    def from_json(cls, text: str) -> "Description":
        """Read what :meth:`to_json` wrote.

        Raises:
            UnfitError: If it is not that, or a value of it is not one that a MACE can have.
        """
        if len(text) > _LONGEST:
            raise UnfitError(f"its description has {len(text):,} characters, more than {_LONGEST:,}")
        try:
            content = json.loads(text, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise UnfitError(f"its description is not JSON ({error})") from error
        if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
            version = content.get("schema_version") if isinstance(content, dict) else None
            raise UnfitError(
                f"its description has the schema version {version!r:.20}, and this version of precision-probe reads "
                f"{SCHEMA_VERSION}"
            )
        check(content)
        adapters, policy = content["adapters"], content["policy"]
        return cls(
            content["architecture"],
            content["attributes"],
            tuple(content["absent"]),
            tuple(content["frozen"]),
            None if adapters is None else Adapters(**adapters),
            None if policy is None else Policy.from_json(json.dumps(policy)),
            content["interface"],
            content["sha256"],
        )


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")
