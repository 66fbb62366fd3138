"""A probe on a live model: calls are observed, and nothing of the user's own run is disturbed."""

import gc
import warnings

import ase
import ase.units
import numpy as np
import pytest
import torch
from ase.md.langevin import Langevin
from mace.calculators import MACECalculator

import precision_probe as pp
from precision_probe.models.building import build
from precision_probe.models.graphs import build_graph
from precision_probe.models.loading import load_model
from precision_probe.probe.observer import Observer
from precision_probe.structures import read_structures

FAST = {"precisions": "float32", "device": "cpu", "blocks": "readouts.*", "modes": "isolated"}


@pytest.fixture
def mine(config):
    """A model that a test may change."""
    return build(config, seed=5)


def call(model, atoms):
    (structure,) = read_structures(atoms)
    return model(dict(build_graph(structure, model).data))


def n_hooks(model):
    return len(model._forward_hooks) + len(model._forward_pre_hooks)


def langevin(model, steps, **attached):
    """Positions after a seeded run of ethanol, and the trace of the probe that watched it."""
    atoms = next(atoms for atoms in read_structures("demo") if atoms.info["name"] == "ethanol")
    atoms.calc = MACECalculator(models=model, device="cpu", default_dtype="float64")
    rng = np.random.default_rng(0)
    dynamics = Langevin(atoms, 0.5 * ase.units.fs, temperature_K=300, friction=0.02, rng=rng)
    if not attached:
        dynamics.run(steps)
        return atoms.positions, None
    with pp.attach(atoms.calc, **attached) as probe:
        dynamics.run(steps)
    return atoms.positions, probe.trace()


def test_molecular_dynamics_is_the_same_to_the_last_bit():
    model, _ = load_model("demo")
    alone, _ = langevin(model, 60)
    watched, trace = langevin(model, 60, **FAST, every=10, limit=5)
    np.testing.assert_array_equal(watched, alone)
    assert trace.structures["name"].values.tolist() == [f"call {number}" for number in (10, 20, 30, 40, 50)]
    assert n_hooks(model) == 0


@pytest.mark.parametrize(("limit", "seen"), [(0, 0), (1, 1), (2, 2), (None, 3)])
def test_limit(mine, water, limit, seen):
    with pp.attach(mine, **FAST, every=2, limit=limit) as probe:
        for _ in range(6):
            call(mine, water)
    assert probe.n_structures == seen


@pytest.mark.parametrize("stage", ["predict", "_propagated"])  # each runs once in a call
def test_a_failing_replay_is_noted_and_the_run_goes_on(mine, water, monkeypatch, stage):
    expected = call(mine, water)["forces"]
    works, fails = getattr(Observer, stage), iter([False, True, True, False])

    def sometimes(*args, **kwargs):
        if next(fails):
            raise MemoryError("too large")
        return works(*args, **kwargs)

    monkeypatch.setattr(Observer, stage, sometimes)
    with pp.attach(mine, **FAST) as probe, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        forces = [call(mine, water)["forces"] for _ in range(4)]
    assert all(torch.equal(found, expected) for found in forces)
    ours = [warning for warning in caught if "precision_probe" in str(warning.message)]
    assert len(ours) == 1
    assert "call 2 could not be observed (MemoryError: too large)" in str(ours[0].message)
    about = probe.trace().attributes
    assert about["failures"] == [f"call {n} could not be observed (MemoryError: too large)" for n in (2, 3)]
    assert about["complete"] is False
    assert probe.trace().structures["name"].values.tolist() == ["call 1", "call 4"]


def test_input_that_cannot_be_read_does_not_stop_the_run(mine, water):
    (structure,) = read_structures(water)
    data = dict(build_graph(structure, mine).data)
    ptr = data.pop("ptr")
    with pp.attach(mine, **FAST) as probe:
        mine.register_forward_pre_hook(lambda *_: data.update(ptr=ptr))  # the user's own, after ours has looked
        with pytest.warns(RuntimeWarning, match="could not be observed"):
            out = mine(data)
    assert torch.isfinite(out["energy"]).all()
    assert probe.n_structures == 0


def test_hooks_go_with_the_probe(mine, water):
    probe = pp.attach(mine, **FAST)
    assert n_hooks(mine) == 2
    call(mine, water)
    del probe
    gc.collect()
    assert n_hooks(mine) == 0


def test_several_probes_do_not_disturb_one_another(mine, model, water, crystal):
    alone = call(mine, water)["forces"], call(model, crystal)["forces"]
    with pp.attach(mine, **FAST) as outer, pp.attach(model, **FAST) as other:
        with pp.attach(mine, **FAST) as inner:
            assert torch.equal(call(mine, water)["forces"], alone[0])
        assert torch.equal(call(model, crystal)["forces"], alone[1])
        call(mine, crystal)
    assert [probe.n_structures for probe in (outer, inner, other)] == [2, 1, 1]
    assert (n_hooks(mine), n_hooks(model)) == (0, 0)
    for probe, atoms in ((inner, water), (other, crystal)):
        np.testing.assert_array_equal(probe.trace().structures["positions"], atoms.positions)


def test_training_is_the_same_and_the_variants_follow_the_weights(config, water):
    def train(attached):
        model = build(config, seed=5)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        probe = pp.attach(model, **FAST) if attached else None
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            (structure,) = read_structures(water)
            out = model(dict(build_graph(structure, model).data), training=True)
            loss = out["interaction_energy"].square().sum() + out["forces"].square().sum()
            loss.backward()
            optimizer.step()
            losses.append((out["energy"].item(), loss.item()))
        if probe is not None:
            probe.detach()
        return losses, probe

    alone, _ = train(attached=False)
    watched, probe = train(attached=True)
    assert watched == alone
    trace = probe.trace()
    energies = trace.group("propagated", "float64")["energy"].values
    np.testing.assert_allclose(energies, [energy for energy, _ in alone], rtol=1e-14)
    assert len(set(energies)) == 3
    assert trace.attributes["weights_changed"] is True


def test_heads_are_chosen_by_name(config, water):
    energies = [[-13.6, -1029.5, -2042.0], [-10.0, -20.0, -30.0]]
    model = build(
        config
        | {
            "heads": ["dft", "cc"],
            "atomic_energies": energies,
            "atomic_inter_scale": [0.8, 0.9],
            "atomic_inter_shift": [0.1, 0.2],
        }
    )
    found = {}
    for head in ("dft", "cc", None):
        with pp.attach(model, **FAST, head=head) as probe:
            probe.run(water, progress=False)
        found[head] = probe.trace().group("propagated", "float64")
        assert probe.trace().attributes["head"] == (head or "cc")
    for head, (hydrogen, _, oxygen) in zip(("dft", "cc"), energies, strict=True):
        isolated = found[head]["energy"].values - found[head]["interaction_energy"].values
        np.testing.assert_allclose(isolated, 2 * hydrogen + oxygen, rtol=1e-12)
    np.testing.assert_array_equal(found[None]["energy"], found["cc"]["energy"])
    assert any("cc" in note for note in probe.notes)
    with pytest.raises(pp.InputError, match=r"no head 'mp'.*dft, cc"):
        pp.attach(model, **FAST, head="mp")


def test_structures_run_later_meet_the_weights_of_that_moment(mine, water):
    with pp.attach(mine, **FAST) as probe:
        with torch.no_grad():
            mine.readouts[1].linear_2.weight.mul_(3.0)
        probe.run(water, progress=False)
        expected = call(mine, water)["energy"].item()
    first, observed = probe.trace().group("propagated", "float64")["energy"].values
    assert first == observed == expected
