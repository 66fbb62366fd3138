"""What the error of the energies and forces comes from: each source of rounding run alone, beside all together."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from precision_probe.blocks import default_blocks
from precision_probe.exceptions import InputError
from precision_probe.precisions import Precision, parse_precision
from precision_probe.rounded_blocks import rounded_blocks, rounded_weights
from precision_probe.rounding import round_to
from precision_probe.structures import Graph
from precision_probe.trials import Trials
from precision_probe.variants import Variant

__all__ = ["PARTS_TOGETHER", "TOTAL", "UNEXPLAINED", "budget", "emulation_of"]

GEOMETRY, WEIGHTS = "geometry", "weights"
PARTS_TOGETHER, TOTAL, UNEXPLAINED = "parts, root of squares", "all together", "not explained by the parts"


def budget(trials: Trials, precision: str | Precision) -> pd.DataFrame:
    """Round one thing at a time in a float64 run: the geometry, the weights, each block's inputs, its arithmetic.

    Args:
        trials: A model and structures.
        precision: A precision or an emulated format; rounding is emulated, so that parts can be told apart.

    Returns:
        One row for each source, with the columns ``source``, ``block`` (empty for geometry and weights), ``energy``,
        ``interaction_energy`` (eV/atom), ``forces`` (eV/Å: largest error), ``forces_mae``, … as of a trial. Then three
        rows: the parts together (errors that know nothing of one another add as squares), the precision itself with
        everything rounded, and what of that the parts do not explain: rounding outside the blocks, as of the sum over
        atoms, and errors that do know of one another. It is √(total² − parts²), negative where the parts are larger.
    """
    precision = parse_precision(precision)
    emulated = emulation_of(precision)
    rows = []
    for source, block, changed in _sources(trials, emulated):
        with changed as predict:
            rows.append({"source": source, "block": block, **trials.errors(predict)})
    real = Variant(trials.model, precision, trials.device)
    total = trials.errors(real.predict)
    table = pd.DataFrame(rows)
    numbers = list(total)
    together = np.sqrt((table[numbers] ** 2).sum())
    squares = pd.Series(total)[numbers] ** 2 - together**2
    tail = {PARTS_TOGETHER: together, TOTAL: pd.Series(total), UNEXPLAINED: np.sign(squares) * np.sqrt(squares.abs())}
    return pd.concat(
        [table, pd.DataFrame([{"source": name, "block": "", **row[numbers]} for name, row in tail.items()])],
        ignore_index=True,
    )


def emulation_of(precision: Precision) -> Precision:
    """The emulated format with the same bits, such as ``e5m10`` for float16; an emulated one is its own.

    Raises:
        InputError: For float64, which is the reference, and tf32, which rounds the inputs of matrix products alone.
    """
    if precision.emulated:
        return precision
    if precision.name in ("float64", "tf32"):
        raise InputError(f"There is no error budget of {precision}. Name float32, bfloat16, float16 or a format.")
    return parse_precision(f"e{precision.exponent_bits}m{precision.significand_bits - 1}")


def _sources(trials: Trials, precision: Precision) -> Iterator[tuple[str, str, Any]]:
    """Each source of rounding: its name, its block, and a context that gives a way to predict with it alone."""
    reference = trials.reference
    yield GEOMETRY, "", contextlib.nullcontext(lambda graph: reference.predict(_rounded_geometry(graph, precision)))
    yield WEIGHTS, "", _predicting(reference, rounded_weights(reference.model, precision))
    for block in default_blocks(trials.model):
        for part in ("inputs", "arithmetic"):
            changed = rounded_blocks(reference.model, {block.name: precision}, [part])
            yield part, block.name, _predicting(reference, changed)


@contextlib.contextmanager
def _predicting(reference: Variant, changed: contextlib.AbstractContextManager[None]) -> Iterator[Any]:
    with changed:
        yield reference.predict


def _rounded_geometry(graph: Graph, precision: Precision) -> Graph:
    rounded = {key: round_to(graph.data[key], precision) for key in ("positions", "cell", "shifts")}
    return dataclasses.replace(graph, data={**graph.data, **rounded})
