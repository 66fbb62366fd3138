"""A run of bench_published.py once its options are known: what needs no GPU, and the tables of all of it."""

import argparse
import shlex
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import ase.build
import numpy as np
import torch
from measure import reference_calls
from published_times import BACKENDS_COLUMNS, CONV_COLUMNS, LINEARS_COLUMNS, backend_rows, conv_rows, linear_rows
from published_times import models_of as backends_of
from records import Record, plain, source_sha256, teller, without_paths, write_results
from systems import architecture, parse_sizes

from precision_probe.models.blocks import select_blocks
from precision_probe.models.building import build
from precision_probe.models.graphs import build_graph
from precision_probe.models.loading import load_model
from precision_probe.models.provenance import provenance
from precision_probe.precisions import PRECISIONS
from precision_probe.variants.devices import check_device, undisturbed
from precision_probe.variants.variant import Variant

__all__ = ["SCHEMA", "diamond", "markdown", "run"]

SCHEMA = "precision-probe/bench_published/1"
LATTICE_CONSTANT = 3.567  # Å, of diamond
DISPLACEMENT = 0.05  # Å, standard deviation
NEAR_ZERO = (1, 2, 3, 4)  # cells of 8 atoms along each direction
LARGEST_COUNT = 20  # powers of two up to which numbers are summed

DIAMOND_COLUMNS = {
    "model": "model",
    "displacement": "σ / Å",
    "largest_force": "largest force / eV/Å",
    "largest_error": "largest error / eV/Å",
    "ratio": "error ÷ force",
}
LOSS_COLUMNS = {
    "block": "block",
    "n": "numbers",
    "rms": "RMS",
    "sum": "sum of squares, float64",
    "sum_half": "float16",
    "mean": "mean of squares, float64",
    "mean_half": "float16",
}
NEAR_ZERO_COLUMNS = {
    "n": "components",
    "smallest": "smallest / eV/Å",
    "rms": "RMS / eV/Å",
    "largest_relative": "max of \\|error\\| ÷ \\|component\\|",
    "there": "that component / eV/Å",
    "largest_of_rms": "max \\|error\\| ÷ RMS",
    "rel_l2": "rel_l2",
}


def diamond(n: int, displacement: float) -> ase.Atoms:
    """So many cubic cells along each direction of diamond, their atoms displaced at random (Å, standard deviation)."""
    atoms = ase.build.bulk("C", "diamond", a=LATTICE_CONSTANT, cubic=True).repeat(n)
    atoms.positions += np.random.default_rng(0).normal(0, 1, atoms.positions.shape) * displacement
    return atoms


def forces(variants: Sequence[Variant], atoms: ase.Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Forces in float64, and those of float32 as float64 has them; eV/Å, (n_atoms, 3)."""
    exact, reduced = variants
    graph = build_graph(atoms, exact.model).to(exact.device)
    y, y_hat = (each.predict(graph)["forces"].double().cpu().numpy() for each in (exact, reduced))
    return y, y_hat


def diamond_rows(models: Mapping[str, Sequence[Variant]]) -> Iterator[Record]:
    """float32's largest error of a force beside the largest force, with the atoms more and more displaced."""
    cells = {f"{each:g}": diamond(2, each) for each in (0.0, 1e-4, 1e-2, DISPLACEMENT)}
    cells["0, rounded to float32"] = rounded = diamond(2, 0.0)
    rounded.positions = rounded.positions.astype(np.float32)
    for name, variants in models.items():
        for displacement, atoms in sorted(cells.items()):
            y, y_hat = forces(variants, atoms)
            force, error = (float(np.linalg.norm(each, axis=1).max()) for each in (y, y_hat - y))
            yield {
                "model": name,
                "displacement": displacement,
                "largest_force": force,
                "largest_error": error,
                "ratio": error / force,
            }


def loss_rows(exact: Variant) -> Iterator[Record]:
    """The sum and the mean of the squares of each block's outputs, as float16 has them."""
    graph = build_graph(diamond(2, DISPLACEMENT), exact.model).to(exact.device)
    names = ["radial_embedding", "interactions.*.conv_tp", "interactions.*", "products.*", "readouts.*"]
    for call in reference_calls(exact, graph, select_blocks(exact.model, names)):
        y = torch.cat([tensor.flatten() for tensor in call.outputs.values()]).double()
        half = y.half()
        yield {
            "block": call.block.name,
            "n": y.numel(),
            "rms": float(y.square().mean().sqrt()),
            "sum": float(y.square().sum()),
            "sum_half": f"{float(half.square().sum()):.3g}",  # as text: JSON has no infinity
            "mean": float(y.square().mean()),
            "mean_half": f"{float(half.square().mean()):.3g}",
        }


def overflow() -> Record:
    """From how many numbers of unit variance on the sum of squares is infinite in float16, and what gradients are."""
    y = torch.as_tensor(np.random.default_rng(0).normal(size=2**LARGEST_COUNT)).half()
    is_finite = [bool(y[: 2**k].square().sum().isfinite()) for k in range(LARGEST_COUNT + 1)]
    losses: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "sum": lambda squares: squares.sum(),
        "mean": lambda squares: squares.mean(),
        "root of the sum": lambda squares: squares.sum().sqrt(),
    }
    gradients: Record = {}
    for name, loss in losses.items():
        leaf = y.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(leaf.square()), leaf)
        gradients[name] = "not finite" if not gradient.isfinite().all() else "zero" if not gradient.any() else "finite"
    return {"finite_up_to": 2 ** (is_finite.index(False) - 1), "n": y.numel(), "gradients": gradients}


