"""The origin of a NaN: every row against numbers found by hand, with mace-torch run as it is and NumPy's float16."""

import copy

import ase
import ase.build
import numpy as np
import pytest
import torch
from ase.data import covalent_radii

import precision_probe as pp
from precision_probe.diagnostics.range_failures import _Worst, _worst, first_failure, range_failures
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.building import build
from precision_probe.models.graphs import build_graph

LARGEST = 65504.0
HALF_SMALLEST = 2.0**-25  # of float16: 2^-24 is the smallest subnormal number
COLUMNS = ["precision", "structure", "pass", "kind", "block", "tensor", "where", "value", "limit", "count", "message"]


def only(table, **wanted):
    """The one row with these entries."""
    for column, value in wanted.items():
        table = table[table[column] == value]
    assert len(table) == 1, table
    return table.iloc[0]


def passed_through(model, atoms, name):
    """Input and output of one module in float64, from a plain hook on a copy of the model."""
    model, seen = copy.deepcopy(model), []
    model.get_submodule(name).register_forward_hook(lambda _, args, y: seen.append((args[0], y)))
    model({key: value.clone() for key, value in build_graph(atoms, model).data.items()}, compute_force=False)
    return tuple(tensor.detach() for tensor in seen[0])


@pytest.fixture(scope="module")
def shallow(config):
    """One layer, where a second would add nothing but time."""
    return config | {"num_interactions": 1}


def scaled(config, **factors):
    """A model with weights multiplied; ``__`` stands for the dot in their names."""
    model = build(config, seed=3)
    with torch.no_grad():
        for name, factor in factors.items():
            model.get_parameter(name.replace("__", ".")).mul_(factor)
    return model


def with_barium(config, energies, **more):
    return build(config | {"atomic_numbers": [1, 8, 56], "atomic_energies": energies} | more, seed=3)


# nothing to say


