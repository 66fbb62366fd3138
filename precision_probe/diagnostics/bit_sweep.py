"""How many bits each block needs: emulated formats with fewer and fewer bits, in the whole model and block by block."""

from collections.abc import Iterable, Sequence

import pandas as pd

from precision_probe.diagnostics.reference import ERROR_UNITS, Reference
from precision_probe.exceptions import InputError
from precision_probe.models.blocks import select_blocks
from precision_probe.models.loading import ModelSource
from precision_probe.precisions import Precision, parse_precision
from precision_probe.progress import shown
from precision_probe.structures import StructureSource
from precision_probe.trace.tables import StoredTable
from precision_probe.variants.rounded_blocks import rounded_blocks
from precision_probe.variants.variant import Variant

__all__ = ["SWEEP_TITLE", "WHOLE", "stored", "sweep", "sweep_of"]

WHOLE = "whole model"
SWEEP_TITLE = "Errors with fewer and fewer bits, in the whole model and in one block at a time"
_BITS = (4, 6, 7, 8, 10, 12, 14, 16, 18, 20, 23)  # bfloat16's 7, float16's 10, float32's 23, and some between


def sweep(
    model: ModelSource = "demo",
    structures: StructureSource = "demo",
    *,
    bits: Iterable[int] = _BITS,
    blocks: str | Sequence[str] | None = None,
    head: str | None = None,
    device: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Round to fewer and fewer bits, in the whole model and in one block at a time, and see what forces make of it.

    Formats have float64's exponents (``m10``, …), so that nothing overflows and rounding is all there is.

    Args:
        model: As :func:`precision_probe.attach` takes it.
        structures: As ``probe.run()`` takes them.
        bits: Stored bits of the significand: 23 are float32's, 10 float16's, 7 bfloat16's.
        blocks: Globs; by default the embeddings, interactions, products and readouts.
        head: Which head of a multi-head model.
        device: Where to run; by default a GPU if there is one.
        progress: Show a progress bar, where there is a terminal.

    Returns:
        One row for each block (``whole model`` first) and number of bits: ``energy``, ``interaction_energy`` (eV/atom),
        ``forces`` (eV/Å: the largest error), ``forces_mae``, ``forces_rms`` (eV/Å), ``forces_rel_l2``.

    Raises:
        InputError: If the model, a structure, a pattern or a number of bits cannot be used.
    """
    numbers = _checked(bits)
    return sweep_of(Reference(model, structures, head=head, device=device), numbers, blocks, progress=progress)


def sweep_of(
    reference: Reference,
    bits: Iterable[int] = _BITS,
    blocks: str | Sequence[str] | None = None,
    *,
    progress: bool = False,
) -> pd.DataFrame:
    """The same of a model and structures whose float64 results are there already."""
    formats = {number: parse_precision(f"m{number}") for number in _checked(bits)}
    names = [WHOLE, *(block.name for block in select_blocks(reference.model, blocks))]
    cases = shown([(name, number) for name in names for number in formats], "rounding", progress=progress)
    rows = [{"block": name, "bits": number, **_errors(reference, name, formats[number])} for name, number in cases]
    return pd.DataFrame(rows)


def stored(table: pd.DataFrame) -> StoredTable:
    """A sweep as a trace keeps it."""
    return StoredTable(table, SWEEP_TITLE, ERROR_UNITS)


def _checked(bits: Iterable[int]) -> list[int]:
    """The numbers of bits, each once and the most first; refused before hours of work, not after."""
    numbers = sorted(set(bits), reverse=True)
    if not numbers:
        raise InputError("No number of bits was given. Give one or more, such as 7, 10 and 23.")
    for number in numbers:
        parse_precision(f"m{number}")
    return numbers


def _errors(reference: Reference, block: str, precision: Precision) -> dict[str, float]:
    """Errors with one block in a format, or the whole model: rounding outside all blocks is in that alone."""
    if block == WHOLE:
        return reference.errors(Variant(reference.model, precision, reference.device).predict)
    with rounded_blocks(reference.variant.model, {block: precision}):
        return reference.errors(reference.variant.predict)
