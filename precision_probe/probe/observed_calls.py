"""Calls of a live model: each that is chosen is replayed in every variant, and recorded."""

import contextlib
import logging
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping

import torch

from precision_probe.models.targets import Subject
from precision_probe.probe.live_calls import Calls, on_loss_gradients, training_options
from precision_probe.probe.observation import Observation, RandomState
from precision_probe.probe.observing.observer import Observer
from precision_probe.probe.own_precision import OwnPrecision
from precision_probe.probe.recording import Recording
from precision_probe.probe.turns import TURNS
from precision_probe.probe.weights import Weights
from precision_probe.variants.devices import undisturbed

__all__ = ["ObservedCalls"]

_LOG = logging.getLogger(__name__)


class ObservedCalls:
    """What is done with the calls of an attached model; hooks tell of them, one at a time.

    Args:
        model: The model.
        device: Where its variants run.
        calls: Which of its calls are observed.
        subject: What it is.
        observer: What runs its variants.
        own: The clone in the model's own precision, with which calls are compared.
        weights: What lets the variants follow the model.
        recording: Where observations go.
        time: Whether evaluations are timed; ``None``: where one without hooks is needed anyway.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        device: torch.device,
        calls: Calls,
        subject: Subject,
        observer: Observer,
        own: OwnPrecision,
        weights: Weights,
        recording: Recording,
        *,
        time: bool | None,
    ) -> None:
        self._model, self._device, self._calls, self._subject = model, device, calls, subject
        self._observer, self._own, self._weights, self._recording = observer, own, weights, recording
        self._repeats = int(not observer.predicts_as_it_captures if time is None else time)
        self._waiting: Observation | None = None  # a call of a model in training, for its loss

    def before_call(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Observation | None:
        """Note what the attached model is called with, as MACE changes its input in place, and with which weights."""
        self.finish()
        with self._without_harm():
            if self._calls.chooses_next(args, kwargs):
                with undisturbed():
                    self._weights.follow()
                    given = self._subject.sample_of_call(args, kwargs, f"call {self._calls.number}")
                    return Observation(
                        given.sample.to(self._device),
                        training=training_options(self._model, args, kwargs),
                        number=self._calls.number,
                        random_state=RandomState(self._device),
                        is_rounded=given.is_rounded,
                    )
        return None

    def after_call(self, call: object, returned: object) -> None:
        """Replay the call in every variant, and wait for what a loss makes of it if the model is in training."""
        if not isinstance(call, Observation) or call.random_state is None:
            return
        with self._without_harm(call.number):
            start = time.monotonic()
            with undisturbed(), call.random_state.restored():
                observed = self._observer.observe(call.sample, repeats=self._repeats, number=call.number)
                call.predictions, call.captured = observed.predictions, observed.captured
                call.lacking = observed.lacking
                if not call.lacking:
                    self._compare(call, returned)
            _LOG.debug("call %s took %.3g s", call.number, time.monotonic() - start)
            if call.training is None:
                self._recording.add(call)
                return
            held = weakref.ref(self)

            def tell(cotangents: dict[str, torch.Tensor]) -> None:
                if (observing := held()) is not None:
                    observing._after_loss(call, cotangents)

            call.handle = on_loss_gradients(returned, tell)
            self._waiting = call

    def call_failed(self, call: object) -> None:
        """Forget a call that returned nothing."""
        if isinstance(call, Observation):
            self._calls.has_failed()

    def finish(self) -> None:
        """Record the call that waits for a loss, if one does: the loss did not come, or came."""
        call, self._waiting = self._waiting, None
        if call is not None:
            if call.handle is not None:
                call.handle.remove()
            with self._without_harm(call.number):
                self._recording.add(call)

    def _compare(self, call: Observation, returned: object) -> None:
        """Note if the call gave other numbers than its replay in the model's own precision; warn of the first."""
        differences = self._own.differences(returned, call.sample, call.predictions)
        if self._recording.add_differences(call.number, differences):
            warnings.warn(f"precision_probe: {self._recording.difference}", RuntimeWarning, stacklevel=2)
        if self._own.note:
            self._recording.add_note(self._own.note)

    def _after_loss(self, call: Observation, cotangents: dict[str, torch.Tensor]) -> None:
        """Record a call with the gradients of its loss."""
        with TURNS.taken():  # a backward pass is no call of the model
            if call is not self._waiting or call.training is None or call.random_state is None:
                return
            with self._without_harm(call.number), call.random_state.restored():
                call.captured |= self._observer.loss_gradients(call.sample, cotangents, call.training)
            self.finish()

    @contextlib.contextmanager
    def _without_harm(self, number: int | None = None) -> Iterator[None]:
        """Keep a failure to observe a call from the user's own run: note it, and warn of the first."""
        try:
            yield
        except Exception as error:
            number = number or self._calls.number
            self._recording.fail(f"call {number} could not be observed ({type(error).__name__}: {error})")
