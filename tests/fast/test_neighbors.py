"""neighbors.py: pairs are those of matscipy and of a sum over images, and hold as long as they are said to."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matscipy.neighbours import neighbour_list

from precision_probe.fast.neighbors import Places, VerletList, pairs_within, slack


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


def slack_of(before, after, cutoff, skin=1.0):
    """Of pairs made at positions and a cell before, at those after."""
    then, cell, positions, other = (torch.as_tensor(each, dtype=torch.float64) for each in (*before, *after))
    now = Places(positions, other[None], torch.zeros(len(positions), dtype=torch.int64))
    return float(slack(now, cell.inverse()[None], then, cutoff, skin))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), moved=st.floats(0, 0.6), strain=st.floats(0, 0.08))
def test_pairs_with_slack_are_all_that_are_needed(seed, moved, strain):
    positions, cell, pbc, cutoff = random_structure(seed)
    rng = np.random.default_rng(seed + 1)
    verlet = VerletList(cutoff, 1.0, torch.from_numpy(pbc)[None], torch.tensor([0, len(positions)]))
    made = verlet.build(torch.from_numpy(positions), torch.from_numpy(cell)[None], torch.device("cpu"))
    change = np.eye(3) + strain * rng.uniform(-1, 1, (3, 3))
    steps = rng.normal(size=positions.shape)
    steps *= moved * rng.random((len(steps), 1)) / np.linalg.norm(steps, axis=1, keepdims=True)
    later, other = positions @ change + steps, cell @ change
    left = slack_of((positions, cell), (later, other), cutoff)
    # no more than a decomposition of the change of the cell would find
    least = np.linalg.svd(change, compute_uv=False).min()
    assert left <= least * (cutoff + 1) - 2 * np.linalg.norm(steps, axis=1).max() - cutoff + 1e-9
    if left >= 0:
        needed = neighbour_list("ijS", positions=later, cell=other, pbc=pbc, cutoff=cutoff)
        assert as_set(*needed) <= as_set(made.senders, made.receivers, made.unit_shifts)


def test_an_atom_that_moves_uses_up_twice_its_way():
    positions = np.array([[0.0, 0, 0], [1.5, 0, 0]])
    for distance in (0.0, 0.2, 0.49, 0.51):
        later = positions + np.array([[0, 0, distance], [0, 0, 0]])
        left = slack_of((positions, 10 * np.eye(3)), (later, 10 * np.eye(3)), 3.0)
        assert left == pytest.approx(1 - 2 * distance, abs=1e-12)


@pytest.mark.parametrize("pressed", [0.9, 0.76, 0.74])
def test_a_cell_that_shrinks_uses_up_what_it_takes_from_the_farthest_pair(pressed):
    positions, cell = np.random.default_rng(0).random((4, 3)) * 8, 8 * np.eye(3)
    left = slack_of((positions, cell), (pressed * positions, pressed * cell), 3.0)
    assert left == pytest.approx(4 * pressed - 3, abs=1e-12)


def test_the_worst_of_several_structures_counts():
    positions, cells = torch.rand(4, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64).repeat(2, 1, 1) * 8
    batch = torch.tensor([0, 0, 1, 1])
    later = positions.clone()
    later[3, 0] += 0.3
    assert float(slack(Places(later, cells, batch), cells.inverse(), positions, 3.0, 1.0)) == pytest.approx(0.4)
    # an atom that follows its cell has not moved; the other structure's cell is as it was
    pressed, followed = cells.clone(), positions.clone()
    pressed[1] *= 0.9
    followed[2:] *= 0.9
    assert float(slack(Places(followed, pressed, batch), cells.inverse(), positions, 3.0, 1.0)) == pytest.approx(0.6)


def test_what_is_not_a_number_has_no_slack():
    positions = np.array([[0.0, 0, 0], [1.5, 0, 0]])
    assert np.isnan(slack_of((positions, 10 * np.eye(3)), (positions * [1, np.nan, 1], 10 * np.eye(3)), 3.0))
