"""contributions.py: shares that add up, and a cause that is planted is the cause that is named."""

import copy

import ase
import numpy as np
import pytest
import torch
from runs import molecule

from precision_probe.diagnostics.contributions import REST, contributions
from precision_probe.diagnostics.reference import Reference
from precision_probe.models.building import build
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.graphs import build_graph
from precision_probe.precisions import parse_precisions
from precision_probe.structures import read_structures
from precision_probe.variants.variant import Variant

PRECISIONS = ("float32", "bfloat16")


def table_of(model, structures, precisions=PRECISIONS):
    reference = Reference(model, structures, device="cpu")
    variants = [Variant(reference.model, precision, reference.device) for precision in parse_precisions(precisions)]
    return contributions(reference, variants)


def shifted(distance):
    """Molecules far from the origin of a large cell, where positions have few digits left."""
    atoms = [molecule(seed) for seed in range(3)]
    for each in atoms:
        each.positions += distance
        each.cell, each.pbc = [2 * distance] * 3, True
    return atoms


@pytest.fixture(scope="module")
def table(model):
    return table_of(model, [molecule(seed) for seed in range(3)])


def test_shares_add_up_to_the_whole(table):
    sums = table.groupby("precision")[["energy_share", "forces_share"]].sum()
    assert sums.index.tolist() == sorted(PRECISIONS)
    np.testing.assert_allclose(sums, 1, rtol=1e-9)


def test_parts_are_all_there_is(table, model):
    parts = table.loc[table["precision"] == "float32", "part"].tolist()
    assert parts[0] == "geometry"
    assert parts[-2:] == ["sums", REST]
    assert {"radial_embedding", "scale_shift", "atomic_energies_fn"} < set(parts)
    rest = table[table["part"] == REST].set_index("precision")
    largest = table[table["part"] != REST].groupby("precision", sort=False)["forces"].max()
    assert (rest["forces"] < 0.5 * largest).all()
    assert (rest["forces_share"].abs() < 0.1).all()


def test_what_sums_energies_makes_no_error_of_forces(table):
    summing = table[table["part"].isin(["scale_shift", "atomic_energies_fn", "sums"])]
    assert (summing["forces"] == 0).all()


def test_energies_of_isolated_atoms_lose_the_energy(table):
    """They are a thousand times the rest, and so is their rounding: sums hold nearly all of the error in float32."""
    float32 = table[table["precision"] == "float32"].set_index("part")["energy_share"]
    assert float32[["atomic_energies_fn", "sums"]].sum() == pytest.approx(1, abs=0.05)


def test_geometry_is_named_far_from_the_origin(model):
    """At 400 Å float32's positions are 3e-5 Å apart, which is all that matters there: so it is by hand, too."""
    atoms = shifted(400.0)
    shares = table_of(model, atoms, "float32").set_index("part")["forces_share"]
    assert shares["geometry"] == pytest.approx(1, abs=0.01)
    near = table_of(model, [molecule(seed) for seed in range(3)], "float32").set_index("part")
    assert near.loc["geometry", "forces_share"] < 0.99


def test_the_repulsion_of_near_nuclei_is_named(config):
    """ZBL of nuclei 0.6 Å apart is most of the forces and of their error: as large as with that part cast by hand."""
    model = build(config | {"pair_repulsion": True}, seed=3)
    near = ase.Atoms("OHH", [(0, 0, 0), (0, 0.0, 0.62), (0.6, 0, -0.2)])
    shares = table_of(model, near, "float32").set_index("part")["forces_share"]
    exact, by_hand, whole = forces_by_hand(model, near)
    share = np.sum((by_hand - exact) ** 2) / np.sum((whole - exact) ** 2)
    assert shares["geometry"] + shares["pair_repulsion_fn"] == pytest.approx(1, abs=0.05)
    assert shares["pair_repulsion_fn"] == pytest.approx(share, abs=0.25)
    assert shares["pair_repulsion_fn"] > 0.1


def forces_by_hand(model, atoms):
    """By mace-torch alone: in float64, with its repulsion in float32, and all in float32."""
    (structure,) = read_structures(atoms)
    graph, changed = build_graph(structure, model), copy.deepcopy(model)
    forward = changed.pair_repulsion_fn.float().forward
    changed.pair_repulsion_fn.forward = lambda lengths, attrs, *rest: forward(
        lengths.float(), attrs.float(), *rest
    ).double()
    forces = []
    for network, dtype in (
        (model, torch.float64),
        (changed, torch.float64),
        (copy.deepcopy(model).float(), torch.float32),
    ):
        with default_dtype(dtype):
            forces.append(network(graph.cast(dtype))["forces"].detach().double().numpy())
    return forces


def test_from_the_first_part_that_is_not_finite_on_there_are_no_numbers(config):
    """Carbon's energy is beyond float16: the sum is infinite from there on, forces are not."""
    table = table_of(build(config | {"atomic_energies": [-13.6, -1029.5, -7e4]}, seed=3), molecule(), "float16")
    energies = table.set_index("part")["energy"]
    assert energies.index[~np.isfinite(energies)][0] == "atomic_energies_fn"
    assert table["energy_share"].isna().all()
    assert table["forces_share"].sum() == pytest.approx(1)


def test_emulated_formats_are_passed_over(model):
    assert table_of(model, molecule(), "e5m10").empty
