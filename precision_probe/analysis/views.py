"""The tables that explain errors, arranged to be read: one column for each precision. Nothing here imports torch."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from precision_probe.analysis.energy_steps import step_sizes
from precision_probe.analysis.pairs import MODEL
from precision_probe.analysis.physical_errors import ALL, by_structure, has_energies_and_forces
from precision_probe.exceptions import InputError
from precision_probe.trace.trace import Trace

__all__ = ["View", "numbers", "view", "views"]

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
        return _physics(by_structure(trace))
    if name not in _ARRANGED:
        raise InputError(f"Unknown table {name!r}. The trace has: {', '.join(views(trace)) or 'none'}.")
    return _ARRANGED[name](trace.table(name).frame)


def numbers(trace: Trace, name: str) -> pd.DataFrame:
    """What a view is made of, in full: rows as they are stored, or errors in physical terms structure by structure.

    Raises:
        InputError: If the trace has no such table.
    """
    return by_structure(trace) if name == "physics" else trace.table(name).frame


def _physics(table: pd.DataFrame) -> View:
    """Rows of all structures together; those that the trace does not tell, or of nothing periodic, are left out."""
    rows = table[table["structure"] == ALL].set_index("precision").drop(columns="structure")
    units = {
        "energy": "energy, meV/atom",
        "interaction_energy": "interaction energy, meV/atom",
        "forces_mae": "forces MAE, meV/Å",
        "forces_rmse": "forces RMSE, meV/Å",
        "forces_max": "forces, largest, meV/Å",
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
    frame = rows[kept].rename(columns=units).T.rename_axis("")
    return View("In your units: all structures together", frame, "Energies are means of |Δ| over structures.")


def _contributions(table: pd.DataFrame) -> View:
    """Shares of the squared error of forces, then of energies, in percent."""
    frames = [
        _wide(table.assign(label=f"{quantity}: " + table["part"], value=100 * table[f"{quantity}_share"]), "label")
        for quantity in ("forces", "energy")
    ]
    note = (
        "One part after another, in the order in which a run needs them, is taken to the precision; what that changes "
        "is the part's, and all add up to the whole error. A negative share undoes some of the others'. the rest: by "
        "what the variant differs from all parts together."
    )
    return View("What part makes how much of the squared error (%)", pd.concat(frames).rename_axis("part"), note)


def _budget(table: pd.DataFrame) -> View:
    """The mean absolute error of forces that each source makes alone, and below them what they add up to."""
    label = (table["source"] + " " + table["block"]).str.strip()
    frame = _wide(table.assign(label=label, value=_MILLI * table["forces_mae"]), "label")
    note = (
        "One thing is rounded at a time in a float64 run; forces MAE. Parts add as squares if they know nothing of one "
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


def _equivariance(table: pd.DataFrame) -> View:
    what = table["tensor"].where(table["block"] == MODEL, "blocks, " + table["irrep"])
    frame = _wide(table.assign(label=table["motion"] + ": " + what, value=table["rel_l2"]), "label")
    note = "Relative difference (L2) between the results for the moved structure and the moved results; worst block."
    return View("Broken symmetry", frame.rename_axis("motion"), note)


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
    frame = table.pivot_table(index="block", columns="bits", values="forces", sort=False) * _MILLI
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
    """Drift beside its interval of confidence, without which no two precisions can be told apart."""
    units = {
        "drift": "drift, meV/atom/ps",
        "confidence": "± (95 % interval)",
        "fluctuation": "fluctuation, meV/atom",
    }
    frame = table.set_index("precision")[list(units)].rename(columns=units).T.rename_axis("")
    note = "Drift of the total energy in dynamics at constant energy, all precisions from the same velocities."
    return View("Is energy conserved?", frame, note)


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
