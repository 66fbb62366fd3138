"""recorder.py: whatever befalls the file, nothing is raised, nothing is lost that need not be, and it is said."""

import errno
import os
import warnings

import numpy as np
import pandas as pd
import pytest
from full_disk import WRITING, broken_disk

from precision_probe.files import unfinished
from precision_probe.trace import recorder as module
from precision_probe.trace.arrays import BlockArray, ModelArray, Sizes
from precision_probe.trace.claim import claim_output
from precision_probe.trace.digest import check_trailer
from precision_probe.trace.journal import pending_changes
from precision_probe.trace.reading import open_trace
from precision_probe.trace.recorder import Recorder
from precision_probe.trace.tables import StoredTable

ATTRIBUTES = {"precisions": ["float64", "float32"], "blocks": ["layer"], "modes": ["isolated"], "complete": True}
CHANGING = (*WRITING, "open")


@pytest.fixture(autouse=True)
def after_every_structure(monkeypatch):
    """Write as soon as there is anything."""
    monkeypatch.setattr(module, "_MANY_BYTES", 1)
    monkeypatch.setattr(module, "_LONG", -1.0)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.h5"


def begun(output, **options):
    recorder = Recorder(claim_output(output, **options))
    recorder.attributes = ATTRIBUTES
    return recorder


def add(recorder, number):
    """One structure of two atoms, known by its number."""
    arrays = {"name": np.array([f"s{number}"], dtype=object), "n_atoms": np.array([2]), "n_edges": np.array([2])}
    arrays |= {"atomic_numbers": np.ones(2, dtype=np.int64), "positions": np.full((2, 3), float(number))}
    arrays |= {"cell": np.zeros((1, 3, 3)), "pbc": np.zeros((1, 3), dtype=bool)}
    arrays |= {"sender": np.array([0, 1], np.int32), "receiver": np.array([1, 0], np.int32)}
    arrays |= {"image": np.zeros((2, 3), np.int16)}
    forces = ModelArray("forces", np.full((2, 3), float(number)), ("atom", "xyz"), "eV/Å", "forces", "float32")
    captured = BlockArray("layer", "output", np.full((2, 50), number, np.float32), "float32", rows="atom")
    blocks = {f"isolated/{name}": [captured] for name in ("float64", "float32")}
    recorder.add(arrays, Sizes(1, 2, 2), {name: [forces] for name in ("float64", "float32")}, blocks)
    recorder.write_if_due()


def warned(what):
    """Expects a warning, of what happens in any of some steps."""
    return pytest.warns(RuntimeWarning, match=what)


def numbers(trace):
    """Which structures a trace has, all its arrays agreeing."""
    names = [int(name[1:]) for name in trace.structures["name"].values]
    np.testing.assert_array_equal(trace.structures["positions"].values[:, 0], np.repeat(names, 2))
    owner = trace.structures["structure_of_atom"].values
    np.testing.assert_array_equal(owner, np.repeat(np.arange(len(names)), 2))
    for mode, variable in (("isolated", "layer.output"), ("propagated", "forces")):
        np.testing.assert_array_equal(trace.group(mode, "float32")[variable].values[:, 0], np.repeat(names, 2))
    return names


def in_file(path):
    with open_trace(path) as trace:
        assert trace.attributes["complete"] is (path.suffix == ".h5")
        return numbers(trace)


def names(output):
    return sorted(path.name for path in output.parent.iterdir())


def run(output, n=3):
    """What a run does: nothing of this may raise."""
    recorder = begun(output)
    for number in range(n):
        add(recorder, number)
    recorder.save()
    return recorder


def test_a_run_without_failures(output):
    recorder = run(output)
    assert (in_file(output), names(output)) == ([0, 1, 2], ["out.h5"])
    assert check_trailer(output)
    assert (recorder.problem, recorder.written_to) == ("", output)


# A disk that fails


def n_calls(output):
    with pytest.MonkeyPatch.context() as patch:
        made = broken_disk(patch, None, names=CHANGING)
        run(output)
    output.unlink()
    return len(made)


