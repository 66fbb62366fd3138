"""The tables that explain errors, arranged to be read: one column for each precision. Nothing here imports torch."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from precision_probe.analysis.energy_steps import step_sizes
from precision_probe.analysis.pairs import MODEL
from precision_probe.analysis.physical_errors import ALL, by_element, by_structure, has_energies_and_forces
from precision_probe.exceptions import InputError
from precision_probe.trace.tables import HELD_OUT
from precision_probe.trace.trace import Trace

__all__ = ["View", "broken_symmetry", "numbers", "shares", "view", "views"]

_MILLI = 1e3  # eV to meV


@dataclass(frozen=True)
class View:
    """A table to read.

    Attributes:
        title: What it answers.
        frame: The index says what a row is of; numbers, or text.
        note: How to read it.
    """

    title: str
    frame: pd.DataFrame
    note: str = ""


def views(trace: Trace) -> tuple[str, ...]:
    """What can be shown of a trace: its stored tables; errors in physical terms where it is of energies and forces."""
    has_forces = bool(trace.precisions) and has_energies_and_forces(trace)
    stored = [name for name in trace.tables if name in _ARRANGED]
    return (*(["physics"] if has_forces else []), *stored)


def view(trace: Trace, name: str) -> View:
    """One of them.

    Raises:
        InputError: If the trace has no such table.
    """
    if name == "physics":
        return _physics(by_structure(trace), by_element(trace))
    if name not in _ARRANGED:
        raise InputError(f"Unknown table {name!r}. The trace has: {', '.join(views(trace)) or 'none'}.")
    return _ARRANGED[name](trace.table(name).frame)


def numbers(trace: Trace, name: str) -> pd.DataFrame:
    """What a view is made of, in full: rows as they are stored, or errors in physical terms structure by structure.

    Raises:
        InputError: If the trace has no such table.
    """
    return by_structure(trace) if name == "physics" else trace.table(name).frame


def _physics(structures: pd.DataFrame, elements: pd.DataFrame) -> View:
    """Rows of all structures together; those that the trace does not tell, or of nothing periodic, are left out."""
    rows = structures[structures["structure"] == ALL].set_index("precision").drop(columns="structure")
    units = {
        "energy": "energy, meV/atom",
        "interaction_energy": "interaction energy, meV/atom",
        "forces_mae": "forces MAE, meV/Å",
        "forces_rmse": "forces RMSE, meV/Å",
        "forces_p50": "forces, 50 % below, meV/Å",
        "forces_p95": "forces, 95 % below, meV/Å",
        "forces_p99": "forces, 99 % below, meV/Å",
        "forces_max": "forces, largest, meV/Å",
        "forces_slope": "forces too large by, %",
        "forces_slope_error": "± (standard error)",
        "forces_cosine": "forces, cosine with float64's",
        "worst_atom": "worst atom",
        "stress": "stress, GPa",
        "net_force": "net force on a molecule, meV/Å",
        "net_torque": "net torque on a molecule, meV",
        "model_forces_mae": "model's own forces MAE, meV/Å",
        "forces_share": "forces MAE ÷ model's own",
        "model_energy": "model's own energy error, meV/atom",
        "energy_share": "energy error ÷ model's own",
    }
    kept = [name for name in units if name in rows and not rows[name].isna().all()]
    frame = pd.concat([rows[kept].rename(columns=units).T, _of_elements(elements)]).rename_axis("")
    note = (
        "Energies are means of |Δ| over structures; forces are of components, over all atoms or those of one element."
    )
    return View("In your units: all structures together", frame, note)


def _of_elements(table: pd.DataFrame) -> pd.DataFrame:
    """Of each element the mean error, and by how much its forces are too large; nothing where there is one alone."""
    units = {"forces_mae": "forces MAE, meV/Å", "forces_slope": "forces too large by, %"}
    if len(table["element"].unique()) == 1:
        return pd.DataFrame()
    frames = [
        _wide(table.assign(label=table["element"] + ": " + unit, value=table[name]), "label")
        for name, unit in units.items()
    ]
    return pd.concat(frames)


def _contributions(table: pd.DataFrame) -> View:
    """Shares of the squared error of forces, then of energies, in percent."""
    frames = [shares(table, name).rename(index=f"{name}: {{}}".format) for name in ("forces", "energy")]
    note = (
        "One part after another, in the order in which a run needs them, is taken to the precision; what that changes "
        "is the part's, and all add up to the whole error. A negative share undoes some of the others'. the rest: by "
        "what the variant differs from all parts together."
    )
    return View("What part makes how much of the squared error (%)", pd.concat(frames).rename_axis("part"), note)


def shares(table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Parts of the model by precisions: how much of the squared error each makes, in percent.

    Args:
        table: The table ``contributions`` of a trace.
        quantity: ``forces`` or ``energy``.
    """
    return _wide(table.assign(value=100 * table[f"{quantity}_share"]), "part")


