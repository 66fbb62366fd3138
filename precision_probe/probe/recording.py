"""What one probe records: observations, and all that is said of the whole trace."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from precision_probe.models.evaluation import Sample
from precision_probe.models.memory import described
from precision_probe.models.targets import Subject
from precision_probe.probe.observation import Observation
from precision_probe.probe.observing.observer import Observer
from precision_probe.probe.observing.to_numpy import sample_arrays
from precision_probe.probe.replay_check import Difference
from precision_probe.probe.weights import Weights
from precision_probe.trace.recorder import Recorder
from precision_probe.trace.recording.resumed import Resumed
from precision_probe.trace.tables import StoredTable
from precision_probe.trace.trace import Trace

__all__ = ["Recording"]


class Recording:
    """The record of a model's variants.

    Args:
        recorder: Where observations go.
        about: Attributes that stay what they are.
        subject: What the model is.
        weights: Which it ran with.
        observer: What its variants are, and what is kept of what they compute.

    Attributes:
        n_unfinished: How many structures were given to ``run()`` and are not recorded yet.
        is_interrupted: Whether the run ended otherwise than it was to end.
        failures: What could not be observed, a sentence each.
        batch_edges: Up to how many edges batches had in the end, if there was no memory for those asked for.
        rounded_calls: Of how many calls the reference got a geometry that a reduced precision had rounded.
    """

    def __init__(
        self, recorder: Recorder, about: Mapping[str, Any], subject: Subject, weights: Weights, observer: Observer
    ) -> None:
        self._recorder, self._about, self._subject, self._weights = recorder, about, subject, weights
        self._observer = observer
        self.n_unfinished = 0
        self.is_interrupted = False
        self.failures: list[str] = []
        self.batch_edges: int | None = None
        self.rounded_calls = 0
        self._n_calls = 0
        self._differences: dict[int, list[Difference]] = {}
        self._notes: list[str] = []
        self._earlier: Mapping[str, Any] = {}
        if recorder.resumed is not None:
            self._go_on(recorder.resumed)
        self.describe()

    def _go_on(self, resumed: Resumed) -> None:
        """Keep what an earlier run said of the structures that it left, if this one is of the same kind.

        Raises:
            InputError: If it is not.
        """
        self._earlier = resumed.attributes
        self._observer.keep = self._observer.keep or str(self._earlier.get("keep", ""))
        now = {**self._about, **self._observer.about(), **self._subject.about}
        resumed.check(now)
        self.failures += self._earlier.get("failures", [])
        self.batch_edges = self._earlier.get("batch_edges_fitting")
        self.rounded_calls = int(self._earlier.get("calls_with_rounded_geometry", 0))
        this = {key: now[key] for key in ("created", "device", "versions")}
        times = [*self._earlier.get("resumed", []), {"n_structures": resumed.n_structures, **this}]
        self._about = {**self._about, "created": self._earlier.get("created", now["created"]), "resumed": times}
        if self._earlier.get("device") != now["device"]:
            self.add_note(
                f"the first {resumed.n_structures} structure(s) were run on {self._earlier.get('device')}, the others "
                f"on {now['device']}."
            )

    def still_to_run(self, samples: Sequence[Sample]) -> list[Sample]:
        """Expect structures, without those at their beginning that an earlier run has recorded, which are left out.

        Raises:
            InputError: If it has recorded others in their place.
        """
        resumed = self._recorder.resumed
        left = [sample for sample in samples if resumed is None or not resumed.passes(sample_arrays(sample))]
        self.n_unfinished += len(left)
        self.describe()
        return left

    def add(self, observation: Observation, *, is_expected: bool = False) -> None:
        """Record a sample and what came of it; of structures that :meth:`still_to_run` expected, or of others."""
        by_species = self._observer.keep == "errors"
        structures = sample_arrays(observation.sample, by_species=by_species)
        self._recorder.add(structures, observation.sizes, observation.predictions, observation.captured)
        self._n_calls += bool(observation.number)
        for precision in observation.lacking:
            self.fail(
                f"{described(observation.sample)} did not fit into the memory in {precision}, and what it lacks is NaN"
            )
        self.n_unfinished -= observation.sizes.structure * is_expected
        self.rounded_calls += observation.is_rounded
        self.describe()
        self._recorder.write_if_due()

    def add_differences(self, call: int, differences: Sequence[Difference]) -> bool:
        """Note what a live call gave otherwise than its replay; whether it is the first that did."""
        if differences:
            self._differences[call] = list(differences)
        return bool(differences) and len(self._differences) == 1

    def fail(self, what: str) -> None:
        """Note what could not be observed, and warn of the first such thing."""
        self.failures.append(what)
        self.describe()
        if len(self.failures) == 1:
            warnings.warn(f"precision_probe: {what}. The run goes on.", RuntimeWarning, stacklevel=2)

    def add_note(self, note: str) -> None:
        """Note what a reader of the results should know."""
        self._notes.append(note)

    def add_tables(self, tables: Mapping[str, StoredTable]) -> None:
        """Keep tables in the trace, in place of any of the same names."""
        self._recorder.tables |= tables

    @property
    def tables(self) -> dict[str, StoredTable]:
        """The tables that were kept."""
        return dict(self._recorder.tables)

    @property
    def notes(self) -> list[str]:
        """What a reader of the results should know: structures without edges, a reference that is not exact."""
        notes = [*self._subject.notes, *self._observer.notes, *self._notes, *self.failures]
        if self._about["model_dtype"] != "float64":
            notes.insert(0, f"the reference is {self._about['reference']}.")
        if self.rounded_calls:
            notes.append(
                f"in {self.rounded_calls} of {self._n_calls} calls the reference has the positions as the call rounded "
                "them: errors do not contain geometry's share. Attach the calculator, or run() the structures."
            )
        if self._differences:
            notes.append(self.difference)
        return list(dict.fromkeys(notes))

    @property
    def difference(self) -> str:
        """What is wrong with a trace some of whose calls were of another model, the first of them named."""
        call, differences = next(iter(self._differences.items()))
        return (
            f"the trace is of another model than the one that was called. In {len(self._differences)} call(s), the "
            f"first of them call {call}, a clone in the model's own precision differs in "
            f"{' and '.join(map(str, differences))}. Look for autocast, tf32, hooks on the model, and attributes or "
            "methods changed since it was attached."
        )

    def describe(self) -> None:
        """Tell the recorder what the trace is of, as of now."""
        wrong_calls = {
            **self._earlier.get("not_of_the_called_model", {}),
            **{
                str(call): {each.quantity: each.largest for each in differences}
                for call, differences in self._differences.items()
            },
        }
        self._recorder.is_interrupted = self.is_interrupted or self.n_unfinished > 0
        self._recorder.attributes = {
            **self._about,
            **self._observer.about(),
            **self._subject.about,
            "complete": not (self.n_unfinished or self.is_interrupted or self.failures or wrong_calls),
            "failures": self.failures,
            "batch_edges_fitting": self.batch_edges,
            "weights_changed": self._weights.have_changed or self._earlier.get("weights_changed", False),
            "not_of_the_called_model": wrong_calls,
            "calls_with_rounded_geometry": self.rounded_calls,
        }

    @property
    def n_structures(self) -> int:
        """How many structures have been recorded."""
        return self._recorder.n_structures

    @property
    def n_resumed(self) -> int:
        """How many of them an earlier run has."""
        return 0 if self._recorder.resumed is None else self._recorder.resumed.n_structures

    @property
    def last_call(self) -> int:
        """Number of the last call that an earlier run has."""
        return 0 if self._recorder.resumed is None else self._recorder.resumed.last_call

    @property
    def has_file(self) -> bool:
        """Whether the trace is written to a file as it grows."""
        return self._recorder.has_file

    @property
    def has_stopped(self) -> bool:
        """Whether nothing more is recorded, as the file cannot be written."""
        return self._recorder.has_stopped

    @property
    def written_to(self) -> Path | None:
        """The file that has what was recorded: the output once it is finished, its ``.partial`` before."""
        return self._recorder.written_to

    @property
    def problem(self) -> str:
        """What went wrong with the file, and where the data are."""
        return self._recorder.problem

    def trace(self) -> Trace:
        """Everything recorded so far."""
        self.describe()
        return self._recorder.trace()

    def save(self) -> None:
        """Finish the file, if there is one."""
        self.describe()
        self._recorder.save()
