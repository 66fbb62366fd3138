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
from typing import Any

import precision_probe as pp
from precision_probe.exceptions import InputError
from precision_probe.structures import read_structures

AFTER = {
    name: pp.Policy(tuple(pp.Rule(f"{family}.*", name) for family in ("interactions", "products", "readouts")))
    for name in ("float32", "float16")
}
COLUMNS = ("system", "computed in", "drift / meV/atom/ps", "95 % interval", "fluctuation / meV/atom")

Record = dict[str, Any]


def measure(model: str, structure: str, steps: int, n_runs: int) -> list[Any]:
    """Drifts of one structure, ``path@index``."""
    path, _, index = structure.rpartition("@")
    if not path or not index.isdigit():
        raise InputError(f"Give a structure as path@index, such as my.xyz@0; got {structure!r}.")
    atoms = read_structures(path)
    if int(index) >= len(atoms):
        raise InputError(f"{path} holds {len(atoms)} structures, counted from 0; got {structure!r}.")
    policies = {f"{name} after the embeddings": policy for name, policy in AFTER.items()}
    table = pp.energy_drift(model, atoms[int(index)], "float32", policies=policies, steps=steps, n_runs=n_runs)
    return list(table.reset_index().to_dict("records"))


def markdown(record: Record) -> str:
    """The results as a table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|--:|--:|--:|"]
    for system, found in record.items():
        for row in found["drift"]:
            numbers = f"{row['drift']:.2g} | ± {row['confidence']:.2g} | {row['fluctuation']:.3g}"
            lines.append(f"| {system} | {row['precision']} | {numbers} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one system."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", help="what to call it")
    parser.add_argument("model")
    parser.add_argument("structure", help="path@index")
    parser.add_argument("--steps", type=int, default=1000, help="of half a femtosecond")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--smoke", action="store_true", help="in seconds, for CI")
    given = parser.parse_args(arguments)
    options = {"steps": 5, "n_runs": 2} if given.smoke else {"steps": given.steps, "n_runs": 4}
    try:
        found = measure(given.model, given.structure, **options)
    except InputError as error:
        parser.error(str(error))
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "bench_policy_drift.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    record[given.system] = {**options, "drift": found}
    path.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(record), encoding="utf-8")


if __name__ == "__main__":
    main()
