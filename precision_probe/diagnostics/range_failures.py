"""The origin of a NaN: the first tensor, atom and number that lie outside a precision's range, in words."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import ase.data
import numpy as np
import pandas as pd
import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from precision_probe.analysis.pairs import MODEL
from precision_probe.diagnostics.reference import Reference
from precision_probe.exceptions import InputError
from precision_probe.models.attributes import elements
from precision_probe.models.blocks import Block, Port, is_called, select_blocks
from precision_probe.models.evaluation import Prediction
from precision_probe.models.graphs import Graph
from precision_probe.models.loading import ModelSource
from precision_probe.precisions import Precision, PrecisionSource, parse_precisions
from precision_probe.structures import StructureSource
from precision_probe.variants.captured_run import CapturedRun, captured_run
from precision_probe.variants.devices import check_precisions
from precision_probe.variants.hooks import Call, replay
from precision_probe.variants.variant import Variant

__all__ = ["failures_of", "first_failure", "range_failures"]

_COLUMNS = ["precision", "structure", "pass", "kind", "block", "tensor", "where", "value", "limit", "count", "message"]
# Of the largest number of a pass, about ten unit roundoffs. A choice: what symmetry makes zero in diamond is left at up
# to 3e-16 of it by a small model and 2e-14 by the demo, and a larger one would hide small numbers that are real.
_NOISE = 1e-15
_Named = Mapping[str, object]
_ZBL = (
    "; ZBL's cutoff polynomial grows without bound past its own end, the sum of two covalent radii, where the model "
    "multiplies it by 0"
)


@dataclass(frozen=True)
class _Run(CapturedRun):
    """What one run of a variant gave, its results too."""

    prediction: Prediction


class _Worst(IntEnum):
    """The worst that occurs among numbers: the maximum of two is the worst of both."""

    FINITE = 0
    INFINITE = 1
    NAN = 2


@dataclass(frozen=True)
class _Compared:
    """One tensor in float64 and in a precision.

    Attributes:
        block: The block that it leaves or, backward, whose input it is the gradient of.
        tensor: Its name.
        rows: What its first dimension counts: ``atom``, ``edge``, or empty.
        y: In float64.
        y_hat: In the precision.
        operands: The worst among what it was computed from in the precision.
        call: The block's call in float64, of a forward pass.
    """

    block: str
    tensor: str
    rows: str
    y: torch.Tensor
    y_hat: torch.Tensor
    operands: _Worst = _Worst.FINITE
    call: Call | None = None


@dataclass(frozen=True)
class _Failure:
    """Elements of a tensor that fail in one way; ``index`` is that of the largest in float64."""

    kind: str
    compared: _Compared
    mask: torch.Tensor

    @property
    def index(self) -> tuple[int, ...]:
        return _argmax(torch.where(self.mask, self.compared.y.abs(), -1.0))


def range_failures(
    model: ModelSource,
    structures: StructureSource,
    precisions: PrecisionSource,
    *,
    head: str | None = None,
    device: str | None = None,
) -> pd.DataFrame:
    """Find where numbers first leave the range of a precision: in weights, forward and backward.

    Every submodule that can be hooked is compared with float64, in the order in which results appear, so that the
    innermost origin comes before what it spoils.

    Args:
        model: As :func:`precision_probe.attach` takes it; it must predict energies and forces.
        structures: As ``probe.run()`` takes them.
        precisions: As :func:`precision_probe.attach` takes them; emulated formats too.
        head: Which head of a multi-head model.
        device: Where to run; by default a GPU if there is one.

    Returns:
        One row for the first tensor of each ``precision``, ``structure``, ``pass`` (``forward``, ``backward``) and
        ``kind``; before these, one for every tensor of the pass ``weights``, whose structure is empty. No row where all
        is well. Kinds:

        - ``overflow``: the float64 number exceeds the largest one;
        - ``product``: it does not, its operands are finite, and yet it becomes infinite or NaN: inside the block a
          weight or an intermediate number overflows, and may be multiplied by 0;
        - ``nan``: NaN is made of operands that are infinite;
        - ``flush``: half the smallest number or less becomes 0. Only where that loses more of the tensor, in norm,
          than rounding does, and what is lost is not float64's own noise.

        With ``block`` (``model`` outside all blocks: energies, forces, stress), ``tensor``; ``where``: the atom
        (``O3``), edge (``C0→H4``) or index of the largest float64 ``value`` concerned; ``limit``, the largest or the
        smallest number; ``count``, how many elements of this tensor; and ``message``, all that in a sentence. Gradients
        are of the energy with respect to the block's input ``tensor``, of those that depend on the positions.

    Raises:
        InputError: If the model, a structure, a precision or the device cannot be used, or float64 itself gives NaN.

    Example:
        >>> import ase
        >>> water = ase.Atoms("OHH", [(0, 0, 0), (0.96, 0, 0), (-0.24, 0.93, 0)])
        >>> print(first_failure(range_failures("demo", water, "float32")))
        Every number stays within range.
    """
    reference = Reference(model, structures, head=head, device=device)
    formats = parse_precisions(precisions)
    check_precisions(formats, reference.device, reference.model)
    return failures_of(reference, [Variant(reference.model, precision, reference.device) for precision in formats])


def failures_of(reference: Reference, variants: Sequence[Variant]) -> pd.DataFrame:
    """The same of a model whose variants, and whose float64 results, are there already."""
    _check_reference(reference)
    blocks = _every_block(reference.model)
    rows = [
        [_row(reference, variant, None, "weights", each) for each in _weights(reference, variant)]
        for variant in variants
    ]
    for graph in reference.graphs:
        exact, moving = _run(reference.variant, graph, blocks), _moving(reference.variant, graph, blocks)
        for variant, own_rows in zip(variants, rows, strict=True):
            own = _run(variant, graph, blocks)
            for name, tensors in (("forward", _forward(exact, own)), ("backward", _backward(exact, own, moving))):
                first = _first_of_each_kind(list(tensors), variant.precision)
                own_rows += [_row(reference, variant, graph, name, failure) for failure in first]
    return pd.DataFrame([row for own_rows in rows for row in own_rows], columns=_COLUMNS)


def first_failure(table: pd.DataFrame) -> str:
    """Say in one line for each precision what goes wrong first: what becomes infinite or NaN, else what becomes 0.

    Args:
        table: As :func:`range_failures` returns it.
    """
    if table.empty:
        return "Every number stays within range."
    zeros_last = table.sort_values("kind", key=lambda kind: kind == "flush", kind="stable")
    return "\n".join(zeros_last.drop_duplicates("precision")["message"])


def _check_reference(reference: Reference) -> None:
    """Refuse structures for which there is no telling whether a precision spoils anything."""
    for name, bad in reference.not_finite():
        raise InputError(
            f"Structure {name}: {' and '.join(bad)} NaN or infinite in float64 already, so that no other precision is "
            "to blame. Look at the model's weights and at the structure."
        )


def _every_block(model: torch.nn.Module) -> list[Block]:
    """All that can be hooked: not what TorchScript compiled, nor lists, which are never called."""
    return select_blocks(model, [name for name, module in model.named_modules() if name and is_called(module)])


def _run(variant: Variant, graph: Graph, blocks: Sequence[Block]) -> _Run:
    prediction = variant.predict(graph)
    run = captured_run(variant, graph, blocks)
    return _Run(run.calls, run.grads, prediction)


def _moving(variant: Variant, graph: Graph, blocks: Sequence[Block]) -> list[set[Port]]:
    """Each call's inputs that depend on the positions: gradients with respect to others are part of no force."""
    run = captured_run(variant, graph, blocks, shared=True, with_gradients=False)
    return [set(call.inputs) for call in run.calls]


