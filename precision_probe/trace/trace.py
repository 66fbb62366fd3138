"""The trace in memory (an xarray ``DataTree``) and on disk (one HDF5 file, readable as netCDF-4).

Nothing here imports torch or mace: a trace made on a GPU node is analysed on a laptop. ``docs/trace-schema.md``
describes every group and variable.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr

from precision_probe.exceptions import InputError, printable
from precision_probe.files import check_writable, replacing
from precision_probe.notebook import as_html
from precision_probe.precisions import Precision, parse_precision
from precision_probe.trace.schema import ERRORS, LOSS, MODES, SCHEMA_VERSION, TABLES
from precision_probe.trace.tables import StoredTable, from_dataset, to_dataset
from precision_probe.trace.transaction import making
from precision_probe.trace.variables import write_tree

__all__ = ["LOSS", "MODES", "SCHEMA_VERSION", "TABLES", "Trace", "encoded"]


class Closable(Protocol):
    """What can be closed."""

    def close(self) -> None:
        """Close it."""


class Trace:
    """Everything one run captured, with provenance.

    Args:
        tree: The groups ``/structures``, ``/propagated/<precision>``, ``/isolated/<precision>`` and
            ``/tables/<name>``.
        file: What the tree is read from, if anything: it is closed with the trace.

    Attributes:
        tree: The same, for xarray's own methods.
    """

    def __init__(self, tree: xr.DataTree, file: Closable | None = None) -> None:
        self.tree = tree
        self._file = file

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name = printable(self.attributes.get("model_name", "?"))
        return (
            f"<Trace of {name}: {self.structures.sizes.get('structure', 0)} structures, "
            f"{len(self.blocks)} blocks, {', '.join(map(str, self.precisions))}>"
        )

    def _repr_html_(self) -> str:
        about = self.attributes
        return as_html(
            f"Trace of {about.get('model_name', '?')}",
            {
                "structures": self.structures.sizes.get("structure", 0),
                "atoms": self.structures.sizes.get("atom", 0),
                "precisions": ", ".join(map(str, self.precisions)),
                "blocks": ", ".join(self.blocks),
                "modes": ", ".join(self.modes),
                "kept": about.get("keep", "?"),
                "tables": ", ".join(self.tables) or "none",
                "complete": about.get("complete", "?"),
                "device": about.get("device", "?"),
            },
        )

    @property
    def attributes(self) -> dict[str, Any]:
        """Provenance: versions, device, model, precisions, blocks, …, as Python values."""
        return {str(key): _decoded(value) for key, value in self.tree.attrs.items()}

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions compared with float64, in the order asked for."""
        return tuple(parse_precision(name) for name in self.attributes["precisions"] if name != "float64")

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks that were captured, in the order in which the model runs them."""
        return tuple(self.attributes["blocks"])

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes in which blocks were captured, and ``loss`` where the attached model was trained."""
        has_loss = LOSS in self.tree or self.has_group(ERRORS, LOSS)
        return (*self.attributes["modes"], *([LOSS] if has_loss else []))

    @property
    def keeps_errors(self) -> bool:
        """Whether it has errors of the blocks' arrays, and not the arrays."""
        return ERRORS in self.tree

    @property
    def structures(self) -> xr.Dataset:
        """What was run: names, atoms, positions, cells, reference labels."""
        return self.tree["structures"].to_dataset()

    def group(self, mode: str, precision: str | Precision) -> xr.Dataset:
        """What one precision gave in one mode.

        Raises:
            KeyError: If the trace has no such group.

        The group is a view: nothing is read from disk before it is used.
        """
        return self.tree[f"{mode}/{precision}"].to_dataset()

    def has_group(self, mode: str, precision: str | Precision) -> bool:
        """Whether the trace has the group that :meth:`group` gives."""
        return f"/{mode}/{precision}" in self.tree.groups

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables that explain the errors, where the run was asked for them."""
        return tuple(self.tree[TABLES].children) if TABLES in self.tree else ()

    def table(self, name: str) -> StoredTable:
        """One of them.

        Raises:
            InputError: If the trace has no such table.
        """
        if name not in self.tables:
            has = f"It has {', '.join(self.tables)}." if self.tables else "It has none: audit with --explain."
            raise InputError(f"The trace has no table {name!r}. {has}")
        return from_dataset(self.tree[f"{TABLES}/{name}"].to_dataset())

    def with_tables(self, tables: Mapping[str, StoredTable]) -> "Trace":
        """The same trace with more tables, or others of the same names; what was saved is not changed."""
        groups = {f"/{TABLES}/{name}": to_dataset(name, table) for name, table in tables.items()}
        kept = {node.path: node.to_dataset(inherit=False) for node in self.tree.subtree if node.path not in groups}
        return Trace(xr.DataTree.from_dict(kept | groups))

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the trace; the file appears only when it is complete.

        Args:
            path: Where to.
            force: Replace a file that is there.

        Raises:
            InputError: If the path cannot be written, or is there and ``force`` is not given.
        """
        path = check_writable(path, force=force)
        with replacing(path) as unfinished, making(unfinished, is_last=True) as file:
            write_tree(file, self.tree)
        return path

    def close(self) -> None:
        """Close the file that the trace was opened from, if any."""
        self.tree.close()
        if self._file is not None:
            self._file.close()


def encoded(value: object) -> str | int | float:
    """An attribute as netCDF can hold it: a number or text as it is, anything else as JSON."""
    if isinstance(value, str):
        return json.dumps(value) if _is_json(value) else value
    return value if isinstance(value, int | float) and not isinstance(value, bool) else json.dumps(value)


def _decoded(value: object) -> Any:
    """What was encoded, as Python has it."""
    if isinstance(value, np.generic):
        return value.item()
    return json.loads(value) if isinstance(value, str) and _is_json(value) else value


def _is_json(text: str) -> bool:
    """Whether text is read as JSON: so encoded, where it only looks so, it is quoted."""
    return text.startswith(("[", "{", '"')) or text in ("true", "false", "null")
