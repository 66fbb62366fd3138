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
import gc
import importlib.metadata
import json
import platform
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from model_rows import ALL, ROWS, Row
from rich.console import Console
from rich.progress import track

import precision_probe as pp
from precision_probe.analysis.comparison import first_difference
from precision_probe.analysis.metrics import rel_l2
from precision_probe.analysis.pairs import MODEL
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import build_graph
from precision_probe.models.provenance import describe_device
from precision_probe.trace.trace import MODES
from precision_probe.variants.devices import check_device

__all__ = ["Result", "check", "main", "markdown"]

SCHEMA = "precision-probe/model_matrix/1"
LARGEST_FLOAT32_ERROR = 1e-3
SAME = 1e-9  # relative, of float64 on CUDA, where sums are not deterministic
PACKAGES = (
    *("precision-probe", "torch", "mace-torch", "e3nn", "cuequivariance", "cuequivariance-torch"),
    *("cuequivariance-ops-torch-cu12", "cuequivariance-ops-torch-cu13", "openequivariance", "graph_longrange"),
)
Record = dict[str, Any]


@dataclass
class Result:
    """What became of one row.

    Attributes:
        name: Of the row.
        status: ``works``, or ``refused: …``, ``skipped: …`` or ``fails: …``.
        note: Of the row.
        errors: For each precision the largest finite relative error of the forces of one structure; of the dipole,
            where there are no forces.
        nonfinite: For each precision how many of the model's results are inf or NaN.
        quantities: For each precision the relative error of everything that the model predicts.
        seconds: How long it took.
    """

    name: str
    status: str = ""
    note: str = ""
    errors: dict[str, float | None] = field(default_factory=dict)
    nonfinite: dict[str, int] = field(default_factory=dict)
    quantities: dict[str, dict[str, float | None]] = field(default_factory=dict)
    seconds: float = 0.0


def check(row: Row, device: str, precisions: Sequence[str] = ALL) -> Result:
    """Build a row's model, run it and check what came of it; no error is raised.

    Args:
        row: The row.
        device: ``cpu`` or ``cuda``.
        precisions: Which, of those that the row can be run in.
    """
    result, start = Result(row.name, note=row.note), time.perf_counter()
    if missing := row.missing(device):
        result.status = f"skipped: {missing}"
        return result
    names = [name for name in precisions if name in row.precisions]
    try:
        with tempfile.TemporaryDirectory() as folder:
            problems = _run(row, Path(folder), device, names, result)
        result.status = f"fails: {'; '.join(problems)}" if problems else result.status or "works"
    except Exception as error:
        is_expected = isinstance(error, pp.InputError) and row.refusal and re.search(row.refusal, str(error))
        message = (str(error).strip().splitlines() or [""])[0]
        result.status = f"refused: {message}" if is_expected else f"fails: {type(error).__name__}: {message}"
    result.seconds = round(time.perf_counter() - start, 1)
    return result


def _run(row: Row, folder: Path, device: str, precisions: Sequence[str], result: Result) -> list[str]:
    """Run a row's model, fill in the errors, and say what is not as it should be."""
    model = row.build().to(device)
    given = model if row.given is None else row.given(model, folder, device)
    atoms = row.structures()
    if row.refusal:
        _trace(given, atoms, row.head, device, precisions, [])
        return ["it is not refused"]
    originals = _originals(given)
    before, outputs = _state(originals), _outputs(originals, atoms, row.head)
    trace, during, after = _trace(given, atoms, row.head, device, precisions, originals)
    errors = pp.errors(trace)
    _fill(result, trace, errors)
    problems = [*_recorded(trace, errors, row, originals), *_accurate(errors)]
    if originals and during == before:
        problems.append("no hook was seen while it was attached")
    if not before == after == _state(originals):
        problems.append("the model was changed")
    again = _outputs(originals, atoms, row.head)
    if not all(_same(ours, theirs, device) for ours, theirs in zip(outputs, again, strict=True)):
        problems.append("the model's own results changed")
    problems += _reference(trace, outputs, device)
    if row.tells_charge_and_spin:
        problems += _told_apart(trace)
    if row.is_conversion:
        differences = _equivalent(_trace(model, atoms, row.head, device, precisions, [])[0], trace)
        if not (row.wrong_on_cuda and device == "cuda"):
            return problems + differences
        if not differences:
            return [*problems, "it agrees with e3nn, and should not"]
        result.status = f"works, and shows the conversion to be wrong: {differences[0]}"
    return problems


