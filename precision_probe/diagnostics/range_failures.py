"""The origin of a NaN: the first tensor, atom and number that lie outside a precision's range, in words."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ase.data
import numpy as np
import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from precision_probe.analysis.pairs import MODEL
from precision_probe.diagnostics.reference import Reference
from precision_probe.exceptions import InputError
from precision_probe.models.attributes import elements
from precision_probe.models.blocks import Block, Port, select_blocks
from precision_probe.models.evaluation import Prediction
from precision_probe.models.graphs import Graph
from precision_probe.precisions import Precision, parse_precisions
from precision_probe.variants.captured_run import CapturedRun, captured_run
from precision_probe.variants.devices import check_precisions
from precision_probe.variants.hooks import Call, replay
from precision_probe.variants.variant import Variant

__all__ = ["failures_of", "first_failure", "range_failures"]

_COLUMNS = ["precision", "structure", "pass", "kind", "block", "tensor", "where", "value", "limit", "count", "message"]
_NOISE = 1e-15  # of the largest number of a pass: what float64 itself hardly tells from zero
_ZBL = (
    "; ZBL's cutoff polynomial grows without bound past its own end, the sum of two covalent radii, where the model "
    "multiplies it by 0"
)


@dataclass(frozen=True)
class _Run(CapturedRun):
    """What one run of a variant gave, its results too."""

    prediction: Prediction


@dataclass(frozen=True)
class _Pair:
    """One tensor in float64 and in a precision.

    Attributes:
        block: The block that it leaves or, backward, whose input it is the gradient of.
        tensor: Its name.
        rows: What its first dimension counts: ``atom``, ``edge``, or empty.
        y: In float64.
        y_hat: In the precision.
        operands: What it was computed from in the precision: ``finite``, ``inf`` (some are), or ``nan`` (some are).
        call: The block's call in float64, of a forward pass.
    """

    block: str
    tensor: str
    rows: str
    y: torch.Tensor
    y_hat: torch.Tensor
    operands: str = "finite"
    call: Call | None = None


@dataclass(frozen=True)
class _Failure:
    """Elements of a tensor that fail in one way; ``index`` is that of the largest in float64."""

    kind: str
    pair: _Pair
    mask: torch.Tensor

    @property
    def index(self) -> tuple[int, ...]:
        return _argmax(torch.where(self.mask, self.pair.y.abs(), -1.0))


def range_failures(
    model: Any, structures: Any, precisions: Any, *, head: str | None = None, device: str | None = None
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
    """The same for a model's variants that are there already."""
    _check_reference(reference)
    blocks = _every_block(reference.model)
    rows = [
        [_row(reference, variant, None, "weights", each) for each in _weights(reference, variant)]
        for variant in variants
    ]
    for graph in reference.graphs:
        exact, moving = _run(reference.variant, graph, blocks), _moving(reference.variant, graph, blocks)
        for variant, found in zip(variants, rows, strict=True):
            own = _run(variant, graph, blocks)
            for name, pairs in (("forward", _forward(exact, own)), ("backward", _backward(exact, own, moving))):
                first = _first_of_each_kind(list(pairs), variant.precision)
                found += [_row(reference, variant, graph, name, failure) for failure in first]
    return pd.DataFrame([row for found in rows for row in found], columns=_COLUMNS)


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
    for name, bad in reference.not_finite():
        raise InputError(
            f"Structure {name}: {' and '.join(bad)} NaN or infinite in float64 already, so that no other precision is "
            "to blame. Look at the model's weights and at the structure."
        )


def _every_block(model: torch.nn.Module) -> list[Block]:
    """All that can be hooked: not what TorchScript compiled, nor lists, which are never called."""
    called = {name: module for name, module in model.named_modules() if name and _is_called(module)}
    return select_blocks(model, list(called))


def _is_called(module: torch.nn.Module) -> bool:
    return not isinstance(module, torch.jit.ScriptModule) and type(module).forward is not torch.nn.Module.forward


def _run(variant: Variant, graph: Graph, blocks: Sequence[Block]) -> _Run:
    prediction = variant.predict(graph)
    run = captured_run(variant, graph, blocks)
    return _Run(run.calls, run.grads, prediction)


def _moving(variant: Variant, graph: Graph, blocks: Sequence[Block]) -> list[set[Port]]:
    """Each call's inputs that depend on the positions: gradients with respect to others are part of no force."""
    run = captured_run(variant, graph, blocks, shared=True, with_gradients=False)
    return [set(call.inputs) for call in run.calls]