def near_zero_rows(variants: Sequence[Variant], cells: Iterable[int]) -> Iterator[Record]:
    """Errors of float32 forces relative to each component, and to the RMS of all."""
    for n in cells:
        y, y_hat = (each.ravel() for each in forces(variants, diamond(n, DISPLACEMENT)))
        error, rms = np.abs(y_hat - y), float(np.sqrt(np.mean(y**2)))
        relative = error / np.abs(y)
        yield {
            "n": y.size,
            "smallest": float(np.abs(y).min()),
            "rms": rms,
            "largest_relative": float(relative.max()),
            "there": float(y[relative.argmax()]),
            "largest_of_rms": float(error.max()) / rms,
            "rel_l2": float(np.linalg.norm(error) / np.linalg.norm(y)),
        }


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Path]:
    """Measure, and write the results after each part; return the paths of the files.

    Args:
        args: The options of ``bench_published.py``.
        argv: As they were given.

    Raises:
        InputError: If the device cannot be used.
    """
    device = check_device(args.device or ("cpu" if args.smoke else None))
    say, sizes = teller(args.quiet), parse_sizes(args.atoms, "--atoms")
    model = build(architecture(0, args.smoke), seed=0)
    record: Record = {
        "schema": SCHEMA,
        "command": shlex.join(["python", "benchmarks/bench_published.py", *without_paths(argv)]),
        "source_sha256": source_sha256(),
        "provenance": provenance(model, device),
        "options": {key: value for key, value in vars(args).items() if key not in ("output", "quiet")},
    }
    models = {
        name: [Variant(each, PRECISIONS[precision], device) for precision in ("float64", "float32")]
        for name, each in (("demo", load_model("demo")[0]), ("MACE-MP with random weights", model))
    }
    parts: dict[str, Callable[[], object]] = {
        "diamond": lambda: list(diamond_rows(models)),
        "loss": lambda: list(loss_rows(models["demo"][0])),
        "overflow": overflow,
        "near_zero": lambda: list(near_zero_rows(models["demo"], NEAR_ZERO[: 2 if args.smoke else None])),
    }
    if device.type == "cuda" or args.smoke:
        backends = backends_of(model, device)
        parts |= {
            "backends": lambda: list(backend_rows(backends, device, sizes, args.rounds)),
            "linears": lambda: list(linear_rows(backends, device, sizes, args.rounds, args.half)),
            "conv_tp": lambda: list(conv_rows(backends, device, sizes[-1:], args.rounds)),
        }
    for name, measured in parts.items():
        say(f"{name}…")
        with undisturbed(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript and mace-torch, once for each model made
            record[name] = measured()
        kept = plain(record)
        stem = f"bench_published-{device.type}{'-smoke' if args.smoke else ''}"
        paths = write_results(args.output, stem, kept, markdown(kept))
    return paths


def markdown(record: Record) -> str:
    """The tables of what was measured so far."""
    about = record["provenance"]
    lines = [
        f"# Beside published figures, {about['device']}",
        "",
        f"`{record['command']}`, torch {about['versions']['torch']}.",
    ]
    lines += _table("Diamond, 64 atoms: forces in float32", DIAMOND_COLUMNS, record.get("diamond"))
    lines += _table(
        "The squares of the demo's blocks' outputs in float16, 64 atoms displaced by 0.05 Å",
        LOSS_COLUMNS,
        record.get("loss"),
    )
    if found := record.get("overflow"):
        gradients = ", ".join(f"of the {name} {what}" for name, what in found["gradients"].items())
        lines += [
            "",
            f"Of numbers of unit variance, {found['finite_up_to']:,} have a finite sum of squares, twice as many have "
            f"not. With {found['n']:,} the gradients in float16 are: {gradients}.",
        ]
    title = "Components of the demo's forces in float32, diamond displaced by 0.05 Å"
    lines += _table(title, NEAR_ZERO_COLUMNS, record.get("near_zero"))
    timed = f"medians [quartiles] of {record['options']['rounds']} rounds"
    lines += _table(f"e3nn and cuEquivariance in float32, {timed}", BACKENDS_COLUMNS, record.get("backends"))
    lines += _table(f"Linear layers in half precision, {timed}", LINEARS_COLUMNS, record.get("linears"))
    lines += _table(f"conv_tp of the second interaction alone, {timed}", CONV_COLUMNS, record.get("conv_tp"))
    return "\n".join([*lines, ""])


def _table(title: str, columns: dict[str, str], rows: Sequence[Record] | None) -> list[str]:
    if rows is None:
        return []
    cells = [[_cell(row[key]) for key in columns] for row in rows]
    return [
        *("", f"## {title}", "", f"| {' | '.join(columns.values())} |", f"|{'---|' * len(columns)}"),
        *(f"| {' | '.join(row)} |" for row in cells),
    ]


def _cell(value: object) -> str:
    """A number, a summary of times or ratios, or text, as a table has it."""
    if isinstance(value, dict):
        return f"{value['median']:.3g} [{value['q25']:.3g}, {value['q75']:.3g}]"
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else "–" if value is None else str(value)
