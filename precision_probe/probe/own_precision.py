"""The clone of an attached model in the model's own dtype, with whose replay each live call is compared."""

from collections.abc import Callable, Mapping, Sequence

import torch

from precision_probe.models.evaluation import Sample
from precision_probe.models.inputs import named_tensors
from precision_probe.precisions import PRECISIONS, Precision
from precision_probe.probe.observing.to_numpy import predicted_arrays
from precision_probe.probe.replay_check import Difference, live_values, unexplained
from precision_probe.trace.arrays import ModelArray
from precision_probe.variants.variant import Variant

__all__ = ["OwnPrecision"]


class OwnPrecision:
    """A model in its own dtype: the variant in it, or where there is none one more clone.

    Args:
        model: The model.
        variants: Its variants, the reference first.
        make: Makes another, of a module in a precision.

    Attributes:
        extra: The clone that is none of the variants.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        variants: Sequence[Variant],
        make: Callable[[torch.nn.Module, Precision], Variant],
    ) -> None:
        self._reference, self._make = variants[0], make
        self._names = {variant.precision.name for variant in variants}
        tensors = (*model.parameters(), *model.buffers())
        self._dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
        self.extra: Variant | None = None
        precision = _precision_of(self._dtypes)
        if precision is not None and precision.name not in self._names:
            self.extra = make(model, precision)  # now, as what a model is beside its weights cannot be followed

    @property
    def note(self) -> str:
        """Why calls are not compared; empty where they are."""
        if not self._dtypes or _precision_of(self._dtypes) is not None:
            return ""
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in self._dtypes))
        return f"the model holds {names}: its calls are not compared with a replay in the model's own precision."

    def differences(
        self, returned: object, sample: Sample, predictions: Mapping[str, list[ModelArray]]
    ) -> list[Difference]:
        """What a live call returned otherwise than its replay, by more than rounding explains.

        Args:
            returned: What it returned.
            sample: What it was called with.
            predictions: What the variants predict, by precision.
        """
        # a model without weights computes in the dtype of what it is given
        dtypes = self._dtypes or {tensor.dtype for tensor in named_tensors(returned).values()}
        precision = _precision_of(dtypes)
        if precision is None:
            return []
        replayed = predictions.get(precision.name) or self._replayed(sample, precision)
        return unexplained(live_values(returned), replayed, sample, precision)

    def _replayed(self, sample: Sample, precision: Precision) -> list[ModelArray]:
        """What the clone that is none of the variants predicts."""
        if self.extra is None:
            self.extra = self._make(self._reference.model, precision)
        return predicted_arrays(self.extra.predict(sample), sample.n_structures)


def _precision_of(dtypes: set[torch.dtype]) -> Precision | None:
    """The precision that computes in a dtype, where there is just one, as hardware has it."""
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    return PRECISIONS.get(names[0]) if len(names) == 1 else None
