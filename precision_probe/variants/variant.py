"""The model cloned into a precision, and run in it."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from precision_probe.models.backends import clone, math_dtype
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.evaluation import (
    AnyModule,
    Evaluation,
    EvaluationOf,
    Prediction,
    Sample,
    interaction_energy,
    mace_evaluation,
)
from precision_probe.models.inputs import Inputs, map_tensors, overwrites
from precision_probe.precisions import Precision
from precision_probe.variants.devices import current, matmul_mode, undisturbed
from precision_probe.variants.rounding import Rounding, generator_of, round_to

__all__ = ["Variant"]


class Variant:
    """A clone of a model in one precision.

    Args:
        model: The model, which is copied and not changed. Hooks on it are not taken along.
        precision: The precision; its dtype becomes that of every floating-point parameter and buffer.
        device: Where the clone lives.
        evaluation: How the model is run; by default as the MACE that it is.
        seed: Of stochastic rounding.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        precision: Precision,
        device: torch.device,
        evaluation: Evaluation | None = None,
        seed: int = 0,
    ) -> None:
        self.precision = precision
        self.device = device
        self.seed = seed
        self.dtype: torch.dtype = getattr(torch, precision.dtype)
        with undisturbed():
            self.model = clone(model, self.dtype, device)
        self._generator = generator_of(precision, device, seed)
        self._round_weights()
        self.math_dtype = str(math_dtype(model, self.dtype, device)).removeprefix("torch.")
        self._is_given_copies = overwrites(model)
        # Samples are of the kind that the evaluation takes: whoever makes a variant for both sees to that.
        self._evaluation: EvaluationOf[Any, Any] = evaluation or mace_evaluation(model)

    def draw_anew(self, number: int) -> None:
        """Let stochastic rounding go on with random numbers that depend on the seed and this number alone.

        So what comes of one structure does not depend on which ran before it, nor on how often that was timed; but the
        first evaluation of a process draws otherwise, as TorchScript compiles a model in the second.
        """
        if self._generator is not None:
            self._generator.manual_seed(self.seed * 2**32 + number + 1)

    def follow(self, model: torch.nn.Module) -> None:
        """Take over the present weights and buffers of the model that this is a clone of."""
        theirs = _tensors(model)
        with undisturbed(), torch.no_grad():
            for name, own in _tensors(self.model).items():
                own.copy_(theirs[name])
        self._round_weights()

    def follow_mode(self, model: torch.nn.Module) -> None:
        """Take over which modules are in training, as dropout and batch normalisation depend on it."""
        for own, theirs in zip(self.model.modules(), model.modules(), strict=False):  # parts added since have no clone
            if own.training != theirs.training:
                own.training = theirs.training

    @property
    def takes_graphs(self) -> bool:
        """Whether it is a MACE, which is run on graphs and leaves what it is given as it is."""
        return not isinstance(self._evaluation, AnyModule)

    @property
    def differentiates(self) -> bool:
        """Whether predicting differentiates what blocks are given the gradients of."""
        return self._evaluation.differentiates

    def predict(self, sample: Sample) -> Prediction:
        """What the bare model gives: no block is hooked."""
        with self.arithmetic():
            try:
                return self.predict_within(sample)
            except RuntimeError as error:
                # a module may overwrite what it is called with, but nobody a tensor that gradients are asked for
                if self._is_given_copies or "leaf Variable that requires grad" not in str(error):
                    raise
                self._is_given_copies = True
                return self.predict_within(sample)

    def predict_within(self, sample: Sample) -> Prediction:
        """The same where :meth:`arithmetic` is on already."""
        data = self._cast(sample)
        start = self._now()
        values = self._evaluation.predict(self.model, data, sample)
        return Prediction(values, self._now() - start)

    def call(self, data: Mapping[str, torch.Tensor], **options: bool) -> dict[str, torch.Tensor | None]:
        """What the bare MACE returns, for callers that see to all but its arithmetic and launch it as a graph.

        Args:
            data: What it is called with, cast to its dtype.
            options: As its ``forward`` takes them.

        Returns:
            The same, with ``interaction_energy`` where there is one.
        """
        given = map_tensors(self._rounded, dict(data))  # before operations are, of which rounding itself is made
        with self._rounds():
            out = self.model(given, **options)
            return {**out, "interaction_energy": interaction_energy(out)}  # where it is a sum, that is rounded too

    def differentiable(self, sample: Sample) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The outputs that block gradients are of, on their autograd graph, each with its cotangent."""
        return self._evaluation.differentiable(self.model, self._cast(sample), sample)

    def with_cotangents(
        self, sample: Sample, cotangents: Mapping[str, torch.Tensor], options: Mapping[str, object]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The outputs of a training call, on their autograd graph, with the cotangents that a loss gave them."""
        outputs = self._evaluation.with_cotangents(self.model, self._cast(sample), sample, cotangents, options)
        return [(y, cotangent.to(y)) for y, cotangent in outputs]

    @contextlib.contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Compute as the precision says, whatever surrounds this: autocast, inference mode, matmul flags or a dtype.

        The default dtype is set since multi-head readouts rely on it. It and the matmul flags are those of the whole
        process: no other thread is to compute meanwhile.

        What is random, as dropout is, starts from the present random state in every variant and leaves that alone.
        """
        cuda = [self.device] if self.device.type == "cuda" else []
        with (
            undisturbed(),
            current(self.device),
            torch.random.fork_rng(devices=cuda),
            self._kept_buffers(),
            self._rounds(),
        ):
            yield

    @contextlib.contextmanager
    def _rounds(self) -> Iterator[None]:
        """Round as the precision says, and nothing else."""
        emulation = Rounding(self.precision, self._generator) if self.precision.emulated else contextlib.nullcontext()
        with matmul_mode(self.precision.matmul_mode), default_dtype(self.dtype), emulation:
            yield

    @contextlib.contextmanager
    def _kept_buffers(self) -> Iterator[None]:
        """Undo what a run in training writes into buffers, as batch normalisation does: the next begins as this did."""
        is_training = any(part.training for part in self.model.modules())
        kept = [(buffer, buffer.clone()) for buffer in self.model.buffers()] if is_training else []
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in kept:
                    buffer.copy_(before)

    def _cast(self, sample: Sample) -> dict[str, torch.Tensor] | Inputs:
        """A sample's data in this precision, as results of other operations where the model overwrites them."""
        data = sample.cast(self.dtype)
        if not isinstance(data, Inputs):
            return map_tensors(self._rounded, data)
        data = data.changed(self._rounded)
        return data.changed(torch.clone) if self._is_given_copies else data

    def _round_weights(self) -> None:
        with torch.no_grad():
            for tensor in _tensors(self.model).values():
                if self.precision.emulated and tensor.is_floating_point():
                    tensor.copy_(self._rounded(tensor))

    def _rounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same numbers in an emulated format; in any other precision they were cast already."""
        if not self.precision.emulated or not tensor.is_floating_point():
            return tensor
        return round_to(tensor.detach(), self.precision, self._generator).requires_grad_(tensor.requires_grad)

    def _now(self) -> float:
        """Seconds on a clock, once the GPU has done what it was given: calls return before it has."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A model's parameters and buffers by name, those that its state does not list included."""
    return dict((*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)))
