"""neighbors.py: pairs are those of matscipy and of a sum over images, and hold as long as they are said to."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matscipy.neighbours import neighbour_list

from precision_probe.fast.neighbors import VerletList, pairs_within


def random_structure(seed):
    """Atoms in a cell, triclinic or small or of mixed periodicity, some of them outside of it; and a cutoff."""
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(1.5, 12, 3))
    if seed % 4:
        cell = cell @ (np.eye(3) + rng.normal(0, 0.35, (3, 3)))
    if abs(np.linalg.det(cell)) < 3:
        cell = np.diag([3.0, 4.0, 5.0])
    pbc = np.ones(3, bool) if seed % 4 == 2 else rng.random(3) < 0.6
    positions = rng.uniform(-0.5, 1.5, (int(rng.integers(1, 25)), 3)) @ cell
    return positions, cell, pbc, float(rng.uniform(2, 6))


def as_set(senders, receivers, shifts):
    rows = np.column_stack([np.asarray(each) for each in (senders, receivers, shifts)]).astype(int)
    found = set(map(tuple, rows.tolist()))
    assert len(found) == len(rows)
    return found


def check_same(structure, device):
    positions, cell, pbc, cutoff = structure
    pairs = pairs_within(
        torch.from_numpy(positions).to(device), torch.from_numpy(cell).to(device), torch.from_numpy(pbc), cutoff
    )
    assert pairs.senders.device.type == device
    assert (pairs.senders.diff() >= 0).all()
    expected = neighbour_list("ijS", positions=positions, cell=cell, pbc=pbc, cutoff=cutoff)
    assert as_set(pairs.senders.cpu(), pairs.receivers.cpu(), pairs.unit_shifts.cpu()) == as_set(*expected)


@pytest.mark.parametrize("n", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_pairs_are_matscipys(n):
    for seed in range(n):
        check_same(random_structure(seed), "cpu")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pairs_made_on_a_gpu_are_matscipys():
    for seed in range(1000):
        check_same(random_structure(seed), "cuda")


def test_without_vesin_they_are_the_same(monkeypatch):
    structure = random_structure(5)
    positions, cell, pbc, cutoff = (
        torch.from_numpy(each) if isinstance(each, np.ndarray) else each for each in structure
    )
    expected = pairs_within(positions, cell, pbc, cutoff)
    monkeypatch.setitem(sys.modules, "vesin_torch", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = pairs_within(positions, cell, pbc, cutoff)
    assert as_set(found.senders, found.receivers, found.unit_shifts) == as_set(
        expected.senders, expected.receivers, expected.unit_shifts
    )


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), moved=st.floats(0, 0.6), strain=st.floats(0, 0.08))
def test_a_list_that_holds_has_every_pair(seed, moved, strain):
    positions, cell, pbc, cutoff = random_structure(seed)
    rng = np.random.default_rng(seed + 1)
    verlet = VerletList(cutoff, 1.0, torch.from_numpy(pbc)[None], torch.tensor([0, len(positions)]))
    made = verlet.build(torch.from_numpy(positions), torch.from_numpy(cell)[None], torch.device("cpu"))
    change = np.eye(3) + strain * rng.uniform(-1, 1, (3, 3))
    steps = rng.normal(size=positions.shape)
    steps *= moved * rng.random((len(steps), 1)) / np.linalg.norm(steps, axis=1, keepdims=True)
    later, other = positions @ change + steps, cell @ change
    if verlet.holds_for(torch.from_numpy(later), torch.from_numpy(other)[None]):
        needed = neighbour_list("ijS", positions=later, cell=other, pbc=pbc, cutoff=cutoff)
        assert as_set(*needed) <= as_set(made.senders, made.receivers, made.unit_shifts)


@pytest.mark.parametrize(("distance", "holds"), [(0.49, True), (0.51, False)])
def test_it_holds_until_an_atom_has_moved_half_of_the_skin(distance, holds):
    positions = torch.tensor([[0.0, 0, 0], [1.5, 0, 0]], dtype=torch.float64)
    cells = 10 * torch.eye(3, dtype=torch.float64)[None]
    verlet = VerletList(3.0, 1.0, torch.ones(1, 3, dtype=torch.bool), torch.tensor([0, 2]))
    assert not verlet.holds_for(positions, cells)
    verlet.build(positions, cells, torch.device("cpu"))
    moved = positions + torch.tensor([[0.0, 0, distance], [0, 0, 0]], dtype=torch.float64)
    assert verlet.holds_for(moved, cells) is holds


def test_a_cell_that_shrinks_uses_up_the_skin():
    positions, cells = torch.rand(4, 3, dtype=torch.float64) * 8, 8 * torch.eye(3, dtype=torch.float64)[None]
    verlet = VerletList(3.0, 1.0, torch.ones(1, 3, dtype=torch.bool), torch.tensor([0, 4]))
    verlet.build(positions, cells, torch.device("cpu"))
    assert verlet.holds_for(0.76 * positions, 0.76 * cells)  # 0.76 · 4 Å are more than 3 Å
    assert not verlet.holds_for(0.74 * positions, 0.74 * cells)
