"""Policies measured: what each does to energies, forces and stress, how long it takes, and how much memory."""

import json
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias, TypeVar

import pandas as pd
import torch

from precision_probe.diagnostics.reference import Reference
from precision_probe.measurement_log import MeasurementLog
from precision_probe.models.graphs import Graph
from precision_probe.policy import Policy
from precision_probe.precisions import PRECISIONS
from precision_probe.progress import counted, shown
from precision_probe.search.paired_times import MIN_ROUNDS
from precision_probe.search.timing import Timed, side_by_side
from precision_probe.variants.mixed import Assembly, MixedModel, MixedVariant, check_interface
from precision_probe.variants.variant import Variant

__all__ = ["CAST", "Candidates", "Elsewhere"]

CAST = "model.to({})"  # name of a model that is cast as a whole, as people do today

# Measures the errors of policies, given by name, in other processes: names, each with its errors, as they are done
Elsewhere: TypeAlias = Callable[[Mapping[str, Policy]], Iterator[tuple[str, pd.DataFrame]]]

Name = TypeVar("Name", bound=Hashable)


class Candidates:
    """Measures policies, and casts of the model, on structures, each once.

    Args:
        reference: A model and structures.
        log: A file of errors measured before, which is added to; so an interrupted search goes on where it was.
        interface: What models under a policy take and give, as :func:`precision_probe.variants.mixed.apply` has it; of
            float32, what is measured includes that callers round the structures first.
        force: Begin the log anew if it is of other structures or heads, another model, interface or device.
        elsewhere: What measures errors in other processes, where there are such; times are always measured here.

    Attributes:
        n_runs: How often the model was run to measure errors.

    Raises:
        InputError: If the log cannot be used, or is of something else and there is no ``force``.
    """

    def __init__(
        self,
        reference: Reference,
        log: Path | None = None,
        interface: str = "float64",
        *,
        force: bool = False,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.reference, self.interface, self._elsewhere = reference, interface, elsewhere
        self.n_runs = 0
        self._casts: dict[str, Variant] = {}
        self._dtype = check_interface(interface)
        self._assembly = Assembly(reference.model, reference.device, self._dtype)
        of = {"log": "recommend", **reference.about(), "interface": interface}
        self._known = MeasurementLog(log, of, force=force)

    def model(self, policy: Policy) -> MixedModel:
        """The model under a policy."""
        return self._assembly.model(policy)

    def variant(self, policy: Policy) -> MixedVariant:
        """The same, to predict with."""
        return MixedVariant(self.model(policy), self.reference.device)

    def errors(self, policy: Policy) -> pd.DataFrame:
        """Errors for each structure, as :meth:`precision_probe.reference.Reference.errors_by_structure` has them."""
        return self._errors(_key(policy), lambda: self.variant(policy))

    def errors_of(
        self, policies: Mapping[Name, Policy], description: str, *, progress: bool
    ) -> dict[Name, pd.DataFrame]:
        """The same of several policies, by their names, which are counted under this description."""
        unknown = {key: policy for policy in policies.values() if (key := _key(policy)) not in self._known}
        if self._elsewhere is not None and unknown:
            with counted(len(unknown), description, progress=progress) as told:
                for n_done, (key, table) in enumerate(self._elsewhere(unknown), 1):
                    self._keep(key, table)
                    told(n_done)
        names = shown(list(policies), description, progress=progress)
        return {name: self.errors(policies[name]) for name in names}

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
            self._keep(key, self.reference.errors_by_structure(made().predict))
        return pd.DataFrame(self._known[key], dtype=float)

    def _keep(self, key: str, table: pd.DataFrame) -> None:
        """Remember what was measured, here or elsewhere."""
        self.n_runs += len(table)
        self._known.add(key, {str(name): values.tolist() for name, values in table.items()})

    def _cast(self, name: str) -> Variant:
        if name not in self._casts:
            reference, is_reference = self.reference, name == "float64"
            made = reference.variant if is_reference else Variant(reference.model, PRECISIONS[name], reference.device)
            self._casts[name] = made
        return self._casts[name]


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
