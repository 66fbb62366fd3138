"""What we learned about MACE: where digits are lost in trained models, measured and written down as a page.

    python benchmarks/findings.py measure demo demo demo --device cuda
    python benchmarks/findings.py measure 3bpa 3bpa.model "3bpa.xyz@:16" --device cuda
    python benchmarks/findings.py drift demo demo "benzene=demo@4" "ice VIII=demo@6"
    python benchmarks/findings.py write                # docs/what-we-learned.md and its figures, from the JSON files

``measure`` runs an audit with ``explain`` and keeps what the page needs as ``findings-NAME.json``; ``drift`` runs
dynamics at constant energy and keeps ``findings-NAME-drift.json``. ``--smoke`` takes seconds, for CI.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from records import Record, check_folder
from systems import structure_at

import precision_probe as pp
from precision_probe.analysis.energy_steps import step_sizes
from precision_probe.analysis.errors import block_errors
from precision_probe.exceptions import InputError

PRECISIONS = "float32,bfloat16,float16"
HERE = Path(__file__).parent
RESULTS = HERE / "results"


def measure(name: str, model: str, structures: str, device: str, *, smoke: bool) -> Record:
    """Audit a model, explain its errors, and return every table that the page needs."""
    n_explained = 1 if smoke else 4
    with pp.attach(model, precisions="float16" if smoke else PRECISIONS, device=device) as probe:
        probe.run(structures)
        probe.explain(structures, n_structures=n_explained)
    trace = probe.trace()
    by_irrep = pp.errors(trace, by="irrep").query("direction == 'forward'")
    columns = ["precision", "mode", "block", "tensor", "irrep", "rel_l2", "amplification"]
    tables = {
        "summary": pp.summary(trace).reset_index(),
        "physics": pp.by_structure(trace),
        "errors": block_errors(pp.errors(trace))["amplification"].reset_index(),
        "irreps": by_irrep[columns],
        "steps": step_sizes(
            trace.table("displacement").frame
        ).reset_index(),  # of all digits, which the file does not keep
        **{table: trace.table(table).frame for table in trace.tables},
    }
    return {
        "name": name,
        "provenance": trace.attributes,
        "structures": [str(each) for each in trace.structures["name"].values],
        "n_atoms": trace.structures["n_atoms"].values.tolist(),
        "n_explained": min(n_explained, len(trace.structures["name"])),
        "tables": {key: records(table) for key, table in tables.items()},
    }


def drift(name: str, model: str, starts: Sequence[str], steps: int, *, smoke: bool) -> Record:
    """Run dynamics at constant energy from each start, ``label=structure``, side by side in processes of their own."""
    options: dict[str, Any] = {"steps": 10, "n_runs": 2} if smoke else {"steps": steps, "n_runs": 4}
    for start in starts:
        structure_at(start.partition("=")[2])  # refused here, before processes that import torch
    jobs = [(start, precision) for start in starts for precision in PRECISIONS.split(",")]
    with ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1), get_context("spawn")) as pool:
        futures = [
            pool.submit(one_drift, model, start.partition("=")[2], precision, options) for start, precision in jobs
        ]
        rows = [
            {"structure": start.partition("=")[0], **row}
            for (start, precision), future in zip(jobs, futures, strict=True)
            for row in records(future.result().reset_index())
            if row["precision"] == precision or precision == jobs[0][1]  # float64 is run beside each
        ]
    return {"name": name, "options": options, "drift": rows}


def one_drift(model: str, structure: str, precision: str, options: dict[str, Any]) -> pd.DataFrame:
    """Dynamics from one structure, ``path@index``, in float64 and a precision; on the CPU, whose sums are in order."""
    import torch

    torch.set_num_threads(1)  # each of the processes has a core
    return pp.energy_drift(model, structure_at(structure), precision, **options)


def records(table: pd.DataFrame) -> list[Record]:
    """Rows for JSON: four digits, NaN and inf as null."""
    rounded = table.apply(lambda column: column.map(four_digits) if column.dtype.kind == "f" else column)
    rows: list[Record] = rounded.astype(object).where(rounded.notna(), None).to_dict("records")
    return rows


def four_digits(value: float) -> float | None:
    """A float with four significant digits."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--smoke", action="store_true", help="in seconds, for CI")
    verbs = parser.add_subparsers(dest="verb", required=True)
    measured = verbs.add_parser("measure")
    for argument in ("name", "model", "structures"):
        measured.add_argument(argument)
    measured.add_argument("--device", default="cpu")
    moving = verbs.add_parser("drift")
    for argument in ("name", "model"):
        moving.add_argument(argument)
    moving.add_argument("starts", nargs="+", help="label=path@index")
    moving.add_argument("--steps", type=int, default=2000, help="of half a femtosecond")
    writing = verbs.add_parser("write")
    writing.add_argument("--docs", type=Path, default=HERE.parent / "docs")
    given = parser.parse_args(arguments)
    try:
        if given.verb == "write":
            from findings_page import write  # matplotlib

            write(given.out, given.docs)
            return
        check_folder(given.out, "--out")
        if given.verb == "measure":
            record = measure(given.name, given.model, given.structures, given.device, smoke=given.smoke)
            path = given.out / f"findings-{given.name}.json"
        else:
            record = drift(given.name, given.model, given.starts, given.steps, smoke=given.smoke)
            path = given.out / f"findings-{given.name}-drift.json"
    except InputError as error:
        parser.error(str(error))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, ensure_ascii=False, indent=1, default=str) + "\n", encoding="utf-8")
    sys.stderr.write(f"Written: {path}\n")


if __name__ == "__main__":
    main()
