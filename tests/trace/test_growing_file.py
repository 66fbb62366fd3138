"""appending.py, and traces written as they grow: what is in the file is what would have been in memory."""

import gc
import shutil
import signal
import subprocess
import sys
import time
import warnings

import ase
import ase.io
import numpy as np
import pytest
import torch
import xarray as xr
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import precision_probe as pp
from precision_probe.cli.main import app
from precision_probe.models.building import build
from precision_probe.models.graphs import build_graph
from precision_probe.structures import read_structures
from precision_probe.trace import growing_file as appending
from precision_probe.trace import recorder
from precision_probe.trace.growing_file import append, set_attributes

CHEAP = {"precisions": "float32", "device": "cpu", "blocks": "readouts.*", "modes": "isolated"}
MORE = {"precisions": "float32,float16", "device": "cpu", "blocks": ["interactions.0", "readouts.*"]}


@pytest.fixture
def mine(config):
    """A model that a test may change."""
    return build(config, seed=5)


@pytest.fixture
def after_every_structure(monkeypatch):
    """Write as soon as there is anything."""
    monkeypatch.setattr(recorder, "_MANY_BYTES", 1)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.h5"


def partial(path):
    return path.with_name(f"{path.name}.partial")


def molecule(seed=0):
    atoms = ase.Atoms("OHH", [(0, 0, 0.1), (0, 0.8, -0.5), (0.1, -0.7, -0.4)])
    atoms.rattle(0.05, seed=seed)
    return atoms


def labelled(atoms):
    atoms = atoms.copy()
    atoms.calc = SinglePointCalculator(atoms, energy=-3.5, forces=np.arange(3.0 * len(atoms)).reshape(-1, 3))
    return atoms


def call(model, atoms, **options):
    (structure,) = read_structures(atoms)
    return model({key: value.clone() for key, value in build_graph(structure, model).data.items()}, **options)


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


def run(model, structures, **options):
    with pp.attach(model, **options) as probe:
        for some in structures:
            probe.run(some, progress=False)
    return probe.trace()


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
    expected = run(mine, [structures], **options)
    monkeypatch.setattr(recorder, "_MANY_BYTES", many_bytes)
    found = run(mine, [structures], **options, output=output)
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
    run(mine, [[molecule(seed) for seed in range(3)]], **options, output=output)
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
        assert not partial(output).exists()
        call(mine, molecule(0))
        call(mine, molecule(1))
        assert read_elsewhere(partial(output)) == ["call 1", "call 2"]
        call(mine, molecule(2))
        assert not output.exists()
    assert not partial(output).exists()
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
        held_open(partial(output))
        probe.run(molecule(1), progress=False)
        assert probe.n_structures == 2


def test_calls_go_on_while_a_reader_keeps_the_file_open(mine, output, after_every_structure, held_open):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pp.attach(mine, **CHEAP, output=output) as probe:
            call(mine, molecule(0))
            held_open(partial(output))
            assert torch.isfinite(call(mine, molecule(1))["forces"]).all()
            assert probe.n_structures == 2


