"""Policies measured: what each does to energies, forces and stress, how long it takes, and how much memory."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import pandas as pd
import torch

from precision_probe.diagnostics.reference import Reference
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.backends import backend
from precision_probe.models.graphs import Graph
from precision_probe.policy import Policy
from precision_probe.precisions import PRECISIONS
from precision_probe.search.paired_times import MIN_ROUNDS
from precision_probe.search.timing import Timed, side_by_side
from precision_probe.variants.mixed import Assembly, MixedModel, MixedVariant, check_interface
from precision_probe.variants.variant import Variant

__all__ = ["CAST", "Candidates"]

CAST = "model.to({})"  # name of a model that is cast as a whole, as people do today


class _Entry(TypedDict):
    """A line of the log: what was measured, and its errors by quantity, one for each structure."""

    rules: str
    errors: dict[str, list[float]]


class Candidates:
    """Measures policies, and casts of the model, on structures, each once.

    Args:
        reference: A model and structures.
        log: A file of errors measured before, which is added to; so an interrupted search goes on where it was. It is
            begun anew if it is of other structures or heads, another model, interface or device, and not touched before
            something is measured.
        interface: What models under a policy take and give, as :func:`precision_probe.variants.mixed.apply` has it; of
            float32, what is measured includes that callers round the structures first.

    Attributes:
        n_runs: How often the model was run to measure errors.
    """

    def __init__(self, reference: Reference, log: Path | None = None, interface: str = "float64") -> None:
        self.reference, self.interface = reference, interface
        self.n_runs = 0
        self._casts: dict[str, Variant] = {}
        self._dtype = check_interface(interface)
        self._assembly = Assembly(reference.model, reference.device, self._dtype)
        self._log = log
        self._kept: list[dict[str, str] | _Entry] = []  # of the log, to be written anew before anything is added
        self._known = self._read_log()

    def model(self, policy: Policy) -> MixedModel:
        """The model under a policy."""
        return self._assembly.model(policy)

    def variant(self, policy: Policy) -> MixedVariant:
        """The same, to predict with."""
        return MixedVariant(self.model(policy), self.reference.device)

    def errors(self, policy: Policy) -> pd.DataFrame:
        """Errors for each structure, as :meth:`precision_probe.reference.Reference.errors_by_structure` has them."""
        return self._errors(_key(policy), lambda: self.variant(policy))

    def cast_errors(self, precision: str) -> pd.DataFrame:
        """The same of the model cast as a whole."""
        return self._errors(CAST.format(precision), lambda: self._cast(precision))

    def timed(
        self,
        policies: Mapping[str, Policy],
        casts: tuple[str, ...] = (),
        *,
        stress: bool = False,
        rounds: int = MIN_ROUNDS,
    ) -> dict[str, Timed]:
        """Times of energy and forces of the largest structure, side by side.

        Args:
            policies: By name.
            casts: Precisions of models cast as a whole; :data:`CAST` says what their names are.
            stress: Whether virials are computed too.
            rounds: How often each is timed.
        """
        graph = max(self.reference.graphs, key=lambda graph: graph.n_atoms)
        options = {"compute_virials": True} if stress else {}
        calls: dict[str, Callable[[], object]] = {}
        for name, policy in policies.items():
            calls[name] = _call(self.model(policy), graph, self._dtype, options)
        for name in casts:
            variant = self._cast(name)
            calls[CAST.format(name)] = _in_arithmetic(variant, _call(variant.model, graph, variant.dtype, options))
        return side_by_side(calls, self.reference.device, rounds=rounds)

    def _errors(self, key: str, made: Callable[[], MixedVariant | Variant]) -> pd.DataFrame:
        """The errors of what a function makes, which is called only if they are not known under this key."""
        if key not in self._known:
            table = self.reference.errors_by_structure(made().predict)
            self.n_runs += len(table)
            self._known[key] = {str(name): values.tolist() for name, values in table.items()}
            self._append({"rules": key, "errors": self._known[key]})
        return pd.DataFrame(self._known[key], dtype=float)

    def _cast(self, name: str) -> Variant:
        if name not in self._casts:
            reference, is_reference = self.reference, name == "float64"
            made = reference.variant if is_reference else Variant(reference.model, PRECISIONS[name], reference.device)
            self._casts[name] = made
        return self._casts[name]

    def _read_log(self) -> dict[str, dict[str, list[float]]]:
        """What was measured before by the same model on the same structures, by key."""
        if self._log is None:
            return {}
        text = self._log.read_bytes().decode(errors="replace") if self._log.exists() else ""
        header = self._header()
        first, *entries = _complete(text) or [None]
        if first != header:
            entries = []
        self._kept = [header, *entries]
        return {entry["rules"]: entry["errors"] for entry in entries}

    def _append(self, entry: _Entry) -> None:
        """Write an entry at the end of the log, so that it is kept whatever happens next."""
        if self._log is None:
            return
        new = [*self._kept, entry]  # the first time what was kept too: the file may end in a line that is cut off
        with self._log.open("w" if self._kept else "a", encoding="utf-8") as file:
            file.writelines(json.dumps(each) + "\n" for each in new)
        self._kept = []

    def _header(self) -> dict[str, str]:
        """What errors depend on."""
        reference = self.reference
        digest = hashlib.sha256()
        for graph in reference.graphs:
            for key, tensor in sorted(graph.data.items()):
                digest.update(f"{key} {tuple(tensor.shape)}".encode() + tensor.detach().cpu().numpy().tobytes())
        return {
            "model": weights_sha256(reference.model),
            "backend": backend(reference.model),
            "device": str(reference.device),
            "interface": self.interface,
            "structures": digest.hexdigest(),
        }


def _complete(text: str) -> list[Any]:
    """The lines that are JSON, up to the first that is not: an interruption may have cut off the last."""
    entries = []
    for line in text.splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def _key(policy: Policy) -> str:
    return json.dumps([[rule.blocks, rule.compute] for rule in policy.rules])


def _call(
    model: torch.nn.Module, graph: Graph, dtype: torch.dtype, options: Mapping[str, bool]
) -> Callable[[], object]:
    return lambda: model(graph.cast(dtype), **options)


def _in_arithmetic(variant: Variant, call: Callable[[], object]) -> Callable[[], object]:
    """The same call in the variant's mode of matrix products, which it has set while the call runs."""

    def run() -> object:
        with variant.arithmetic():
            return call()

    return run
