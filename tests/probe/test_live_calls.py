"""live_calls.py: which calls of a live model are observed, and that nothing of the user's own run is disturbed."""

import gc
import warnings

import numpy as np
import pytest
import torch
from runs import data_of

import precision_probe as pp
from precision_probe.exceptions import InputError
from precision_probe.probe.live_calls import Calls, observe_calls, on_loss_gradients, training_options
from precision_probe.probe.observing.observer import Observer

FAST = {"precisions": "float32", "device": "cpu", "blocks": "readouts.*", "modes": "isolated"}


def call(model, atoms):
    return model(data_of(atoms, model))


def n_hooks(model):
    return len(model._forward_hooks) + len(model._forward_pre_hooks)


def names_of(probe):
    return probe.trace().structures["name"].values.tolist()


# Choosing calls


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("limit", [None, 0, 1, 2])
def test_calls_chosen_are_each_nth_up_to_the_limit(every, limit):
    calls = Calls(every, limit)
    chosen = [number for number in range(1, 10) if calls.chooses_next((), {})]
    assert chosen == list(range(every, 10, every))[:limit]
    assert calls.number == 9


def test_calls_refused_by_when_do_not_count_for_the_limit():
    calls = Calls(every=2, limit=2, when=lambda x, *, allowed: allowed and x > 4)
    chosen = [x for x in range(1, 13) if calls.chooses_next((x,), {"allowed": x != 8})]
    assert chosen == [6, 10]


@pytest.mark.parametrize(("options", "match"), [({"every": 0}, "every must be 1"), ({"limit": -1}, "limit must be 0")])
def test_numbers_of_calls_that_make_no_sense_are_refused(options, match):
    with pytest.raises(InputError, match=match):
        Calls(**options)


@pytest.mark.parametrize(("limit", "seen"), [(0, 0), (1, 1), (2, 2), (None, 3)])
def test_limit(mine, water, limit, seen):
    with pp.attach(mine, **FAST, every=2, limit=limit) as probe:
        for _ in range(6):
            call(mine, water)
    assert probe.n_structures == seen


def test_when_is_called_with_what_the_model_is_called_with(mine, water):
    asked = []

    def when(*args, **kwargs):
        asked.append((args, kwargs))
        return True

    data = data_of(water, mine)
    with pp.attach(mine, **FAST, when=when) as probe:
        mine(data, training=False, compute_stress=False)
        mine(data=data, compute_force=True)
    (args, kwargs), (none, named) = asked
    assert args[0] is data
    assert (len(args), kwargs) == (1, {"training": False, "compute_stress": False})
    assert none == ()
    assert named.keys() == {"data", "compute_force"}
    assert named["data"] is data
    assert probe.n_structures == 2


def test_when_with_every_and_limit(mine, water, crystal):
    asked = []

    def is_molecule(data, **_):
        asked.append(len(data["positions"]))
        return len(data["positions"]) == 3

    calls = [data_of(atoms, mine) for atoms in (water, crystal)]
    with pp.attach(mine, **FAST, when=is_molecule, every=2, limit=2) as probe:
        for index in (0, 0, 1, 1, 0, 0, 1, 0, 0, 0):  # of the even calls 2, 4, …: molecule, crystal, molecules
            mine(calls[index])
    assert names_of(probe) == ["call 2", "call 6"]
    assert asked == [3, 8, 3]  # not after the limit was reached


def test_when_that_raises_is_noted_and_the_run_goes_on(mine, water):
    data = data_of(water, mine)
    expected = mine(data)["forces"]
    answers = iter([True, KeyError("no such"), ValueError("neither"), True])

    def when(*_, **__):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pp.attach(mine, **FAST, when=when) as probe, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert all(torch.equal(mine(data)["forces"], expected) for _ in range(4))
    assert len([w for w in caught if "precision_probe" in str(w.message)]) == 1
    assert names_of(probe) == ["call 1", "call 4"]
    first, second = probe.trace().attributes["failures"]
    assert "call 2" in first and "KeyError" in first  # noqa: PT018
    assert "call 3" in second and "neither" in second  # noqa: PT018


# Hooks


class Listener:
    """Notes what it is told of calls."""

    def __init__(self):
        self.told = []

    def before_call(self, args, kwargs):
        self.told.append((args, kwargs))
        return len(self.told)

    def after_call(self, call, returned):
        self.told.append((call, returned))

    def call_failed(self, call):
        self.told.append((call, "failed"))


def test_an_observer_is_told_of_each_call_until_it_is_unhooked_or_gone():
    module = torch.nn.Bilinear(2, 2, 1)
    listener, other = Listener(), Listener()
    unhook = observe_calls(module, listener)
    observe_calls(module, other)
    x = torch.ones(1, 2)
    returned = module(x, input2=x)
    assert listener.told == [((x,), {"input2": x}), (1, returned)]
    unhook()
    module(x, x)
    assert (len(listener.told), len(other.told)) == (2, 4)
    del other
    gc.collect()
    assert n_hooks(module) == 0


