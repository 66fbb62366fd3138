"""observed_calls.py: a trace is of the model that was called, whatever surrounds the call, or says that it is not."""

import copy
import threading
import types
import warnings

import numpy as np
import pytest
import torch
from mace.calculators import MACECalculator
from runs import data_of, molecule

import precision_probe as pp
from precision_probe.models.building import build
from precision_probe.models.dtypes import default_dtype

FAST = {"precisions": "float32", "device": "cpu", "blocks": "readouts.*", "modes": "propagated"}
NET = {"call": lambda module, x: module(x), "blocks": "*", "device": "cpu"}


def in_float32(atoms, model):
    return {name: x.float() if x.is_floating_point() else x for name, x in data_of(atoms, model).items()}


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.SiLU(), torch.nn.Linear(64, 1)).eval()


def inputs():
    return torch.randn(32, 16, generator=torch.Generator().manual_seed(1))


def by_hand(net, x):
    """What the layers give, in NumPy and float64."""
    hidden = x.double().numpy() @ net[0].weight.detach().double().numpy().T + net[0].bias.detach().double().numpy()
    hidden = hidden / (1 + np.exp(-hidden))
    return hidden @ net[2].weight.detach().double().numpy().T + net[2].bias.detach().double().numpy()


# another model than the one that was attached


def scaled_neighbours(model):
    model.interactions[0].avg_num_neighbors *= 1.1


def hooked_block(model):
    model.interactions[0].register_forward_hook(lambda _, __, out: (out[0] * 1.01, *out[1:]))


def hooked_output(model):
    model.register_forward_hook(lambda _, __, out: out | {"forces": out["forces"] * 1.001})


def hooked_input(model):
    model.register_forward_pre_hook(lambda _, args: ({**args[0], "positions": args[0]["positions"] * 1.001},))


def replaced_forward(model):
    readout = model.readouts[0]
    given = readout.forward
    readout.forward = lambda *args: given(*args) * 1.001


def replaced_method(model):
    def forward(self, *args, **kwargs):
        out = type(self).forward(self, *args, **kwargs)
        return out | {"energy": out["energy"] + 1e-6}

    model.forward = types.MethodType(forward, model)


CHANGES = [scaled_neighbours, hooked_block, hooked_output, hooked_input, replaced_forward, replaced_method]


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_is_changed_beside_its_weights_is_told(mine, water, change):
    with pp.attach(mine, **FAST) as probe:
        first = mine(data_of(water, mine))
        change(mine)
        with pytest.warns(
            RuntimeWarning, match=r"of another model than the one that was called. In 1 call\(s\).* call 2"
        ):
            live = mine(data_of(water, mine))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mine(data_of(water, mine))  # warned of once
    trace = probe.trace()
    assert trace.attributes["complete"] is False
    assert trace.attributes["failures"] == []
    told = trace.attributes["not_of_the_called_model"]
    assert told.keys() == {"2", "3"}
    for quantity, largest in told["2"].items():
        apart = (live[quantity] - first[quantity]).abs().max().item()
        assert largest == pytest.approx(apart, rel=1e-6), quantity
    assert sum("another model" in note for note in probe.notes) == 1
    assert "In 2 call(s)" in probe.notes[-1]


