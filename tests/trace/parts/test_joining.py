"""Several arrays that are read as one, and traces in several files."""

import itertools

import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from runs import check_same_trace, molecule, trace_of
from xarray.backends import BackendArray
from xarray.core import indexing

import precision_probe as pp
from precision_probe.exceptions import InputError
from precision_probe.trace.parts.joining import _variable
from precision_probe.trace.parts.part import Part

COUNTS = [3, 0, 1, 5]


def rows(name="x", counts=COUNTS, missing=(), dtype=float):
    """An array of rows, in parts of which some lack it, and the same by NumPy."""
    whole = np.arange(4.0 * sum(counts)).reshape(-1, 2, 2).astype(dtype)
    bounds = np.cumsum([0, *counts])
    parts = [
        None if number in missing else xr.Variable(("structure", "a", "b"), whole[first:end])
        for number, (first, end) in enumerate(itertools.pairwise(bounds))
    ]
    for number in missing:
        whole[bounds[number] : bounds[number + 1]] = np.nan
    return _variable(f"/group/{name}", parts, [{"structure": count} for count in counts]), whole


@settings(deadline=None)
@given(st_numpy.basic_indices((9, 2, 2)), st.sampled_from([(), (0,), (2, 3)]))
def test_what_is_asked_for_is_what_numpy_gives(index, missing):
    variable, whole = rows(missing=missing)
    each = index if isinstance(index, tuple) else (index,)
    # xarray has no new axes by None, and fails at slices of nothing that go backwards
    assume(
        not any(one is None or (isinstance(one, slice) and (one.step or 1) < 0) for one in each) or whole[index].size
    )
    np.testing.assert_array_equal(variable[index].values, whole[index], strict=True)


@settings(deadline=None)
@given(st.lists(st.integers(-9, 8), max_size=12))
def test_rows_by_their_numbers(numbers):
    variable, whole = rows()
    np.testing.assert_array_equal(variable[np.array(numbers, int)].values, whole[np.array(numbers, int)])


class Unread(BackendArray):
    """An array on a disk that must not be read."""

    shape, dtype = (2,), np.dtype(float)

    def __getitem__(self, key):
        raise AssertionError("was read")


def test_nothing_is_read_before_it_is_asked_for():
    part = xr.Variable("structure", indexing.LazilyIndexedArray(Unread()), fastpath=True)
    joined = _variable("/group/x", [part, xr.Variable("structure", np.ones(2))], [{"structure": 2}] * 2)
    assert joined.shape == (4,)
    assert joined[2:].values.tolist() == [1, 1]
    with pytest.raises(AssertionError, match="was read"):
        _ = joined[1:].values


def test_numbers_of_structures_go_on():
    owner = [xr.Variable("atom", [0, 0, 1]), xr.Variable("atom", [0, 1, 1])]
    sizes = [{"structure": 2, "atom": 3}, {"structure": 2, "atom": 3}]
    assert _variable("/structures/structure_of_atom", owner, sizes).values.tolist() == [0, 0, 1, 2, 3, 3]


def test_rows_of_other_shapes_are_refused():
    parts = [xr.Variable(("structure", "a"), np.zeros((2, n))) for n in (2, 3)]
    with pytest.raises(InputError, match=r"/group/x has rows of the shape \(3,\)"):
        _variable("/group/x", parts, [{"structure": 2}] * 2)


# Files


STRUCTURES = [molecule(seed) for seed in range(4)]


@pytest.fixture
def folder(model, tmp_path):
    """A trace in two files, of one and of three structures, of which the first alone has a reference energy."""
    write(model, tmp_path, Part(0, 2, 0), labelled(STRUCTURES[:1]))
    write(model, tmp_path, Part(1, 2, 1), STRUCTURES[1:])
    return tmp_path


def labelled(structures):
    found = [atoms.copy() for atoms in structures]
    for atoms in found:
        atoms.info["REF_energy"] = -1.5
    return found


def write(model, folder, part, structures, **options):
    options = {"precisions": "float32,e5m10", "device": "cpu", "time": False} | options
    with pp.attach(model, **options, output=folder / part.file_name, part=part) as probe:
        probe.run(structures, progress=False)


def test_parts_are_the_trace_of_one_process(model, folder):
    whole = trace_of(model, labelled(STRUCTURES[:1]) + STRUCTURES[1:], precisions="float32,e5m10", time=False)
    with pp.open_trace(folder) as trace:
        assert trace.attributes["complete"] is True
        assert trace.attributes.keys() - whole.attributes.keys() == {"n_parts"}
        check_same_trace(trace, whole)
        assert pp.errors(trace).equals(pp.errors(whole))


def test_a_part_that_is_missing_is_told_and_the_trace_is_not_complete(folder):
    (folder / "part-0000.h5").unlink()
    with pytest.warns(UserWarning, match="has 1 of 2 parts: 0 are missing"):
        trace = pp.open_trace(folder)
    with trace:
        assert trace.attributes["complete"] is False
        assert trace.structures.sizes["structure"] == 3


def test_parts_that_do_not_follow_one_another_are_not_complete(model, folder):
    (folder / "part-0000.h5").unlink()
    write(model, folder, Part(0, 2, 0), STRUCTURES[:2])
    with pp.open_trace(folder) as trace:
        assert trace.attributes["complete"] is False


def test_parts_of_different_runs_are_refused(model, folder):
    (folder / "part-0001.h5").unlink()
    write(model, folder, Part(1, 2, 1), STRUCTURES[1:], blocks="readouts.*")
    with pytest.raises(InputError, match="parts of different runs: blocks of part 1"):
        pp.open_trace(folder)


def test_a_part_under_another_name_is_refused(folder):
    (folder / "part-0001.h5").rename(folder / "part-0002.h5")
    with pytest.raises(InputError, match="a part 2 whose file says that it is part 1"):
        pp.open_trace(folder)


def test_a_folder_without_parts_is_refused(tmp_path):
    with pytest.raises(InputError, match="is a folder without parts of a trace"):
        pp.open_trace(tmp_path)


def test_a_damaged_part_is_refused_by_its_name(folder):
    path = folder / "part-0001.h5"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"part-0001\.h5 is damaged"):
        pp.open_trace(folder)
