"""What a model and structures are, against hand values and MACE itself."""

import io
import json

import ase
import ase.build
import numpy as np
import pytest
import torch
from e3nn import o3
from rich.console import Console

from precision_probe.cli.inspect import describe_blocks, describe_graph, print_inspection, smoke_test
from precision_probe.exceptions import InputError
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.building import build
from precision_probe.models.graphs import build_graph
from precision_probe.structures import read_structures


@pytest.fixture
def lone():
    return ase.Atoms("O", [(1.0, 2.0, 3.0)])


def graph_of(atoms, model):
    (named,) = read_structures(atoms)
    return build_graph(named, model)


# One structure


def test_water_against_hand_values(model, water):
    about = describe_graph(graph_of(water, model))
    distances = water.get_all_distances()[np.triu_indices(3, 1)]
    assert distances.max() < 3.0  # within the cutoff, so each atom has both others as neighbours
    assert (about["n_atoms"], about["n_edges"]) == (3, 6)
    assert about["elements"] == {"H": 2, "O": 1}
    assert about["pbc"] == [False, False, False]
    assert about["volume"] is None
    assert about["neighbours"] == (2.0, 2.0, 2.0)
    assert about["distance"] == pytest.approx((distances.min(), distances.mean(), distances.max()), rel=1e-14)


def test_crystal_against_a_count_over_images(model, crystal):
    """Every pair of an atom and an image of another within the cutoff, counted one by one."""
    about = describe_graph(graph_of(crystal, model))
    shifts = np.stack(np.meshgrid(*[range(-2, 3)] * 3), axis=-1).reshape(-1, 3) @ crystal.cell.array
    vectors = crystal.positions[None, :, None] + shifts - crystal.positions[:, None, None]
    lengths = np.linalg.norm(vectors, axis=-1)
    near = (lengths < 3.0) & (lengths > 1e-6)
    counts = near.sum(axis=(1, 2))
    assert (about["n_atoms"], about["n_edges"]) == (8, counts.sum())
    assert about["elements"] == {"C": 8}
    assert about["pbc"] == [True, True, True]
    assert about["volume"] == pytest.approx(crystal.get_volume(), rel=1e-14)
    assert about["neighbours"] == (counts.min(), counts.mean(), counts.max())
    assert counts.min() < counts.max()
    expected = (lengths[near].min(), lengths[near].mean(), lengths[near].max())
    assert about["distance"] == pytest.approx(expected, rel=1e-13)


def test_a_lone_atom_has_no_neighbours(model, lone):
    about = describe_graph(graph_of(lone, model))
    assert (about["n_atoms"], about["n_edges"], about["distance"]) == (1, 0, None)
    assert about["neighbours"] == (0.0, 0.0, 0.0)


def test_a_chain_has_ends(model):
    """Neighbours of O-C-O-C spaced by 2 Å, cutoff 3 Å: one at the ends, two between."""
    chain = ase.Atoms("OCOC", [(2.0 * index, 0, 0) for index in range(4)])
    about = describe_graph(graph_of(chain, model))
    assert about["neighbours"] == (1.0, 1.5, 2.0)
    assert about["distance"] == (2.0, 2.0, 2.0)
    assert about["elements"] == {"C": 2, "O": 2}


# The blocks


def test_blocks_account_for_the_parameters(model):
    blocks = {block["name"]: block for block in describe_blocks(model)}
    assert list(blocks) == [
        *("node_embedding", "radial_embedding", "spherical_harmonics"),
        *("interactions.0", "products.0", "interactions.1", "products.1", "readouts.0", "readouts.1"),
        *("scale_shift", "atomic_energies_fn"),
    ]
    assert sum(block["n_parameters"] for block in blocks.values()) == sum(p.numel() for p in model.parameters())
    assert blocks["products.0"]["outputs"] == {"output": "4x0e+4x1o"}
    assert blocks["interactions.0"]["class"] == "RealAgnosticResidualInteractionBlock"


# One block run alone


@pytest.mark.parametrize("name", ["water", "crystal", "lone"])
def test_smoke_test_equals_the_block_run_by_hand(model, name, request):
    graph = graph_of(request.getfixturevalue(name), model)
    test = smoke_test(model, graph)
    data = graph.data
    vectors = graph.edge_lengths().new_zeros(graph.n_edges, 3)
    sender, receiver = data["edge_index"]
    vectors = data["positions"][receiver] - data["positions"][sender] + data["shifts"]
    with torch.no_grad():
        radial, cutoff = model.radial_embedding(
            vectors.norm(dim=-1, keepdim=True), data["node_attrs"], data["edge_index"], model.atomic_numbers
        )
        message, _ = model.interactions[0](
            node_attrs=data["node_attrs"],
            node_feats=model.node_embedding(data["node_attrs"]),
            edge_attrs=model.spherical_harmonics(vectors),
            edge_feats=radial,
            edge_index=data["edge_index"],
            cutoff=cutoff,
        )
    irreps = model.interactions[0].target_irreps
    assert test.block == "interactions.0"
    assert test.shape == tuple(message.shape) == (graph.n_atoms, 4, sum(ir.dim for _, ir in irreps))
    assert test.finite is True
    assert [(irrep, channels) for irrep, channels, _, _ in test.irreps] == [("0e", 4), ("1o", 4), ("2e", 4)]
    start = 0
    for irrep, _, components, rms in test.irreps:
        assert components == o3.Irrep(irrep).dim
        part = message[..., start : start + components]
        assert rms == pytest.approx(float(part.square().mean().sqrt()), rel=1e-9, abs=1e-15)
        start += components
    assert start == test.shape[2]
    assert (test.irreps[1][3] > 0) == (graph.n_edges > 0)


