"""to_numpy.py: tensors of a run as arrays of a trace: exact, in e3nn's layout, with dimensions, units and irreps."""

import numpy as np
import pytest
import torch
from ase.neighborlist import neighbor_list
from e3nn import o3
from runs import data_of, molecule

from precision_probe.models.blocks import Block, Port
from precision_probe.models.evaluation import Prediction, Quantity
from precision_probe.models.graphs import build_graph, graph_of_call
from precision_probe.models.inputs import Inputs
from precision_probe.probe.observing.to_host import to_numpy
from precision_probe.probe.observing.to_numpy import (
    captured_tensors,
    predicted_arrays,
    sample_arrays,
    structure_arrays,
)
from precision_probe.variants.hooks import Call


def captured(*args, **options):
    """What a trace would hold of a call."""
    return [each.with_values(to_numpy(each.values)) for each in captured_tensors(*args, **options)]


# Structures


@pytest.fixture
def batch(model, water, crystal):
    """A molecule and a crystal as one call of the model, which simulation packages make."""
    parts = [data_of(atoms, model) for atoms in (water, crystal)]
    both = {
        key: torch.cat([part[key] for part in parts]) for key in parts[0] if key not in ("edge_index", "ptr", "batch")
    }
    n = len(water)
    both["edge_index"] = torch.cat([parts[0]["edge_index"], parts[1]["edge_index"] + n], dim=1)
    both["ptr"] = torch.tensor([0, n, n + len(crystal)])
    both["batch"] = torch.tensor([0] * n + [1] * len(crystal))
    pbc = torch.tensor([[False] * 3, [True] * 3])
    return graph_of_call(both | {"pbc": pbc}, model, "call 1")


def test_edges_are_counted_within_their_structure_and_are_those_of_ase(model, batch, water, crystal):
    arrays = structure_arrays(batch)
    first = 0
    for atoms, n_edges in zip((water, crystal), arrays["n_edges"], strict=True):
        edges = slice(first, first + n_edges)
        first += n_edges
        sender, receiver, image = (arrays[name][edges] for name in ("sender", "receiver", "image"))
        found = sorted(zip(sender, receiver, map(tuple, image), strict=True))
        i, j, shifts = neighbor_list("ijS", atoms, float(model.r_max))
        expected = sorted(zip(i, j, map(tuple, shifts), strict=True))
        assert found == expected
        assert n_edges > 0
    assert first == len(arrays["sender"])
    assert [arrays[name].dtype for name in ("sender", "receiver", "image")] == [np.int32, np.int32, np.int16]


def test_what_was_run_is_kept_as_it_was(batch, water, crystal):
    arrays = structure_arrays(batch)
    assert arrays["name"].tolist() == ["call 1[0]", "call 1[1]"]
    assert arrays["n_atoms"].tolist() == [len(water), len(crystal)]
    np.testing.assert_array_equal(arrays["positions"], np.concatenate([water.positions, crystal.positions]))
    np.testing.assert_array_equal(arrays["cell"][1], crystal.cell.array)
    np.testing.assert_array_equal(arrays["atomic_numbers"], np.concatenate([water.numbers, crystal.numbers]))
    np.testing.assert_array_equal(arrays["pbc"], [[False] * 3, [True] * 3])


def test_labels_that_are_missing_are_nan(model, water):
    arrays = structure_arrays(build_graph(water, model))
    for name, shape in {"energy": (1,), "forces": (3, 3), "stress": (1, 3, 3)}.items():
        assert arrays[name].shape == shape
        assert np.isnan(arrays[name]).all()
    water.info["REF_energy"] = -4.5
    assert structure_arrays(build_graph(water, model))["energy"].tolist() == [-4.5]


def test_other_inputs_have_but_a_name(model):
    arrays = sample_arrays(Inputs("input 3", (torch.ones(2),)))
    assert {name: values.tolist() for name, values in arrays.items()} == {"name": ["input 3"]}
    assert sample_arrays(build_graph(molecule(), model))["n_atoms"].tolist() == [3]


# Predictions