def _trace(
    given: Any, atoms: Any, head: str | None, device: str, precisions: Sequence[str], originals: Sequence[Any]
) -> tuple[pp.Trace, list[Any], list[Any]]:
    """The trace of what is given, and the originals' state while the probe is attached and once it is detached."""
    with pp.attach(given, precisions=precisions, head=head, device=device) as probe:
        during = _state(originals)
        probe.run(atoms, progress=False)
    return probe.trace(), during, _state(originals)  # the probe still lives: its end would take hooks away too


def _originals(given: Any) -> list[torch.nn.Module]:
    """The modules that must stay as they are: of a file none, of a calculator all its models."""
    if isinstance(given, Path):
        return []
    return list(given.models) if hasattr(given, "z_table") else [given]


def _state(models: Iterable[torch.nn.Module]) -> list[Any]:
    """Everything that a probe must leave as it was: global default dtype, weights, switches and hooks."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    found: list[Any] = [torch.get_default_dtype()]
    for model in models:
        eager = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
        found += [
            weights_sha256(model),
            [parameter.requires_grad for parameter in model.parameters()],
            [module.training for module in model.modules()],
            [len(getattr(module, name)) for module in eager for name in hooks],
        ]
    return found


def _outputs(models: Sequence[torch.nn.Module], atoms: Any, head: str | None) -> list[dict[str, torch.Tensor]]:
    """What the first of the models gives for each structure, called directly."""
    found = []
    for model, structure in product(models[:1], atoms):
        parameter = next(model.parameters())
        data = build_graph(structure, model, head).to(parameter.device).cast(parameter.dtype)
        with default_dtype(parameter.dtype):
            returned = model(data)
        keys = [key for key in ("energy", "forces", "dipole") if returned.get(key) is not None]
        found.append({key: returned[key].detach() for key in keys})
    return found


def _same(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], device: str) -> bool:
    if device == "cpu":
        return all(torch.equal(value, theirs[key]) for key, value in ours.items())
    return all(bool((value - theirs[key]).norm() <= SAME * value.norm()) for key, value in ours.items())


def _reference(trace: pp.Trace, outputs: Sequence[Mapping[str, torch.Tensor]], device: str) -> list[str]:
    """The trace's float64 values should be what the model itself gives."""
    if trace.attributes["model_dtype"] != "float64" or not outputs:
        return []
    reference = trace.group("propagated", "float64")
    limit = 1e-12 if device == "cpu" else SAME
    found = {key: np.concatenate([returned[key].cpu().numpy() for returned in outputs]) for key in outputs[0]}
    wrong = [key for key, values in found.items() if not rel_l2(values, reference[key].values) <= limit]
    return [f"{key} in float64 is not what the model gives" for key in wrong]


def _recorded(trace: pp.Trace, errors: pd.DataFrame, row: Row, originals: Sequence[Any]) -> Iterator[str]:
    """Every quantity and block should be there, in both modes and directions, and finite in float64."""
    if not trace.attributes["complete"]:
        yield "the trace is incomplete"
    predicted = set(errors.loc[errors["block"] == MODEL, "tensor"])
    if predicted != set(row.quantities):
        yield f"it predicts {', '.join(sorted(predicted))}"
    for model in originals[:1]:
        layers = range(len(model.interactions))
        expected = {"node_embedding", "radial_embedding", "spherical_harmonics"}
        expected |= {f"{family}.{layer}" for family in ("interactions", "products") for layer in layers}
        expected |= {f"readouts.{index}" for index in range(len(model.readouts))}
        if set(trace.blocks) != expected:
            yield f"the blocks recorded are {', '.join(trace.blocks)}"
    seen = set(zip(errors["mode"], errors["block"], errors["direction"], strict=True))
    for mode, block, direction in product(MODES, trace.blocks, ("forward", "backward")):
        if (mode, block, direction) not in seen:
            yield f"{block} has nothing {mode} {direction}"
    periodic = trace.structures["pbc"].values.astype(bool).all(axis=1)
    for mode in MODES:
        for name, array in trace.group(mode, "float64").data_vars.items():
            if not np.isfinite(array.values[periodic] if name == "stress" else array.values).all():
                yield f"{name} is not finite in float64, {mode}"


def _accurate(errors: pd.DataFrame) -> Iterator[str]:
    """Each quantity's error should be small in float32, not zero, and larger in half precision."""
    table = errors[errors["block"] == MODEL].pivot_table(
        index="tensor", columns="precision", values="rel_l2", dropna=False
    )
    for quantity, found in table.iterrows():
        if "float32" in found and not 0 < found["float32"] < LARGEST_FLOAT32_ERROR:
            yield f"the relative error of {quantity} in float32 is {found['float32']:.1e}"
        for half in ("bfloat16", "float16"):
            if half in found and np.isfinite(found[half]) and not found[half] > found["float32"]:
                yield f"{quantity} is no worse in {half} than in float32"