def test_smoke_test_leaves_the_model_as_it_was(model, water):
    before = weights_sha256(model)
    smoke_test(model, graph_of(water, model))
    assert weights_sha256(model) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.interactions)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_smoke_test_sees_what_is_not_finite(config, water):
    broken = build(config)
    with torch.no_grad():
        next(broken.interactions[0].linear.parameters())[0] = torch.nan
    test = smoke_test(broken, graph_of(water, broken))
    assert test.finite is False
    assert any(np.isnan(rms) for *_, rms in test.irreps)


# What is printed


def printed(model, structures):
    console = Console(record=True, width=200, file=io.StringIO())
    print_inspection(model, structures, console)
    return console.export_text()


def structure_rows(text, names):
    """The words of the rows of the structures, whatever separates their numbers."""
    plain = [line.translate(str.maketrans("│/,", "   ")).split() for line in text.splitlines()]
    return [next(words for words in plain if words[:1] == [name] and len(words) > 7) for name in names]


def test_everything_asked_about_is_printed(model, water, crystal):
    water.info["name"], crystal.info["name"] = "bent", "cubic"
    text = printed(model, [water, crystal])
    graph = graph_of(water, model)
    words = " ".join(text.replace("│", " ").split())
    for fact in (
        "class ScaleShiftMACE",
        "interactions RealAgnosticResidualInteractionBlock, RealAgnosticResidualInteractionBlock",
        "hidden irreps 4x0e+4x1o",
        "edge irreps 1x0e+1x1o+1x2e",
        "cutoff 3 Å",
        "elements 3: H, C, O",
        "heads Default",
        "dtype float64",
        f"parameters {sum(p.numel() for p in model.parameters()):,}",
        weights_sha256(model),
        "positions [n_atoms, 3] Å: shape [3, 3], float64",
        "node_attrs [n_atoms, n_elements], one-hot over H, C, O: shape [3, 3]",
        "edge_index [2, n_edges], sender above receiver: shape [2, 6], int64",
        "message: [3, 4, 9] = [n_atoms, channels, irreps dimension]; every number is finite",
    ):
        assert fact in words, fact
    first, second = structure_rows(text, ["bent", "cubic"])
    assert first[1:3] == ["3", "6"]
    assert "".join(first[3:-7]) == "H2O1"
    assert first[-7:-3] == ["FFF", "2", "2.0", "2"]
    assert second[1:5] == ["8", str(graph_of(crystal, model).n_edges), "C8", "TTT"]
    for block in describe_blocks(model):
        assert f"{block['name']} {block['class']} {block['n_parameters']:,}" in words
    assert np.array2string(graph.data["positions"].numpy(), precision=4, suppress_small=True) in text
    assert "[[0. 0. 1.]\n [1. 0. 0.]\n [1. 0. 0.]]" in text  # O, H, H
    assert np.array2string(graph.data["edge_index"].numpy()) in text


def test_a_document_says_the_same(shallow, model_file, water_file, run):
    result = run("inspect", model_file, water_file, "--format", "json")
    found = json.loads(result.stdout, parse_constant=pytest.fail)
    graph = graph_of(str(water_file), shallow)
    assert found["model"]["model_sha256"] == weights_sha256(shallow)
    assert found["blocks"] == describe_blocks(shallow)
    assert found["structures"] == [json.loads(json.dumps(describe_graph(graph)))]
    test = smoke_test(shallow, graph)
    assert found["smoke_test"]["shape"] == list(test.shape)
    assert [tuple(row.values()) for row in found["smoke_test"]["irreps"]] == list(test.irreps)
    assert found["notes"] == []


def test_a_structure_without_edges_is_printed(model, lone):
    lone.info["name"] = "alone"
    text = printed(model, lone)
    (row,) = structure_rows(text, ["alone"])
    assert row == ["alone", "1", "0", "O1", "FFF", "0", "0.0", "0", "none"]
    assert "message: [1, 4, 9]" in text


def test_printing_refuses_what_cannot_be_used(model):
    with pytest.raises(InputError, match="Fe"):
        printed(model, ase.build.bulk("Fe"))


def test_what_was_left_out_of_a_structure_is_printed(model, water, lone):
    water.info["charge"] = "neutral"
    assert "Note: H2O: 'charge' is text" in printed(model, [water, lone])


def test_the_volume_of_a_left_handed_cell_is_positive(model, crystal):
    left = ase.Atoms(crystal.numbers, crystal.positions, cell=crystal.cell[[1, 0, 2]], pbc=True)
    assert describe_graph(graph_of(left, model))["volume"] == pytest.approx(crystal.get_volume(), rel=1e-14)