KILLED = """
import os, signal, sys
import ase.io, torch
import precision_probe as pp
from precision_probe.trace import recorder
from precision_probe.models.graphs import build_graph, read_structures
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
    shutil.copy(killed / "out.h5.partial", partial(output))


def test_killed_process_leaves_what_it_had_written(mine, model_file, output, left_behind, after_every_structure):
    with pp.open_trace(partial(output)) as trace:
        positions = np.concatenate([molecule(0).positions, molecule(1).positions])
        np.testing.assert_array_equal(trace.structures["positions"], positions)
        assert len(pp.errors(trace)) > 2
    with pytest.raises(pp.InputError, match=r"out\.h5\.partial exists"):
        pp.attach(mine, **CHEAP, output=output)
    refused = CliRunner().invoke(app, ["audit", str(model_file), "demo@0", "-o", str(output), "-q", "-p", "float32"])
    assert refused.exit_code == 2
    with pp.open_trace(partial(output)) as trace:
        assert trace.structures.sizes["structure"] == 2


@pytest.mark.parametrize("many_bytes", [1])
def test_force_begins_anew_where_a_run_was_killed(mine, output, left_behind, monkeypatch, many_bytes):
    monkeypatch.setattr(recorder, "_MANY_BYTES", many_bytes)
    with pp.attach(mine, **CHEAP, output=output, force=True) as probe:
        probe.run(molecule(3), progress=False)
    with pp.open_trace(output) as trace:
        np.testing.assert_array_equal(trace.structures["positions"], molecule(3).positions)
    assert not partial(output).exists()


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
    assert not partial(output).exists()


# Failures to write


class FullError(OSError):
    """No space left on the device."""


def failing_at(monkeypatch, owner, name, number):
    """Let the n-th call of a function raise, once; returns how often it was called."""
    works, counted = getattr(owner, name), []

    def sometimes(*args, **kwargs):
        counted.append(name)
        if len(counted) == number:
            raise FullError("No space left on device")
        return works(*args, **kwargs)

    monkeypatch.setattr(owner, name, sometimes)
    return counted


def contents(path):
    """Everything in a file."""
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        return tree.load()


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8])
def test_a_write_that_fails_leaves_the_file_and_is_made_up_for(tmp_path, monkeypatch, number):
    import h5netcdf

    path = tmp_path / "grows.h5"
    first, second = tree_of(2, 0), tree_of(3, 1)
    append(first, path)
    before = contents(path)
    failing_at(monkeypatch, h5netcdf.Variable, "__setitem__", number)
    try:
        append(second, path)
    except FullError:
        xr.testing.assert_identical(contents(path), before)
        append(second, path)
    assert_grown(path, [first, second])


@pytest.mark.parametrize(
    ("name", "number"),
    [("_create_variable", 1), ("_create_variable", 2), ("_chunks", 1), ("_extend", 2)],
)
def test_a_failure_with_new_variables_leaves_the_file_as_it_was(tmp_path, monkeypatch, name, number):
    path = tmp_path / "grows.h5"
    first, second = tree_of(2, 0), tree_of(3, 1, extra=("late", "later"))
    append(first, path)
    before = contents(path)
    failing_at(monkeypatch, appending, name, number)
    with pytest.raises(FullError):
        append(second, path)
    found = contents(path)
    for node in before.subtree:  # a variable new to the file may stay, with no row that is not NaN
        new = [name for name in found[node.path].data_vars if name not in node.data_vars]
        assert all(np.isnan(found[node.path][name].values).all() for name in new)
        xr.testing.assert_identical(found[node.path].to_dataset().drop_vars(new), node.to_dataset())


@pytest.mark.parametrize("number", [1, 2])
def test_a_retry_after_new_variables_could_not_be_made(tmp_path, monkeypatch, number):
    path = tmp_path / "grows.h5"
    first, second = tree_of(2, 0), tree_of(3, 1, extra=("late", "later"))
    append(first, path)
    failing_at(monkeypatch, appending, "_create_variable", number)
    with pytest.raises(FullError):
        append(second, path)
    append(second, path)
    assert_grown(path, [first, second])


def test_a_file_that_cannot_be_made_is_not_half_made(tmp_path, monkeypatch):
    path = tmp_path / "grows.h5"
    failing_at(monkeypatch, xr.DataTree, "to_netcdf", 1)
    with pytest.raises(FullError):
        append(tree_of(2, 0), path)
    assert list(tmp_path.iterdir()) == []
    append(tree_of(2, 0), path)
    assert_grown(path, [tree_of(2, 0)])


def test_a_call_whose_write_fails_is_written_with_the_next(mine, output, monkeypatch, after_every_structure):
    with pp.attach(mine, **CHEAP) as expected:
        for seed in range(4):
            call(mine, molecule(seed))
    failing_at(monkeypatch, appending, "_extend", 2)
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
    failing_at(monkeypatch, appending, "_extend", 3)
    with pp.attach(mine, **CHEAP, output=output) as probe:
        with pytest.raises(FullError):
            probe.run([molecule(seed) for seed in range(4)], progress=False)
        probe.run([molecule(4)], progress=False)
    found = probe.trace().structures["positions"].values.reshape(-1, 3, 3)
    n = probe.n_structures
    assert n >= 2
    np.testing.assert_array_equal(found[-1], molecule(4).positions)
    np.testing.assert_array_equal(found[: n - 1], [molecule(seed).positions for seed in range(n - 1)])
    assert probe.trace().attributes["complete"] is False


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


def test_attributes_of_a_file_are_replaced(tmp_path):
    path = tmp_path / "grows.h5"
    append(tree_of(1, 0), path)
    set_attributes(path, {"complete": "false", "number": 3, "new": "text"})
    assert {key: contents(path).attrs[key] for key in ("complete", "new")} == {"complete": "false", "new": "text"}
    assert int(contents(path).attrs["number"]) == 3


def test_rows_that_count_something_else_are_refused_and_change_nothing(tmp_path):
    path = tmp_path / "grows.h5"
    append(tree_of(2, 0), path)
    before = contents(path)
    other = tree_of(3, 1)
    turned = other["values"].to_dataset().assign(x=(("structure", "xyz"), np.zeros((3, 3))))
    with pytest.raises(ValueError, match="x count structures now, and counted atoms"):
        append(xr.DataTree.from_dict({"/": other.to_dataset(), "/values": turned}), path)
    xr.testing.assert_identical(contents(path), before)


# append() by itself


def tree_of(n_structures, seed, n_atoms=4, n_edges=5, extra=()):
    """A small tree of random numbers, and NaN among them."""
    rng = np.random.default_rng(seed)
    values = {
        "x": (("atom", "xyz"), rng.normal(size=(n_atoms, 3))),
        "e": (("structure",), rng.normal(size=n_structures).astype(np.float32)),
        **{name: (("edge", "feature"), rng.normal(size=(n_edges, 2)).astype(np.float32)) for name in extra},
    }
    about = {
        "name": (("structure",), np.array([f"s{seed}.{index} Å" for index in range(n_structures)], dtype=object)),
        "number": (("atom",), rng.integers(-5, 5, n_atoms)),
        "sender": (("edge",), rng.integers(0, 9, n_edges).astype(np.int32)),
        "pbc": (("structure", "xyz"), rng.random((n_structures, 3)) > 0.5),
    }
    datasets = {"/values": xr.Dataset(values), "/about": xr.Dataset(about)}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs={"last": f"tree {seed}"}), **datasets})


def joined(trees, group, name):
    """One variable of all trees along its rows: NaN for those that lack it, by NumPy."""
    like = next(tree[group][name] for tree in trees if name in tree[group].data_vars)
    rows = like.dims[0]
    parts = []
    for tree in trees:
        node = tree[group]
        if name in node.data_vars:
            parts.append(node[name].values)
        elif rows in node.sizes:
            parts.append(np.full((node.sizes[rows], *like.shape[1:]), np.nan, like.dtype))
    return like.dims, np.concatenate(parts)


def assert_grown(path, trees):
    found = contents(path)
    assert found.attrs["last"] == trees[-1].attrs["last"]
    for group in ("/values", "/about"):
        expected = {str(name) for tree in trees for name in tree[group].data_vars}
        assert {str(name) for name in found[group].data_vars} == expected
        for name in expected:
            dims, values = joined(trees, group, name)
            variable = found[group][name]
            assert variable.dims == dims, name
            assert variable.dtype == values.dtype or values.dtype == object, name
            np.testing.assert_array_equal(variable.values, values, err_msg=name)


steps = st.tuples(
    st.integers(1, 3), st.integers(1, 4), st.integers(0, 5), st.sets(st.sampled_from(["late", "later", "latest"]))
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, min_size=1, max_size=4))
def test_what_was_appended_is_the_concatenation(tmp_path, parts):
    path = tmp_path / f"{time.monotonic_ns()}.h5"
    trees = [
        tree_of(n_structures, seed, n_atoms, n_edges, sorted(extra))
        for seed, (n_structures, n_atoms, n_edges, extra) in enumerate(parts)
    ]
    for tree in trees:
        append(tree, path)
    assert_grown(path, trees)
    path.unlink()
