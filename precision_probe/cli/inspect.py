"""What ``precision-probe inspect`` prints: what a model and structures are, and one block run as a smoke test."""

from dataclasses import asdict, dataclass
from typing import TypedDict

import ase.data
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from precision_probe.cli.tables.style import plain_table
from precision_probe.labels import grouped
from precision_probe.models.attributes import elements
from precision_probe.models.blocks import default_blocks, select_blocks
from precision_probe.models.graphs import Graph, build_graph
from precision_probe.models.loading import ModelSource, load_model
from precision_probe.models.provenance import describe_model
from precision_probe.precisions import PRECISIONS
from precision_probe.structures import StructureSource, read_structures
from precision_probe.variants.captured_run import captured_run
from precision_probe.variants.hooks import replay
from precision_probe.variants.variant import Variant

__all__ = [
    "BlockDescription",
    "GraphDescription",
    "SmokeTest",
    "describe_blocks",
    "describe_graph",
    "inspection",
    "print_inspection",
    "smoke_test",
]

_ROWS = 4  # of positions and edges: enough to see what they are


class GraphDescription(TypedDict):
    """What one structure is to MACE.

    ``neighbours`` counts the edges that end at each atom; ``distance`` (Å) is over all edges. Both are (smallest, mean,
    largest), or ``None`` where there is no atom or no edge. ``volume`` (Å³) is ``None`` where nothing is periodic.
    """

    name: str
    n_atoms: int
    n_edges: int
    elements: dict[str, int]
    pbc: list[bool]
    volume: float | None
    neighbours: tuple[float, float, float] | None
    distance: tuple[float, float, float] | None


BlockDescription = TypedDict(
    "BlockDescription", {"name": str, "class": str, "n_parameters": int, "outputs": dict[str, str]}
)
"""One block; ``outputs`` are the irreps of what it returns, by name."""


@dataclass(frozen=True)
class SmokeTest:
    """The first interaction block, run alone on the float64 embeddings.

    Attributes:
        block: Its name.
        shape: Of its message: [n_atoms, channels, irreps dimension].
        irreps: For each irrep of the message: its name, channels, components, and the root mean square of its values.
        finite: Whether every number of the message is.
    """

    block: str
    shape: tuple[int, ...]
    irreps: tuple[tuple[str, int, int, float], ...]
    finite: bool


def print_inspection(model_source: ModelSource, structures_source: StructureSource, console: Console) -> None:
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
    _print_smoke_test(smoke_test(model, graphs[0]), console)
    for note in grouped((graph.names[0], note) for graph in graphs for note in graph.notes):
        console.print(f"Note: {note}", markup=False)


def inspection(model_source: ModelSource, structures_source: StructureSource) -> dict[str, object]:
    """The same as :func:`print_inspection` prints, as JSON has it; of the first structure's tensors no numbers.

    Raises:
        InputError: If the model or a structure cannot be used.
    """
    model, name = load_model(model_source)
    graphs = [build_graph(atoms, model) for atoms in read_structures(structures_source)]
    test = smoke_test(model, graphs[0])
    return {
        "model": {"name": name, **describe_model(model)},
        "blocks": describe_blocks(model),
        "structures": [describe_graph(graph) for graph in graphs],
        "smoke_test": {
            **asdict(test),
            "irreps": [
                dict(zip(("irrep", "channels", "components", "rms"), irrep, strict=True)) for irrep in test.irreps
            ],
        },
        "notes": list(grouped((graph.names[0], note) for graph in graphs for note in graph.notes)),
    }


def describe_graph(graph: Graph) -> GraphDescription:
    """Sizes, elements, periodicity and neighbour statistics of one structure."""
    numbers, counts = np.unique(graph.atomic_numbers, return_counts=True)
    neighbours = torch.bincount(graph.data["edge_index"][1], minlength=graph.n_atoms).double()
    return {
        "name": graph.names[0],
        "n_atoms": graph.n_atoms,
        "n_edges": graph.n_edges,
        "elements": {ase.data.chemical_symbols[z]: int(n) for z, n in zip(numbers, counts, strict=True)},
        "pbc": graph.pbc[0].tolist(),
        "volume": abs(float(torch.linalg.det(graph.cells[0]))) if graph.periodic[0] else None,
        "neighbours": _range(neighbours),
        "distance": _range(graph.edge_lengths()),
    }


