"""The weights of an attached model, followed however they change.

Version counters would not do: ``.data``, NumPy views, fused optimizers and what else writes past autograd do not count.
So all parameters and buffers are compared with a copy, bit for bit, on their own device and with one synchronisation.
On one core of a CPU that takes 0.9 ms for the demo (43,000 parameters) and 1.3 ms for a MACE of 190,000: 5 % of one
bare call of 9 atoms (``benchmarks/bench_in_situ.py``), in each call that is observed and so run dozens of times.
"""

from collections.abc import Sequence

import torch

from precision_probe.variants.devices import undisturbed
from precision_probe.variants.variant import Variant

__all__ = ["Weights"]

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}  # by size in bytes


class Weights:
    """The weights of a model when its variants last took them over.

    Args:
        model: The model.
        variants: Clones that have its weights as they are now.

    Attributes:
        have_changed: Whether they ever did.
    """

    def __init__(self, model: torch.nn.Module, variants: Sequence[Variant]) -> None:
        self._model, self._variants = model, list(variants)
        self.have_changed = False
        with undisturbed():
            self._layout, self._kept = _bits(model)

    def follow(self) -> None:
        """Give the variants the model's mode of this moment, and its weights if they have changed."""
        for variant in self._variants:
            variant.follow_mode(self._model)
        with undisturbed():
            layout, bits = _bits(self._model)
            if layout == self._layout and not _differ(bits, self._kept):
                return
            self._layout, self._kept = layout, bits
        self.have_changed = True
        for variant in self._variants:
            variant.follow(self._model)

    def add(self, variant: Variant) -> None:
        """Let another clone, which has the weights that the variants have, follow them too."""
        self._variants.append(variant)


def _bits(model: torch.nn.Module) -> tuple[list[object], dict[object, torch.Tensor]]:
    """Whose bits follow: names, shapes, dtypes; and those of all parameters and buffers, by device and size."""
    layout: list[object] = []
    groups: dict[object, list[torch.Tensor]] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        layout.append((name, tensor.shape, tensor.dtype))
        integers = tensor.detach().reshape(-1).view(_INTEGERS[tensor.element_size()])
        groups.setdefault((tensor.device, tensor.element_size()), []).append(integers)
    return layout, {key: torch.cat(parts) for key, parts in groups.items()}


def _differ(bits: dict[object, torch.Tensor], others: dict[object, torch.Tensor]) -> bool:
    """Whether any bit differs, of groups of the same layout."""
    if bits.keys() != others.keys():  # moved to another device
        return True
    differ = [(mine != others[key]).any() for key, mine in bits.items()]
    first, *rest = differ or [torch.tensor(False)]
    for each in rest:
        first = first | each.to(first.device)
    return bool(first)
