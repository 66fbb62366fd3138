"""live_calls.py on a model in training: the loop is the same to the last bit, its loss's gradients are recorded."""

import copy
import warnings

import numpy as np
import pytest
import torch
from mace.modules.loss import WeightedEnergyForcesLoss
from mace.tools import torch_geometric
from mace.tools.train import evaluate, take_step
from runs import data_of, molecule

import precision_probe as pp
from precision_probe.models._mace import data as mace_data
from precision_probe.models._mace import tools
from precision_probe.models.dtypes import default_dtype

FAST = {"precisions": "float32", "device": "cpu", "blocks": ["interactions.0", "readouts.*"]}
OUTPUTS = {"forces": True, "virials": False, "stress": False, "dipoles": False}


def labelled(seed):
    """A molecule with an energy and forces that it could have."""
    atoms = molecule(seed)
    atoms.info["REF_energy"] = -1056.0 - 0.1 * seed
    atoms.arrays["REF_forces"] = np.random.default_rng(seed).normal(size=(3, 3))
    return atoms


def loader(model, n, batch_size):
    """mace-torch's own batches of labelled molecules, in order."""
    keys = mace_data.KeySpecification(info_keys={"energy": "REF_energy"}, arrays_keys={"forces": "REF_forces"})
    z_table = tools.AtomicNumberTable(model.atomic_numbers.tolist())
    with default_dtype(torch.float64):
        entries = [
            mace_data.AtomicData.from_config(
                mace_data.config_from_atoms(labelled(seed), keys), z_table=z_table, cutoff=float(model.r_max)
            )
            for seed in range(n)
        ]
    return torch_geometric.dataloader.DataLoader(entries, batch_size=batch_size, shuffle=False)