def _weights(reference: Reference, variant: Variant) -> Iterator[_Failure]:
    """The failures of parameters and buffers, each of its own: there is no first among weights."""
    cast = variant.model.state_dict()
    for path, y in reference.variant.model.state_dict().items():
        if y.is_floating_point():
            block, _, tensor = path.rpartition(".")
            yield from _failures(_Compared(block or MODEL, tensor, "", y, cast[path]), variant.precision)


def _forward(exact: _Run, own: _Run) -> Iterator[_Compared]:
    """What leaves each block, in order, then what the model makes of it."""
    for call, mine in zip(exact.calls, own.calls, strict=True):
        operands = _worst(mine.arguments.values())
        for (port, y), y_hat in zip(call.outputs.items(), mine.outputs.values(), strict=True):
            yield _Compared(call.block.name, port.name, port.rows, y, y_hat, operands, call)
    operands = _worst(tensor for call in own.calls for tensor in call.outputs.values())
    yield from _of_model(exact, own, operands, backward=False)


def _backward(exact: _Run, own: _Run, moving: Sequence[set[Port]]) -> Iterator[_Compared]:
    """Gradients with respect to what enters each block, in the order in which they are computed, then forces."""
    earlier = _Worst.FINITE
    for i in _backward_order(exact.calls):
        mine = own.calls[i]
        operands = max(earlier, _worst([*mine.arguments.values(), *mine.outputs.values()]))
        for (port, y), y_hat in zip(exact.grads[i].items(), own.grads[i].values(), strict=True):
            if port in moving[i]:
                yield _Compared(mine.block.name, port.name, port.rows, y, y_hat, operands)
                earlier = max(earlier, _worst([y_hat]))
    yield from _of_model(exact, own, earlier, backward=True)


