"""recorder.py: traces written as they grow: what is in the file is what would have been in memory."""

import subprocess
import sys
import warnings

import ase
import ase.io
import numpy as np
import pytest
import torch
import xarray as xr
from ase.calculators.singlepoint import SinglePointCalculator
from full_disk import failing_at
from runs import data_of, molecule, trace_of

import precision_probe as pp
from precision_probe.files import unfinished
from precision_probe.trace import recorder

CHEAP = {"precisions": "float32", "device": "cpu", "blocks": "readouts.*", "modes": "isolated"}
MORE = {"precisions": "float32,float16", "device": "cpu", "blocks": ["interactions.0", "readouts.*"]}


@pytest.fixture
def after_every_structure(monkeypatch):
    """Write as soon as there is anything."""
    monkeypatch.setattr(recorder, "_MANY_BYTES", 1)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.h5"


def labelled(atoms):
    atoms = atoms.copy()
    atoms.calc = SinglePointCalculator(atoms, energy=-3.5, forces=np.arange(3.0 * len(atoms)).reshape(-1, 3))
    return atoms


def call(model, atoms, **options):
    return model(data_of(atoms, model), **options)


def variables(trace):
    """Every variable of a trace but the times, by path; coordinates too."""
    nodes = {node.path: node.to_dataset(inherit=False) for node in trace.tree.subtree}
    found = {f"{path}/{name}": variable for path, node in nodes.items() for name, variable in node.variables.items()}
    return {path: variable.load() for path, variable in found.items() if not path.endswith("/seconds")}


def assert_same(left, right):
    """Two traces hold the same, whatever file they are in."""
    ours, theirs = variables(left), variables(right)
    assert ours.keys() == theirs.keys()
    for path, variable in ours.items():
        other = theirs[path]
        assert variable.dims == other.dims, path
        assert variable.attrs == other.attrs, path
        assert variable.dtype.kind == other.dtype.kind or {variable.dtype.kind, other.dtype.kind} <= set("OUT"), path
        assert variable.dtype.kind not in "iuf" or variable.dtype == other.dtype, path
        np.testing.assert_array_equal(variable.values, other.values, err_msg=path)
    ours, theirs = ({k: v for k, v in trace.attributes.items() if k != "created"} for trace in (left, right))
    assert ours == theirs


def compared(trace):
    """The errors of a trace, in an order that does not depend on that of its variables."""
    table = pp.errors(trace).sort_values(["precision", "mode", "block", "tensor", "direction"])
    return table.reset_index(drop=True)


# The same in memory and in a file


MIXES = {
    "molecules": lambda crystal: [molecule(0), molecule(1)],
    "crystal first": lambda crystal: [crystal, molecule(0), crystal],
    "crystal last": lambda crystal: [molecule(0), crystal],
    "labels first": lambda crystal: [labelled(molecule(0)), molecule(1)],
    "labels last": lambda crystal: [molecule(1), labelled(crystal)],
    "no edges": lambda crystal: [molecule(0), ase.Atoms("C"), molecule(1)],
    "no edges first": lambda crystal: [ase.Atoms("C"), molecule(0)],
}


@pytest.mark.parametrize(("mix", "many_bytes"), [*((mix, 1) for mix in MIXES), ("crystal last", 2**40)])
def test_trace_in_a_file_is_the_trace_in_memory(mine, crystal, output, monkeypatch, mix, many_bytes):
    structures = MIXES[mix](crystal)
    options = MORE if mix == "crystal last" else CHEAP | {"precisions": "float16"}
    expected = trace_of(mine, structures, **options)
    monkeypatch.setattr(recorder, "_MANY_BYTES", many_bytes)
    found = trace_of(mine, structures, **options, output=output)
    assert_same(found, expected)
    with pp.open_trace(output) as opened:
        assert_same(opened, expected)
    xr.testing.assert_equal(compared(found).to_xarray(), compared(expected).to_xarray())
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_several_runs_and_calls_in_one_file(mine, crystal, output, after_every_structure):
    def work(**options):
        with pp.attach(mine, **CHEAP | {"modes": "propagated,isolated"}, **options) as probe:
            probe.run([molecule(0), crystal], progress=False)
            call(mine, crystal)
            call(mine, molecule(1))
            probe.run(molecule(2), progress=False)
        return probe.trace()

    assert_same(work(output=output), work())


def test_half_precisions_are_small_and_exact(mine, output, after_every_structure):
    options = {"precisions": "float16", "device": "cpu", "blocks": "interactions.0", "modes": "propagated"}
    trace_of(mine, [molecule(seed) for seed in range(3)], **options, output=output)
    with pp.open_trace(output) as trace:
        message = trace.group("propagated", "float16")["interactions.0.message"]
        assert message.dtype == np.float32
        np.testing.assert_array_equal(message, message.values.astype(np.float16).astype(np.float32))
        assert message.encoding["zlib"]


