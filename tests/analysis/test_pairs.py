"""pairs.py: which arrays of a trace are compared, in which order and unit, and their parts by irrep and element."""

import json

import ase.build
import numpy as np
import pytest
import xarray as xr
from runs import trace_of

import precision_probe as pp
from precision_probe.analysis.pairs import MODEL, Pair, arrays, read_pairs
from precision_probe.trace.trace import SCHEMA_VERSION, Trace

KEYS = ["precision", "mode", "block", "tensor", "direction"]

# By hand: a water molecule and one carbon atom of a crystal; the edges are O→H, H→O, H→O and C→C.
STRUCTURES = xr.Dataset(
    {
        "n_atoms": ("structure", [3, 1]),
        "n_edges": ("structure", [3, 1]),
        "pbc": (("structure", "cell_vector"), [[False] * 3, [True] * 3]),
        "atomic_numbers": ("atom", [8, 1, 1, 6]),
        "receiver": ("edge", [1, 0, 0, 0]),
    }
)


def array(dims, values, block=None, tensor=None, direction="forward", units="1", **attributes):
    attributes |= {"units": units} | ({"block": block, "tensor": tensor, "direction": direction} if block else {})
    return xr.Variable(dims, np.asarray(values, dtype=float), attributes)


def group():
    rng = np.random.default_rng(0)
    features = ("atom", "b.component")
    return xr.Dataset(
        {
            "a.x": array("edge", rng.normal(size=4), "a", "x"),
            "b.v.grad": array(features, rng.normal(size=(4, 4)), "b", "v", "backward", "eV", layout="ir_mul"),
            "b.y": array(features, rng.normal(size=(4, 4)), "b", "y"),
            "seconds": array("structure", [1.0, 2.0], units="s"),
            "energy": array("structure", [-30.0, 8.0], units="eV"),
            "forces": array(("atom", "component"), rng.normal(size=(4, 3)), units="eV/Å"),
            "stress": array(("structure", "i", "j"), rng.normal(size=(2, 3, 3)), units="eV/Å³"),
            "dipole": array(("structure", "component"), rng.normal(size=(2, 3)), units="e Å"),
        },
        {"b.component": ["0e", "1o", "1o", "1o"]},
    )


def by_hand(structures=STRUCTURES, loss=None, blocks=("b", "a")):
    attributes = {"schema_version": SCHEMA_VERSION, "precisions": '["float64", "float16"]', "modes": '["propagated"]'}
    root = xr.Dataset(attrs=attributes | {"blocks": json.dumps(blocks)})
    groups = {"/": root, "/structures": structures}
    return Trace(xr.DataTree.from_dict(groups | ({} if loss is None else {"/loss/float64": loss})))


def of(trace, reference, mode="propagated", variant=None):
    """Each array with the pair of all its rows."""
    group = reference * 2 if variant is None else variant
    return {
        (array.block, array.tensor): (
            array,
            *read_pairs(array, [array.in_group(group)], slice(0, len(array.values)), with_elements=True),
        )
        for array in arrays(trace, reference, mode)
    }


@pytest.fixture
def reference():
    return group()


def test_the_model_comes_first_then_blocks_as_they_run_outputs_before_gradients(reference):
    compared = list(of(by_hand(), reference))
    assert compared == [(MODEL, name) for name in ("energy", "forces", "stress", "dipole")] + [
        ("b", "y"),
        ("b", "v"),
        ("a", "x"),
    ]
    assert [block for block, _ in of(by_hand(blocks=("a", "b")), reference)][4:] == ["a", "b", "b"]


def test_results_of_the_model_are_compared_as_people_read_them(reference):
    compared = of(by_hand(), reference)
    (energy, energies), (stress, stresses) = compared[MODEL, "energy"], compared[MODEL, "stress"]
    assert energies.y.tolist() == [-10.0, 8.0]
    assert energies.y_hat.tolist() == [-20.0, 16.0]
    assert energy.units == "eV/atom"
    np.testing.assert_array_equal(stresses.y, reference["stress"].values[1:])  # water has none
    assert (stress.units, stress.shape) == ("eV/Å³", (1, 3, 3))
    (forces, of_atoms), (dipole, _) = compared[MODEL, "forces"], compared[MODEL, "dipole"]
    assert (forces.direction, stress.direction) == ("backward", "backward")
    assert (energy.direction, dipole.direction) == ("forward", "forward")
    np.testing.assert_array_equal(of_atoms.y_hat, 2 * reference["forces"].values)


def test_what_a_variant_stores_in_less_is_widened_for_the_model_and_kept_for_blocks(reference):
    compared = of(by_hand(), reference, variant=reference.astype(np.float16, keep_attrs=True))
    assert compared[MODEL, "forces"][1].y_hat.dtype == np.float64
    assert compared["b", "y"][1].y_hat.dtype == np.float16


def test_another_mode_has_blocks_only_and_a_mode_that_was_not_run_nothing(reference):
    trace = by_hand(loss=reference)
    assert {block for block, _ in of(trace, reference, "loss")} == {"a", "b"}
    assert of(trace, reference, "isolated") == {}


def test_calls_without_a_loss_are_left_out_with_their_elements(reference):
    reference["b.v.grad"].values[[0, 3]] = np.nan
    reference["b.v.grad"].values[1, 2] = np.nan  # a NaN of its own, which stays
    array, seen = of(by_hand(loss=reference), reference, "loss")["b", "v"]
    assert array.shape == (2, 4)
    np.testing.assert_array_equal(seen.y, reference["b.v.grad"].values[[1, 2]])
    np.testing.assert_array_equal(seen.y_hat, 2 * reference["b.v.grad"].values[[1, 2]])
    assert seen.elements.tolist() == [1, 1]
    assert len(of(by_hand(loss=reference), reference)["b", "v"][1].y) == 4