def _of_model(exact: _Run, own: _Run, operands: _Worst, *, backward: bool) -> Iterator[_Compared]:
    """The model's own results that a pass ends with: forces and stress are made by differentiation."""
    for quantity, y in exact.prediction.values.items():
        if (quantity.name in ("forces", "stress")) == backward:
            rows = "atom" if quantity.dims[0] == "atom" else ""
            yield _Compared(MODEL, quantity.name, rows, y, own.prediction[quantity.name], operands)


def _backward_order(calls: Sequence[Call]) -> list[int]:
    """Calls are listed as they end, so this is the reverse, but each block after the blocks inside it."""
    order, open_ones = list[int](), list[int]()
    for i in reversed(range(len(calls))):
        while open_ones and not calls[i].block.name.startswith(calls[open_ones[-1]].block.name + "."):
            order.append(open_ones.pop())
        open_ones.append(i)
    return order + open_ones[::-1]


def _worst(values: Iterable[object]) -> _Worst:
    """The worst that occurs in the tensors among a call's arguments or results."""
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    if any(bool(tensor.isnan().any()) for tensor in tensors):
        return _Worst.NAN
    return _Worst.INFINITE if any(bool(tensor.isinf().any()) for tensor in tensors) else _Worst.FINITE


def _first_of_each_kind(tensors: Sequence[_Compared], precision: Precision) -> list[_Failure]:
    """What goes wrong first in a pass, its tensors in order; the rest follows from it, or is more of the same."""
    largest = [float(each.y.nan_to_num(0).abs().max()) for each in tensors if each.y.numel()]
    noise = _NOISE * max(largest, default=0.0)
    first: dict[str, _Failure] = {}
    for compared in tensors:
        for failure in _failures(compared, precision, noise):
            first.setdefault(failure.kind, failure)
    return list(first.values())


def _failures(compared: _Compared, precision: Precision, noise: float = 0.0) -> list[_Failure]:
    """How one tensor fails, in each of the ways that :func:`range_failures` explains."""
    y, y_hat = compared.y, compared.y_hat
    lost = torch.isfinite(y) & ~torch.isfinite(y_hat)
    within = lost & (y.abs() <= precision.largest)
    small = (y.abs() > noise) & (y.abs() <= precision.smallest_subnormal / 2) & (y_hat == 0)
    matters = float(y[small].norm()) > precision.unit_roundoff * float(y.nan_to_num(0).norm())
    masks = {
        "overflow": lost & ~within,
        "product": within & (compared.operands is _Worst.FINITE),
        "nan": within & y_hat.isnan() & (compared.operands is _Worst.INFINITE),
        "flush": small & matters,
    }
    return [_Failure(kind, compared, mask) for kind, mask in masks.items() if mask.any()]


def _row(
    reference: Reference, variant: Variant, graph: Graph | None, name: str, failure: _Failure
) -> dict[str, object]:
    """What the table says of a failure; without a graph it is a weight's."""
    compared, index, precision = failure.compared, failure.index, variant.precision
    at = _where(graph, compared.rows, index, compared.y.shape) if graph else str(list(index)) if index else ""
    cause = _cause(reference, variant, graph, compared) if graph and failure.kind == "product" else ""
    text = _sentence(failure, _what(compared, name, at), precision, cause)
    if name == "weights" and failure.kind == "overflow" and compared.block == "atomic_energies_fn":
        at, text = _isolated_atom(reference, float(compared.y[index]), elements(reference.model)[index[-1]], precision)
    structure = graph.names[0] if graph else ""
    limit = precision.smallest_subnormal if failure.kind == "flush" else precision.largest
    place = (precision.name, structure, name, failure.kind, compared.block, compared.tensor, at)
    message = f"{', '.join(filter(None, (precision.name, structure)))}: {text}"
    return dict(zip(_COLUMNS, (*place, float(compared.y[index]), limit, int(failure.mask.sum()), message), strict=True))


