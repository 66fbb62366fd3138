"""probe.py: the output file of a probe, which is finished however the probe ends and is never lost by mistake."""

import gc
import shutil
import signal
import subprocess
import sys
import warnings

import ase.io
import numpy as np
import pytest
import torch
from runs import data_of, molecule
from typer.testing import CliRunner

import precision_probe as pp
from precision_probe.cli.main import app
from precision_probe.files import unfinished
from precision_probe.probe.observing.observer import Observer
from precision_probe.trace import recorder

CHEAP = {"precisions": "float32", "device": "cpu", "blocks": "readouts.*", "modes": "isolated"}


@pytest.fixture
def after_every_structure(monkeypatch):
    """Write as soon as there is anything."""
    monkeypatch.setattr(recorder, "_MANY_BYTES", 1)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.h5"


def call(model, atoms, **options):
    return model(data_of(atoms, model), **options)


# How a probe ends


ENDS = """
import sys
import ase, torch
import precision_probe as pp
model = torch.load(sys.argv[1], weights_only=False)
atoms = ase.Atoms("OHH", [(0, 0, 0.1), (0, 0.8, -0.5), (0.1, -0.7, -0.4)])
probe = pp.attach(model, precisions="float32", device="cpu", blocks="readouts.*", modes="isolated", output=sys.argv[2])
probe.run(atoms, progress=False)
"""