def _budget(table: pd.DataFrame) -> View:
    """The mean absolute error of forces that each source makes alone, and below them what they add up to."""
    label = (table["source"] + " " + table["block"]).str.strip()
    frame = _wide(table.assign(label=label, value=_MILLI * table["forces_mae"]), "label")
    note = (
        "One thing is rounded at a time in a float64 run; forces MAE. sums: adding up atoms' energies, which forces do "
        "not see. Parts add as squares if they know nothing of one "
        "another; what they do not explain is negative where they are larger than the total."
    )
    return View("What the force error comes from (meV/Å)", frame.rename_axis("rounded"), note)


def _prediction(table: pd.DataFrame) -> View:
    """Expected beside measured, each as the prediction defines it: a bound, a root mean square."""
    units = {
        "energy_bound": "energy, bound, meV/atom",
        "energy_expected": "energy, expected",
        "energy": "energy, measured",
        "forces_expected": "forces RMS, expected, meV/Å",
        "forces": "forces RMS, measured",
    }
    frame = (_MILLI * table.set_index("precision")[list(units)]).rename(columns=units).T.rename_axis("")
    note = (
        "From adjoints of one float64 run, for the inputs of blocks alone: rounding inside the blocks comes on top. It "
        "does not hold where numbers overflow or vanish, or errors are no longer small."
    )
    return View("Errors predicted, and measured", frame, note)


def broken_symmetry(table: pd.DataFrame) -> pd.DataFrame:
    """Of each motion and result, and of each motion and irrep the worst block.

    Args:
        table: The table ``equivariance`` of a trace.

    Returns:
        Rows with ``label``, ``precision``, ``value`` (the mean over motions) and ``spread`` (their standard deviation,
        NaN where there is none), labels in the order of the table.
    """
    what = table["tensor"].where(table["block"] == MODEL, "blocks, " + table["irrep"])
    rows = table.assign(label=table["motion"] + ": " + what, value=table["rel_l2"])
    order = {label: at for at, label in enumerate(rows["label"].unique())}
    worst = rows.sort_values("value", na_position="first").groupby(["label", "precision"]).tail(1)
    worst = worst.assign(spread=worst.get("spread", pd.Series(np.nan, worst.index)))  # older traces have none
    return worst.sort_values("label", key=lambda labels: labels.map(order))[["label", "precision", "value", "spread"]]


def _equivariance(table: pd.DataFrame) -> View:
    """The mean over seeds with its spread, as text; of blocks, the worst."""
    worst = broken_symmetry(table)
    text = [_with_spread(*each) for each in zip(worst["value"], worst["spread"], strict=True)]
    wide = worst.assign(text=text).pivot_table(index="label", columns="precision", values="text", aggfunc="first")
    frame = wide.reindex(index=worst["label"].unique(), columns=table["precision"].unique())
    note = (
        "Relative difference (L2) between the results for the moved structure and the moved results; worst block. Mean "
        "± standard deviation over random motions. permutation: atoms renumbered and the graph built anew; edge order: "
        "edges alone; batch: one of a batch of eight against alone."
    )
    return View("Broken symmetry", frame.rename_axis("motion"), note)


def _with_spread(mean: float, spread: float) -> str:
    """A mean to two digits and its standard deviation to one; nothing of what is not a number."""
    if np.isnan(mean):
        return ""
    return f"{mean:.1e}" + (f" ± {spread:.0e}" if spread > 0 else "") if mean else "0"


def _noise(table: pd.DataFrame) -> View:
    what = table["tensor"].where(table["block"] == MODEL, "blocks, " + table["direction"])
    frame = _wide(table.assign(label=what, value=table["spread"]), "label")
    note = "Relative spread (L2) of five runs of the same: GPUs add in any order. Errors below it are not resolved."
    return View("Noise from run to run", frame.rename_axis(""), note)


def _digits(table: pd.DataFrame) -> View:
    frame = _wide(table.assign(value=table["digits"]), "quantity").round(1)
    note = "Decimal digits on which runs with stochastic rounding agree; no reference is used."
    return View("Significant digits", frame.rename_axis(""), note)


