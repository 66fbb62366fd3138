"""What is checked of a row of the model support matrix: the model built, run, and looked at before and after.

``model_matrix.py`` says when a model works.
"""

import gc
import importlib.metadata
import platform
import re
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations, product
from pathlib import Path

import ase
import numpy as np
import pandas as pd
import torch
from model_rows import ALL, ROWS, Row
from records import Record
from rich.console import Console
from rich.progress import track

import precision_probe as pp
from precision_probe.analysis.comparison import first_difference
from precision_probe.analysis.metrics import rel_l2
from precision_probe.analysis.pairs import MODEL
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import build_graph
from precision_probe.models.loading import ModelSource
from precision_probe.models.provenance import describe_device
from precision_probe.trace.trace import MODES

__all__ = ["Result", "check", "run"]

LARGEST_FLOAT32_ERROR = 1e-3  # relative; the largest in results/model_matrix-*.json is 2.7e-4, a wrong variant's is 1
SAME = 1e-9  # relative, of float64 on CUDA, where sums are not deterministic
PACKAGES = (
    *("precision-probe", "torch", "mace-torch", "e3nn", "cuequivariance", "cuequivariance-torch"),
    *("cuequivariance-ops-torch-cu12", "cuequivariance-ops-torch-cu13", "openequivariance", "graph_longrange"),
)


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
    given: ModelSource,
    atoms: Sequence[ase.Atoms],
    head: str | None,
    device: str,
    precisions: Sequence[str],
    originals: Sequence[torch.nn.Module],
) -> tuple[pp.Trace, list[object], list[object]]:
    """The trace of what is given, and the originals' state while the probe is attached and once it is detached."""
    with pp.attach(given, precisions=precisions, head=head, device=device) as probe:
        during = _state(originals)
        probe.run(atoms, progress=False)
    return probe.trace(), during, _state(originals)  # the probe still lives: its end would take hooks away too


def _originals(given: ModelSource) -> list[torch.nn.Module]:
    """The modules that must stay as they are: of a file none, of a calculator all its models."""
    if isinstance(given, str | Path):
        return []
    return [given] if isinstance(given, torch.nn.Module) else list(given.models)


def _state(models: Iterable[torch.nn.Module]) -> list[object]:
    """Everything that a probe must leave as it was: global default dtype, weights, switches and hooks."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    state: list[object] = [torch.get_default_dtype()]
    for model in models:
        eager = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
        state += [
            weights_sha256(model),
            [parameter.requires_grad for parameter in model.parameters()],
            [module.training for module in model.modules()],
            [len(getattr(module, name)) for module in eager for name in hooks],
        ]
    return state


def _outputs(
    models: Sequence[torch.nn.Module], atoms: Sequence[ase.Atoms], head: str | None
) -> list[dict[str, torch.Tensor]]:
    """What the first of the models gives for each structure, called directly."""
    outputs = []
    for model, structure in product(models[:1], atoms):
        parameter = next(model.parameters())
        data = build_graph(structure, model, head).to(parameter.device).cast(parameter.dtype)
        with default_dtype(parameter.dtype):
            returned = model(data)
        keys = [key for key in ("energy", "forces", "dipole") if returned.get(key) is not None]
        outputs.append({key: returned[key].detach() for key in keys})
    return outputs


def _same(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], device: str) -> bool:
    """Whether two calls of a model gave the same: on a CPU to the last bit."""
    if device == "cpu":
        return all(torch.equal(value, theirs[key]) for key, value in ours.items())
    return all(bool((value - theirs[key]).norm() <= SAME * value.norm()) for key, value in ours.items())


def _reference(trace: pp.Trace, outputs: Sequence[Mapping[str, torch.Tensor]], device: str) -> list[str]:
    """The trace's float64 values should be what the model itself gives."""
    if trace.attributes["model_dtype"] != "float64" or not outputs:
        return []
    reference = trace.group("propagated", "float64")
    limit = 1e-12 if device == "cpu" else SAME  # a batch of structures adds in another order than one alone
    values = {key: np.concatenate([returned[key].cpu().numpy() for returned in outputs]) for key in outputs[0]}
    wrong = [key for key, own in values.items() if not float(rel_l2(own, reference[key].values)) <= limit]
    return [f"{key} in float64 is not what the model gives" for key in wrong]


