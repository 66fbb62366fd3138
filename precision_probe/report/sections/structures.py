"""The structures: errors in units that people use, how force errors are distributed, and the atoms that have them."""

import numpy as np
import pandas as pd

from precision_probe.analysis.physical_errors import has_energies_and_forces
from precision_probe.analysis.views import view
from precision_probe.report.content import Figure, Part, Section, table_of
from precision_probe.report.drawing.charts import Series, rows_chart
from precision_probe.report.drawing.molecule import MOST_ATOMS, molecule, nearest
from precision_probe.report.drawing.svg import shortened
from precision_probe.report.findings import MILLI, Findings, slots

__all__ = ["structures"]

_QUANTILES = {"50 % below": 50, "90 % below": 90, "95 % below": 95, "99 % below": 99, "largest": 100}
_WORST = 10  # structures and atoms in a table
_NAME = 60  # characters of a structure's name in a heading


def structures(findings: Findings) -> Section | None:
    """Errors of forces, atom by atom."""
    if not has_energies_and_forces(findings.trace) or not findings.precisions:
        return None
    physics = view(findings.trace, "physics")
    parts: list[Part] = [_distribution(findings)]
    parts += [_worst_structure(findings, precision) for precision in findings.precisions]
    parts.append(table_of(physics.frame, physics.title, note=physics.note))
    if findings.trace.structures.sizes["structure"] > 1:
        parts.append(_of_structures(findings.by_structure.query("precision != 'float64'")))
    return Section("structures", "The structures, atom by atom", parts)


def _distribution(findings: Findings) -> Figure:
    """Percentiles of |Δ| of the forces' components."""
    deltas = MILLI * findings.per_atom[["error_x", "error_y", "error_z"]].abs()
    columns = {
        precision: np.percentile(deltas.loc[precision], list(_QUANTILES.values())).tolist()
        for precision in findings.precisions
    }
    title = "How errors of forces are distributed"
    series = [Series(name, columns[name], slot) for name, slot in slots(findings.trace).items()]
    frame = pd.DataFrame(columns, index=pd.Index(list(_QUANTILES), name="meV/Å"))
    drawing = rows_chart(list(_QUANTILES), series, "|Δ| of components, meV/Å", title)
    return Figure(title, drawing, table_of(frame, title))


def _worst_structure(findings: Findings, precision: str) -> Figure:
    """The structure that has the atom with the largest error, or of a large one the atoms around that."""
    known = findings.trace.structures
    of_atoms = findings.per_atom.loc[precision]
    errors = MILLI * of_atoms["error"].to_numpy()
    worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    owner = int(known["structure_of_atom"].values[worst])
    atoms = np.flatnonzero(known["structure_of_atom"].values == owner)
    first, n_atoms = atoms[0], len(atoms)
    atoms = atoms[nearest(known["positions"].values[atoms], worst - first)]
    numbers = known["atomic_numbers"].values[atoms]
    names = [f"{symbol}{at}" for symbol, at in zip(of_atoms["element"].iloc[atoms], atoms - first, strict=True)]
    name = shortened(str(known["name"].values[owner]), _NAME)
    title = f"{precision}: {name}, the structure with the largest error of a force"
    cell = known["cell"].values[owner] if known["pbc"].values[owner].all() and n_atoms <= MOST_ATOMS else None
    drawing = molecule(numbers, known["positions"].values[atoms], errors[atoms], names, title, cell)
    reference = MILLI * of_atoms["force"].to_numpy()[atoms]
    frame = pd.DataFrame(
        {"|Δ force|, meV/Å": errors[atoms], "|force|, meV/Å": reference}, index=pd.Index(names, name="atom")
    )
    frame = frame.sort_values(frame.columns[0], ascending=False, na_position="first").head(_WORST)
    note = "The lighter an atom, the larger the error of its force. Drag it, or use the arrow keys, to turn it."
    if n_atoms > MOST_ATOMS:
        note += f" Shown are the {MOST_ATOMS} atoms of {n_atoms} that are nearest to the worst."
    caption = f"{precision}: the atoms with the largest errors"
    return Figure(title, drawing, table_of(frame, caption), note=note, precision=precision)


def _of_structures(table: pd.DataFrame) -> Part:
    """The structures with the largest errors, in any precision."""
    wide = table.pivot_table(index="structure", columns="precision", values="forces_max", aggfunc="max", sort=False)
    wide = wide.reindex(columns=table["precision"].unique())
    order = wide.fillna(np.inf).rank().max(axis=1).sort_values(ascending=False).index
    title = "Largest error of a force, structure by structure (meV/Å)"
    if len(wide) > _WORST:
        title += f": the {_WORST} worst of {len(wide)}"
    return table_of(wide.loc[order[:_WORST]], title)