def _weights(reference: Reference, variant: Variant) -> Iterator[_Failure]:
    cast = variant.model.state_dict()
    for path, y in reference.variant.model.state_dict().items():
        if y.is_floating_point():
            block, _, tensor = path.rpartition(".")
            yield from _failures(_Pair(block or MODEL, tensor, "", y, cast[path]), variant.precision)


def _forward(exact: _Run, own: _Run) -> Iterator[_Pair]:
    """What leaves each block, in order, then what the model makes of it."""
    for call, mine in zip(exact.calls, own.calls, strict=True):
        operands = _state(mine.arguments.values())
        for (port, y), y_hat in zip(call.outputs.items(), mine.outputs.values(), strict=True):
            yield _Pair(call.block.name, port.name, port.rows, y, y_hat, operands, call)
    operands = _state(tensor for call in own.calls for tensor in call.outputs.values())
    yield from _of_model(exact, own, operands, backward=False)


def _backward(exact: _Run, own: _Run, moving: Sequence[set[Port]]) -> Iterator[_Pair]:
    """Gradients with respect to what enters each block, in the order in which they are computed, then forces."""
    earlier = "finite"
    for i in _backward_order(exact.calls):
        mine = own.calls[i]
        operands = max(earlier, _state([*mine.arguments.values(), *mine.outputs.values()]))
        for (port, y), y_hat in zip(exact.grads[i].items(), own.grads[i].values(), strict=True):
            if port in moving[i]:
                yield _Pair(mine.block.name, port.name, port.rows, y, y_hat, operands)
                earlier = max(earlier, _state([y_hat]))
    yield from _of_model(exact, own, earlier, backward=True)


def _of_model(exact: _Run, own: _Run, operands: str, *, backward: bool) -> Iterator[_Pair]:
    for quantity, y in exact.prediction.values.items():
        if (quantity.name in ("forces", "stress")) == backward:
            rows = "atom" if quantity.dims[0] == "atom" else ""
            yield _Pair(MODEL, quantity.name, rows, y, own.prediction[quantity.name], operands)


def _backward_order(calls: Sequence[Call]) -> list[int]:
    """Calls are listed as they end, so this is the reverse, but each block after the blocks inside it."""
    order, open_ones = list[int](), list[int]()
    for i in reversed(range(len(calls))):
        while open_ones and not calls[i].block.name.startswith(calls[open_ones[-1]].block.name + "."):
            order.append(open_ones.pop())
        open_ones.append(i)
    return order + open_ones[::-1]


def _state(values: Iterable[Any]) -> str:
    """The worst that occurs; as words, ``finite`` < ``inf`` < ``nan``."""
    tensors = [value for value in values if torch.is_tensor(value)]
    if any(bool(tensor.isnan().any()) for tensor in tensors):
        return "nan"
    return "inf" if any(bool(tensor.isinf().any()) for tensor in tensors) else "finite"


def _first_of_each_kind(pairs: list[_Pair], precision: Precision) -> list[_Failure]:
    noise = _NOISE * max((float(pair.y.nan_to_num(0).abs().max()) for pair in pairs if pair.y.numel()), default=0.0)
    found: dict[str, _Failure] = {}
    for pair in pairs:
        for failure in _failures(pair, precision, noise):
            found.setdefault(failure.kind, failure)
    return list(found.values())


def _failures(pair: _Pair, precision: Precision, noise: float = 0.0) -> list[_Failure]:
    y, y_hat = pair.y, pair.y_hat
    lost = torch.isfinite(y) & ~torch.isfinite(y_hat)
    within = lost & (y.abs() <= precision.largest)
    small = (y.abs() > noise) & (y.abs() <= precision.smallest_subnormal / 2) & (y_hat == 0)
    matters = float(y[small].norm()) > precision.unit_roundoff * float(y.nan_to_num(0).norm())
    masks = {
        "overflow": lost & ~within,
        "product": within & (pair.operands == "finite"),
        "nan": within & y_hat.isnan() & (pair.operands == "inf"),
        "flush": small & matters,
    }
    return [_Failure(kind, pair, mask) for kind, mask in masks.items() if mask.any()]