def test_end_of_the_process_finishes_the_file(model_file, output):
    pytest.importorskip("dask")
    command = [sys.executable, "-W", "ignore", "-c", ENDS, str(model_file), str(output)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    with pp.open_trace(output) as trace:
        assert trace.structures["name"].values.tolist() == ["H2O"]


@pytest.mark.parametrize("many_bytes", [1, 2**40])
def test_end_of_the_probe_s_life_finishes_the_file(mine, output, monkeypatch, many_bytes):
    monkeypatch.setattr(recorder, "_MANY_BYTES", many_bytes)
    probe = pp.attach(mine, **CHEAP, output=output)
    call(mine, molecule(0))
    assert not output.exists()
    del probe
    gc.collect()
    assert not mine._forward_hooks
    with pp.open_trace(output) as trace:
        assert trace.structures["name"].values.tolist() == ["call 1"]
    assert not unfinished(output).exists()


# A run that was killed


KILLED = """
import os, signal, sys
import ase.io, torch
import precision_probe as pp
from precision_probe.trace import recorder
from precision_probe.models.graphs import build_graph
from precision_probe.structures import read_structures
recorder._MANY_BYTES = 1
model = torch.load(sys.argv[1], weights_only=False)
*done, last = read_structures(sys.argv[2])
options = dict(precisions="float32", device="cpu", blocks="readouts.*", modes="isolated", output=sys.argv[3])
probe = pp.attach(model, **options)
probe.run(done, progress=False)
model.register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
model(dict(build_graph(last, model).data))
"""


@pytest.fixture(scope="module")
def killed(model, tmp_path_factory):
    """The folder of a process that was killed when it had written two structures and computed a third."""
    folder = tmp_path_factory.mktemp("killed")
    torch.save(model, folder / "small.model")
    ase.io.write(folder / "three.traj", [molecule(seed) for seed in range(3)])
    command = [sys.executable, "-W", "ignore", "-c", KILLED, "small.model", "three.traj", "out.h5"]
    done = subprocess.run(command, capture_output=True, check=False, cwd=folder)
    assert done.returncode == -signal.SIGKILL
    assert not (folder / "out.h5").exists()
    return folder


@pytest.fixture
def left_behind(killed, output):
    """What that process left, at another output."""
    shutil.copy(killed / "out.h5.partial", unfinished(output))


def test_killed_process_leaves_what_it_had_written(mine, model_file, output, left_behind, after_every_structure):
    with pp.open_trace(unfinished(output)) as trace:
        positions = np.concatenate([molecule(0).positions, molecule(1).positions])
        np.testing.assert_array_equal(trace.structures["positions"], positions)
        assert len(pp.errors(trace)) > 2
    with pytest.raises(pp.InputError, match=r"out\.h5\.partial exists"):
        pp.attach(mine, **CHEAP, output=output)
    refused = CliRunner().invoke(app, ["audit", str(model_file), "demo@0", "-o", str(output), "-q", "-p", "float32"])
    assert refused.exit_code == 2
    with pp.open_trace(unfinished(output)) as trace:
        assert trace.structures.sizes["structure"] == 2


@pytest.mark.parametrize("many_bytes", [1])
def test_force_begins_anew_where_a_run_was_killed(mine, output, left_behind, monkeypatch, many_bytes):
    monkeypatch.setattr(recorder, "_MANY_BYTES", many_bytes)
    with pp.attach(mine, **CHEAP, output=output, force=True) as probe:
        probe.run(molecule(3), progress=False)
    with pp.open_trace(output) as trace:
        np.testing.assert_array_equal(trace.structures["positions"], molecule(3).positions)
    assert not unfinished(output).exists()


# What is refused, and what is not written


def test_output_that_exists_is_refused_before_the_model_is_loaded(output):
    output.write_text("precious")
    with pytest.raises(pp.InputError, match=r"out\.h5 exists"):
        pp.attach("no_such.model", **CHEAP, output=output)
    with pytest.raises(pp.InputError, match="no_such"):
        pp.attach("no_such.model", **CHEAP, output=output, force=True)
    refused = CliRunner().invoke(app, ["audit", "no_such.model", "demo", "-o", str(output)])
    assert refused.exit_code == 2
    assert output.read_text() == "precious"


def test_force_replaces_what_exists_only_at_the_end(mine, output, after_every_structure):
    output.write_text("old")
    with pp.attach(mine, **CHEAP, output=output, force=True):
        call(mine, molecule(0))
        call(mine, molecule(1))
        assert output.read_text() == "old"
    with pp.open_trace(output) as trace:
        assert trace.structures.sizes["structure"] == 2


def test_nothing_recorded_makes_no_file(mine, output):
    with pp.attach(mine, **CHEAP, output=output, limit=0) as probe:
        call(mine, molecule(0))
        with pytest.raises(pp.InputError, match="Nothing has been recorded"):
            probe.trace()
    assert list(output.parent.iterdir()) == []


def test_no_structures_after_the_file_is_finished(mine, output):
    with pp.attach(mine, **CHEAP, output=output) as probe:
        probe.run(molecule(0), progress=False)
    written = output.read_bytes()
    with pytest.raises(pp.InputError, match="finished when the probe was detached"):
        probe.run(molecule(1), progress=False)
    probe.detach()
    assert output.read_bytes() == written


# A run that goes on


def interrupted_at(monkeypatch, number):
    """Lets the n-th structure of a run be interrupted."""
    works, made = Observer.predict, []

    def predict(self, *args, **kwargs):
        made.append(1)
        if len(made) == number:
            raise KeyboardInterrupt
        return works(self, *args, **kwargs)

    monkeypatch.setattr(Observer, "predict", predict)
    return made


@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_resumed_run_is_bit_for_bit_one_that_was_not_interrupted(mine, tmp_path, monkeypatch, number):
    structures = [molecule(seed) for seed in range(4)]
    options = {"precisions": "float32,e8m7sr", "device": "cpu", "blocks": "readouts.*"}
    with pp.attach(mine, **options, output=tmp_path / "whole.h5") as probe:
        probe.run(structures, progress=False)
    output = tmp_path / "out.h5"
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        interrupted_at(patch, number)
        with pytest.raises(KeyboardInterrupt), pp.attach(mine, **options, output=output) as probe:
            probe.run(structures, progress=False)
    assert any("did not come to its end" in str(each.message) for each in said)
    assert (output.exists(), probe.written_to) == (False, unfinished(output))
    with pp.open_trace(unfinished(output)) as left:
        assert left.attributes["complete"] is False
    with monkeypatch.context() as patch:
        made = interrupted_at(patch, None)
        with pp.attach(mine, **options, output=output, resume=True) as probe:
            assert probe.n_resumed == number - 1
            probe.run(structures, progress=False)
    assert len(made) == 4 - (number - 1)
    with pp.open_trace(output) as resumed, pp.open_trace(tmp_path / "whole.h5") as whole:
        assert resumed.attributes["complete"] is True
        for node in whole.tree.subtree:
            for name, variable in node.data_vars.items():
                if name != "seconds":
                    np.testing.assert_array_equal(resumed.tree[f"{node.path}/{name}"], variable, strict=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.h5", "whole.h5"]


def test_a_second_probe_with_the_same_output_is_refused(mine, output):
    with pp.attach(mine, **CHEAP, output=output), pytest.raises(pp.InputError, match="is being written by process"):
        pp.attach(mine, **CHEAP, output=output, force=True)
    assert list(output.parent.iterdir()) == []


def test_an_attach_that_fails_leaves_no_lock(mine, output):
    with pytest.raises(pp.InputError, match="mode"):
        pp.attach(mine, **CHEAP | {"modes": "no"}, output=output)
    with pytest.raises(pp.InputError):
        pp.attach(mine, **CHEAP | {"blocks": "no"}, output=output)
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"], ids=ascii)
def test_names_that_a_file_cannot_hold_are_escaped(mine, output, name):
    atoms = molecule(0)
    atoms.info["name"] = name
    with pp.attach(mine, **CHEAP, output=output) as probe:
        probe.run([molecule(1), atoms], progress=False)
    with pp.open_trace(output) as trace:
        assert trace.structures["name"].values[1] == name.replace("\0", "\\x00").replace("\ud800", "\\ud800")