@pytest.mark.parametrize(
    "options", [{}, {"compute_stress": True}, {"training": True}, {"compute_force": False}], ids=str
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_model_itself_is_never_told_to_be_another(mine, water, crystal, dtype, options):
    mine.to(getattr(torch, dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pp.attach(mine, **FAST | {"precisions": "bfloat16,float16"}) as probe:
            for atoms in (water, crystal):
                for seed in range(3):
                    atoms.rattle(0.03, seed=seed)
                    data = data_of(atoms, mine) if dtype == "float64" else in_float32(atoms, mine)
                    mine(data, **options)
    attributes = probe.trace().attributes
    assert attributes["not_of_the_called_model"] == {}
    assert attributes["complete"] is True


def test_random_numbers_of_a_call_are_those_of_its_replay():
    torch.manual_seed(0)
    layers = torch.nn.Linear(4, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 1)
    net, x = torch.nn.Sequential(*layers).train(), torch.randn(8, 4)
    with pp.attach(net, **NET, precisions="float32") as probe:
        live = [net(x).detach() for _ in range(3)]
    trace = probe.trace()
    assert trace.attributes["not_of_the_called_model"] == {}
    recorded = trace.group("propagated", "float32")["output"].values.reshape(3, 8, 1)
    np.testing.assert_array_equal(recorded, [y.numpy() for y in live])
    assert not torch.equal(live[0], live[1])


@pytest.mark.parametrize("layer", ["batch norm", "spectral norm"])
def test_buffers_that_calls_change_are_those_that_the_call_began_with(layer):
    torch.manual_seed(0)
    linear = torch.nn.Linear(4, 4)
    of = {"batch norm": torch.nn.BatchNorm1d(4), "spectral norm": torch.nn.utils.parametrizations.spectral_norm(linear)}
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), of[layer]).train()
    with pp.attach(net, **NET | {"blocks": "0"}, precisions="float32") as probe:
        live = [net(torch.randn(8, 4)).detach() for _ in range(3)]
    trace = probe.trace()
    assert trace.attributes["not_of_the_called_model"] == {}
    recorded = trace.group("propagated", "float32")["output"].values.reshape(3, 8, 4)
    np.testing.assert_allclose(recorded, [y.numpy() for y in live], rtol=1e-6, atol=1e-6)


# what surrounds a call


def test_autocast_around_a_call_changes_what_is_called_but_no_variant():
    net, x = network(), inputs()
    exact = by_hand(net, x)
    with pp.attach(net, **NET, precisions="float32,bfloat16") as probe:
        with torch.autocast("cpu", dtype=torch.bfloat16), pytest.warns(RuntimeWarning, match="autocast"):
            live = net(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            probe.run([x], progress=False)
    assert live.dtype is torch.bfloat16
    trace = probe.trace()
    for precision, within in (("float64", 1e-14), ("float32", 1e-6), ("bfloat16", 3e-2)):
        for mode in ("propagated", "isolated"):
            found = trace.group(mode, precision)["2.output" if mode == "isolated" else "output"].values
            error = np.linalg.norm(found - np.concatenate([exact, exact])) / np.linalg.norm(exact)
            assert error < within, (precision, mode)
            assert precision != "bfloat16" or error > 1e-4
    apart = np.abs(live.detach().double().numpy() - exact).max()
    assert trace.attributes["not_of_the_called_model"]["1"]["output"] == pytest.approx(apart, rel=1e-3)


@pytest.mark.parametrize("around", [torch.inference_mode, torch.no_grad, lambda: default_dtype(torch.float16)])
def test_modes_around_calls_and_runs_change_nothing(mine, water, around):
    expected = mine(data_of(water, mine))
    with around(), pp.attach(mine, **FAST | {"modes": ("propagated", "isolated")}) as probe:
        mine(data_of(water, mine), compute_force=False)
        probe.run(water, progress=False)
    trace = probe.trace()
    assert trace.attributes["failures"] == []
    assert trace.attributes["not_of_the_called_model"] == {}
    group = trace.group("propagated", "float64")
    np.testing.assert_allclose(group["energy"], [expected["energy"].item()] * 2, rtol=1e-15)
    np.testing.assert_allclose(group["forces"][:3], expected["forces"].detach(), rtol=1e-12, atol=1e-13)
    assert trace.group("propagated", "float32")["forces"].dtype == np.float32


def test_loss_gradients_are_in_the_precision_too(mine):
    """A backward pass inside autocast: mace's own training does not use it, but others do."""

    def trained(around):
        with pp.attach(mine, **FAST | {"blocks": "interactions.0"}) as probe:
            out = mine(data_of(molecule(), mine), training=True)
            with around:
                out["energy"].square().sum().backward()
        return probe.trace().group("loss", "float32")["interactions.0.node_feats.grad"].values

    bare, inside = trained(torch.enable_grad()), trained(torch.autocast("cpu", dtype=torch.bfloat16))
    np.testing.assert_allclose(inside, bare, rtol=1e-5)


# positions in float64


def far_away(water):
    water.positions += 500
    water.cell, water.pbc = [1000] * 3, True
    return water


def calculator(model, dtype):
    with default_dtype(torch.float64), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MACECalculator(models=copy.deepcopy(model), device="cpu", default_dtype=dtype)


@pytest.mark.filterwarnings("ignore:Ratio of simulation cell size")
def test_a_float32_calculator_s_rounding_of_positions_is_part_of_its_error(model, mine, water):
    atoms = far_away(water)
    exact = model(data_of(atoms, model))["forces"].detach().numpy()
    single = calculator(mine, "float32")
    with pp.attach(single, precisions="float32", device="cpu", blocks="readouts.*") as probe:
        forces = single.get_property("forces", atoms)
    error = np.abs(forces - exact).max()
    trace = probe.trace()
    assert pp.summary(trace).loc["float32", "forces"] == pytest.approx(error, rel=0.02)
    rounded = {name: x.float().double() if x.is_floating_point() else x for name, x in data_of(atoms, model).items()}
    of_arithmetic = np.abs(forces - model(rounded)["forces"].detach().numpy()).max()
    assert error > 5 * of_arithmetic  # the rest is the positions'
    assert trace.attributes["calls_with_rounded_geometry"] == 0
    assert trace.attributes["not_of_the_called_model"] == {}
    np.testing.assert_array_equal(trace.structures["positions"], atoms.positions)
    np.testing.assert_array_equal(trace.group("propagated", "float32")["forces"], forces)


@pytest.mark.filterwarnings("ignore:Ratio of simulation cell size")
def test_where_only_rounded_positions_are_to_be_had_the_trace_says_so(mine, water):
    mine.float()
    with pp.attach(mine, **FAST) as probe:
        mine(in_float32(far_away(water), mine))
        probe.run(water, progress=False)
        mine(in_float32(water, mine))
    assert probe.trace().attributes["calls_with_rounded_geometry"] == 2
    assert any("in 2 of 2 calls the reference has the positions as the call rounded" in note for note in probe.notes)


# threads


@pytest.mark.parametrize("with_default", [torch.float64, torch.float32])
def test_threads_that_call_one_model_are_served_one_after_the_other(config, with_default):
    options = {"heads": ["a", "b"], "atomic_energies": [[-1.0, -2.0, -3.0]] * 2}
    model = build(config | options | {"atomic_inter_scale": [1.0, 0.9], "atomic_inter_shift": [0.0, 0.1]}, seed=2)
    structures = [molecule(seed) for seed in range(8)]
    with default_dtype(torch.float64):  # which the masks of several heads are made in
        expected = [model(data_of(atoms, model))["energy"].item() for atoms in structures]
        live = {}

        def work(first):
            for index in range(first, len(structures), 2):
                live[index] = model(data_of(structures[index], model))["energy"].item()

        with pp.attach(model, **FAST) as probe:
            threads = [threading.Thread(target=work, args=(first,)) for first in (0, 1)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(120)
        assert torch.get_default_dtype() is torch.float64
    np.testing.assert_allclose([live[index] for index in range(8)], expected, rtol=1e-14)
    trace = probe.trace()
    assert trace.attributes["failures"] == []
    assert trace.attributes["complete"] is True
    positions = trace.structures["positions"].values.reshape(8, 3, 3)
    energies = trace.group("propagated", "float64")["energy"].values
    order = [next(i for i, atoms in enumerate(structures) if (atoms.positions == p).all()) for p in positions]
    assert sorted(order) == list(range(8))
    np.testing.assert_allclose(energies, [expected[index] for index in order], rtol=1e-14)


def test_threads_that_call_two_models_do_not_disturb_one_another(mine, model, water):
    expected = model(data_of(water, model))["forces"]
    calls = [(network, [data_of(water, network) for _ in range(3)]) for network in (mine, model)]
    live = []

    def work(network, given):  # made before: building a graph sets the default dtype, and waits for no turn
        live.extend(network(data)["forces"] for data in given)

    before = torch.get_default_dtype()
    with pp.attach(mine, **FAST) as first, pp.attach(model, **FAST) as second:
        threads = [threading.Thread(target=work, args=each) for each in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert torch.get_default_dtype() is before
    assert len(live) == 6
    for forces in live:
        torch.testing.assert_close(forces, expected, rtol=1e-12, atol=1e-13)
    assert first.n_structures == second.n_structures == 3


# calls that fail


class Sometimes(torch.nn.Module):
    """Raises what it is told to."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, x, error=None, again=None):
        if again is not None:
            again()
        if error is not None:
            raise error
        return self.linear(x)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_call_that_raises_is_as_if_it_had_not_been(error):
    net, x = Sometimes().eval(), torch.ones(1, 2)
    with pp.attach(net, call=lambda m, x: m(x), blocks="linear", precisions="float32", device="cpu", limit=2) as probe:
        for _ in range(3):
            with pytest.raises(type(error)):
                net(x, error=error)
        expected = [net(x).item(), net(2 * x).item(), net(3 * x).item()][:2]
        found = []
        thread = threading.Thread(target=lambda: found.append(net(x).item()))
        thread.start()
        thread.join(30)
        assert found == expected[:1]  # nobody waits for a call that was interrupted
    trace = probe.trace()
    np.testing.assert_allclose(trace.group("propagated", "float32")["output"].values.ravel(), expected)
    assert trace.structures["name"].values.tolist() == ["call 4", "call 5"]
    assert trace.attributes["failures"] == []
    assert trace.attributes["complete"] is True


def test_a_call_within_a_handler_of_an_exception_is_a_call():
    net = Sometimes().eval()
    with pp.attach(net, call=lambda m, x: m(x), blocks="linear", precisions="float32", device="cpu") as probe:
        try:
            net(torch.ones(1, 2), error=ValueError())
        except ValueError:
            net(torch.ones(1, 2))
    assert probe.trace().structures["name"].values.tolist() == ["call 2"]


def test_calls_within_calls_are_both_observed():
    net, x = Sometimes().eval(), torch.ones(1, 2)
    seen = []
    with pp.attach(net, call=lambda m, x: m(x), blocks="linear", precisions="float32", device="cpu") as probe:
        net(x)
        seen.append(probe.n_structures)
        net(2 * x, again=lambda: None)
        seen.append(probe.n_structures)
    assert seen == [1, 2]
    nested = pp.attach(net, call=lambda m, x: m(x), blocks="linear", precisions="float32", device="cpu")
    once = iter([True])
    outer = net(2 * x, again=lambda: net(x) if next(once, False) else None)
    nested.detach()
    np.testing.assert_allclose(
        nested.trace().group("propagated", "float32")["output"].values.ravel(), [net(x).item(), outer.item()]
    )


def test_hooks_that_fail_before_ours_leave_nothing_open(mine, water):
    failing = mine.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(ValueError("the user's")))
    with pp.attach(mine, **FAST) as probe:
        with pytest.raises(ValueError, match="the user's"):
            mine(data_of(water, mine))
        failing.remove()
        mine(data_of(water, mine))
    assert probe.trace().structures["name"].values.tolist() == ["call 1"]


def test_a_detach_within_a_call_ends_the_observation(mine, water):
    probe = pp.attach(mine, **FAST)
    mine(data_of(water, mine))
    hook = mine.register_forward_pre_hook(lambda *_: probe.detach())
    mine(data_of(water, mine))
    hook.remove()
    assert probe.n_structures == 1
    done = threading.Thread(target=lambda: mine(data_of(water, mine)))
    done.start()
    done.join(30)
    assert not done.is_alive()


# blocks that overwrite


def test_activations_in_place_are_recorded_in_both_modes():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(inplace=True), torch.nn.Linear(8, 1)).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    with pp.attach(net, **NET, precisions="float32") as probe:
        probe.run([x], progress=False)
        net(x)
    (w0, b0), (w2, b2) = ((net[i].weight.detach().numpy(), net[i].bias.detach().numpy()) for i in (0, 2))
    hidden = x.numpy() @ w0.T + b0
    out = np.maximum(hidden, 0) @ w2.T + b2
    propagated, isolated = (probe.trace().group(mode, "float64") for mode in ("propagated", "isolated"))
    twice = lambda array: np.concatenate([array, array])  # noqa: E731
    np.testing.assert_allclose(propagated["0.output"], twice(hidden), rtol=1e-13)
    np.testing.assert_allclose(propagated["1.input.grad"], twice(2 * out @ w2 * (hidden > 0)), rtol=1e-12)
    np.testing.assert_allclose(isolated["1.input.grad"], twice(2 * np.maximum(hidden, 0)), rtol=1e-12)
    np.testing.assert_allclose(propagated["output"], twice(out), rtol=1e-13)


def test_a_block_that_overwrites_without_saying_so_is_refused_or_noted_by_name():
    class Hidden(torch.nn.Module):
        def forward(self, x):
            return x.relu_()

    net = torch.nn.Sequential(torch.nn.Linear(3, 2), Hidden())
    with pp.attach(net, **NET, precisions="float32") as probe:
        with pytest.raises(pp.InputError, match=r"Block 1 cannot be recorded: its input"):
            probe.run([torch.ones(1, 3)], progress=False)
        with pytest.warns(RuntimeWarning, match=r"Block 1 cannot be recorded"):
            net(torch.ones(1, 3))
    with pp.attach(net, **NET | {"blocks": ["*", "!1"]}, precisions="float32") as probe:
        probe.run([torch.ones(1, 3)], progress=False)
    assert probe.n_structures == 1


# on a GPU


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tf32_around_a_call_is_told_and_sums_in_another_order_are_not(demo, crystal):
    model = copy.deepcopy(demo).float().cuda()
    data = {name: x.cuda() for name, x in in_float32(crystal, model).items()}
    with pp.attach(model, precisions="float32", blocks="readouts.*", modes="propagated") as probe:
        for _ in range(5):
            model({name: x.clone() for name, x in data.items()})
        backend = torch.backends.cuda.matmul
        before, backend.fp32_precision = backend.fp32_precision, "tf32"
        try:
            with pytest.warns(RuntimeWarning, match="another model"):
                model(data)
        finally:
            backend.fp32_precision = before
    assert list(probe.trace().attributes["not_of_the_called_model"]) == ["6"]
