"""resumed.py: a run goes on from what an earlier one left if it is the same run, and from nothing else."""

import numpy as np
import pytest
from runs import molecule, trace_of

import precision_probe as pp
from precision_probe.trace.recording.resumed import Resumed

CHEAP = {"blocks": "readouts.0", "modes": "isolated"}


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("resumed") / "left.h5"
    trace = trace_of(model, [molecule(seed) for seed in range(3)], **CHEAP)
    trace.save(path)
    return path, trace


def resumed_of(path):
    with pp.open_trace(path) as trace:
        return Resumed(path, trace.attributes, trace.structures)


def arrays_of(trace, number, **changed):
    """The variables of one structure, cut out by hand."""
    found = trace.structures
    of_structures = {
        name: found[name].values[number : number + 1] for name in ("name", "n_atoms", "n_edges", "cell", "pbc")
    }
    of_atoms = {name: found[name].values[3 * number : 3 * number + 3] for name in ("atomic_numbers", "positions")}
    return of_structures | of_atoms | changed


def test_structures_that_it_has_are_passed_over(saved):
    path, trace = saved
    resumed = resumed_of(path)
    assert resumed.n_structures == 3
    assert [resumed.passes(arrays_of(trace, number)) for number in (0, 1, 2)] == [True] * 3
    assert not resumed.passes(arrays_of(trace, 0))  # it has been passed over, and is to be run again
    assert resumed.n_passed == 3


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"name": np.array(["other"], dtype=object)}, "has other name"),
        ({"positions": np.zeros((3, 3))}, "has other positions"),
        ({"n_atoms": np.array([4])}, "has other n_atoms"),
        ({"cell": np.eye(3)[None]}, "has other cell"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_others_in_their_place_are_refused(saved, changed, word):
    path, trace = saved
    resumed = resumed_of(path)
    assert resumed.passes(arrays_of(trace, 0))
    with pytest.raises(pp.InputError, match=f"Structure 1 of .*{word}.*--force"):
        resumed.passes(arrays_of(trace, 1, **changed))


def test_the_last_bit_counts(saved):
    path, trace = saved
    positions = trace.structures["positions"].values[:3].copy()
    positions[2, 1] = np.nextafter(positions[2, 1], np.inf)
    with pytest.raises(pp.InputError, match="has other positions"):
        resumed_of(path).passes(arrays_of(trace, 0, positions=positions))


@pytest.mark.parametrize(
    ("key", "value"),
    [("model_sha256", "0" * 64), ("precisions", ["float64"]), ("blocks", ["other"] * 99), ("modes", []), ("seed", 3)],
)
def test_another_run_is_refused(saved, key, value):
    path, trace = saved
    resumed = resumed_of(path)
    about = {name: tuple(each) if isinstance(each, list) else each for name, each in trace.attributes.items()}
    resumed.check(about)
    with pytest.raises(pp.InputError, match=rf"left\.h5 is of another run: its {key} is .*, and here it is "):
        resumed.check(about | {key: value})


def test_calls_go_on_with_the_number_after_the_last(saved):
    resumed = resumed_of(saved[0])
    assert resumed.last_call == 0
    resumed._structures["name"] = ("structure", np.array(["call 3", "call 12", "a call 99"], dtype=object))
    assert resumed.last_call == 12