def failing(output, number, code, *, for_ever):
    """A run on a disk that fails from a call on; its warnings are counted."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recorder = begun(output)
        broken_disk(patch, number, code, for_ever=for_ever, names=CHANGING)
        for each in range(3):
            add(recorder, each)
        recorder.save()
    return recorder, [str(each.message) for each in caught if each.category is RuntimeWarning]


@pytest.mark.parametrize(
    ("code", "n_tried"),
    [(errno.ENOSPC, 3), *(pytest.param(code, 1000, marks=pytest.mark.slow) for code in (errno.ENOSPC, errno.EIO))],
)
@pytest.mark.parametrize("for_ever", [True, False], ids=["for ever", "once"])
def test_every_failing_call(output, code, n_tried, for_ever):
    n, found = n_calls(output), []
    for number in (*range(1, n - 30, max(1, (n - 30) // n_tried)), *range(n - 30, n + 1, 30 // n_tried + 1)):
        recorder, said = failing(output, number, code, for_ever=for_ever)
        assert numbers(recorder.trace()) == [0, 1, 2]  # in memory at least
        partial = unfinished(output)
        if output.exists():
            assert in_file(output) == [0, 1, 2]
            assert check_trailer(output)
            assert recorder.problem == ""
            assert recorder.written_to == output
            found.append("finished")
        else:
            assert len(said) in (1, 2), said
            assert os.strerror(code) in said[-1]
            assert str(partial) in said[-1]
            assert recorder.problem in said[-1]
            found.append("begun" if partial.exists() else "nothing")
        if partial.exists():
            assert in_file(partial) == [0, 1, 2][: len(in_file(partial))]
            assert recorder.written_to == partial
        left = {"lock", "partial.new", "partial.journal"} if for_ever else set()
        assert set(names(output)) <= {"out.h5", "out.h5.partial", *(f"out.h5.{name}" for name in left)}
        for path in output.parent.iterdir():
            path.unlink()
    assert {"begun", "nothing" if for_ever else "finished"} <= set(found)
    assert for_ever or found.count("finished") > len(found) / 2


def test_the_disk_is_emptied_meanwhile(output):
    with pytest.MonkeyPatch.context() as patch, warned("is tried again") as caught:
        recorder = begun(output)
        add(recorder, 0)
        broken_disk(patch, 1)
        add(recorder, 1)
        add(recorder, 2)
        assert "1 structure(s) are in" in recorder.problem
        assert numbers(recorder.trace()) == [0, 1, 2]
    assert len(caught) == 1
    add(recorder, 3)
    recorder.save()
    assert in_file(output) == [0, 1, 2, 3]
    assert recorder.problem == ""


def test_memory_is_bounded(output, monkeypatch):
    monkeypatch.setattr(module, "_TOO_MANY_BYTES", 2000)  # each structure has 800
    with pytest.MonkeyPatch.context() as patch, warned("Nothing more is recorded"):
        recorder = begun(output)
        add(recorder, 0)
        broken_disk(patch, 1)
        for number in range(1, 10):
            add(recorder, number)
    assert recorder.has_stopped
    n = recorder.n_structures
    assert n < 6
    assert numbers(recorder.trace()) == list(range(n))
    with warned(r"structure\(s\) are not in the trace"):
        recorder.save()  # the disk is there again
    assert not output.exists()
    assert in_file(unfinished(output)) == list(range(n))


def test_a_damaged_file_does_not_stop_the_run(output):
    recorder = begun(output)
    add(recorder, 0)
    whole = unfinished(output).read_bytes()
    unfinished(output).write_bytes(whole[:100] + bytes(len(whole) - 100))
    with warned("could not be written"):
        add(recorder, 1)
        recorder.save()
    assert not output.exists()
    assert recorder.problem


def test_what_was_damaged_is_not_called_complete(output, monkeypatch):
    recorder = begun(output)
    add(recorder, 0)
    add(recorder, 1)
    whole = bytearray(unfinished(output).read_bytes())
    place = whole.index(np.full(50, 1, np.float32).tobytes())
    whole[place + 7] ^= 4
    unfinished(output).write_bytes(whole)  # the same inode
    with warned("could not be written"):
        recorder.save()
    assert not output.exists()
    with open_trace(unfinished(output)) as trace:
        assert trace.attributes["complete"] is False


def test_a_structure_too_few_is_noticed(output):
    recorder = begun(output)
    add(recorder, 0)
    recorder.n_structures += 1
    with warned(r"1 rows, and there are 2 structures"):
        recorder.save()
    assert not output.exists()
    assert in_file(unfinished(output)) == [0]


# A file that is not where it was


def test_deleted_under_way(output):
    recorder = begun(output)
    add(recorder, 0)
    add(recorder, 1)
    unfinished(output).unlink()
    with warned(r"was deleted .* and 2 structure\(s\) with it"):
        add(recorder, 2)
    add(recorder, 3)
    recorder.save()
    assert not output.exists()
    assert in_file(unfinished(output)) == [2, 3]
    assert "deleted" in recorder.problem


def test_deleted_before_the_end(output):
    recorder = begun(output)
    add(recorder, 0)
    unfinished(output).unlink()
    with warned("was deleted"):
        recorder.save()
    assert names(output) == []
    assert recorder.written_to is None


def test_replaced_under_way(output):
    recorder = begun(output)
    add(recorder, 0)
    other = output.with_name("other")
    other.write_text("precious")
    other.replace(unfinished(output))
    with warned("was replaced by another file"):
        add(recorder, 1)
    add(recorder, 2)
    recorder.save()
    assert unfinished(output).read_text() == "precious"
    assert names(output) == ["out.h5.partial"]
    assert recorder.has_stopped
    assert recorder.written_to is None


@pytest.mark.parametrize("comes_back", [True, False])
def test_the_folder_vanishes(tmp_path, comes_back):
    output = tmp_path / "folder" / "out.h5"
    output.parent.mkdir()
    recorder = begun(output)
    add(recorder, 0)
    output.parent.rename(tmp_path / "elsewhere")
    with warned("No such file"):
        add(recorder, 1)
        add(recorder, 2)
        if comes_back:
            (tmp_path / "elsewhere").rename(output.parent)
        recorder.save()
    if comes_back:
        assert in_file(output) == [0, 1, 2]
        assert names(output) == ["out.h5"]
    else:
        assert in_file(tmp_path / "elsewhere" / "out.h5.partial") == [0]
        assert not output.parent.exists()


def test_an_output_that_appears_meanwhile_is_left(output):
    recorder = begun(output)
    add(recorder, 0)
    output.write_text("precious")
    with warned(r"somebody else has made .*out\.h5"):
        recorder.save()
    assert output.read_text() == "precious"
    assert in_file(unfinished(output)) == [0]


# An earlier file


def earlier(output):
    recorder = begun(output)
    add(recorder, 7)
    recorder.save()
    return output.read_bytes()


def test_an_earlier_file_is_replaced_when_the_new_one_is_complete(output):
    before = earlier(output)
    recorder = begun(output, force=True)
    add(recorder, 0)
    assert output.read_bytes() == before
    recorder.save()
    assert in_file(output) == [0]
    assert names(output) == ["out.h5"]


def test_an_interrupted_run_leaves_an_earlier_file_and_its_own_part_beside_it(output):
    before = earlier(output)
    recorder = begun(output, force=True)
    add(recorder, 0)
    recorder.is_interrupted = True
    with warned("did not come to its end"):
        recorder.save()
    assert output.read_bytes() == before
    assert in_file(unfinished(output)) == [0]
    assert recorder.written_to == unfinished(output)


def test_what_a_killed_run_left_is_given_up_only_for_something(output):
    recorder = begun(output)
    add(recorder, 0)
    recorder._claim.release()
    again = begun(output, force=True)
    assert in_file(unfinished(output)) == [0]
    again.save()
    assert in_file(unfinished(output)) == [0]


# A fork


def test_a_forked_child_touches_nothing(output):
    recorder = begun(output)
    add(recorder, 0)
    add(recorder, 1)
    before = unfinished(output).read_bytes()
    child = os.fork()
    if not child:
        try:
            add(recorder, 5)
            recorder.save()
            shown = numbers(recorder.trace())
            os._exit(0 if shown == [0, 1] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert unfinished(output).read_bytes() == before
    assert names(output) == ["out.h5.lock", "out.h5.partial"]
    add(recorder, 2)
    recorder.save()
    assert in_file(output) == [0, 1, 2]


# Going on


def test_going_on(output):
    recorder = begun(output)
    for number in range(2):
        add(recorder, number)
    recorder._claim.release()  # as a killed process leaves it
    again = begun(output, resume=True)
    assert (again.n_structures, again.resumed.n_structures) == (2, 2)
    assert numbers(again.trace()) == [0, 1]
    add(again, 2)
    again.save()
    assert in_file(output) == [0, 1, 2]
    assert check_trailer(output)


def test_going_on_where_only_the_last_step_was_missing(output):
    """The file was all but finished, with tables in it and called complete."""
    recorder = begun(output)
    recorder.tables = {"mine": StoredTable(pd.DataFrame({"x": [1.0]}), "Mine")}
    add(recorder, 0)
    with pytest.MonkeyPatch.context() as patch, warned("Input/output"):
        broken_disk(patch, 1, errno.EIO, names=("replace", "rename"))
        recorder.save()
    with open_trace(unfinished(output)) as trace:
        assert trace.attributes["complete"] is False
    again = begun(output, resume=True)
    again.tables = recorder.tables
    add(again, 1)
    again.save()
    assert in_file(output) == [0, 1]


def test_going_on_after_a_kill_in_the_middle_of_a_commit(output, monkeypatch):
    from precision_probe.trace.journal import Journal

    recorder = begun(output)
    add(recorder, 0)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "apply", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "dead")))
        add(recorder, 1)
    recorder._claim.release()
    assert pending_changes(unfinished(output)) is not None
    again = begun(output, resume=True)
    assert again.n_structures == 2
    add(again, 2)
    again.save()
    assert in_file(output) == [0, 1, 2]
    assert names(output) == ["out.h5"]
