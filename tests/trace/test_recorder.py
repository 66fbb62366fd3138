"""recorder.py: arrays of many structures laid out under named dimensions."""

import ase
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import trace_of

from precision_probe.models.building import build
from precision_probe.trace.arrays import BlockArray, ModelArray, Sizes
from precision_probe.trace.recorder import Recorder

GROUP = "isolated/float32"
KINDS = ("structure", "atom", "edge")


@pytest.fixture
def hydrogen():
    """As many directed edges as atoms: two."""
    return ase.Atoms("HH", [(0.0, 0.0, 0.0), (0.1, 0.0, 0.8)])


def captured(values, tensor="output", block="layer", **more):
    return BlockArray(block, tensor, np.asarray(values, dtype=np.float32), "float32", **more)


def structure_arrays(sizes):
    n, atoms = sizes.structure, sizes.atom
    return {
        "name": np.full(n, "x", dtype=object),
        "n_atoms": np.full(n, atoms // n),
        "n_edges": np.full(n, sizes.edge // n),
        "atomic_numbers": np.ones(atoms, dtype=np.int64),
        "positions": np.zeros((atoms, 3)),
        "cell": np.zeros((n, 3, 3)),
        "pbc": np.zeros((n, 3), dtype=bool),
        "energy": np.full(n, np.nan),
        "forces": np.full((atoms, 3), np.nan),
        "stress": np.full((n, 3, 3), np.nan),
    }


def add(recorder, sizes, *arrays):
    predicted = [
        ModelArray("energy", np.arange(float(sizes.structure)), ("structure",), "eV", "total energy"),
        ModelArray("forces", np.ones((sizes.atom, 3)), ("atom", "xyz"), "eV/Å", "forces"),
    ]
    recorder.add(structure_arrays(sizes), sizes, {"float32": predicted}, {GROUP: arrays})


def block_arrays(recorder):
    return recorder.trace().tree[GROUP].to_dataset()


sizes = st.builds(Sizes, structure=st.just(1), atom=st.integers(1, 4), edge=st.integers(0, 6))


@settings(max_examples=40, deadline=None)
@given(st.lists(sizes, min_size=1, max_size=4), st.sampled_from(KINDS))
def test_first_dimension_is_found_from_the_sizes_of_all_structures(graphs, kind):
    recorder = Recorder()
    parts = [np.random.default_rng(index).random((getattr(graph, kind), 2)) for index, graph in enumerate(graphs)]
    for graph, part in zip(graphs, parts, strict=True):
        add(recorder, graph, captured(part))
    array = block_arrays(recorder)["layer.output"]
    possible = [k for k in KINDS if all(getattr(graph, k) == getattr(graph, kind) for graph in graphs)]
    assert array.dims[0] in possible
    np.testing.assert_array_equal(array.values, np.concatenate(parts).astype(np.float32))


@settings(max_examples=40, deadline=None)
@given(st.lists(sizes, min_size=1, max_size=4), st.sampled_from(KINDS))
def test_a_known_first_dimension_is_kept(graphs, kind):
    recorder = Recorder()
    for graph in graphs:
        add(recorder, graph, captured(np.zeros((getattr(graph, kind), 2)), rows=kind))
    assert block_arrays(recorder)["layer.output"].dims[0] == kind


def test_rows_that_count_nothing_known_have_their_own_dimension():
    recorder = Recorder()
    add(recorder, Sizes(1, 3, 6), captured(np.zeros((4, 2))))
    assert block_arrays(recorder)["layer.output"].dims == ("layer.output.row", "layer.feature")


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_rows_of_any_submodule_where_one_structure_has_as_many_atoms_as_edges(model, hydrogen, water, order):
    expected = {"interactions.0.linear_up": "atom", "interactions.0.conv_tp_weights": "edge"}
    trace = trace_of(model, [hydrogen, water][order], blocks=list(expected))
    assert sorted(zip(*(trace.structures[n].values.tolist() for n in ("n_atoms", "n_edges")), strict=True)) == [
        (2, 2),
        (3, 6),
    ]
    for mode in trace.modes:
        arrays = [a for a in trace.group(mode, "float32").data_vars.values() if "block" in a.attrs]
        assert len(arrays) == 4  # output and gradient of each
        for array in arrays:
            assert array.dims[0] == expected[array.attrs["block"]]
            assert array.sizes[array.dims[0]] == {"atom": 5, "edge": 8}[array.dims[0]]


def test_every_eager_submodule_can_be_recorded(model, hydrogen, water):
    trace = trace_of(model, [hydrogen, water], blocks=["*", "*.*", "*.*.*", "*.*.*.*"], modes="isolated")
    arrays = trace.group("isolated", "float32").data_vars.values()
    assert {array.attrs["block"] for array in arrays} == set(trace.blocks)
    assert len(trace.blocks) > 30
    assert {array.dims[0] for array in arrays} == {"atom", "edge"}


# Names of the other dimensions


def test_features_of_another_size_have_a_dimension_named_after_their_tensor():
    recorder = Recorder()
    outputs = [captured(np.zeros((3, size)), tensor) for tensor, size in (("a", 4), ("b", 1), ("c", 4), ("d", 2))]
    add(recorder, Sizes(1, 3, 6), *outputs)
    found = block_arrays(recorder)
    dims = {name: array.dims[1] for name, array in found.data_vars.items()}
    assert dims == {
        "layer.a": "layer.feature",
        "layer.b": "layer.b.feature",
        "layer.c": "layer.feature",
        "layer.d": "layer.d.feature",
    }
    assert [found.sizes[dim] for dim in dims.values()] == [4, 1, 4, 2]


def test_features_of_a_model_whose_radial_embedding_returns_its_cutoff_too(config, water):
    trace = trace_of(build(config | {"apply_cutoff": False}), water, blocks="radial_embedding")
    found = trace.group("isolated", "float32")
    assert found["radial_embedding.edge_feats"].dims == ("edge", "radial_embedding.feature")
    assert found["radial_embedding.cutoff"].dims == ("edge", "radial_embedding.cutoff.feature")
    assert (found.sizes["radial_embedding.feature"], found.sizes["radial_embedding.cutoff.feature"]) == (4, 1)


def test_features_of_other_irreps_do_not_share_a_dimension():
    recorder = Recorder()
    add(
        recorder,
        Sizes(1, 3, 6),
        captured(np.zeros((3, 3)), "scalars", components=("0e",) * 3, irreps="3x0e"),
        captured(np.zeros((3, 3)), "vector", components=("1o",) * 3, irreps="1x1o"),
    )
    for array in block_arrays(recorder).data_vars.values():
        irrep = array.attrs["irreps"].split("x")[1]
        assert array.coords[array.dims[1]].values.tolist() == [irrep] * 3


@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((), ()),
        ((2,), ("layer.feature",)),
        ((2, 3), ("layer.channel", "layer.component")),
        ((2, 1, 3), ("layer.axis0", "layer.axis1", "layer.axis2")),
    ],
)
def test_number_of_dimensions(shape, dims):
    recorder = Recorder()
    add(recorder, Sizes(1, 3, 6), captured(np.zeros((3, *shape))))
    assert block_arrays(recorder)["layer.output"].dims == ("atom", *dims)


# Failures


def recorded(recorder):
    return recorder.n_structures, recorder.trace().tree


@settings(max_examples=40, deadline=None)
@given(
    st.lists(sizes, min_size=1, max_size=3),
    st.integers(0, 2),
)
def test_an_add_that_fails_adds_nothing(graphs, position):
    recorder = Recorder()
    for graph in graphs:
        add(recorder, graph, captured(np.zeros((graph.atom, 2))), captured(np.ones((graph.edge, 2)), "other"))
    n_before, before = recorded(recorder)
    arrays = [captured(np.zeros((3, 2))), captured(np.ones((6, 2)), "other")]
    arrays.insert(position, captured(0.0))  # has no rows
    with pytest.raises(TypeError):
        add(recorder, Sizes(1, 3, 6), *arrays)
    n_after, after = recorded(recorder)
    assert n_after == n_before
    xr.testing.assert_identical(after, before)