def _row(reference: Reference, variant: Variant, graph: Graph | None, name: str, failure: _Failure) -> dict[str, Any]:
    """What the table says of a failure; without a graph it is a weight's."""
    pair, index, precision = failure.pair, failure.index, variant.precision
    at = _where(graph, pair.rows, index, pair.y.shape) if graph else str(list(index)) if index else ""
    cause = _cause(reference, variant, graph, pair) if graph and failure.kind == "product" else ""
    text = _sentence(failure, _what(pair, name, at), precision, cause)
    if name == "weights" and failure.kind == "overflow" and pair.block == "atomic_energies_fn":
        at, text = _isolated_atom(reference, float(pair.y[index]), elements(reference.model)[index[-1]], precision)
    structure = graph.names[0] if graph else ""
    limit = precision.smallest_subnormal if failure.kind == "flush" else precision.largest
    where = (precision.name, structure, name, failure.kind, pair.block, pair.tensor, at)
    message = f"{', '.join(filter(None, (precision.name, structure)))}: {text}"
    return dict(zip(_COLUMNS, (*where, float(pair.y[index]), limit, int(failure.mask.sum()), message), strict=True))


def _isolated_atom(reference: Reference, energy: float, number: int, precision: Precision) -> tuple[str, str]:
    """An infinite one spoils every atom's energy, which is the product of all with one-hot attributes."""
    symbol = ase.data.chemical_symbols[number]
    if any(number in graph.atomic_numbers for graph in reference.graphs):
        ending = "the element is present, so energies are infinite or NaN"
    else:
        ending = "the element is absent but its product with 0 is NaN"
    return symbol, f"|E0| of {symbol}, {_number(abs(energy))} eV, exceeds {_number(precision.largest)}; {ending}"


def _what(pair: _Pair, name: str, at: str) -> str:
    if name == "weights":
        return f"the weight {pair.tensor}{at} of {pair.block}"
    gradient = "the gradient with respect to " if name == "backward" and pair.block != MODEL else ""
    return f"{gradient}{pair.tensor} of {pair.block}{f' at {at}' if at else ''}"


def _sentence(failure: _Failure, what: str, precision: Precision, cause: str) -> str:
    pair, index = failure.pair, failure.index
    became = "NaN" if pair.y_hat[index].isnan() else "infinite"
    share = f"{float(failure.mask.double().mean()):.0%} of its {pair.y.numel():,} elements"
    ending = {
        "overflow": f"exceeds {_number(precision.largest)}",
        "product": f"becomes {became} though its operands are finite: {cause}",
        "nan": "becomes NaN, made of infinities that reached it",
        "flush": f"becomes 0, as half of {_number(precision.smallest_subnormal)} and less does; so do {share}",
    }
    return f"{what}, {_number(float(pair.y[index]))} in float64, {ending[failure.kind]}"


def _cause(reference: Reference, variant: Variant, graph: Graph, pair: _Pair) -> str:
    """Why finite operands gave inf or NaN."""
    limit = variant.precision.largest
    hint = _ZBL if pair.block == "pair_repulsion_fn" else ""
    if pair.call is None:
        what = "a number outside the blocks" if pair.block == MODEL else "a number inside its backward pass"
        return f"{what} exceeds {_number(limit)}{hint}"
    weights = variant.model.get_submodule(pair.block).state_dict()
    infinite = [key for key, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if infinite:
        return f"its weight {infinite[0]} is not"
    inside = _FirstBeyond(limit)
    with reference.variant.arithmetic(), torch.no_grad(), inside:
        replay(reference.variant.model.get_submodule(pair.block), pair.call, torch.float64)
    if inside.found is None:
        return f"rounding carries it beyond {_number(limit)}{hint}"
    operation, y = inside.found
    index = _argmax(y.abs())
    where = _where(graph, "", index, y.shape)
    return f"inside, {operation} gives {_number(float(y[index]))}{f' for {where}' if where else ''}{hint}"


class _FirstBeyond(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While this mode is on, the first operation whose result exceeds a number is remembered."""

    def __init__(self, limit: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._limit = limit
        self.found: tuple[str, torch.Tensor] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and look at its result."""
        y = func(*args, **(kwargs or {}))
        if self.found is None and torch.is_tensor(y) and y.is_floating_point() and (y.abs() > self._limit).any():
            self.found = (func._schema.name.removeprefix("aten::").rstrip("_"), y.clone())
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