def test_elements_are_those_of_atoms_and_of_the_atoms_that_edges_end_at(reference):
    compared = of(by_hand(), reference)
    assert compared["b", "y"][1].elements.tolist() == compared[MODEL, "forces"][1].elements.tolist() == [8, 1, 1, 6]
    assert compared["a", "x"][1].elements.tolist() == [1, 8, 8, 6]
    assert compared[MODEL, "energy"][1].elements is None
    without_edges = of(by_hand(STRUCTURES.drop_vars("receiver")), reference)
    assert without_edges["a", "x"][1].elements is None
    assert without_edges["b", "y"][1].elements.tolist() == [8, 1, 1, 6]
    not_of_atoms = of(by_hand(STRUCTURES.drop_vars("atomic_numbers")), reference)
    assert all(pair.elements is None for _, pair in not_of_atoms.values())


def test_identity_and_layout(reference):
    compared = {key: array for key, (array, _) in of(by_hand(), reference).items()}
    gradient = compared["b", "v"]
    assert gradient.identity == {"block": "b", "tensor": "v", "direction": "backward", "units": "eV", "n": 16}
    assert (gradient.layout, compared["b", "y"].layout) == ("ir_mul", "mul_ir")
    assert (gradient.rows, compared["a", "x"].rows, compared[MODEL, "dipole"].rows) == ("atom", "edge", "structure")


# Parts


def test_parts_by_irrep_in_the_order_in_which_they_come(reference):
    _, pair = of(by_hand(), reference)["b", "y"]
    parts = dict(pair.resolved_by("irrep"))
    assert list(parts) == ["0e", "1o"]
    np.testing.assert_array_equal(parts["0e"].y, pair.y[:, :1])
    np.testing.assert_array_equal(parts["1o"].y_hat, pair.y_hat[:, 1:])


def test_parts_by_element_in_the_order_of_atomic_numbers(reference):
    _, pair = of(by_hand(), reference)["b", "y"]
    parts = dict(pair.resolved_by("element"))
    assert list(parts) == ["H", "C", "O"]
    for symbol, atoms in (("H", [1, 2]), ("C", [3]), ("O", [0])):
        np.testing.assert_array_equal(parts[symbol].y, pair.y[atoms])
        np.testing.assert_array_equal(parts[symbol].y_hat, pair.y_hat[atoms])


@pytest.mark.parametrize("by", ["irrep", "element"])
def test_what_is_not_known_has_no_parts(by):
    pair = Pair(np.ones((2, 2)), np.ones((2, 2)))
    assert list(pair.resolved_by(by)) == []


# Parts in a table of errors


@pytest.fixture(scope="module")
def trace(model):
    water = ase.build.molecule("H2O")
    cell = ase.build.bulk("C", cubic=True)
    cell.rattle(0.05, seed=1)
    return trace_of(model, [water, cell], precisions="float32,bfloat16")


@pytest.mark.parametrize("by", ["irrep", "element"])
def test_resolved_errors_add_up_to_the_whole(trace, by):
    whole = pp.errors(trace).set_index(KEYS)
    parts = pp.errors(trace, by=by)
    squares = (parts["rms"] ** 2 * parts["n"]).groupby([parts[key] for key in KEYS]).sum()
    numbers = parts["n"].groupby([parts[key] for key in KEYS]).sum()
    complete = numbers[numbers == whole["n"].reindex(numbers.index)].index
    assert len(complete) > 40
    total = (whole["rms"] ** 2 * whole["n"]).reindex(complete)
    np.testing.assert_allclose(squares[complete], total, rtol=1e-9, atol=1e-300)


def test_errors_of_an_irrep_and_of_an_element_are_those_of_their_entries(trace):
    exact, rounded = (trace.group("propagated", name) for name in ("float64", "bfloat16"))
    y, y_hat = exact["interactions.0.message"], rounded["interactions.0.message"]
    vectors = y.coords["interactions.0.component"].values == "1o"
    table = pp.errors(trace, by="irrep").set_index(["precision", "mode", "block", "tensor", "irrep"])
    row = table.loc[("bfloat16", "propagated", "interactions.0", "message", "1o")]
    delta = (y_hat.values.astype(float) - y.values)[..., vectors]
    assert row["rel_l2"] == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(y.values[..., vectors]))
    hydrogen = trace.structures["atomic_numbers"].values == 1
    table = pp.errors(trace, by="element").set_index(["precision", "mode", "block", "tensor", "element"])
    row = table.loc[("bfloat16", "propagated", "model", "forces", "H")]
    delta = rounded["forces"].values[hydrogen].astype(float) - exact["forces"].values[hydrogen]
    assert row["max_abs"] == pytest.approx(np.abs(delta).max())
    n_edges = int(trace.structures["n_edges"].values[0])  # the crystal has no hydrogen
    receivers = trace.structures["receiver"].values[:n_edges]
    of_hydrogen = trace.structures["atomic_numbers"].values[receivers] == 1
    lengths, hats = (g["radial_embedding.edge_feats"].values[:n_edges][of_hydrogen] for g in (exact, rounded))
    row = table.loc[("bfloat16", "propagated", "radial_embedding", "edge_feats", "H")]
    assert row["max_abs"] == pytest.approx(np.abs(hats.astype(float) - lengths).max())
