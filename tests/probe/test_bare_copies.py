"""bare_copies.py: copies and files of an attached model, against those of a bare one."""

import copy
import io
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from runs import data_of
from torch.optim.swa_utils import AveragedModel

import precision_probe as pp

FAST = {"precisions": "float32", "device": "cpu", "blocks": "readouts.*", "modes": "isolated"}


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "torch.save": saved,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "pickle in Python": lambda model: pickle.loads(pickle._dumps(model)),
    "old pickle": lambda model: pickle.loads(pickle.dumps(model, protocol=2)),
    "AveragedModel": lambda model: AveragedModel(model).module,
    "in a parent": lambda model: copy.deepcopy(torch.nn.ModuleDict({"inner": model}))["inner"],
    "in a saved parent": lambda model: saved(torch.nn.ModuleDict({"inner": model}))["inner"],
}


def hooks_of(model):
    return {name: len(value) for name, value in vars(model).items() if name.endswith(("_hooks", "_called", "_kwargs"))}


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_of_the_bare_model(mine, water, name):
    before, expected = hooks_of(mine), mine(data_of(water, mine))["forces"]
    made = []
    with pp.attach(mine, **FAST) as probe, pp.attach(mine, **FAST):
        made.append(COPIES[name](mine))
        assert hooks_of(made[0]) == before
        assert "__getstate__" not in vars(made[0])
        assert torch.equal(made[0](data_of(water, mine))["forces"], expected)
        assert probe.n_structures == 0  # it was no call of the model
        mine(data_of(water, mine))
        assert probe.n_structures == 1
    assert hooks_of(mine) == before
    assert "__getstate__" not in vars(mine)
    assert vars(made[0]).keys() == vars(mine).keys()


def test_probes_may_be_detached_in_any_order(mine):
    first, second = pp.attach(mine, **FAST), pp.attach(mine, **FAST)
    first.detach()
    assert sum(hooks_of(copy.deepcopy(mine)).values()) == 0
    pickle.dumps(mine)
    second.detach()
    assert "__getstate__" not in vars(mine)


def noted(*_):
    """A hook of the user's."""


def test_the_users_hooks_are_copied_as_ever(mine):
    mine.register_forward_hook(noted, always_call=True)
    with pp.attach(mine, **FAST):
        mine.register_forward_pre_hook(noted)
        made = copy.deepcopy(mine)
        assert list(made._forward_hooks.values()) == [noted]
        assert list(made._forward_pre_hooks.values()) == [noted]
        assert len(made._forward_hooks_always_called) == 1
        assert len(made._forward_pre_hooks_with_kwargs) == 0


class Counted(torch.nn.Module):
    """Has its own idea of its state, and refers to itself."""

    def __init__(self):
        super().__init__()
        self.linear, self.itself = torch.nn.Linear(2, 2), [self]
        self.cache = object()

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "cache"}

    def forward(self, x):
        return self.linear(x)


class Reduced(Counted):
    def __reduce__(self):
        return (_made, (dict(vars(self)),))


class Deep(Counted):
    def __deepcopy__(self, memo):
        return _made({name: value for name, value in vars(self).items() if name != "itself"})


def _made(state):
    made = torch.nn.Module.__new__(Counted)
    made.__dict__.update({name: value for name, value in state.items() if name != "cache"})
    return made


@pytest.mark.parametrize("kind", [Counted, Deep])
def test_a_class_with_its_own_way_to_be_copied_is_copied_in_that(kind):
    model = kind()
    with pp.attach(model, call=lambda m, x: m(x), blocks="linear", precisions="float32", device="cpu"):
        made = copy.deepcopy(model)
    assert not hasattr(made, "cache")
    assert hooks_of(made) == hooks_of(Counted())
    if kind is Counted:
        assert made.itself == [made]


def test_a_class_with_its_own_way_to_be_pickled_is_pickled_in_that():
    model = Reduced()
    del model.itself, model.cache
    with pp.attach(model, call=lambda m, x: m(x), blocks="linear", precisions="float32", device="cpu"):
        made = pickle.loads(pickle.dumps(model))
    assert hooks_of(made) == hooks_of(Counted())
    assert torch.equal(made.linear.weight, model.linear.weight)


def test_a_shallow_copy_has_the_state_that_it_is_given(mine):
    """It is no longer the attached model: what is saved of it is its own."""
    with pp.attach(mine, **FAST):
        shallow = copy.copy(mine)
        shallow.purpose = "another"
        assert pickle.loads(pickle.dumps(shallow)).purpose == "another"
        assert not hasattr(mine, "purpose")


def test_files_load_where_the_package_is_not(mine, tmp_path):
    path = tmp_path / "attached.model"
    with pp.attach(mine, **FAST):
        torch.save(mine, path)
    program = f"""
        import sys
        sys.modules["precision_probe"] = None  # importing it fails
        import mace.modules, torch
        model = torch.load({str(path)!r}, weights_only=False)
        print(type(model).__name__, len(model._forward_hooks))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ScaleShiftMACE", "0"]