@pytest.mark.parametrize(
    "training",
    [
        (True, True),
        (False, True),
        (True, False),
        (True, False, True),
    ],
    ids=str,
)
def test_training_and_validation_calls_in_any_order(mine, output, after_every_structure, training):
    def work(**options):
        with pp.attach(mine, **CHEAP, **options) as probe:
            for seed, is_training in enumerate(training):
                out = call(mine, molecule(seed), training=is_training)
                if is_training:
                    out["forces"].square().sum().backward()
        return probe.trace()

    expected = work()
    assert expected.attributes["failures"] == []
    assert_same(work(output=output), expected)


# While it runs


READ = "import sys, precision_probe as pp; print(*pp.open_trace(sys.argv[1]).structures['name'].values, sep=',')"


def read_elsewhere(path):
    """The names of the structures in a trace, as another process finds them."""
    found = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-1000:]
    return found.stdout.strip().split(",")


def test_unfinished_file_can_be_read_elsewhere_while_the_run_goes_on(mine, output, after_every_structure):
    with pp.attach(mine, **CHEAP, output=output) as probe:
        assert not unfinished(output).exists()
        call(mine, molecule(0))
        call(mine, molecule(1))
        assert read_elsewhere(unfinished(output)) == ["call 1", "call 2"]
        call(mine, molecule(2))
        assert not output.exists()
    assert not unfinished(output).exists()
    assert read_elsewhere(output) == ["call 1", "call 2", "call 3"]
    assert probe.trace().attributes["failures"] == []


def test_trace_of_a_running_probe_is_what_there_is_so_far(mine, output, after_every_structure):
    with pp.attach(mine, **CHEAP, output=output) as probe:
        call(mine, molecule(0))
        early = probe.trace()
        call(mine, molecule(1))
        assert early.structures["name"].values.tolist() == ["call 1"]
        assert probe.trace().structures["name"].values.tolist() == ["call 1", "call 2"]
    assert probe.trace().structures["name"].values.tolist() == ["call 1", "call 2"]


HOLD = """
import sys
import precision_probe as pp
trace = pp.open_trace(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def held_open():
    """Opens a trace in another process, which keeps it open until the test ends."""
    readers = []

    def hold(path):
        command = [sys.executable, "-c", HOLD, str(path)]
        readers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert readers[-1].stdout.readline() == "open\n"

    yield hold
    for reader in readers:
        reader.communicate("")


def test_a_reader_that_keeps_the_file_open_does_not_stop_a_run(mine, output, after_every_structure, held_open):
    with pp.attach(mine, **CHEAP, output=output) as probe:
        probe.run(molecule(0), progress=False)
        held_open(unfinished(output))
        probe.run(molecule(1), progress=False)
        assert probe.n_structures == 2


def test_calls_go_on_while_a_reader_keeps_the_file_open(mine, output, after_every_structure, held_open):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pp.attach(mine, **CHEAP, output=output) as probe:
            call(mine, molecule(0))
            held_open(unfinished(output))
            assert torch.isfinite(call(mine, molecule(1))["forces"]).all()
            assert probe.n_structures == 2


# Failures to write


def test_a_call_whose_write_fails_is_written_with_the_next(mine, output, monkeypatch, after_every_structure):
    with pp.attach(mine, **CHEAP) as expected:
        for seed in range(4):
            call(mine, molecule(seed))
    failing_at(monkeypatch, recorder, "append", 2)
    with pp.attach(mine, **CHEAP, output=output) as probe:
        call(mine, molecule(0))
        with pytest.warns(RuntimeWarning, match="No space left"):
            call(mine, molecule(1))
        call(mine, molecule(2))
        call(mine, molecule(3))
    ours, theirs = variables(probe.trace()), variables(expected.trace())
    assert ours.keys() == theirs.keys()
    for path, variable in ours.items():
        np.testing.assert_array_equal(variable.values, theirs[path].values, err_msg=path)


def test_a_run_whose_write_fails_can_go_on(mine, output, monkeypatch, after_every_structure):
    failing_at(monkeypatch, recorder, "append", 3)
    with pp.attach(mine, **CHEAP, output=output) as probe:
        with pytest.warns(RuntimeWarning, match="No space left"):
            probe.run([molecule(seed) for seed in range(4)], progress=False)
        probe.run([molecule(4)], progress=False)
        assert probe.output_problem == ""
    found = probe.trace().structures["positions"].values.reshape(-1, 3, 3)
    np.testing.assert_array_equal(found, [molecule(seed).positions for seed in range(5)])
    assert probe.trace().attributes["complete"] is True
    assert probe.written_to == output