def _sweep(table: pd.DataFrame) -> View:
    """The largest error over the structures searched on and those held out."""
    largest = table[[name for name in ("forces", f"{HELD_OUT}forces") if name in table]].max(axis=1, skipna=False)
    frame = _MILLI * table.assign(value=largest).pivot_table(index="block", columns="bits", values="value", sort=False)
    frame = frame[sorted(frame.columns)].rename(columns=lambda bits: f"{bits:.0f}").rename_axis("rounded")
    return View("Largest force error with so many stored bits (meV/Å)", frame, "One block is rounded at a time.")


def _wide(table: pd.DataFrame, label: str) -> pd.DataFrame:
    """The largest value for each label and precision, both in the order in which they come."""
    wide = table.pivot_table(index=label, columns="precision", values="value", aggfunc="max", sort=False)
    return wide.reindex(index=table[label].unique(), columns=table["precision"].unique())  # what is all NaN, too


def _range(table: pd.DataFrame) -> View:
    first = table.drop_duplicates("message")
    messages = first["message"].tolist() or ["every number stays within range"]
    frame = pd.DataFrame({"what happens first": messages}, index=first["precision"].tolist() or ["all precisions"])
    return View("Overflow, underflow, NaN", frame.rename_axis("precision"))


def _finite_differences(table: pd.DataFrame) -> View:
    """The difference beside what truncation and noise make, without which it says nothing."""
    units = {
        "difference": "difference, meV/Å",
        "expected": "of it truncation and noise, meV/Å",
        "relative": "relative to the forces",
        "step": "step, Å",
        "energy_noise": "noise of the energy, meV",
    }
    frame = table.set_index("precision")[list(units)]
    frame[["difference", "expected", "energy_noise"]] *= _MILLI
    note = (
        "Central differences of the precision's own energy against its forces, each with the step that suits it best. "
        "Only a difference well above what truncation and noise make says that forces are not the gradient."
    )
    return View("Are forces the gradient of the energy?", frame.rename(columns=units).T.rename_axis(""), note)


def _displacement(table: pd.DataFrame) -> View:
    """The size of steps, from the points that the trace keeps; they are in meV already."""
    units = {
        "energy_step": "energy, meV/atom",
        "force_step": "force, meV/Å",
        "n_distinct": "different energies",
    }
    frame = step_sizes(table).rename(columns=units).T.rename_axis("")
    length, n = table["position"].max(), table["position"].nunique()
    note = f"What a cubic does not explain of the difference from float64, over {length:g} Å in {n} points (RMS)."
    return View("Steps that rounding makes along a displacement", frame, note)


def _drift(table: pd.DataFrame) -> View:
    """Drift and its difference from float64's, beside intervals without which no two precisions can be told apart."""
    units = {
        "drift": "drift, meV/atom/ps",
        "confidence": "± (95 % interval)",
        "fluctuation": "fluctuation, meV/atom",
        "difference": "drift less float64's, meV/atom/ps",
        "difference_confidence": "± (95 % interval, run by run)",
    }
    rows = table.set_index("precision")
    frame = rows[[name for name in units if name in rows]].rename(columns=units).T.rename_axis("")
    if "difference" in rows:  # which older traces have not
        verdicts = {precision: _verdict(row) for precision, row in rows.iterrows()}
        frame = pd.concat([frame.astype(object), pd.DataFrame(verdicts, index=["told from float64's"])])
    note = (
        "Drift of the total energy in dynamics at constant energy, without the first tenth of each run; all precisions "
        "from the same velocities, so that differences are taken run by run. No: a difference of the size named would "
        "have been told in 95 % of cases."
    )
    return View("Is energy conserved?", frame.rename_axis(""), note)


def _verdict(row: "pd.Series[float]") -> str:
    """Whether a drift is told from float64's; if not, the difference that would have been."""
    if np.isnan(row["detectable"]):
        return ""
    if abs(row["difference"]) > row["difference_confidence"]:
        return "yes"
    return f"no ({row['detectable']:.1e} would be)"


_ARRANGED: dict[str, Callable[[pd.DataFrame], View]] = {
    "contributions": _contributions,
    "range": _range,
    "budget": _budget,
    "prediction": _prediction,
    "equivariance": _equivariance,
    "finite_differences": _finite_differences,
    "displacement": _displacement,
    "noise": _noise,
    "digits": _digits,
    "drift": _drift,
    "sweep": _sweep,
}
