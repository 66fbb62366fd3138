"""Two traces side by side: another backend, version or machine, block by block. Nothing here imports torch or mace."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from precision_probe.analysis.array_errors import ArrayErrors
from precision_probe.analysis.errors import errors
from precision_probe.analysis.pairs import MODEL, MOST_BLOCKS, StoredArray, arrays, blocks_of_rows, read_pairs
from precision_probe.exceptions import InputError
from precision_probe.precisions import PRECISIONS, Precision, parse_precision
from precision_probe.trace.recording.threads import in_threads
from precision_probe.trace.trace import Trace

__all__ = ["ROUNDOFFS", "compare_traces", "first_difference", "provenance_differences"]

# Unit roundoffs of float64 that two correct ways to compute the same may be apart. From cuEquivariance to e3nn they are
# at most 21, from one order of edges to another 18 (demo and 3BPA models, any array); one constant in float32 makes
# 2²⁹. Between the two it is a choice, with room for larger models and other machines.
ROUNDOFFS = 1e4
# Unit roundoffs of the coarser dtype that two traces of the same weights may be apart in float64, where one model was
# stored in another dtype. Measured at most 10 (demo and a two-head model, float32 beside float64, any array); a weight
# changed by 0.1 % makes 2e4.
_STORED_ROUNDOFFS = 1e3
# Of A's own rounding error, how much B may be apart from A in a reduced precision. Measured in the same way, at most
# 3.8 (cuEquivariance) and 0.8 (order of edges).
_TIMES_OWN_ERROR = 10
_REDUCED = f"in a reduced precision within {_TIMES_OWN_ERROR} times A's own rounding error"
# Å. The same structure, read from formats that write other numbers of digits; what that does to results is a
# difference, and shown as one.
_SAME_PLACE = 1e-5
# Gradients of Σ Y², which is constant. The errors of a trace tell zeros too, but not where it has float64 alone.
_ZERO = {("isolated", "spherical_harmonics", "vectors", "backward")}
_EDGE_KEYS = ("sender", "receiver", "image")
_OF_OTHER_OUTPUTS = "gradients of outputs that differ in shape"

_Key = tuple[str, str, str]  # block, tensor, direction
_Arrays = dict[_Key, StoredArray]


def compare_traces(a: Trace, b: Trace) -> pd.DataFrame:
    """How far trace B is from trace A, for every array that both have.

    Args:
        a: The trace to compare with, such as one of the e3nn model.
        b: The other, such as one of the model converted to cuEquivariance.

    Returns:
        One row for each precision (float64 first), mode, block (``model`` for the model's own results), tensor and
        direction, with ``difference`` (rel_l2 of B against A), ``max_abs`` (in ``units``), ``error_a`` and ``error_b``
        (rel_l2 against A's float64), ``allowed`` and ``equivalent``. Edges are brought into the same order.

    In float64 two correct ways to compute the same differ by some unit roundoffs; ``allowed`` is :data:`ROUNDOFFS` of
    them. Where the models were stored in different dtypes, their weights themselves are apart by the coarser one's
    rounding, and a thousand roundoffs of that are allowed. In a reduced precision rounding itself makes traces differ,
    so ten times A's own error is allowed, or ten times the median over A's arrays where A happens to have a smaller one
    (a single energy may be right by luck). Where A's float64 is rounding noise (:func:`precision_probe.errors` says
    which), nothing is judged. ``attrs["allowance"]`` says in words what is allowed.

    ``attrs["left_out"]`` names the arrays that cannot be compared, each with the reason: neighbour lists differ, shapes
    do, a submodule works in its library's own layout; or it is an isolated gradient, which is of the sum of a block's
    squared outputs, and these are not the same numbers in both.

    Raises:
        InputError: If the traces are not of the same structures, or have no precision or block in common.
    """
    _check_structures(a, b)
    order = _edge_order(a.structures, b.structures)
    left_out: dict[str, str] = _of_errors_alone(a, b)
    resolved = errors(a).groupby(["mode", "block", "tensor", "direction"])["resolved"].all()
    beside: list[_Beside] = []
    precisions = ["float64", *(str(p) for p in a.precisions if p in b.precisions)]
    for mode in (mode for mode in _modes(a) if mode in _modes(b)):
        reference = _by_key(a, mode, "float64")
        for precision in precisions:
            ours, theirs = (_by_key(trace, mode, precision) for trace in (a, b))
            reasons = _not_comparable(ours, theirs, mode, edges_agree=order is not None)
            left_out |= {_name(key, mode, reason): reason for key, reason in reasons.items()}
            for key in (key for key in ours if key in theirs and key not in reasons):
                array, other = ours[key], theirs[key]
                if array.rows == "edge":
                    other = dataclasses.replace(other, order=order)
                is_resolved = bool(resolved.get((mode, *key), True)) and (mode, *key) not in _ZERO
                beside.append(_Beside(mode, parse_precision(precision), reference[key], array, other, is_resolved))
    rows = _differences(beside)
    if not rows:
        raise InputError("The traces have no precision, mode and block in common, so there is nothing to compare.")
    exact, in_words = _allowed_in_float64(a, b)
    table = _judged(pd.DataFrame(rows), exact)
    table.attrs["left_out"] = dict(sorted(left_out.items()))
    table.attrs["allowance"] = f"{in_words}; {_REDUCED}"
    rank = {name: index for index, name in enumerate(precisions)}
    return table.sort_values("precision", key=lambda column: column.map(rank), kind="stable", ignore_index=True)


def first_difference(table: pd.DataFrame) -> "pd.Series[Any] | None":
    """The row of :func:`compare_traces` where a difference that rounding does not explain comes in.

    Of the blocks' outputs the first, as the model runs: what is wrong makes all that comes after it wrong. If only
    gradients differ, those of a block alone say which it is; else the last, as gradients run backward.
    """
    different = table[~table["equivalent"]]
    if different.empty:
        return None
    blocks = different[different["block"] != MODEL]
    forward, backward = (blocks[blocks["direction"] == direction] for direction in ("forward", "backward"))
    alone = backward[backward["mode"] == "isolated"]
    candidates = ((forward, 0), (alone, 0), (backward, -1), (different, 0))
    return next(rows.iloc[at] for rows, at in candidates if len(rows))


def provenance_differences(a: Trace, b: Trace) -> pd.DataFrame:
    """What the traces' attributes say differently: versions, device, settings, model.

    Returns:
        Indexed by attribute (``versions.torch``), with the columns ``a`` and ``b``.
    """
    ours, theirs = (_flat(trace.attributes) for trace in (a, b))
    different = {key: (ours.get(key, ""), theirs.get(key, "")) for key in (ours | theirs) if key != "created"}
    rows = {key: values for key, values in different.items() if values[0] != values[1]}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["a", "b"]).rename_axis("attribute")


@dataclass(frozen=True)
class _Beside:
    """Arrays that are compared: A's float64, and A's and B's in a precision."""

    mode: str
    precision: Precision
    reference: StoredArray
    ours: StoredArray
    theirs: StoredArray
    is_resolved: bool


def _differences(beside: Sequence[_Beside]) -> list[dict[str, object]]:
    """How far B's arrays are from A's, and both from A's float64; what needs other rows is judged later."""
    how = [ArrayErrors(each.precision, is_whole=each.reference.is_small) for each in beside]
    blocks = ((at, rows) for at, each in enumerate(beside) for rows in blocks_of_rows(each.reference.values))

    def found_in(block: tuple[int, slice]) -> tuple[int, list[NDArray[np.float64]], bool]:
        at, rows = block
        a, b = read_pairs(beside[at].reference, [beside[at].ours, beside[at].theirs], rows)
        pairs = ((a.y_hat, b.y_hat), (a.y, a.y_hat), (b.y, b.y_hat))
        return at, [how[at].of_block(*pair) for pair in pairs], np.array_equal(a.y_hat, b.y_hat, equal_nan=True)

    found: list[list[list[NDArray[np.float64]]]] = [[] for _ in beside]
    is_same = [True] * len(beside)
    for at, of_block, is_same_in_block in in_threads(found_in, blocks, MOST_BLOCKS):
        found[at].append(of_block)
        is_same[at] = is_same[at] and is_same_in_block
    rows: list[dict[str, object]] = []
    for at, each in enumerate(beside):
        apart, of_a, of_b = (how[at].of_all(of_blocks) for of_blocks in zip(*found[at], strict=True))
        rows.append(
            {
                "precision": str(each.precision),
                "mode": each.mode,
                **each.ours.identity,
                "difference": apart["rel_l2"],
                "max_abs": apart["max_abs"],
                "error_a": of_a["rel_l2"],
                "error_b": of_b["rel_l2"],
                "allowed": np.nan,
                "equivalent": is_same[at] or not each.is_resolved,
                "resolved": each.is_resolved,
            }
        )
    return rows


def _allowed_in_float64(a: Trace, b: Trace) -> tuple[float, str]:
    """How far two correct float64 runs may be apart, relatively, and the same in words."""
    stored = {trace.attributes.get("model_dtype", "float64") for trace in (a, b)}
    if len(stored) == 1:
        return ROUNDOFFS * PRECISIONS["float64"].unit_roundoff, f"in float64 within {ROUNDOFFS:g} unit roundoffs"
    coarser = max(map(parse_precision, stored), key=lambda precision: precision.unit_roundoff)
    words = (
        f"in float64 within {_STORED_ROUNDOFFS:g} unit roundoffs of {coarser}, which one model's weights are stored in"
    )
    return _STORED_ROUNDOFFS * coarser.unit_roundoff, words


def _judged(table: pd.DataFrame, exact: float) -> pd.DataFrame:
    """The table with what is allowed, ``exact`` in float64, and whether each difference is within it."""
    rounding = table["error_a"].where(np.isfinite(table["error_a"]) & table["resolved"])
    usual = rounding.groupby([table["precision"], table["mode"]]).transform("median")
    allowed = (_TIMES_OWN_ERROR * rounding.clip(lower=usual)).where(table["precision"] != "float64", 0.0)
    allowed = allowed.clip(lower=exact)
    within = (table["difference"] <= allowed) | allowed.isna()  # an overflow hides what is beneath
    allowed = allowed.where(table["resolved"])
    return table.assign(allowed=allowed, equivalent=table["equivalent"] | within).drop(columns="resolved")


def _modes(trace: Trace) -> tuple[str, ...]:
    return tuple(dict.fromkeys(("propagated", *trace.modes)))


def _not_comparable(ours: _Arrays, theirs: _Arrays, mode: str, *, edges_agree: bool) -> dict[_Key, str]:
    """Of the arrays that both traces have, those that cannot be compared, and why."""
    reasons: dict[_Key, str] = {}
    for key in (key for key in ours if key in theirs):
        x, y = ours[key], theirs[key]
        if x.rows == "edge" and not edges_agree:
            reasons[key] = "neighbour lists differ"
        elif x.layout != y.layout:
            reasons[key] = "the layouts of irreps differ"
        elif x.shape != y.shape:
            reasons[key] = "shapes differ"
        elif mode == "isolated" and x.direction == "backward" and not _same_outputs(ours, theirs, x.block):
            reasons[key] = _OF_OTHER_OUTPUTS
    return reasons


def _of_errors_alone(a: Trace, b: Trace) -> dict[str, str]:
    """The blocks whose arrays a trace has not kept, each with the reason why it cannot be compared."""
    names = [name for name, trace in (("A", a), ("B", b)) if trace.keeps_errors]
    reason = f"{' and '.join(names)} kept errors, no arrays"
    return {block: reason for block in a.blocks if block in b.blocks} if names else {}


def _same_outputs(ours: _Arrays, theirs: _Arrays, block: str) -> bool:
    """Whether the outputs of a block, whose squares an isolated gradient is of, are as many numbers in both traces."""
    a, b = (
        {key: math.prod(array.shape) for key, array in of.items() if key[0] == block and array.direction == "forward"}
        for of in (ours, theirs)
    )
    return a == b


def _name(key: _Key, mode: str, reason: str) -> str:
    """What an array that is left out is called; another mode may well have it."""
    block, tensor, _ = key
    return f"{block}.{tensor}" + (f", {mode} gradient" if reason == _OF_OTHER_OUTPUTS else "")


def _by_key(trace: Trace, mode: str, precision: str) -> _Arrays:
    """The arrays of a group, by block, tensor and direction."""
    if not trace.has_group(mode, precision):
        return {}
    return {array.key: array for array in arrays(trace, trace.group(mode, precision), mode)}


def _check_structures(a: Trace, b: Trace) -> None:
    """Refuse traces whose rows are of different things: all that follows would differ, and nothing be told by it."""
    ours, theirs = a.structures, b.structures
    if ours.sizes.get("structure") != theirs.sizes.get("structure"):
        raise InputError(
            f"The traces are of {ours.sizes.get('structure')} and {theirs.sizes.get('structure')} structures. "
            "Audit the same structures in both."
        )
    if ("positions" in ours) != ("positions" in theirs):
        raise InputError("One trace is of atomic structures, the other of a module's inputs.")
    if "positions" not in ours:
        return
    same = ours["n_atoms"].equals(theirs["n_atoms"]) and ours["atomic_numbers"].equals(theirs["atomic_numbers"])
    if not same or not np.allclose(ours["positions"], theirs["positions"], rtol=0, atol=_SAME_PLACE):
        raise InputError(
            "The traces are of different structures (atoms or positions differ). Audit the same structures in both."
        )


def _edge_order(ours: xr.Dataset, theirs: xr.Dataset) -> NDArray[np.intp] | None:
    """Which edge of B is each edge of A, or ``None`` where their neighbour lists differ."""
    if "sender" not in ours or ours.sizes["edge"] != theirs.sizes["edge"]:
        return None
    (key_a, order_a), (key_b, order_b) = (_sorted_edges(structures) for structures in (ours, theirs))
    if not np.array_equal(key_a[order_a], key_b[order_b]):
        return None
    order = np.empty_like(order_a)
    order[order_a] = order_b
    return order


def _sorted_edges(structures: xr.Dataset) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """What identifies each edge (n_edges, 6): structure, both atoms, cell image; and the order that sorts them."""
    owner = np.repeat(np.arange(structures.sizes["structure"]), structures["n_edges"].values)
    sender, receiver, image = (structures[key].values for key in _EDGE_KEYS)
    keys = np.column_stack([owner, sender, receiver, image]).astype(np.int64)
    return keys, np.lexsort(keys.T[::-1])


def _flat(attributes: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Attributes as text, those within others by their full name, so that what differs has one line of its own."""
    flat: dict[str, str] = {}
    for key, value in attributes.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return flat