def gradients_of(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_equal(left, right):
    """Tensors, or lists of them, are the same to the last bit."""
    assert len(left) == len(right)
    for ours, theirs in zip(left, right, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


# The loop


def train(model, attached, epochs=2):
    """Two epochs as mace-torch's own training runs them, a validation after each; everything that came of it."""
    model = copy.deepcopy(model)
    with default_dtype(torch.float64):
        loss_fn = WeightedEnergyForcesLoss(energy_weight=1.0, forces_weight=10.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True)
    probe = pp.attach(model, **FAST) if attached else None
    losses, grads = [], []
    for _ in range(epochs):
        for batch in loader(model, 3, batch_size=2):
            loss, _ = take_step(model, loss_fn, batch, optimizer, None, OUTPUTS, 10.0, torch.device("cpu"))
            losses.append(loss.detach())
            grads.append(gradients_of(model))
        valid, _ = evaluate(model, loss_fn, loader(model, 1, batch_size=1), OUTPUTS, torch.device("cpu"))
        losses.append(torch.as_tensor(valid))
    if probe is not None:
        probe.detach()
    state = [value for group in optimizer.state.values() for value in group.values()]
    return losses, grads, [*model.state_dict().values(), *state], probe


@pytest.fixture(scope="module")
def watched(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        return train(model, attached=True)


def test_training_is_the_same_to_the_last_bit(model, watched):
    losses, grads, weights, _ = train(model, attached=False)
    assert_equal(watched[0], losses)
    for ours, theirs in zip(watched[1], grads, strict=True):
        assert_equal(ours, theirs)
    assert_equal(watched[2], weights)


def test_every_step_and_validation_is_observed(watched):
    trace = watched[3].trace()
    assert trace.attributes["failures"] == []
    assert trace.attributes["weights_changed"] is True
    names = ",".join(trace.structures["name"].values)
    assert names == "call 1[0],call 1[1],call 2,call 3,call 4[0],call 4[1],call 5,call 6"
    energies = trace.group("propagated", "float64")["energy"].values
    assert len(set(energies)) == 7  # the weights change; a validation and the step after it see the same
    assert energies[3] == energies[4]


def test_passes(watched):
    trace = watched[3].trace()
    assert trace.modes == ("propagated", "isolated", "loss")
    for precision in ("float64", "float32"):
        found = {a.attrs["pass"] for a in trace.group("loss", precision).data_vars.values()}
        assert found == {"double_backward"}
        for mode in ("propagated", "isolated"):
            arrays = [a for a in trace.group(mode, precision).data_vars.values() if "block" in a.attrs]
            assert {a.attrs["pass"] for a in arrays} == {"forward", "backward"}
    names = {f"{block}.node_feats.grad" for block in ("interactions.0", "readouts.0", "readouts.1")}
    assert names | {"interactions.0.edge_feats.grad"} <= set(trace.group("loss", "float64").data_vars)


def test_validation_has_no_loss(watched):
    trace = watched[3].trace()
    owner = trace.structures["structure_of_atom"].values
    gradient = trace.group("loss", "float64")["readouts.1.node_feats.grad"].values
    validated = np.isin(owner, [3, 7])
    assert np.isnan(gradient[validated]).all()
    assert np.isfinite(gradient[~validated]).all()


def test_errors_of_the_loss_gradients(watched):
    table = pp.errors(watched[3].trace())
    of_loss = table[table["mode"] == "loss"]
    assert set(of_loss["direction"]) == {"backward"}
    assert np.isfinite(of_loss["rel_l2"]).all()
    assert of_loss["resolved"].all()
    assert of_loss["rel_l2"].between(1e-9, 1e-3).all()
    feats = of_loss.set_index(["block", "tensor"])["n"]
    assert feats["readouts.1", "node_feats"] == 3 * 6 * 4  # of six training structures, not of two validated ones


def test_a_plain_loop_is_the_same_and_the_variants_follow_the_weights(model):
    def train(attached):
        mine = copy.deepcopy(model)
        optimizer = torch.optim.SGD(mine.parameters(), lr=1e-3)
        probe = pp.attach(mine, **FAST) if attached else None
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            out = mine(data_of(molecule(), mine), training=True)
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


# Against gradients by hand


def losses_of(out):
    """Losses as a user may write them."""
    energy = (out["energy"] + 1056.0).square().sum()
    forces = (out["forces"] - 0.1).square().mean()
    stress = 0.0 if out.get("stress") is None else 1e3 * out["stress"].square().sum()
    interaction = out["interaction_energy"].square().sum()
    terms = {"energy": energy, "forces": forces, "stress": stress, "interaction": interaction}
    return terms | {"both": energy + 10 * forces, "all": energy + forces + stress}


def loss_of(out, kind):
    return losses_of(out)[kind]


def by_hand(model, data, kind, tensor, **options):
    """∂loss/∂(one block's input) by a hook of our own on a copy of the model."""
    model = copy.deepcopy(model)
    block, _, argument = tensor.rpartition(".")
    aliases = []

    def alias(module, args, kwargs):
        if argument in kwargs:
            given = kwargs[argument]
        else:
            given, args = args[0], args[1:]
        aliases.append(given.view_as(given) if given.requires_grad else given.clone().requires_grad_())
        return (args, kwargs | {argument: aliases[0]}) if argument in kwargs else ((aliases[0], *args), kwargs)

    model.get_submodule(block).register_forward_pre_hook(alias, with_kwargs=True)
    out = model(data, training=True, **options)
    (found,) = torch.autograd.grad(loss_of(out, kind), aliases, allow_unused=True, materialize_grads=True)
    return found.numpy()


def traced(model, data, kind, **options):
    """What the probe records of the same."""
    with pp.attach(model, **FAST | {"modes": "propagated"}) as probe:
        loss_of(model({k: v.clone() for k, v in data.items()}, training=True, **options), kind).backward()
    assert probe.trace().attributes["failures"] == []
    return probe.trace()


TENSORS = ["readouts.1.node_feats", "readouts.0.node_feats", "interactions.0.edge_feats", "interactions.0.node_feats"]


@pytest.mark.parametrize("kind", ["energy", "forces", "both", "interaction"])
def test_loss_gradients_are_those_by_hand(mine, kind):
    data = data_of(molecule(0), mine)
    trace = traced(mine, data, kind)
    for tensor in TENSORS:
        expected = by_hand(mine, {k: v.clone() for k, v in data.items()}, kind, tensor)
        found, low = (trace.group("loss", name)[f"{tensor}.grad"].values for name in ("float64", "float32"))
        scale = np.linalg.norm(expected)
        assert np.linalg.norm(found - expected.reshape(found.shape)) <= 1e-10 * scale, tensor
        assert np.linalg.norm(low - found) <= 1e-3 * scale, tensor
        assert scale > 0 or (kind, tensor) == ("forces", "readouts.0.node_feats")  # linear, and the first layer's last


@pytest.mark.parametrize("kind", ["stress", "all"])
def test_loss_of_stress(mine, crystal, kind):
    data = data_of(crystal, mine)
    trace = traced(mine, data, kind, compute_stress=True)
    for tensor in TENSORS:
        expected = by_hand(mine, {k: v.clone() for k, v in data.items()}, kind, tensor, compute_stress=True)
        found = trace.group("loss", "float64")[f"{tensor}.grad"].values
        assert np.linalg.norm(found - expected.reshape(found.shape)) <= 1e-9 * np.linalg.norm(expected), tensor


def test_gradients_of_a_loss_of_energies_are_scaled_gradients_of_the_energy(mine):
    """∂L/∂x = 2 (E − E₀) ∂E/∂x, the one as double_backward, the other as backward."""
    trace = traced(mine, data_of(molecule(1), mine), "energy")
    energy = trace.group("propagated", "float64")["energy"].values.item()
    for tensor in TENSORS:
        of_loss = trace.group("loss", "float64")[f"{tensor}.grad"].values
        of_energy = trace.group("propagated", "float64")[f"{tensor}.grad"].values
        np.testing.assert_allclose(of_loss, 2 * (energy + 1056.0) * of_energy, rtol=1e-9, atol=1e-12)


# Other ways to train


def test_calls_without_any_loss(mine):
    with pp.attach(mine, **FAST) as probe:
        for seed in range(2):
            mine(data_of(molecule(seed), mine), training=True)
    trace = probe.trace()
    assert trace.modes == ("propagated", "isolated")
    assert trace.attributes["complete"] is True
    assert probe.n_structures == 2


def test_calls_without_a_loss_between_calls_with_one(mine):
    with pp.attach(mine, **FAST) as probe:
        for seed, (is_training, has_loss) in enumerate([(False, False), (True, True), (True, False), (True, True)]):
            out = mine(data_of(molecule(seed), mine), training=is_training)
            if has_loss:
                loss_of(out, "both").backward()
    trace = probe.trace()
    gradient = trace.group("loss", "float64")["readouts.1.node_feats.grad"].values.reshape(4, -1)
    assert np.isnan(gradient).all(axis=1).tolist() == [True, False, True, False]
    table = pp.errors(trace)
    assert np.isfinite(table.loc[table["mode"] == "loss", "rel_l2"]).all()


def test_loss_differentiated_twice_is_seen_once(mine):
    with pp.attach(mine, **FAST) as probe:
        loss = loss_of(mine(data_of(molecule(0), mine), training=True), "both")
        loss.backward(retain_graph=True)
        first = gradients_of(mine)
        loss.backward()
    assert_equal([g for g in gradients_of(mine) if g is not None], [2 * g for g in first if g is not None])
    assert probe.n_structures == 1


def test_gradients_accumulated_over_calls_are_the_same(model):
    def accumulate(attached):
        mine = copy.deepcopy(model)
        probe = pp.attach(mine, **FAST) if attached else None
        total = 0.0
        for seed in range(2):
            total = total + loss_of(mine(data_of(molecule(seed), mine), training=True), "both")
        total.backward()
        if probe is not None:
            probe.detach()
        return gradients_of(mine), probe

    watched, probe = accumulate(attached=True)
    assert_equal(watched, accumulate(attached=False)[0])
    assert probe.n_structures == 2
    assert probe.trace().attributes["failures"] == []