class Trained(torch.nn.Module):
    """Is told whether it is trained, as MACE is."""

    def forward(self, data, training=False, scale=1.0):
        return data


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize(
    ("args", "kwargs", "options"),
    [
        (("x",), {}, None),
        (("x",), {"training": False, "scale": 2.0}, None),
        (("x",), {"training": True}, {"training": True}),
        ((), {"data": "x", "training": True, "scale": 2.0}, {"training": True, "scale": 2.0}),
        (("x", True), {"scale": 3.0}, {"training": True, "scale": 3.0}),
    ],
)
def test_options_of_a_model_that_is_told_whether_it_is_trained(mode, args, kwargs, options):
    assert training_options(Trained().train(mode), args, kwargs) == options


def test_options_of_other_modules_go_by_their_mode():
    module, x = torch.nn.Bilinear(2, 2, 1), torch.ones(1, 2)
    assert training_options(module.train(), (x,), {"input2": 2 * x}).keys() == {"input2"}
    assert training_options(module.eval(), (x,), {"input2": 2 * x}) is None


def test_gradients_of_a_loss_are_told_once_all_are_known_and_change_nothing():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    told = []
    returned = {"square": x**2, "unused": 3 * x, "fixed": x.detach(), "sum": x.sum()}
    handle = on_loss_gradients(returned, told.append)
    (2 * returned["square"].sum() + 5 * returned["sum"]).backward()
    (gradients,) = told
    assert {name: gradient.tolist() for name, gradient in gradients.items()} == {"square": [2.0, 2.0], "sum": 5.0}
    assert x.grad.tolist() == [2 * 2 * 1.0 + 5, 2 * 2 * -2.0 + 5]
    assert not any(gradient.requires_grad for gradient in gradients.values())
    handle.remove()


def test_no_gradients_are_told_after_the_end_or_of_what_cannot_be_differentiated():
    x = torch.ones(2, requires_grad=True)
    told = []
    y = x**2
    on_loss_gradients(y, told.append).remove()
    y.sum().backward()
    assert told == []
    assert on_loss_gradients({"energy": y.detach(), "name": "x"}, told.append) is None


def test_a_compiled_model_that_calls_the_attached_one_is_observed_as_any_other():
    linear, listener = torch.nn.Linear(3, 1).eval(), Listener()
    network = torch.nn.Sequential(torch.nn.Tanh(), linear, torch.nn.Tanh())
    x = torch.linspace(-1, 1, 6).view(2, 3)
    expected = network(x)
    unhook = observe_calls(linear, listener)  # before it is compiled: torch does not look for hooks again
    compiled = torch.compile(network, backend="eager")
    for _ in range(3):
        torch.testing.assert_close(compiled(x), expected)
    unhook()
    assert len(listener.told) == 6


# What goes wrong


@pytest.mark.parametrize("stage", ["predict", "_propagated"])  # each runs once in a call
def test_a_failing_replay_is_noted_and_the_run_goes_on(mine, water, monkeypatch, stage):
    call(mine, water), call(mine, water)  # TorchScript compiles in the second call, and may round otherwise then
    expected = call(mine, water)["forces"]
    works, fails = getattr(Observer, stage), iter([False, True, True, False])

    def sometimes(*args, **kwargs):
        if next(fails):
            raise ArithmeticError("no luck")
        return works(*args, **kwargs)

    monkeypatch.setattr(Observer, stage, sometimes)
    with pp.attach(mine, **FAST) as probe, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        forces = [call(mine, water)["forces"] for _ in range(4)]
    assert all(torch.equal(found, expected) for found in forces)
    ours = [warning for warning in caught if "precision_probe" in str(warning.message)]
    assert len(ours) == 1
    assert "call 2 could not be observed (ArithmeticError: no luck)" in str(ours[0].message)
    about = probe.trace().attributes
    assert about["failures"] == [f"call {n} could not be observed (ArithmeticError: no luck)" for n in (2, 3)]
    assert about["complete"] is False
    assert probe.trace().structures["name"].values.tolist() == ["call 1", "call 4"]


def test_input_that_cannot_be_read_does_not_stop_the_run(mine, water):
    data = data_of(water, mine)
    ptr = data.pop("ptr")
    with pp.attach(mine, **FAST) as probe:
        mine.register_forward_pre_hook(lambda *_: data.update(ptr=ptr))  # the user's own, after ours has looked
        with pytest.warns(RuntimeWarning, match="could not be observed"):
            out = mine(data)
    assert torch.isfinite(out["energy"]).all()
    assert probe.n_structures == 0


# Several probes, and their ends


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
