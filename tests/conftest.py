"""Fixtures that the tests share: small models and structures."""

import copy
from pathlib import Path

import ase
import ase.build
import numpy as np
import pytest
import torch
from runs import convert

from precision_probe.models.building import build, default_config
from precision_probe.models.loading import load_model
from precision_probe.policy import Policy


@pytest.fixture(autouse=True)
def unchanged_global_state():
    """No test, and so nothing that it calls, leaves torch's or NumPy's global state changed."""

    def state():
        backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
        return (
            torch.get_default_dtype(),
            [backend.fp32_precision for backend in backends],
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            np.geterr(),
        )

    before = state()
    yield
    assert state() == before


@pytest.fixture(scope="session")
def config():
    """The architecture of a MACE that runs in milliseconds."""
    return default_config() | {
        "hidden_irreps": "4x0e + 4x1o",
        "MLP_irreps": "4x0e",
        "radial_MLP": [8],
        "num_bessel": 4,
        "correlation": 2,
        "atomic_energies": [-13.6, -1029.5, -2042.0],
        "atomic_inter_scale": 0.8,
        "atomic_inter_shift": 0.1,
    }


@pytest.fixture(scope="session")
def model(config):
    """A small float64 ScaleShiftMACE with random weights; tests must not change it."""
    return build(config, seed=3)


@pytest.fixture(scope="session")
def wide(config):
    """A model with as many channels as the fused kernels of cuEquivariance and OpenEquivariance ask for."""
    return build(config | {"hidden_irreps": "64x0e + 64x1o", "MLP_irreps": "16x0e"}, seed=3)


@pytest.fixture
def mine(model):
    """A copy of the small model, for tests that change it or hook it."""
    return copy.deepcopy(model)


@pytest.fixture(scope="session")
def demo():
    """The bundled model; tests must not change it."""
    return load_model("demo")[0]


@pytest.fixture(scope="session")
def in_float64(demo):
    """The bundled model under the policy that leaves it in float64; tests must not change it."""
    return Policy(()).apply(demo)


@pytest.fixture(scope="session")
def converted(model):
    """The small model converted to cuEquivariance; tests must not change it, and may copy it (on a CPU)."""
    return convert(model)


@pytest.fixture
def water():
    """A bent, uneven water molecule."""
    return ase.Atoms("OHH", [(0.02, 0.0, 0.11), (0.0, 0.78, -0.48), (0.05, -0.75, -0.45)])


@pytest.fixture
def crystal():
    """A small periodic carbon cell off its equilibrium, strained so that its stress is not isotropic."""
    atoms = ase.build.bulk("C", cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.set_cell(atoms.cell.array @ np.array([[1.02, 0.01, 0], [0, 0.99, 0.02], [0, 0, 1.0]]), scale_atoms=True)
    return atoms


@pytest.fixture
def model_file(model, tmp_path) -> Path:
    """The small model as a checkpoint on disk."""
    path = tmp_path / "small.model"
    torch.save(model, path)
    return path