_SUMMING = ("pair_repulsion_fn", "scale_shift", "atomic_energies_fn")  # blocks that only some classes have


def _recorded(trace: pp.Trace, errors: pd.DataFrame, row: Row, originals: Sequence[torch.nn.Module]) -> Iterator[str]:
    """Every quantity and block should be there, in both modes and directions, and finite in float64."""
    if not trace.attributes["complete"]:
        yield "the trace is incomplete"
    predicted = set(errors.loc[errors["block"] == MODEL, "tensor"])
    if predicted != set(row.quantities):
        yield f"it predicts {', '.join(sorted(predicted))}"
    for model in originals[:1]:
        layers = range(sum(1 for _ in model.get_submodule("interactions").children()))
        expected = {"node_embedding", "radial_embedding", "spherical_harmonics"}
        expected |= {f"{family}.{layer}" for family in ("interactions", "products") for layer in layers}
        expected |= {f"readouts.{index}" for index in range(sum(1 for _ in model.get_submodule("readouts").children()))}
        expected |= {name for name, _ in model.named_children() if name in _SUMMING}
        if not expected <= set(trace.blocks):
            yield f"the blocks recorded are {', '.join(trace.blocks)}"
    seen = set(zip(errors["mode"], errors["block"], errors["direction"], strict=True))
    for mode, block, direction in product(MODES, trace.blocks, ("forward", "backward")):
        has_gradients = (
            direction == "forward" or block != "joint_embedding"
        )  # its inputs are whole numbers in a mapping
        if has_gradients and (mode, block, direction) not in seen:
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
    for quantity, error in table.iterrows():
        if "float32" in error and not 0 < error["float32"] < LARGEST_FLOAT32_ERROR:
            yield f"the relative error of {quantity} in float32 is {error['float32']:.1e}"
        for half in ("bfloat16", "float16"):
            if half in error and np.isfinite(error[half]) and not error[half] > error["float32"]:
                yield f"{quantity} is no worse in {half} than in float32"


def _told_apart(trace: pp.Trace) -> list[str]:
    """The molecule, its cation and its triplet, the first three structures, should have different energies."""
    energies = trace.group("propagated", "float64")["energy"].values[:3]
    # 1e-6 eV: far above what rounding does to them in float64, far below what another charge does
    same = any(abs(one - other) < 1e-6 for one, other in combinations(energies, 2))
    return ["charge or spin makes no difference to the energy"] if same else []


def _equivalent(plain: pp.Trace, converted: pp.Trace) -> list[str]:
    """A converted model should agree with the one that it came from, in every row of the comparison."""
    table = pp.compare_traces(plain, converted)
    compared = set(zip(table["block"], table["direction"], strict=True))
    expected = product(plain.blocks, ("forward", "backward"))
    lacking = [(block, direction) for block, direction in expected if (block, direction) not in compared]
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
        by_structure = zip(*(np.split(array, ends) for array in values), strict=True)
        errors_of_each = [float(rel_l2(y, y_hat.astype(np.float64))) for y, y_hat in by_structure]
        result.errors[precision] = max((error for error in errors_of_each if np.isfinite(error)), default=None)
        result.nonfinite[precision] = int(summary["nonfinite"][precision])
        rows = errors[(errors["block"] == MODEL) & (errors["precision"] == precision)]
        by_quantity = zip(rows["tensor"], rows["rel_l2"], strict=True)
        result.quantities[precision] = {name: float(e) if np.isfinite(e) else None for name, e in by_quantity}


def versions() -> dict[str, str]:
    """Of Python and of every package that matters and is here."""
    numbers = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            numbers[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return numbers


def run(device: str, quiet: bool) -> Record:
    """Check every row on a device, ``cpu`` or ``cuda``, as a record that JSON can hold."""
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
    about = {"device": device, "hardware": describe_device(torch.device(device))}
    return {**about, "versions": versions(), "rows": [asdict(result) for result in results]}
