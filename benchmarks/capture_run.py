"""A run of bench_capture.py once its options are known: each tool beside the bare model, and their table."""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from capture_tools import CPU, PACKAGES, TOOLS, bare
from measure import spread, summary
from records import Record, plain, source_sha256, teller, without_paths, write_results

from precision_probe.exceptions import first_line
from precision_probe.models.graphs import Graph, build_graph, joined
from precision_probe.models.loading import load_model
from precision_probe.models.provenance import provenance
from precision_probe.search.timing import side_by_side
from precision_probe.structures import DEMO, read_structures
from precision_probe.version import __version__

__all__ = ["SCHEMA", "markdown", "run"]

SCHEMA = "precision-probe/bench_capture/1"


def graph_of(model_path: str, structures: str) -> tuple[torch.nn.Module, Graph]:
    """A model and all structures in one graph."""
    model, _ = load_model(model_path)
    return model, joined([build_graph(each, model) for each in read_structures(structures)])


def measured(tool: str, model_path: str, structures: str, rounds: int) -> Record:
    """Times of one tool and of the bare model, in turn, and what it captured; or how it fails."""
    model, graph = graph_of(model_path, structures)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        try:
            call, count = TOOLS[tool](model, graph, Path(folder))
            counts = count(call())
        except Exception as error:  # whatever it meets in a model that it was not made for
            return {"fails": f"{type(error).__name__}: {first_line(error)}"}
        times = side_by_side({"bare": bare(model, graph), "tool": call}, CPU, rounds=rounds)
    own, floor = times["tool"].seconds, times["bare"].seconds
    return {
        "ms": summary([1e3 * each for each in own]),
        "bare_ms": summary([1e3 * each for each in floor]),
        "ratio": summary([one / other for one, other in zip(own, floor, strict=True)]),
        "captured": asdict(counts),
    }


def apart(*asked: str | int) -> Record:
    """The same in a process of its own, whose end is reported where it is not a good one."""
    code = "import json, sys, capture_run; print(json.dumps(capture_run.measured(*json.loads(sys.argv[1]))))"
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asked)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    if ended.returncode:
        return {"fails": f"ended with code {ended.returncode}: {(ended.stderr.strip().splitlines() or [''])[-1][:120]}"}
    found: Record = json.loads(ended.stdout.splitlines()[-1])
    return found


def bench(model_path: str, structures: str, *, args: argparse.Namespace) -> Record:
    """Each tool on one model."""
    say = teller(args.quiet)
    model, graph = graph_of(model_path, structures)
    rows: dict[str, Record] = {}
    for tool in TOOLS:
        package = PACKAGES.get(tool)
        if package and (args.smoke or importlib.util.find_spec(tool) is None):
            rows[tool] = {"fails": "not asked for" if args.smoke else "not installed"}
            continue
        run_it = measured if args.smoke else apart
        found = run_it(tool, model_path, structures, args.rounds)
        rows[tool] = found | {"version": importlib.metadata.version(package) if package else ""}
        say(f"{Path(model_path).name}: {tool}")
    return {
        "model": Path(model_path).stem,
        "n_structures": graph.n_structures,
        "n_atoms": graph.n_atoms,
        "n_edges": graph.n_edges,
        "provenance": provenance(model, CPU),
        "tools": rows,
    }


def markdown(record: Record) -> str:
    """The tables."""
    n_threads = record["cases"][0]["provenance"]["settings"]["num_threads"]
    lines = [
        "# What capturing every block in one precision takes, beside other tools",
        "",
        f"float32 on a CPU, threads: {n_threads}; energy and forces of one graph. Medians [quartiles] over "
        f"{record['options']['rounds']} rounds of the tool and the bare model in turn, each tool in a process of its "
        "own. What is captured is counted of one evaluation.",
    ]
    for case in record["cases"]:
        sizes = f"{case['n_structures']} structures, {case['n_atoms']} atoms, {case['n_edges']:,} edges"
        lines += [
            "",
            f"## {case['model']}: {sizes}",
            "",
            "| tool | ms | ÷ bare | modules | outputs | gradients | kept |",
            "|---|--:|--:|--:|--:|--:|---|",
        ]
        lines += [_row(tool, found) for tool, found in case["tools"].items()]
    return "\n".join([*lines, ""])


def _row(tool: str, found: Record) -> str:
    name = f"{tool} {found.get('version', '')}".strip()
    if "fails" in found:
        return f"| {name} | – | – | – | – | – | {found['fails'].replace('|', '/')} |"
    counts = found["captured"]
    places = [f"{counts[place] / 1e3:,.1f} kB {words}" for place, words in PLACES.items() if counts[place]]
    cells = [name, spread(found["ms"], ".1f"), spread(found["ratio"], ".2f")]
    cells += [str(counts[what]) for what in ("modules", "outputs", "gradients")]
    return f"| {' | '.join([*cells, ', '.join(places)])} |"


PLACES = {"memory": "in memory", "disk": "on disk"}


def run(args: argparse.Namespace, argv: Sequence[str]) -> list[Path]:
    """Measure, and write the results; return the paths of the files.

    Args:
        args: The options of ``bench_capture.py``.
        argv: As they were given.

    Raises:
        InputError: If the model or the structures cannot be used.
    """
    places = [(DEMO, DEMO)] + ([(args.model, args.structures)] if args.model else [])
    record: Record = plain(
        {
            "schema": SCHEMA,
            "command": shlex.join(["python", "benchmarks/bench_capture.py", *without_paths(argv)]),
            "source_sha256": source_sha256(),
            "options": {"rounds": args.rounds, "smoke": args.smoke},
            "version": __version__,
            "cases": [bench(*place, args=args) for place in places],
        }
    )
    return write_results(args.output, f"bench_capture-cpu{'-smoke' if args.smoke else ''}", record, markdown(record))
