"""Energy drift under policies that keep the geometry, the embeddings and the sums in float64.

    python benchmarks/bench_policy_drift.py "benzene, demo" demo demo@4
    python benchmarks/bench_policy_drift.py "3BPA" 3bpa.model 3bpa.xyz@0
    python benchmarks/bench_policy_drift.py --smoke "water, demo" demo demo@0      # seconds, for CI

Dynamics at constant energy from the same velocities: in float64, in float32 as a whole, and with interactions, products
and readouts in float32 or float16. Adds a system to ``bench_policy_drift.json``, or replaces it there, and writes
``bench_policy_drift.md`` anew.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from records import Record, check_folder
from systems import AFTER, structure_at

import precision_probe as pp
from precision_probe.exceptions import InputError

COLUMNS = (
    *("system", "computed in", "drift / meV/atom/ps", "95 % interval", "fluctuation / meV/atom"),
    *("less float64's, run by run", "95 % interval", "told from float64's"),
)


def measure(model: str, structure: str, left_out: str | None, steps: int, n_runs: int) -> list[Record]:
    """Drifts of one structure, ``path@index``: a row for each precision and policy, but for one that is left out."""
    atoms = structure_at(structure)
    policies = {f"{name} after the embeddings": policy for name, policy in AFTER.items() if name != left_out}
    table = pp.energy_drift(model, atoms, "float32", policies=policies, steps=steps, n_runs=n_runs)
    rows = table.reset_index().astype(object)
    return [
        {str(key): value for key, value in row.items()} for row in rows.where(rows.notna(), None).to_dict("records")
    ]


def markdown(record: Record) -> str:
    """The results as a table."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|---|---|{'--:|' * (len(COLUMNS) - 2)}"]
    for system, result in record.items():
        for row in result["drift"]:
            numbers = f"{row['drift']:.2g} | ± {row['confidence']:.2g} | {row['fluctuation']:.3g}"
            lines.append(f"| {system} | {row['precision']} | {numbers} | {difference(row)} |")
    return "\n".join(lines) + "\n"


def difference(row: Record) -> str:
    """Cells of a drift less float64's: its interval, and whether that leaves zero out or what it would have shown."""
    if row["difference"] is None:
        return "– | – | –"
    is_told = abs(row["difference"]) > row["difference_confidence"]
    told = "yes" if is_told else f"no; {row['detectable']:.2g} would have been"
    return f"{row['difference']:.2g} | ± {row['difference_confidence']:.2g} | {told}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one system."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", help="what to call it")
    parser.add_argument("model")
    parser.add_argument("structure", help="path@index")
    parser.add_argument("--steps", type=int, default=1000, help="of half a femtosecond")
    parser.add_argument(
        "--no-float16", action="store_true", help="leave it out: CPUs take several times as long for it"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--smoke", action="store_true", help="in seconds, for CI")
    given = parser.parse_args(arguments)
    options = {"steps": 5, "n_runs": 2} if given.smoke else {"steps": given.steps, "n_runs": 4}
    try:
        check_folder(given.out, "--out")
        rows = measure(given.model, given.structure, "float16" if given.no_float16 else None, **options)
    except InputError as error:
        parser.error(str(error))
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "bench_policy_drift.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    record[given.system] = {**options, "drift": rows}
    path.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(record), encoding="utf-8")


if __name__ == "__main__":
    main()
