"""Policies measured: what each does to energies, forces and stress, how long it takes, and how much memory."""

import json
import logging
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import pandas as pd

from precision_probe.diagnostics.reference import Reference
from precision_probe.measurement_log import MeasurementLog
from precision_probe.models.memory import attempt
from precision_probe.policy import Policy
from precision_probe.precisions import PRECISIONS
from precision_probe.progress import counted, shown
from precision_probe.search.operations import Operations, count
from precision_probe.search.paired_times import MIN_ROUNDS
from precision_probe.search.proposals import DO_NOTHING
from precision_probe.search.running.calling import Launches, called
from precision_probe.search.running.rivals import Rival
from precision_probe.search.timing import Timed, peak_bytes, side_by_side
from precision_probe.variants.mixed import Assembly, MixedModel, MixedVariant, check_interface
from precision_probe.variants.variant import Variant

__all__ = ["CAST", "Candidates", "Elsewhere", "runs_as"]

_LOG = logging.getLogger(__name__)

CAST = "model.to({})"  # name of a model that is cast as a whole, as people do today
_N_WARM_UP = 2  # calls, in which TorchScript compiles; before, it does other operations

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
        run: How models are called when they are timed: ``eager``, or launched as one CUDA ``graph`` each.
        rivals: What people run otherwise, by name; measured and timed beside casts of the model.

    Attributes:
        n_runs: How often the model was run to measure errors.
        rivals: As they were given.

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
        run: str = "eager",
        rivals: Mapping[str, Rival] | None = None,
    ) -> None:
        self.reference, self.interface, self.run, self._elsewhere = reference, interface, run, elsewhere
        self.rivals = dict(rivals or {})
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
        return self._errors_of(_key(policy), lambda: self._predicted(self.variant(policy)))

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
        return self._errors_of(CAST.format(precision), lambda: self._predicted(self._cast(precision)))

    def rival_errors(self, name: str) -> pd.DataFrame:
        """The same of a rival; NaN if the memory does not suffice for it."""
        found = attempt(self._errors_of, name, self.rivals[name].errors)
        return found if found is not None else self.errors(Policy(())) * np.nan

    def timed(
        self,
        policies: Mapping[str, Policy],
        casts: tuple[str, ...] = (),
        *,
        stress: bool = False,
        rounds: int = MIN_ROUNDS,
    ) -> dict[str, Timed]:
        """Times of energy and forces of the largest structure, side by side; beside casts, also those of rivals.

        Args:
            policies: By name.
            casts: Precisions of models cast as a whole; :data:`CAST` says what their names are.
            stress: Whether virials are computed too.
            rounds: How often each is timed.
        """
        graph = max(self.reference.graphs, key=lambda graph: graph.n_atoms)
        options = {"compute_virials": True} if stress else {}
        device = self.reference.device
        models = {name: self.model(policy) for name, policy in policies.items()}
        variants = {name: self._cast(name) for name in casts}
        eager = {name: called(model, graph, self._dtype, options) for name, model in models.items()}
        eager |= {
            CAST.format(name): called(variant.call, graph, variant.dtype, options) for name, variant in variants.items()
        }
        others = {name: rival.call(graph) for name, rival in self.rivals.items() if casts}
        if self.run == "eager":
            return side_by_side(eager | others, device, rounds=rounds)
        launches = Launches(graph, stress=stress, device=device)
        calls = {name: launches.launched(model) for name, model in models.items()}
        for name, variant in variants.items():
            calls[CAST.format(name)] = launches.launched(variant.model, variant.call)
        timed = side_by_side(calls | others, device, rounds=rounds)
        # a graph allocates nothing when it runs: what it holds is about what the same call takes as it is
        return {
            name: each if name not in eager else replace(each, peak_bytes=peak_bytes(eager[name], device))
            for name, each in timed.items()
        }

    def operations(self, policy: Policy) -> Operations:
        """How many operations energy and forces of the smallest structure take in float64 and in lower precisions."""
        graph = min(self.reference.graphs, key=lambda graph: graph.n_atoms)
        call = called(self.model(policy), graph, self._dtype, {})
        for _ in range(_N_WARM_UP):
            call()
        return count(call)

    def _predicted(self, variant: MixedVariant | Variant) -> pd.DataFrame:
        return self.reference.errors_by_structure(variant.predict)

    def _errors_of(self, key: str, measured: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The errors that a function measures, which is called only if they are not known under this key."""
        if key not in self._known:
            start = time.monotonic()
            self._keep(key, measured())
            _LOG.debug("errors of %s took %.3g s", key, time.monotonic() - start)
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


def runs_as(name: str) -> str:
    """The row whose costs are those of a policy: to do nothing is to run the model as it is."""
    return CAST.format("float64") if name == DO_NOTHING else name


def _key(policy: Policy) -> str:
    return json.dumps([[rule.blocks, rule.compute] for rule in policy.rules])
