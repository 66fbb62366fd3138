"""How many bits each block needs: emulated formats with fewer and fewer bits, in the whole model and block by block."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from precision_probe.diagnostics.reference import ERROR_UNITS, STRUCTURES, Reference
from precision_probe.exceptions import InputError
from precision_probe.measurement_log import MeasurementLog
from precision_probe.models.blocks import select_blocks
from precision_probe.models.loading import ModelSource
from precision_probe.precisions import Precision, parse_precision
from precision_probe.progress import shown
from precision_probe.structures import StructureSource, read_structures
from precision_probe.trace.tables import HELD_OUT
from precision_probe.variants.rounded_blocks import rounded_blocks
from precision_probe.variants.variant import Variant

__all__ = ["SWEEP_TITLE", "WHOLE", "sweep", "sweep_of"]

WHOLE = "whole model"
SWEEP_TITLE = "Errors with fewer and fewer bits, in the whole model and in one block at a time"
_BITS = (4, 6, 7, 8, 10, 12, 14, 16, 18, 20, 23)  # bfloat16's 7, float16's 10, float32's 23, and some between


def sweep(
    model: ModelSource = "demo",
    structures: StructureSource = "demo",
    *,
    held_out: StructureSource | None = None,
    bits: Iterable[int] = _BITS,
    blocks: str | Sequence[str] | None = None,
    head: str | None = None,
    device: str | None = None,
    log: str | Path | None = None,
    force: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Round to fewer and fewer bits, in the whole model and in one block at a time, and see what forces make of it.

    Formats have float64's exponents (``m10``, …), so that nothing overflows and rounding is all there is.

    Args:
        model: As :func:`precision_probe.attach` takes it.
        structures: As ``probe.run()`` takes them. Where none are held out, every second of them is, so that both are
            spread evenly over a trajectory; a single structure is not.
        held_out: Others, on which errors are judged too, likewise; then all of ``structures`` are searched on.
        bits: Stored bits of the significand: 23 are float32's, 10 float16's, 7 bfloat16's.
        blocks: Globs; by default the embeddings, interactions, products and readouts.
        head: Which head of a multi-head model.
        device: Where to run; by default a GPU if there is one.
        log: A file of errors as they are measured, from which an interrupted sweep goes on.
        force: Begin a log anew that is of something else.
        progress: Say on stderr how far it is: a bar in a terminal, else lines.

    Returns:
        One row for each block (``whole model`` first) and number of bits: ``energy``, ``interaction_energy`` (eV/atom),
        ``forces`` (eV/Å: the largest error), ``forces_mae``, ``forces_rms`` (eV/Å), ``forces_rel_l2``, over the
        structures searched on, ``n_searched`` of them. Where others are held out, ``n_held_out`` of them, the same
        errors of these, such as ``held_out_forces``. :func:`precision_probe.bits_needed` judges by both. ``attrs`` has
        the ``title`` and the ``units`` that a :class:`precision_probe.trace.tables.StoredTable` of it takes.

    Raises:
        InputError: If the model, a structure, a pattern or a number of bits cannot be used, or the log is of another
            model, other structures or another device and there is no ``force``.
    """
    numbers = _checked(bits)
    searched = read_structures(structures)
    others = searched[1::2] if held_out is None else read_structures(held_out)
    reference = Reference(model, searched[::2] if held_out is None else searched, head=head, device=device)
    held = reference.on(others, head=head) if others else None
    of = {
        "log": "sweep",
        **reference.about(),
        "choice of structures held out": held.about()[STRUCTURES] if held else "",
    }
    kept = MeasurementLog(None if log is None else Path(log), of, force=force)
    return sweep_of(reference, numbers, blocks, held=held, log=kept, progress=progress)


def sweep_of(
    reference: Reference,
    bits: Iterable[int] = _BITS,
    blocks: str | Sequence[str] | None = None,
    *,
    held: Reference | None = None,
    log: MeasurementLog | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """The same of a model and structures whose float64 results are there already, and of others that are held out."""
    known = log or MeasurementLog(None, {})
    formats = {number: parse_precision(f"m{number}") for number in _checked(bits)}
    names = [WHOLE, *(block.name for block in select_blocks(reference.model, blocks))]
    cases = shown([(name, number) for name in names for number in formats], "rounding", progress=progress)
    counts = {"n_searched": len(reference.graphs), "n_held_out": len(held.graphs) if held else 0}
    rows = []
    for name, number in cases:
        key = f"{name} m{number}"
        if key not in known:
            others = _errors(held, name, formats[number]) if held else {}
            of_others = {f"{HELD_OUT}{each}": value for each, value in others.items()}
            known.add(key, _errors(reference, name, formats[number]) | of_others)
        rows.append({"block": name, "bits": number, **known[key], **counts})
    table = pd.DataFrame(rows)
    units = ERROR_UNITS | {f"{HELD_OUT}{name}": unit for name, unit in ERROR_UNITS.items()}
    table.attrs = {"title": SWEEP_TITLE, "units": {name: unit for name, unit in units.items() if name in table}}
    return table


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
