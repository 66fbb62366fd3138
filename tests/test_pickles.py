"""pickles.py: checkpoints whose pickles import what is dangerous are refused by its name, before anything is run."""

import builtins
import importlib
import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch

from precision_probe import pickles
from precision_probe.exceptions import InputError
from precision_probe.models.loading import load_model

pytest.importorskip("picklescan.scanner", reason="the extra scan is not installed")


class Calls:
    """Something whose pickle calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def refusal(path, name):
    with pytest.raises(InputError, match=name) as caught:
        load_model(path)
    message = str(caught.value)
    assert str(path) in message
    assert "was not loaded" in message
    assert "\n" not in message


@pytest.mark.parametrize(("inside", "legacy"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, r"(posix|nt)\.system"),
        (builtins.eval, r"builtins\.eval"),
        (builtins.exec, r"builtins\.exec"),
        (subprocess.check_output, r"subprocess\.check_output"),
        (importlib.import_module, r"importlib\.import_module"),
    ],
    ids=["os.system", "eval", "exec", "subprocess", "import"],
)
def test_what_is_dangerous_is_named_and_not_run(tmp_path, mine, function, name, inside, legacy):
    harm = tmp_path / "harm"
    code = {"check_output": ["touch", str(harm)], "system": f"touch {harm}", "import_module": "antigravity"}
    call = Calls(function, code.get(function.__name__, f"open({str(harm)!r}, 'w')"))
    if inside:
        mine.extra = call
    torch.save(mine if inside else call, tmp_path / "it.model", _use_new_zipfile_serialization=not legacy)
    refusal(tmp_path / "it.model", name)
    assert not harm.exists()


def test_a_model_is_loaded_as_without_a_scan(model, model_file, tmp_path):
    assert pickles.check_pickle(model_file)
    assert type(load_model(model_file)[0]) is type(model)
    torch.save(model, tmp_path / "older.model", _use_new_zipfile_serialization=False)
    assert type(load_model(tmp_path / "older.model")[0]) is type(model)


@pytest.mark.parametrize("gate", [torch.tanh, torch.abs])
def test_functions_of_torch_are_loaded(mine, tmp_path, gate):
    """They are pickled with getattr, which is dangerous otherwise."""
    mine.readouts[-1].non_linearity.acts[0].f = gate
    torch.save(mine, tmp_path / "it.model")
    assert b"getattr" in zipfile.ZipFile(tmp_path / "it.model").read("it/data.pkl")
    assert load_model(tmp_path / "it.model")[0].readouts[-1].non_linearity.acts[0].f is gate


@pytest.mark.parametrize("owner", [torch._C._VariableFunctionsClass, torch.nn.Linear])
def test_getattr_of_anything_else_is_refused(tmp_path, owner):
    torch.save(Calls(getattr, owner, "__subclasses__"), tmp_path / "it.model")
    refusal(tmp_path / "it.model", "getattr")


def test_a_pickle_that_cannot_be_scanned_is_not_loaded(tmp_path):
    path = tmp_path / "it.model"
    path.write_bytes(pickle.PROTO + b"\x04" + pickle.STACK_GLOBAL + pickle.STOP)
    with pytest.raises(InputError, match="scan of its pickle failed"):
        load_model(path)


def test_nothing_is_logged_to_the_user(tmp_path, capfd):
    torch.save(Calls(os.system, "true"), tmp_path / "it.model")
    with pytest.raises(InputError):
        load_model(tmp_path / "it.model")
    assert capfd.readouterr() == ("", "")


def test_without_picklescan_nothing_changes(model_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "picklescan.scanner", None)
    assert not pickles.check_pickle(model_file)
    load_model(model_file)
