"""Which MACE models can be probed, and how: each row of ``model_rows.py`` built, run and checked.

    python benchmarks/model_matrix.py                    # on a GPU if there is one; a table on the screen and in a file
    python benchmarks/model_matrix.py --device cpu -o cpu.md
    python benchmarks/model_matrix.py --merge cpu.json cuda.json -o docs/supported-models.md

A model works if, on a molecule and a small crystal, every block is recorded in both modes, forward and backward; the
float64 values are finite and are what the model itself gives; every quantity that it predicts has an error in float32
that is neither zero nor beyond 1e-3, and a larger one in half precision; and the model is bit for bit what it was, with
no hook left. A model converted to another library must also agree with the e3nn model that it came from, in every block
forward and backward. Beside the Markdown table stands a JSON file with the same, and each quantity's error.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from records import Record

from precision_probe.exceptions import InputError
from precision_probe.files import check_writable
from precision_probe.precisions import PRECISIONS

__all__ = ["SCHEMA", "main", "markdown"]

SCHEMA = "precision-probe/model_matrix/1"


def run(device: str | None, quiet: bool) -> Record:
    """Check every row on a device: a GPU, if there is one and nothing else is asked for."""
    import model_checks  # here, because it imports torch, mace and what its models are converted to

    from precision_probe.variants.devices import check_device

    return {"schema": SCHEMA, **model_checks.run(check_device(device).type, quiet)}


def read(path: Path) -> Record:
    """What an earlier run wrote."""
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise InputError(f"{path} is not what this script wrote beside its table ({SCHEMA}).")
    return record


def markdown(records: Sequence[Record]) -> str:
    """One table of the records of one device or several, with columns for each."""
    devices = [str(record["device"]).replace("cuda", "CUDA").replace("cpu", "CPU") for record in records]
    by_name = [{row["name"]: row for row in record["rows"]} for record in records]
    names = list(dict.fromkeys(name for rows in by_name for name in rows))
    shown = [
        (precision, index)
        for precision, index in product(PRECISIONS, range(len(records)))
        if any(precision in row["errors"] for row in records[index]["rows"])
    ]
    head = ["model", *devices, *(f"{precision}, {devices[index]}" for precision, index in shown), "note"]
    lines = [
        "# Supported models",
        "",
        "Made by `benchmarks/model_matrix.py`. `works`: on a molecule and a small crystal, every block was recorded "
        "in both modes, forward and backward, what the model predicts in float64 is what it gives by itself, float32 "
        "errors are plausible, and the model was bit for bit what it had been. A converted model must also agree with "
        "the e3nn model that it came from, in every block, forward and backward.",
        "",
        *(_about(device, record) for device, record in zip(devices, records, strict=True)),
        "",
        "Numbers are the largest relative error of the forces of one structure; of the dipole, where a model has no "
        "forces; in brackets how many results are inf or NaN. The weights are random.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * (1 + len(devices))}{'--:|' * len(shown)}---|",
    ]
    for name in names:
        of_devices = [rows.get(name) for rows in by_name]
        statuses = [row["status"] if row else "–" for row in of_devices]
        numbers = [_number(of_devices[index], precision) for precision, index in shown]
        note = next((row["note"] for row in of_devices if row), "")
        cells = [cell.replace("|", "\\|") for cell in (name, *statuses, *numbers, note)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _about(device: str, record: Record) -> str:
    """What a device's rows were run on and with, as one line of a list."""
    packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"- {device}: {record['hardware']}; {packages}"


def _number(row: Record | None, precision: str) -> str:
    """The largest error in a precision, or a dash where there is none, and how many results are not finite."""
    if row is None or precision not in row["errors"]:
        return "–"
    error, nonfinite = row["errors"][precision], row["nonfinite"][precision]
    text = "not finite" if error is None else f"{error:.1e}"
    return f"{text} ({nonfinite})" if nonfinite else text


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), help="where to run (default: a GPU if there is one)")
    add("--output", "-o", type=Path, help="Markdown file (default: model_matrix-DEVICE.md in results)")
    add("--merge", nargs="+", type=Path, metavar="JSON", help="run nothing: write one table of what earlier runs wrote")
    add("--quiet", action="store_true", help="no progress bar and no table")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run or merge; 0 if it is done, 1 if a row fails, 2 if what was asked for cannot be."""
    args = arguments(argv)
    try:
        if args.output:
            check_writable(args.output, force=True)
        records = [read(path) for path in args.merge] if args.merge else [run(args.device, args.quiet)]
    except (InputError, OSError, ValueError) as error:
        print(f"model_matrix: {error}", file=sys.stderr)
        return 2
    stem = "-".join(["model_matrix", *(record["device"] for record in records)])
    path = args.output or Path(__file__).parent / "results" / f"{stem}.md"
    text = markdown(records)
    path.write_text(text, encoding="utf-8")
    if not args.merge:
        content = json.dumps(records[0], indent=1, ensure_ascii=False, allow_nan=False)
        path.with_suffix(".json").write_text(content + "\n", encoding="utf-8")
    if not args.quiet:
        print(text)
    failed = [row["name"] for record in records for row in record["rows"] if row["status"].startswith("fails")]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