def describe_blocks(model: torch.nn.Module) -> list[BlockDescription]:
    """Each default block: name, class, parameters, and the irreps of what it returns."""
    described: list[BlockDescription] = []
    for block in default_blocks(model):
        module = model.get_submodule(block.name)
        described.append(
            {
                "name": block.name,
                "class": type(module).__name__,
                "n_parameters": sum(parameter.numel() for parameter in module.parameters()),
                "outputs": {port.name: str(port.irreps or "?") for port in block.outputs},
            }
        )
    return described


def smoke_test(model: torch.nn.Module, graph: Graph) -> SmokeTest:
    """Run the first interaction block alone, in float64, on the embeddings of a structure."""
    variant = Variant(model, PRECISIONS["float64"], torch.device("cpu"))
    (block,) = select_blocks(variant.model, "interactions.0")
    (call,) = captured_run(variant, graph.to("cpu"), [block], with_gradients=False).calls
    with variant.arithmetic(), torch.enable_grad():
        outputs = replay(variant.model.get_submodule(block.name), call, variant.dtype).outputs
    port, message = next((port, port.to_mul_ir(tensor.detach())) for port, tensor in outputs.items())
    irreps, start = [], 0
    for mul, ir in port.irreps or ():
        part = message[:, :, start : start + ir.dim]
        irreps.append((str(ir), mul, ir.dim, float(part.square().mean().sqrt())))
        start += ir.dim
    return SmokeTest(block.name, tuple(message.shape), tuple(irreps), bool(torch.isfinite(message).all()))


def _range(values: torch.Tensor) -> tuple[float, float, float] | None:
    return (float(values.min()), float(values.mean()), float(values.max())) if values.numel() else None


def _model_table(model: torch.nn.Module, name: str) -> Table:
    """What a trace would keep of the model too, in a row each."""
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
    table = plain_table("Blocks", "block")
    for heading, rank in (("class", 2), ("parameters", 1), ("returns", 3)):
        table.add_column(heading, rank=rank)
    for block in describe_blocks(model):
        outputs = "; ".join(f"{name}: {irreps}" for name, irreps in block["outputs"].items())
        table.add_row(block["name"], block["class"], f"{block['n_parameters']:,}", outputs)
    return table


def _structures_table(graphs: list[Graph]) -> Table:
    """Structure by structure, so that one with a wrong cell or no neighbours is seen."""
    headings = ("atoms", "edges", "elements", "periodic", "neighbours: min, mean, max", "edge lengths, Å")
    table = plain_table("Structures", "name")
    for rank, heading in enumerate(headings, 1):
        table.add_column(heading, rank=rank)
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


def _triple(values: tuple[float, float, float] | None, template: str) -> str:
    return template.format(*values) if values else "none"


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
        shown = values[:_ROWS] if key != "edge_index" else values[:, : 3 * _ROWS]  # its columns are narrow
        console.print(f"{label}: shape {list(values.shape)}, {values.dtype}; the first:", markup=False)
        console.print(np.array2string(shown, precision=4, suppress_small=True, threshold=400), markup=False)


def _print_smoke_test(test: SmokeTest, console: Console) -> None:
    """A table of the message's irreps, and whether all of it is finite."""
    title = f"Smoke test: {test.block} alone on the float64 embeddings"
    table = plain_table(title, "irrep", "channels", "components", "rms")
    for irrep, channels, components, rms in test.irreps:
        table.add_row(irrep, str(channels), str(components), f"{rms:.3e}")
    console.print(table)
    state = "every number is finite" if test.finite else "NOT every number is finite"
    console.print(
        f"message: {list(test.shape)} = [n_atoms, channels, irreps dimension]; {state}.", markup=False, highlight=False
    )