def test_predictions_have_the_native_dtype_and_each_structure_its_share_of_the_time():
    energy = Quantity("energy", ("structure",), "eV", "total energy")
    stress = Quantity("stress", ("structure", "xyz", "xyz_2"), "eV/Å³", "stress")
    values = {energy: torch.tensor([1.0, 2.0], dtype=torch.bfloat16), stress: torch.zeros(2, 3, 3, dtype=torch.float64)}
    arrays = {array.name: array for array in predicted_arrays(Prediction(values, 9.0), 2, 0.5)}
    assert arrays.keys() == {"energy", "stress", "seconds"}
    assert (arrays["energy"].native_dtype, arrays["energy"].values.dtype) == ("bfloat16", np.float32)
    assert arrays["stress"].native_dtype == ""  # made in float64 whatever the model computes in
    assert (arrays["energy"].dims, arrays["energy"].unit, arrays["stress"].unit) == (("structure",), "eV", "eV/Å³")
    assert (arrays["seconds"].values.tolist(), arrays["seconds"].dims) == ([0.25, 0.25], ("structure",))


def test_a_number_without_dimensions_has_one_row():
    values = {Quantity("output", ("output.row",), "1", "output"): torch.tensor(2.5)}
    assert predicted_arrays(Prediction(values, 1.0), 1)[0].values.tolist() == [2.5]


# Blocks


def call_with(outputs, number=0):
    return Call(Block("layer"), {}, {}, outputs, number)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_precision_number_is_widened_exactly(dtype):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    numbers = bits.view(dtype)
    (array,) = captured(call_with({Port("output"): numbers}), {})
    assert (array.values.dtype, array.native_dtype) == (np.float32, str(dtype).removeprefix("torch."))
    back = torch.from_numpy(array.values).to(dtype).view(torch.int16)
    is_number = ~numbers.isnan()
    assert torch.equal(back[is_number], bits[is_number])
    np.testing.assert_array_equal(np.isnan(array.values), numbers.isnan().numpy())


@pytest.mark.parametrize(
    ("port_unit", "unit", "expected"), [("1", "eV", "eV"), ("Å", "eV", "eV/Å"), ("Å", "1", "1/Å"), ("1", "1", "1")]
)
def test_units_of_gradients_are_per_unit_of_the_input(port_unit, unit, expected):
    port = Port("vectors", unit=port_unit)
    output, gradient = captured(call_with({port: torch.ones(2, 3)}), {port: torch.ones(2, 3)}, unit=unit)
    assert (output.name, output.unit, output.computed_in) == ("layer.vectors", port_unit, "forward")
    assert (gradient.name, gradient.unit, gradient.computed_in) == ("layer.vectors.grad", expected, "backward")


def test_calls_after_the_first_are_numbered_and_outputs_can_be_left_out():
    port = Port("x", rows="edge")
    arrays = captured(
        call_with({port: torch.ones(2)}, 2), {port: torch.ones(2)}, outputs=False, backward="double_backward"
    )
    assert [(array.name, array.computed_in, array.rows) for array in arrays] == [
        ("layer.x.call2.grad", "double_backward", "edge")
    ]


IRREPS = o3.Irreps("2x0e + 3x1o")
LABELS = ("0e",) * 2 + ("1o",) * 9


@pytest.mark.parametrize(
    ("irreps", "shape", "components"),
    [
        (IRREPS, (5, 11), LABELS),
        (o3.Irreps("4x0e + 4x1o"), (5, 4, 4), ("0e", "1o", "1o", "1o")),  # each channel has every irrep once
        (IRREPS, (5, 12), ()),  # not of these irreps
        (IRREPS, (11,), ()),
        (None, (5, 11), ()),
    ],
)
def test_entries_are_labelled_where_the_sizes_agree(irreps, shape, components):
    (array,) = captured(call_with({Port("output", irreps=irreps): torch.ones(shape)}), {})
    assert (array.components, array.irreps) == (components, str(irreps) if components else "")


def test_other_layouts_are_turned_into_e3nn_s():
    values = torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    vectors = values[:, 2:].reshape(5, 3, 3)  # channel, component
    swapped = torch.cat([values[:, :2], vectors.transpose(1, 2).reshape(5, 9)], dim=1)
    (array,) = captured(call_with({Port("output", irreps=IRREPS, layout="ir_mul"): swapped}), {})
    np.testing.assert_array_equal(array.values, values)
    assert (array.layout, array.components) == ("mul_ir", LABELS)
    (array,) = captured(call_with({Port("output", layout="ir_mul"): swapped}), {})
    np.testing.assert_array_equal(array.values, swapped)  # of irreps that are not known
    assert array.layout == "ir_mul"