def test_a_healthy_model_has_no_row_and_stays_as_it_was(model, water, crystal):
    before = weights_sha256(model)
    table = range_failures(model, [water, crystal], "float32,bfloat16,m10", device="cpu")
    assert table.empty
    assert table.columns.tolist() == COLUMNS
    assert first_failure(table) == "Every number stays within range."
    assert weights_sha256(model) == before
    hooked = [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert hooked == []


def test_what_is_zero_by_symmetry_is_not_lost(model):
    atoms = ase.build.bulk("C", cubic=True)
    assert range_failures(model, atoms, "float16,bfloat16", device="cpu").empty


def test_a_gradient_that_is_part_of_no_force_does_not_matter(config, water):
    """In this model many gradients with respect to the constant tensors of symmetric contractions become 0."""
    model = build(config | {"pair_repulsion": True, "r_max": 5.0}, seed=3)
    assert range_failures(model, water, "float16", device="cpu").empty


# isolated atoms' energies


def test_energy_of_an_absent_element(shallow, water):
    model = with_barium(shallow, [-13.6, -2042.0, -70045.0])
    table = range_failures(model, water, "float16,bfloat16", device="cpu")
    row = only(table, **{"pass": "weights"})
    assert row["message"] == (
        "float16: |E0| of Ba, 70,045 eV, exceeds 65,504; the element is absent but its product with 0 is NaN"
    )
    assert row[COLUMNS[:-1]].tolist() == [
        "float16",
        "",
        "weights",
        "overflow",
        "atomic_energies_fn",
        "atomic_energies",
        "Ba",
        -70045.0,
        LARGEST,
        1,
    ]
    by_hand = torch.eye(3).half()[[1, 0, 0]] @ torch.tensor([-13.6, -2042.0, -70045.0]).half()
    assert by_hand.isnan().all()
    row = only(table, **{"pass": "forward"})
    assert (row["kind"], row["block"], row["where"], row["count"]) == ("product", "atomic_energies_fn", "O0", 3)
    assert "its weight atomic_energies" in row["message"]
    assert not (table["pass"] == "backward").any()  # forces stay finite
    assert first_failure(table).startswith("float16: |E0| of Ba")


def test_energy_of_an_element_that_is_present(shallow):
    model = with_barium(shallow, [-13.6, -2042.0, -70045.0])
    oxide = ase.Atoms("BaOO", [(0, 0, 0), (0, 0.5, 1.94), (0, -0.5, 1.94)])
    table = range_failures(model, oxide, "float16", device="cpu")
    assert only(table, **{"pass": "weights"})["message"].endswith(
        "exceeds 65,504; the element is present, so energies are infinite or NaN"
    )
    by_hand = torch.eye(3).half()[[2, 1, 1]] @ torch.tensor([-13.6, -2042.0, -70045.0]).half()
    assert torch.isinf(by_hand[0])
    assert by_hand[1:].isnan().all()
    rows = table[table["block"] == "atomic_energies_fn"].set_index(["pass", "kind"])
    assert rows.loc[("forward", "overflow"), ["where", "value", "count"]].tolist() == ["Ba0", -70045.0, 1]
    assert rows.loc[("forward", "product"), ["where", "value", "count"]].tolist() == ["O1", -2042.0, 2]


def test_a_sum_that_overflows_outside_all_blocks(shallow, water):
    model = with_barium(shallow, [-30000.0, -40000.0, 0.0])
    table = range_failures(model, water, "float16", device="cpu")
    row = only(table)
    assert (row["pass"], row["kind"], row["block"], row["tensor"]) == ("forward", "overflow", "model", "energy")
    assert row["value"] == pytest.approx(-100_000, abs=10)


# blocks


def test_overflow_in_a_chosen_block(config, water):
    name = "interactions.1.linear_up"
    model = scaled(config, interactions__1__linear_up__weight=2e4, products__0__linear__weight=1e2)
    assert model.get_submodule(name).weight.abs().max() < LARGEST
    y = passed_through(model, water, name)[1].numpy()
    atom, channel = np.unravel_index(np.abs(y).argmax(), y.shape)
    assert abs(y[atom, channel]) > LARGEST
    table = range_failures(model, water, "float16,float32", device="cpu")
    row = only(table, **{"pass": "forward", "kind": "overflow"})
    assert (row["precision"], row["block"], row["tensor"]) == ("float16", name, "output")
    assert row["where"] == f"{'OHH'[atom]}{atom}"
    assert row["value"] == pytest.approx(y[atom, channel], rel=1e-12)
    assert row["count"] == pytest.approx((np.abs(y) > LARGEST).sum(), abs=1)
    assert row["limit"] == LARGEST
    assert set(table["precision"]) == {"float16"}
    after = only(table, **{"pass": "forward", "kind": "nan"})
    assert after["block"].startswith("interactions.1.")
    assert "made of infinities" in after["message"]


def test_overflow_backward(config, water):
    """A readout with a small input, as large forward as any, whose gradient is not."""
    model = scaled(
        config,
        products__1__linear__weight=1e-3,
        interactions__1__skip_tp__weight=1e-3,
        readouts__1__linear_1__weight=1e3,
        readouts__1__linear_2__weight=1e3,
    )
    x = passed_through(model, water, "readouts.1")[0].requires_grad_()
    energy = 0.8 * model.readouts[1](x, torch.zeros(3, dtype=torch.int64)).sum()  # 0.8 is atomic_inter_scale
    (grad,) = torch.autograd.grad(energy, x)
    atom, channel = np.unravel_index(int(grad.abs().argmax()), grad.shape)
    assert abs(grad[atom, channel]) > LARGEST
    table = range_failures(model, water, "float16", device="cpu")
    assert not (table["pass"] == "forward").any()
    row = only(table, **{"pass": "backward", "kind": "overflow"})
    assert (row["block"], row["tensor"], row["where"]) == ("readouts.1.linear_1", "features", f"{'OHH'[atom]}{atom}")
    assert row["value"] == pytest.approx(float(grad[atom, channel]), rel=1e-12)
    assert row["message"].startswith(
        f"float16, H2O: the gradient with respect to features of readouts.1.linear_1 at {row['where']}"
    )


def test_weights_that_become_zero(config, water):
    name = "interactions.0.linear"
    model = scaled(config, interactions__0__linear__weight=1e-8)
    weights = model.get_submodule(name).weight.detach().numpy()
    lost = (weights != 0) & (weights.astype(np.float16) == 0)
    assert 0 < lost.sum() < lost.size
    table = range_failures(model, water, "float16,bfloat16", device="cpu")
    row = only(table, **{"pass": "weights"})
    assert (row["precision"], row["kind"], row["block"], row["tensor"]) == ("float16", "flush", name, "weight")
    assert row["count"] == lost.sum()
    assert abs(row["value"]) == np.abs(weights[lost]).max() <= HALF_SMALLEST
    assert row["where"] == f"[{np.flatnonzero(weights == row['value'])[0]}]"
    assert row["limit"] == 2 * HALF_SMALLEST
    assert f"so do {lost.mean():.0%} of its {lost.size} elements" in row["message"]
    forward = only(table, **{"pass": "forward", "kind": "flush"})
    assert forward["block"] == name
    y = passed_through(model, water, name)[1].abs()
    assert abs(forward["value"]) <= HALF_SMALLEST
    assert forward["count"] <= int((y <= HALF_SMALLEST).sum())


def test_first_failure_prefers_what_is_infinite_to_what_is_zero(config, water):
    model = scaled(config, node_embedding__linear__weight=1e-9, readouts__0__linear__weight=1e6)
    table = range_failures(model, water, "float16", device="cpu")
    assert table.iloc[0]["kind"] == "flush"
    text = first_failure(table)
    assert "weight[" in text
    assert text.endswith("exceeds 65,504")


# the pair repulsion


@pytest.mark.parametrize("precision", ["float16", "e5m10"])
def test_pair_repulsion_far_from_its_end(shallow, water, precision):
    """15·u⁷, the last term of its cutoff polynomial, u the distance in sums of covalent radii, overflows at 3.31."""
    model = build(shallow | {"pair_repulsion": True, "r_max": 6.0, "num_polynomial_cutoff": 5}, seed=3)
    end = 2 * covalent_radii[1]
    overflows = (LARGEST / 15) ** (1 / 7) * end
    for factor, fails in ((0.98, False), (1.02, True)):
        pair = ase.Atoms("H2", [(0, 0, 0), (factor * overflows, 0, 0)])
        table = range_failures(model, pair, precision, device="cpu")
        failed = table[table["kind"] != "flush"]
        assert (len(failed) > 0) == fails
    row = only(failed, **{"pass": "forward"})
    assert (row["kind"], row["block"], row["value"], row["count"]) == ("product", "pair_repulsion_fn", 0.0, 2)
    largest = 15 * (1.02 * overflows / end) ** 7
    assert f"inside, mul gives {largest:,.0f}" in row["message"]
    assert "ZBL" in row["message"]


def test_edges_are_named(shallow):
    water = ase.Atoms("OHH", [(0, 0, 0), (0, 0, 0.96), (0, 0, -2.0)])
    model = build(shallow | {"pair_repulsion": True, "r_max": 6.0}, seed=3)
    row = only(range_failures(model, water, "float16", device="cpu"), kind="product", **{"pass": "forward"})
    assert "for H1→H2" in row["message"] or "for H2→H1" in row["message"]


# formats, and mistakes


def test_an_eight_bit_format(model, water):
    table = range_failures(model, water, "e4m3", device="cpu")
    row = only(table, **{"pass": "weights", "kind": "overflow"})
    assert row["message"].startswith("e4m3: |E0| of O, 2,042 eV, exceeds 240")
    assert row["count"] == 2  # of carbon too, 1,029.5 eV
    rows = table[table["pass"] == "forward"].set_index("kind")
    assert rows.loc["overflow", ["block", "where", "value"]].tolist() == ["atomic_energies_fn", "O0", -2042.0]
    assert rows.loc["product", ["block", "where", "value"]].tolist() == ["atomic_energies_fn", "H1", -13.6]
    assert (table.loc[table["kind"] == "flush", "value"].abs() <= 2.0**-10).all()


def test_one_row_of_a_kind_for_each_structure_and_pass(shallow, water, crystal):
    model = with_barium(shallow, [-13.6, -2042.0, -70045.0], atomic_numbers=[1, 8, 56])
    table = range_failures(model, [water, ase.Atoms("O", pbc=False)], "float16", device="cpu")
    assert table["structure"].tolist() == ["", "H2O", "O"]
    assert not table.duplicated(["precision", "structure", "pass", "kind", "block", "tensor"]).any()


def test_float64_that_is_not_finite_is_an_error(shallow, water):
    model = scaled(shallow, products__0__linear__weight=1e200, readouts__0__linear__weight=1e300)
    with pytest.raises(pp.InputError, match="H2O: energy and forces NaN or infinite in float64 already"):
        range_failures(model, water, "float16", device="cpu")


def test_nan_is_worse_than_infinity_and_infinity_than_any_number():
    finite, infinite, nan = (torch.tensor([1.0, x], dtype=torch.float64) for x in (-1e300, -torch.inf, torch.nan))
    assert _worst([]) == _worst([finite, "inf", None, torch.tensor([1])]) == _Worst.FINITE
    assert _worst([finite, infinite]) == max(_worst([infinite]), _worst([finite])) == _Worst.INFINITE
    assert _worst([nan, infinite]) == max(_worst([nan]), _worst([infinite])) == _Worst.NAN


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_as_on_a_cpu(shallow, water):
    model = with_barium(shallow, [-13.6, -2042.0, -70045.0], pair_repulsion=True, r_max=6.0)
    tables = [range_failures(model, water, "float16,bfloat16", device=device) for device in ("cpu", "cuda")]
    columns = ["precision", "structure", "pass", "kind", "block", "tensor", "where"]
    assert tables[0][columns].equals(tables[1][columns])
