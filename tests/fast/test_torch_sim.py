"""torch_sim.py: batched dynamics of torch-sim are those that its own wrapper of MACE gives."""

import ase.build
import numpy as np
import pytest
import torch
from fast_run import constant_energy

from precision_probe import Policy

torch_sim = pytest.importorskip("torch_sim")


def batched_nve(model, structures, n_steps):
    """Positions at each step, from seeded momenta."""
    state, step = constant_energy(model, structures, torch.device("cpu"))
    visited = [state.positions.detach().numpy().copy()]
    for _ in range(n_steps):
        state = step(state)
        visited.append(state.positions.detach().numpy().copy())
    return np.array(visited)


def theirs(demo, **options):
    from torch_sim.models.mace import MaceModel

    return MaceModel(demo, device=torch.device("cpu"), dtype=torch.float64, **options)


@pytest.mark.parametrize("is_periodic", [True, False])
def test_dynamics_of_two(demo, diamond, is_periodic):
    if is_periodic:
        structures = [diamond, diamond.copy()]
        structures[1].rattle(0.02, seed=4)
    else:
        structures = [ase.build.molecule("CH3CH2OH"), ase.build.molecule("H2O")]
    mine = Policy(()).torch_sim_model(demo, "cpu")
    expected = batched_nve(theirs(demo, compute_stress=False), structures, 6)
    np.testing.assert_allclose(batched_nve(mine, structures, 6), expected, rtol=0, atol=1e-11)


def test_stress_and_another_batch(demo, diamond):
    mine = Policy(()).torch_sim_model(demo, "cpu", compute_stress=True)
    for structures in ([diamond], [diamond, diamond.repeat((2, 1, 1))]):
        state = torch_sim.initialize_state(structures, torch.device("cpu"), torch.float64)
        found, expected = mine(state), theirs(demo, compute_stress=True)(state)
        for name in ("energy", "forces", "stress"):
            torch.testing.assert_close(found[name], expected[name].detach(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("inference", [False, True])
def test_other_elements_are_seen(demo, inference):
    """In the tensor that the model was given before; and of another tensor that it has the same."""
    mine, before = Policy(()).torch_sim_model(demo, "cpu"), ase.build.molecule("CH3CH2OH")
    after = before.copy()
    after.numbers[1] = 8
    with torch.inference_mode(inference):
        state = torch_sim.initialize_state([before], torch.device("cpu"), torch.float64)
        energy = mine(state)["energy"]
        state.atomic_numbers[1] = 8
        changed = mine(state)["energy"]
        known = mine._structures
        state.atomic_numbers = state.atomic_numbers.clone()
        assert mine(state)["energy"] == changed
        assert mine._structures is known
    exact = theirs(demo, compute_stress=False)(torch_sim.initialize_state([after], torch.device("cpu"), torch.float64))
    torch.testing.assert_close(changed, exact["energy"].detach(), rtol=1e-12, atol=0)
    assert abs(changed - energy) > 1
