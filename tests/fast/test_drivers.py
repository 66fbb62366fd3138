"""drivers.py: policies run by ASE and torch-sim, and what is refused."""

import numpy as np
import pytest
from mace.calculators import MACECalculator

from precision_probe import Policy, Rule
from precision_probe.exceptions import InputError
from precision_probe.fast import drivers
from precision_probe.fast.calculator import GraphCalculator

MIXED = Policy((Rule("interactions.*", "float32"),))


def test_on_a_cpu_mace_torchs_calculator_runs_it(demo, water):
    eager, graph = MIXED.calculator(demo), MIXED.calculator(demo, run="graph")
    assert type(eager) is MACECalculator
    assert type(graph) is GraphCalculator
    assert "no graphs" in graph.launcher.why_not
    forces = []
    for calculator in (eager, graph):
        water.calc = calculator
        forces.append(water.get_forces())
    np.testing.assert_allclose(*forces, rtol=0, atol=1e-5)


def test_a_model_converted_on_the_way(config, crystal):
    from precision_probe.models.building import build

    pytest.importorskip("cuequivariance_torch")
    model = build(config | {"num_interactions": 1}, seed=3)
    forces = []
    for run in drivers.RUNS:
        for enable_cueq in (False, True):
            crystal.calc = Policy(()).calculator(model, run=run, enable_cueq=enable_cueq)
            forces.append(crystal.get_forces())
    for other in forces[1:]:
        np.testing.assert_allclose(other, forces[0], rtol=0, atol=1e-12 * np.abs(forces[0]).max())


@pytest.mark.parametrize("has_kernels", [False, True])
@pytest.mark.parametrize("found", ["e3nn", "cuEquivariance"])
def test_the_library_that_a_policy_was_found_for_computes_it(config, monkeypatch, found, has_kernels):
    from precision_probe.models.backends import backend
    from precision_probe.models.building import build

    pytest.importorskip("cuequivariance_torch")
    monkeypatch.setattr(drivers, "has_cuequivariance_kernels", lambda device: has_kernels)
    model = build(config | {"num_interactions": 1}, seed=3)
    policy = Policy((), evidence={"backend": found})
    launched = [policy.calculator(model, run="graph", **options) for options in ({}, {"enable_cueq": False})]
    expected = [found if has_kernels else "e3nn", "e3nn"]
    assert [backend(each.launcher.model.model) for each in launched] == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"run": "compile"}, "graph, eager; got 'compile'"),
        ({"run": "graph", "interface": "float32"}, "got the interface float32.*run='eager'"),
        ({"run": "graph", "charges_key": "q"}, "got charges_key.*run='eager'"),
        ({"run": "graph", "head": "other"}, "no head 'other'"),
        ({"device": "cuda:77", "run": "graph"}, "cuda"),
    ],
)
def test_what_cannot_be_is_refused(demo, options, words):
    with pytest.raises(InputError, match=words):
        MIXED.calculator(demo, **options)


def test_torch_sim_is_asked_for_by_name(demo, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch_sim", None)
    monkeypatch.delitem(__import__("sys").modules, "precision_probe.fast.torch_sim", raising=False)
    with pytest.raises(InputError, match="pip install torch-sim-atomistic"):
        MIXED.torch_sim_model(demo)
