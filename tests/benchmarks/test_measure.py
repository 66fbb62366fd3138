"""How the benchmark measures: what runs out of memory, errors and ratios beside NumPy's."""

import math
from types import SimpleNamespace

import measure
import numpy as np
import pytest
import torch

from precision_probe.models.blocks import Port
from precision_probe.precisions import PRECISIONS

SMOKE = ["float64", "float32", "bfloat16", "float16"]


def test_runs_out_of_memory():
    variants = [SimpleNamespace(precision=PRECISIONS[name], device=torch.device("cpu")) for name in SMOKE]

    def call(variant):
        if variant.precision.name == "float64":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if variant.precision.name == "bfloat16":
            raise RuntimeError("The following operation failed in the TorchScript interpreter: CUDA out of memory.")
        return (1.0,), None

    def fail():
        raise RuntimeError("another error")

    kept = measure.interleave(variants, call, repeats=4)
    assert {name: measured.phase(0) for name, measured in kept.items()} == {"float32": [1.0] * 4, "float16": [1.0] * 4}
    with pytest.raises(RuntimeError, match="another"):
        measure.attempt(fail)


def test_each_round_begins_with_another_variant():
    variants = [SimpleNamespace(precision=PRECISIONS[name], device=torch.device("cpu")) for name in SMOKE]
    called = []

    def call(variant):
        called.append(variant.precision.name)
        return (1.0,), None

    measure.interleave(variants, call, repeats=5)
    rounds = [called[start : start + 4] for start in range(0, 4 * (measure.WARM_UP + 5), 4)]
    assert all(sorted(names) == sorted(SMOKE) for names in rounds)
    assert [names[0] for names in rounds[measure.WARM_UP :]] == [*SMOKE, SMOKE[0]]
    assert called[-4:] == SMOKE  # once more, for the memory


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    exact = {"message": rng.normal(size=(40, 3)), "skip": rng.normal(size=(40, 2)), "zero": np.full((40, 3), 1e-17)}
    return exact, {name: y + 1e-3 * rng.normal(size=y.shape) for name, y in exact.items()}


def test_errors_of_a_block_are_those_that_numpy_gives(tensors):
    exact, own = tensors
    errors = measure.block_errors(
        *({name: torch.from_numpy(y) for name, y in each.items()} for each in tensors), PRECISIONS["float16"], {"zero"}
    )
    relative = {name: np.linalg.norm(own[name] - y) / np.linalg.norm(y) for name, y in exact.items() if name != "zero"}
    assert errors["rel_l2"] == pytest.approx(max(relative.values()))
    for name, expected in relative.items():
        assert errors["tensors"][name]["rel_l2"] == pytest.approx(expected)
        assert not errors["tensors"][name]["zero_but_for_rounding"]
    assert errors["tensors"]["zero"]["rel_l2"] is None
    assert errors["tensors"]["zero"]["max_abs"] == pytest.approx(np.abs(own["zero"] - exact["zero"]).max())
    assert errors["tensors"]["zero"]["zero_but_for_rounding"]
    scaled = np.concatenate(
        [(np.abs(own[name] - exact[name]) / np.sqrt(np.mean(exact[name] ** 2))).ravel() for name in relative]
    )
    nearest = np.percentile(scaled, measure.PERCENTILES, method="nearest")
    assert errors["abs_error_over_rms_percentiles"] == pytest.approx(nearest, rel=1e-12)


def test_a_block_whose_tensors_are_all_zero_has_no_relative_error(tensors):
    exact, own = ({"zero": torch.from_numpy(each["zero"])} for each in tensors)
    errors = measure.block_errors(exact, own, PRECISIONS["float16"], {"zero"})
    assert errors["rel_l2"] is None
    assert errors["abs_error_over_rms_percentiles"] == [None] * len(measure.PERCENTILES)


def test_errors_of_a_prediction_are_those_that_numpy_gives():
    rng = np.random.default_rng(1)
    exact, *runs = (
        {"energy": rng.normal(size=1), "interaction_energy": rng.normal(size=1), "forces": rng.normal(size=(5, 3))}
        for _ in range(3)
    )
    reference, first, last = (
        {name: torch.from_numpy(value) for name, value in each.items()} for each in (exact, *runs)
    )
    errors = measure.model_errors(reference, [first, last], PRECISIONS["float32"], n_atoms=5)
    forces = runs[1]["forces"] - exact["forces"]
    assert errors["forces_mae_meV_per_A"] == pytest.approx(1e3 * np.abs(forces).mean())
    assert errors["forces_max_meV_per_A"] == pytest.approx(1e3 * np.abs(forces).max())
    assert errors["forces_rel_l2"] == pytest.approx(np.linalg.norm(forces) / np.linalg.norm(exact["forces"]))
    for name in ("energy", "interaction_energy"):
        expected = 1e3 * abs(runs[1][name] - exact[name]).item() / 5
        assert errors[f"{name}_abs_meV_per_atom"] == pytest.approx(expected)
    apart = np.abs(runs[1]["forces"] - runs[0]["forces"]).max()
    assert errors["forces_run_to_run_max_meV_per_A"] == pytest.approx(1e3 * apart)


def test_ratios_are_of_times_within_one_round():
    own, other = (measure.Measured(times=[(time,) for time in times]) for times in ((2.0, 30.0, 4.0), (1.0, 10.0, 8.0)))
    assert measure.ratio(own, other) == {"median": 2.0, "q25": 1.25, "q75": 2.5}
    assert measure.ratio(own, None) is None


def test_gradients_of_a_sum_of_squares_that_is_constant_vanish():
    """Spherical harmonics of degree 1 of normalised vectors: the vectors themselves."""
    vectors = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    lengths = vectors.norm(dim=-1, keepdim=True)
    done = SimpleNamespace(inputs={}, outputs={})
    for name, output in (("vectors", vectors / lengths), ("lengths", vectors * lengths)):
        port = Port(name)
        done.inputs[port], done.outputs = vectors, {"output": output}
        (gradient,) = torch.autograd.grad(output.square().sum(), vectors, retain_graph=True)
        assert measure.vanishing(done, {port: gradient}) == ({"vectors"} if name == "vectors" else set())


def test_wall_clock_marks_are_apart_in_milliseconds():
    assert measure.milliseconds(1.0, 1.25) == 250.0
    start = measure.mark(torch.device("cpu"))
    end = measure.mark(torch.device("cpu"))
    assert 0 <= measure.milliseconds(start, end) < math.inf
