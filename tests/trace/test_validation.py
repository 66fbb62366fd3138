"""Everything in a trace is read, and what is wrong is named."""

import subprocess
import sys

import h5py
import numpy as np
import pytest
from traces_by_hand import trace_by_hand

import precision_probe as pp
from precision_probe.trace import validation
from precision_probe.trace.digest import write_trailer
from precision_probe.trace.validation import validate


@pytest.fixture
def saved(tmp_path):
    return trace_by_hand().save(tmp_path / "trace.h5")


def flipped(path, name):
    with h5py.File(path) as file:
        at = file[name].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_trace_that_is_fine(saved):
    found = validate(saved)
    assert (found.problems, found.notes) == ([], [])
    assert found.summary == "2 structures, 29 arrays of 0.0 MB, every checksum agrees"


def test_every_damaged_variable_is_named(saved):
    names = ["/isolated/float64/products.0.output", "/propagated/float16/forces"]
    for name in names:
        flipped(saved, name)
    *damaged, changed = validate(saved).problems
    assert sorted(each.split()[0] for each in damaged) == names
    assert changed.startswith("it is not what was written (made an unknown time, last changed 20")


def test_damage_that_the_file_denies_is_found(saved):
    flipped(saved, "/propagated/float16/forces")
    write_trailer(saved)
    (problem,) = validate(saved).problems
    assert problem.startswith("/propagated/float16/forces is damaged (")


def test_damage_of_what_is_not_read_is_found(saved):
    data = bytearray(saved.read_bytes())
    data[data.index(b"by hand")] ^= 1
    saved.write_bytes(data)
    (problem,) = validate(saved).problems
    assert problem.endswith(", though every array can be read")


def test_what_is_wrong_with_the_structure_is_said(tmp_path):
    with pytest.raises(pp.InputError, match=r"of the block products\.0"):
        validate(trace_by_hand(blocks="[]").save(tmp_path / "x.h5"))


def test_values_that_cannot_be_are_found(tmp_path):
    trace = trace_by_hand()
    trace.tree["structures"]["receiver"].values[:] = 7
    assert validate(trace.save(tmp_path / "x.h5")).problems == ["/structures/receiver has values that cannot be"]


def test_notes_say_what_is_no_damage(tmp_path):
    trace = trace_by_hand(complete="false")
    trace.tree["propagated/float64"]["forces"].values[1] = np.nan
    trace.tree["propagated/float64"]["products.0.skip.grad"].values[1] = np.nan  # as of a call that has none
    trace.tree["propagated/float16"]["energy"].values[0] = np.nan
    found = validate(trace.save(tmp_path / "x.h5"))
    assert found.problems == []
    assert found.notes[0] == "/propagated/float64/forces has NaN or inf in 1 rows, and is the reference"
    assert found.notes[1].startswith("complete is false")
    assert len(found.notes) == 2


def test_a_file_changed_since_it_was_finished_is_noted(saved):
    saved.write_bytes(saved.read_bytes()[:-89])
    (note,) = validate(saved).notes
    assert note.startswith("it has no checksum of the whole file")


def test_a_large_array_is_read_piece_by_piece(saved, monkeypatch):
    monkeypatch.setattr(validation, "_PIECE", 16)
    assert validate(saved).summary.startswith("2 structures, 29 arrays")


def test_it_imports_no_torch(saved):
    code = (
        "import sys; from precision_probe.trace.validation import validate; validate(sys.argv[1]); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, timeout=60)
    assert "xarray" in done.stdout.split(), done.stderr
    assert not {"torch", "mace", "e3nn"} & set(done.stdout.split())
