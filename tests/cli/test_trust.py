"""trust.py: pickles are refused where that is asked for, and what they do is said once for each file."""

import subprocess
import sys

import pytest

from precision_probe.cli.trust import admit
from precision_probe.exceptions import InputError

NOTICE = "loading it runs code from the file"


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "precision-probe" / "models-seen"


@pytest.mark.parametrize("model", ["demo", "it.safetensors", "it.json"])
def test_what_runs_no_code_is_admitted_with_no_word_but_that_it_is_loaded(model, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / model).touch()
    admit(model, safe=True)
    admit(model)
    assert capsys.readouterr() == ("", f"Loading {model}…\n" * 2)


@pytest.mark.parametrize("model", ["my.model", "demo.model", "mace-mp:small", "it.safetensors.model", "noending"])
def test_pickles_are_refused_with_what_to_do(model):
    words = f"{model} is a pickle, and --safe loads none.*precision-probe convert {model} -o"
    with pytest.raises(InputError, match=words):
        admit(model, safe=True)


def test_what_a_pickle_does_is_said_once_for_each_file(tmp_path, capsys, state):
    first, copy, other = (tmp_path / name for name in ("first.model", "copy.model", "other.model"))
    for path in (first, copy, other):
        path.write_bytes(b"other" if path == other else b"same")
    said = []
    for path in (first, first, copy, other, other):
        admit(str(path))
        said.append(NOTICE in " ".join(capsys.readouterr().err.split()))
    assert said == [True, False, False, True, False]
    assert len(state.read_text().split()) == 2


def test_quiet_says_nothing_and_does_not_count_as_said(model_file, capsys):
    admit(str(model_file), quiet=True)
    assert capsys.readouterr() == ("", "")
    admit(str(model_file))
    assert NOTICE in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("obstacle", ["file", "folder", "bytes"])
def test_what_cannot_be_remembered_is_said_again(model_file, state, capsys, obstacle):
    state.parent.parent.mkdir()
    if obstacle == "file":  # where the folder should be
        state.parent.write_text("")
    elif obstacle == "folder":
        state.mkdir(parents=True)
    else:
        state.parent.mkdir()
        state.write_bytes(b"\xff\xfe")
    for _ in range(2):
        admit(str(model_file))
        assert NOTICE in " ".join(capsys.readouterr().err.split())


def test_without_the_variable_or_with_one_that_is_not_absolute(model_file, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given in (None, "", "relative"):
        if given is None:
            monkeypatch.delenv("XDG_STATE_HOME")
        else:
            monkeypatch.setenv("XDG_STATE_HOME", given)
        admit(str(model_file))
    seen = tmp_path / "home" / ".local" / "state" / "precision-probe" / "models-seen"
    assert len(seen.read_text().split()) == 1


@pytest.mark.parametrize("verb", ["audit", "inspect", "sweep", "recommend", "apply"])
def test_every_verb_that_takes_a_model_can_be_asked(run, refused, folder, names, verb, model_file):
    more = ["policy.json", "-o", "mixed.model"] if verb == "apply" else []
    if more:
        (folder / "policy.json").write_text('{"schema_version": 1, "rules": []}')
    before = names(folder)
    refused(run(verb, model_file, *more, "--safe"), "--safe loads none", "precision-probe convert")
    assert names(folder) == before


def test_importing_it_is_quick():
    code = "import precision_probe.cli.trust, sys; sys.exit('torch' in sys.modules or 'ase' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
