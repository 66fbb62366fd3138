"""The noise floor: zero where nothing is random, what is known where it is, and there on a GPU."""

import contextlib

import ase.build
import numpy as np
import pytest
import torch

from precision_probe.diagnostics.repeatability import noise_floor
from precision_probe.models.blocks import default_blocks
from precision_probe.models.graphs import build_graph
from precision_probe.precisions import PRECISIONS
from precision_probe.variants.variant import Variant

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def variants(model, *names, device="cpu"):
    return [Variant(model, PRECISIONS[name], torch.device(device)) for name in names]


def test_a_cpu_adds_in_order(model, water):
    graph = build_graph(water, model)
    for variant in (clones := variants(model, "float64", "float16")):
        for _ in range(2):
            variant.predict(graph)  # TorchScript compiles in the second call
    table = noise_floor(clones, graph, default_blocks(model), n_runs=3)
    assert (table["spread"].dropna() == 0).all()
    assert set(table["precision"]) == {"float64", "float16"}
    keys = {tuple(row) for row in table[["block", "tensor", "direction"]].to_numpy()}
    assert ("model", "forces", "backward") in keys
    assert ("model", "energy", "forward") in keys
    assert ("products.1", "output", "forward") in keys
    assert ("products.1", "node_feats", "backward") in keys
    assert len(table) == 2 * len(keys)


@pytest.fixture
def one_thread():
    """Several threads may add numbers in any order, on a CPU too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_cpu_has_no_noise_and_a_noisy_model_has_its_own(model, mine, water):
    plain = mine.readouts[1].forward
    mine.readouts[1].forward = lambda *args: plain(*args) * (1 + 1e-6 * torch.randn(()))
    graph = build_graph(water, mine)
    quiet = noise_floor(variants(model, "float32"), graph, default_blocks(model))
    assert quiet["spread"].fillna(0).max() == 0
    (variant,) = variants(mine, "float64")
    variant.arithmetic = contextlib.nullcontext  # which would give every run the same random numbers
    table = noise_floor([variant], graph, default_blocks(mine), n_runs=20)
    spread = table.set_index(["block", "direction"])["spread"]
    assert 3e-7 < spread["readouts.1", "forward"] < 3e-6
    assert spread["products.1", "forward"] == 0


def test_the_spread_of_what_is_random(model, water, monkeypatch):
    graph = build_graph(water, model)
    factors = [1.0, 1.02, 0.98, 1.01, 0.99]
    (variant,) = variants(model, "float64")
    turns = iter(factors)
    original = variant.predict
    for _ in range(2):
        exact = original(graph)

    def predict(sample):
        factor = next(turns)
        prediction = original(sample)
        for tensor in prediction.values.values():
            tensor.mul_(factor)
        return prediction

    monkeypatch.setattr(variant, "predict", predict)
    table = noise_floor([variant], graph, default_blocks(model), n_runs=5)
    spread = table[table["block"] == "model"].set_index("tensor")["spread"]
    # the deviation of the factors, as the first is 1: all of a run's components move alike
    np.testing.assert_allclose(spread[["energy", "forces"]], np.std(factors, ddof=1), rtol=1e-12)
    assert float(exact["energy"]) != 0
    assert (table.loc[table["block"] != "model", "spread"].dropna() == 0).all()


@pytest.mark.cuda
@needs_cuda
def test_a_gpu_adds_in_any_order(model):
    atoms = ase.build.bulk("MgO", "rocksalt", a=4.2, cubic=True).repeat(4)
    atoms.numbers[:] = np.where(atoms.numbers == 12, 1, 8)  # elements of the model
    atoms.rattle(0.05, seed=0)
    graph = build_graph(atoms, model).to("cuda")
    clones = variants(model, "float64", "float32", device="cuda")
    table = noise_floor(clones, graph, default_blocks(model))
    forces = table[table["tensor"] == "forces"].set_index("precision")["spread"]
    assert 0 < forces["float64"] < 1e-13
    assert 1e-9 < forces["float32"] < 1e-5
    runs = torch.stack([clones[1].predict(graph)["forces"].double() for _ in range(5)])  # by hand
    by_hand = float(runs.std(dim=0).norm() / runs[0].norm())
    assert forces["float32"] == pytest.approx(by_hand, rel=0.7)
