"""What the error of the energies and forces comes from: each source of rounding run alone, beside all together."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch

from precision_probe.diagnostics.reference import Predict, Reference
from precision_probe.exceptions import InputError
from precision_probe.models.blocks import default_blocks
from precision_probe.models.evaluation import Prediction
from precision_probe.models.graphs import Graph
from precision_probe.precisions import PRECISIONS, Precision, emulated, parse_precision
from precision_probe.variants.rounded_blocks import rounded_blocks, rounded_weights
from precision_probe.variants.rounding import generator_of, round_to
from precision_probe.variants.variant import Variant

__all__ = ["PARTS_TOGETHER", "TOTAL", "UNEXPLAINED", "budget", "emulation_of"]

GEOMETRY, WEIGHTS, SUMS = "geometry", "weights", "sums"
PARTS_TOGETHER, TOTAL, UNEXPLAINED = "parts, root of squares", "all together", "not explained by the parts"


# What is summed over atoms: where energies are scaled and shifted, what goes into that is an input of that block.
_SUMMED = ("atomic_energies_fn", "embedding_readout")
_SCALED, _NOT_SCALED = ("scale_shift",), ("pair_repulsion_fn", "readouts")
# They pick one of their weights for each atom: in weights that are rounded no operation of theirs rounds.
_WITHOUT_ARITHMETIC = ("atomic_energies_fn",)

_Change = Callable[[torch.Tensor], torch.Tensor]


def budget(reference: Reference, precision: str | Precision) -> pd.DataFrame:
    """Round one thing at a time in a float64 run: the geometry, the weights, each block, the sums over atoms.

    Args:
        reference: The model and the structures.
        precision: A precision or an emulated format; rounding is emulated, so that parts can be told apart.

    Returns:
        One row for each source, with the columns ``source``, ``block`` (empty for ``geometry``, ``weights`` and
        ``sums``), ``energy``, ``interaction_energy`` (eV/atom), ``forces`` (eV/Å: largest error), ``forces_mae``, … as
        :meth:`precision_probe.diagnostics.reference.Reference.errors` has them. A block's sources are its ``inputs``
        and its ``arithmetic``; the energies of isolated atoms are among the weights, and have no arithmetic. ``sums``:
        what adding up the atoms' energies adds, where the precision holds each of them exactly.

        Then three rows: the parts together (errors that know nothing of one another add as squares), the precision
        itself with everything rounded, and what of that the parts do not explain: errors that do know of one another,
        and rounding that is in none of them. It is √(total² − parts²), negative where the parts are larger.
    """
    precision = parse_precision(precision)
    emulation = emulation_of(precision)
    rows = []
    for source, block, changed in _sources(reference, precision, emulation):
        with changed as predict:
            rows.append({"source": source, "block": block, **reference.errors(predict)})
    # The precision itself, not its emulation: what a user would get.
    total = pd.Series(reference.errors(Variant(reference.model, precision, reference.device).predict))
    table = pd.DataFrame(rows)
    together = np.sqrt((table[total.index] ** 2).sum())
    squares = total**2 - together**2
    sums = {PARTS_TOGETHER: together, TOTAL: total, UNEXPLAINED: np.sign(squares) * np.sqrt(squares.abs())}
    tail = pd.DataFrame([{"source": name, "block": "", **row} for name, row in sums.items()])
    return pd.concat([table, tail], ignore_index=True)


def emulation_of(precision: Precision) -> Precision:
    """The emulated format with the same bits, such as ``e5m10`` for float16; an emulated one is its own.

    Raises:
        InputError: For float64, which is the reference, and tf32, which rounds the inputs of matrix products alone.
    """
    if precision.emulated:
        return precision
    if precision.products_only or precision == PRECISIONS["float64"]:
        raise InputError(f"There is no error budget of {precision}. Name float32, bfloat16, float16 or a format.")
    return emulated(precision.significand_bits, precision.exponent_bits)


def _sources(
    reference: Reference, precision: Precision, emulation: Precision
) -> Iterator[tuple[str, str, contextlib.AbstractContextManager[Predict]]]:
    """Each source of rounding: its name, its block, and a context that gives a way to predict with it alone."""
    exact = reference.variant
    yield GEOMETRY, "", contextlib.nullcontext(lambda graph: exact.predict(_rounded_geometry(graph, emulation)))
    yield WEIGHTS, "", _predicting(exact, rounded_weights(exact.model, emulation))
    for block in default_blocks(reference.model):
        for part in ("inputs", "arithmetic"):
            if part == "inputs" or block.name not in _WITHOUT_ARITHMETIC:
                changed = rounded_blocks(exact.model, {block.name: emulation}, [part])
                yield part, block.name, _predicting(exact, changed)
    yield SUMS, "", contextlib.nullcontext(lambda graph: _summed(exact, graph, precision))


@contextlib.contextmanager
def _predicting(variant: Variant, changed: contextlib.AbstractContextManager[None]) -> Iterator[Predict]:
    """A way to predict that lasts as long as the change does."""
    with changed:
        yield variant.predict


def _rounded_geometry(graph: Graph, precision: Precision) -> Graph:
    """A graph whose atoms and cell are where the format can say, with the edges that it had."""
    generator = generator_of(precision, graph.data["positions"].device)
    rounded = {key: round_to(graph.data[key], precision, generator) for key in ("positions", "cell", "shifts")}
    return dataclasses.replace(graph, data={**graph.data, **rounded})


def _summed(variant: Variant, graph: Graph, precision: Precision) -> Prediction:
    """The exact results, and what is added to them by summing in a precision what it holds exactly.

    A hardware precision adds up in its dtype, in the model's own code. An emulated format, whose sums are computed more
    precisely and rounded once, rounds the result.
    """
    dtype: torch.dtype = getattr(torch, precision.dtype)
    generator = generator_of(precision, variant.device)

    def rounded(x: torch.Tensor) -> torch.Tensor:
        """To what the precision holds, in float64; gradients pass through."""
        if not precision.emulated:
            return x.to(dtype).double()
        return x + (round_to(x.detach(), precision, generator) - x.detach())

    exact = variant.predict(graph)
    with _outputs_changed(variant.model, rounded):
        held = variant.predict(graph)
    sums = held
    if not precision.emulated:
        with _outputs_changed(variant.model, lambda x: x.to(dtype)):
            sums = variant.predict(graph)
    values = {}
    for quantity, y in exact.values.items():
        summed = sums[quantity.name].double()
        is_sum = quantity.dims == ("structure",)  # which MACE has widened in part
        values[quantity] = y + (rounded(summed) if is_sum else summed) - held[quantity.name]
    return Prediction(values, float("nan"))


@contextlib.contextmanager
def _outputs_changed(model: torch.nn.Module, change: _Change) -> Iterator[None]:
    """While this lasts, what is summed over atoms is changed first."""
    with contextlib.ExitStack() as stack:
        for name in (*_SUMMED, *(_SCALED if hasattr(model, "scale_shift") else _NOT_SCALED)):
            module = getattr(model, name, None)
            for each in module if isinstance(module, torch.nn.ModuleList) else [module]:
                if each is not None:
                    hook = each.register_forward_hook(lambda _, __, returned: change(returned))
                    stack.callback(hook.remove)
        yield