def _told_apart(trace: pp.Trace) -> list[str]:
    energies = trace.group("propagated", "float64")["energy"].values[:3]
    same = any(abs(one - other) < 1e-6 for one, other in combinations(energies, 2))
    return ["charge or spin makes no difference to the energy"] if same else []


def _equivalent(plain: pp.Trace, converted: pp.Trace) -> list[str]:
    """A converted model should agree with the one that it came from, in every row of the comparison."""
    table = pp.compare_traces(plain, converted)
    compared = set(zip(table["block"], table["direction"], strict=True))
    lacking = [pair for pair in product(plain.blocks, ("forward", "backward")) if pair not in compared]
    problems = [f"{block} is not compared {direction}" for block, direction in lacking]
    first = first_difference(table)
    if first is None:
        return problems
    where = f"{first['block']} {first['tensor']}, {first['direction']} and {first['mode']} in {first['precision']}"
    number = int((~table["equivalent"]).sum())
    return [*problems, f"{number} of {len(table)} arrays differ from e3nn's, first {where}: {first['difference']:.1e}"]


def _fill(result: Result, trace: pp.Trace, errors: pd.DataFrame) -> None:
    """The numbers of the table."""
    reference = trace.group("propagated", "float64")
    quantity = "forces" if "forces" in reference else "dipole"
    n_rows = trace.structures["n_atoms"].values if quantity == "forces" else np.ones(len(trace.structures["n_atoms"]))
    ends = np.cumsum(n_rows).astype(int)[:-1]
    summary = pp.summary(trace)
    for precision in (str(precision) for precision in trace.precisions):
        values = [trace.group("propagated", name)[quantity].values for name in ("float64", precision)]
        pairs = zip(*(np.split(array, ends) for array in values), strict=True)
        found = [rel_l2(y, y_hat.astype(np.float64)) for y, y_hat in pairs]
        result.errors[precision] = max((float(error) for error in found if np.isfinite(error)), default=None)
        result.nonfinite[precision] = int(summary["nonfinite"][precision])
        rows = errors[(errors["block"] == MODEL) & (errors["precision"] == precision)]
        by_quantity = zip(rows["tensor"], rows["rel_l2"], strict=True)
        result.quantities[precision] = {name: float(e) if np.isfinite(e) else None for name, e in by_quantity}


def versions() -> dict[str, str]:
    """Of Python and of every package that matters and is here."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def run(device: str, quiet: bool) -> Record:
    """Check every row on a device, as a record that JSON can hold."""
    console = Console(stderr=True)
    precisions = [name for name in ALL if name != "tf32" or device == "cuda"]
    results = []
    for row in track(ROWS, console=console, transient=True, disable=quiet or not console.is_terminal):
        on_cpu = row.full_width and device == "cpu"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of four libraries, about their own code
            results.append(check(row, device, ["float32"] if on_cpu else precisions))
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    about = {"schema": SCHEMA, "device": device, "hardware": describe_device(torch.device(device))}
    return {**about, "versions": versions(), "rows": [asdict(result) for result in results]}


def read(path: Path) -> Record:
    """What an earlier run wrote."""
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise pp.InputError(f"{path} is not what this script wrote beside its table ({SCHEMA}).")
    return record


def markdown(records: Sequence[Record]) -> str:
    """One table of the records of one device or several, with columns for each."""
    devices = [str(record["device"]).replace("cuda", "CUDA").replace("cpu", "CPU") for record in records]
    by_name = [{row["name"]: row for row in record["rows"]} for record in records]
    names = list(dict.fromkeys(name for rows in by_name for name in rows))
    shown = [
        (precision, index)
        for precision, index in product(ALL, range(len(records)))
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
        found = [rows.get(name) for rows in by_name]
        statuses = [row["status"] if row else "–" for row in found]
        numbers = [_number(found[index], precision) for precision, index in shown]
        note = next((row["note"] for row in found if row), "")
        cells = [cell.replace("|", "\\|") for cell in (name, *statuses, *numbers, note)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _about(device: str, record: Record) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"- {device}: {record['hardware']}; {packages}"


def _number(row: Record | None, precision: str) -> str:
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
        if args.merge:
            records = [read(path) for path in args.merge]
        else:
            device = check_device(args.device).type
            records = [run(device, args.quiet)]
    except (pp.InputError, OSError, ValueError) as error:
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
