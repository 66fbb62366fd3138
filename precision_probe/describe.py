"""What ``precision-probe inspect`` prints."""

from typing import Any

import ase.data
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from precision_probe.inspection import describe_blocks, describe_graph, smoke_test
from precision_probe.models import elements, load_model
from precision_probe.provenance import describe_model
from precision_probe.structures import Graph, build_graph, read_structures
from precision_probe.tables import plain_table

__all__ = ["print_inspection"]

_ROWS = 4  # of positions and edges


def print_inspection(model_source: Any, structures_source: Any, console: Console) -> None:
    """Print what a model and structures are, and the smoke test.

    Raises:
        InputError: If the model or a structure cannot be used.
    """
    model, name = load_model(model_source)
    graphs = [build_graph(atoms, model) for atoms in read_structures(structures_source)]
    console.print(_model_table(model, name))
    console.print(_blocks_table(model))
    console.print(_structures_table(graphs))
    _print_first(graphs[0], model, console)
    _print_smoke_test(model, graphs[0], console)


def _model_table(model: torch.nn.Module, name: str) -> Table:
    about = describe_model(model)
    symbols = [ase.data.chemical_symbols[z] for z in about["atomic_numbers"]]
    table = plain_table(f"Model {name}", show_header=False)
    rows = {
        "class": about["model_class"],
        "backend": about["backend"],
        "interactions": ", ".join(about["interactions"]),
        "hidden irreps": about["hidden_irreps"],
        "edge irreps": about["edge_irreps"],
        "cutoff": f"{about['cutoff']:g} Å",
        "elements": f"{len(symbols)}: {', '.join(symbols)}",
        "heads": ", ".join(about["heads"]),
        "dtype": about["model_dtype"],
        "reference": about["reference"],
        "parameters": f"{about['n_parameters']:,}",
        "SHA-256": about["model_sha256"],
    }
    for key, value in rows.items():
        table.add_row(key, value)
    return table


def _blocks_table(model: torch.nn.Module) -> Table:
    table = plain_table("Blocks", "block", "class", "parameters", "returns")
    for block in describe_blocks(model):
        outputs = "; ".join(f"{name}: {irreps}" for name, irreps in block["outputs"].items())
        table.add_row(block["name"], block["class"], f"{block['n_parameters']:,}", outputs)
    return table


def _structures_table(graphs: list[Graph]) -> Table:
    headings = ("name", "atoms", "edges", "elements", "periodic", "neighbours: min, mean, max", "edge lengths, Å")
    table = plain_table("Structures", *headings)
    for graph in graphs:
        about = describe_graph(graph)
        table.add_row(
            about["name"],
            str(about["n_atoms"]),
            str(about["n_edges"]),
            " ".join(f"{symbol}{count}" for symbol, count in about["elements"].items()),
            "".join("T" if periodic else "F" for periodic in about["pbc"]),
            _triple(about["neighbours"], "{:.0f}, {:.1f}, {:.0f}"),
            _triple(about["distance"], "{:.2f}, {:.2f}, {:.2f}"),
        )
    return table


def _print_first(graph: Graph, model: torch.nn.Module, console: Console) -> None:
    """The tensors of the first structure, as MACE takes them."""
    data = graph.data
    symbols = [ase.data.chemical_symbols[z] for z in elements(model)]
    console.print(f"First structure, {graph.names[0]}, as MACE takes it:", style="bold")
    for label, key in (
        ("positions [n_atoms, 3] Å", "positions"),
        (f"node_attrs [n_atoms, n_elements], one-hot over {', '.join(symbols[:12])}", "node_attrs"),
        ("edge_index [2, n_edges], sender above receiver", "edge_index"),
    ):
        values = data[key].numpy()
        shown = values[:_ROWS] if key != "edge_index" else values[:, : 3 * _ROWS]
        console.print(f"{label}: shape {list(values.shape)}, {values.dtype}; the first:", markup=False)
        console.print(np.array2string(shown, precision=4, suppress_small=True, threshold=400), markup=False)


def _print_smoke_test(model: torch.nn.Module, graph: Graph, console: Console) -> None:
    test = smoke_test(model, graph)
    title = f"Smoke test: {test.block} alone on the float64 embeddings"
    table = plain_table(title, "irrep", "channels", "components", "rms")
    for irrep, channels, components, rms in test.irreps:
        table.add_row(irrep, str(channels), str(components), f"{rms:.3e}")
    console.print(table)
    state = "every number is finite" if test.finite else "NOT every number is finite"
    console.print(
        f"message: {list(test.shape)} = [n_atoms, channels, irreps dimension]; {state}.", markup=False, highlight=False
    )


def _triple(values: tuple[float, float, float] | None, template: str) -> str:
    return template.format(*values) if values else "none"