def _isolated_atom(reference: Reference, energy: float, number: int, precision: Precision) -> tuple[str, str]:
    """An infinite one spoils every atom's energy, which is the product of all with one-hot attributes."""
    symbol = ase.data.chemical_symbols[number]
    if any(number in graph.atomic_numbers for graph in reference.graphs):
        ending = "the element is present, so energies are infinite or NaN"
    else:
        ending = "the element is absent but its product with 0 is NaN"
    return symbol, f"|E0| of {symbol}, {_number(abs(energy))} eV, exceeds {_number(precision.largest)}; {ending}"


def _what(compared: _Compared, name: str, at: str) -> str:
    if name == "weights":
        return f"the weight {compared.tensor}{at} of {compared.block}"
    gradient = "the gradient with respect to " if name == "backward" and compared.block != MODEL else ""
    return f"{gradient}{compared.tensor} of {compared.block}{f' at {at}' if at else ''}"


def _sentence(failure: _Failure, what: str, precision: Precision, cause: str) -> str:
    """What goes wrong with the tensor that ``what`` names, and with how much of it or why."""
    compared, index = failure.compared, failure.index
    became = "NaN" if compared.y_hat[index].isnan() else "infinite"
    share = f"{float(failure.mask.double().mean()):.0%} of its {compared.y.numel():,} elements"
    ending = {
        "overflow": f"exceeds {_number(precision.largest)}",
        "product": f"becomes {became} though its operands are finite: {cause}",
        "nan": "becomes NaN, made of infinities that reached it",
        "flush": f"becomes 0, as half of {_number(precision.smallest_subnormal)} and less does; so do {share}",
    }
    return f"{what}, {_number(float(compared.y[index]))} in float64, {ending[failure.kind]}"


def _cause(reference: Reference, variant: Variant, graph: Graph, compared: _Compared) -> str:
    """Why finite operands gave inf or NaN."""
    limit = variant.precision.largest
    hint = _ZBL if compared.block == "pair_repulsion_fn" else ""
    if compared.call is None:
        what = "a number outside the blocks" if compared.block == MODEL else "a number inside its backward pass"
        return f"{what} exceeds {_number(limit)}{hint}"
    weights = variant.model.get_submodule(compared.block).state_dict()
    infinite = [key for key, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if infinite:
        return f"its weight {infinite[0]} is not"
    inside = _FirstBeyond(limit)
    with reference.variant.arithmetic(), torch.no_grad(), inside:
        replay(reference.variant.model.get_submodule(compared.block), compared.call, torch.float64)
    if inside.first is None:
        return f"rounding carries it beyond {_number(limit)}{hint}"
    operation, y = inside.first
    index = _argmax(y.abs())
    where = _where(graph, "", index, y.shape)
    return f"inside, {operation} gives {_number(float(y[index]))}{f' for {where}' if where else ''}{hint}"


class _FirstBeyond(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While this mode is on, the first operation whose result exceeds a number is remembered, with that result."""

    def __init__(self, limit: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._limit = limit
        self.first: tuple[str, torch.Tensor] | None = None

    def __torch_dispatch__(
        self, func: OpOverload[..., object], types: object, args: Sequence[object] = (), kwargs: _Named | None = None
    ) -> object:
        """Run one operation, and look at its result."""
        y = func(*args, **(kwargs or {}))
        if self.first is None and torch.is_tensor(y) and y.is_floating_point() and (y.abs() > self._limit).any():
            self.first = (func._schema.name.removeprefix("aten::").rstrip("_"), y.clone())
        return y


def _argmax(y: torch.Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(y.argmax()), tuple(y.shape)))


def _where(graph: Graph, rows: str, index: Sequence[int], shape: Sequence[int]) -> str:
    """The atom, ``O3``, or edge, ``C0→H4``, of a row; where sizes cannot tell which it is, its number."""
    if not shape or shape[0] not in (graph.n_atoms, graph.n_edges):
        return ""
    if not rows and graph.n_atoms == graph.n_edges:
        return f"row {index[0]}"
    if (rows or ("atom" if shape[0] == graph.n_atoms else "edge")) == "atom":
        return _atom(graph, index[0])
    sender, receiver = graph.data["edge_index"][:, index[0]].tolist()
    return f"{_atom(graph, sender)}→{_atom(graph, receiver)}"


def _atom(graph: Graph, i: int) -> str:
    return f"{ase.data.chemical_symbols[graph.atomic_numbers[i]]}{i}"


def _number(x: float) -> str:
    return f"{x:,.0f}" if 1e3 <= abs(x) < 1e7 else f"{x:.3g}"
