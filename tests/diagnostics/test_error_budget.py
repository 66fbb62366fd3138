"""Error budgets: what parts add up to, and each part by torch's own casts."""

import copy
import dataclasses

import mace_by_hand
import numpy as np
import pytest
import torch
from mace.tools.scatter import scatter_sum
from runs import molecule

from precision_probe.diagnostics.error_budget import PARTS_TOGETHER, TOTAL, UNEXPLAINED, budget, emulation_of
from precision_probe.diagnostics.reference import Reference
from precision_probe.exceptions import InputError
from precision_probe.models.blocks import default_blocks
from precision_probe.models.building import build
from precision_probe.precisions import PRECISIONS, parse_precision
from precision_probe.variants.variant import Variant


@pytest.fixture(scope="module")
def reference(model):
    return Reference(model, molecule(), device="cpu")


@pytest.fixture(scope="module")
def names(reference):
    return [block.name for block in default_blocks(reference.model)]


def largest_error(reference, prediction):
    return float((prediction["forces"] - reference.exact[0]["forces"]).abs().max())


def of_rounded_geometry(reference, dtype):
    (graph,) = reference.graphs
    positions = graph.data["positions"].to(dtype).double()
    moved = dataclasses.replace(graph, data=graph.data | {"positions": positions})
    return largest_error(reference, reference.variant.predict(moved))


def of_rounded_weights(reference, dtype):
    rounded = copy.deepcopy(reference.model)
    for tensor in rounded.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(dtype))
    variant = Variant(rounded, PRECISIONS["float64"], reference.device)
    return largest_error(reference, [variant.predict(reference.graphs[0]) for _ in range(3)][-1])  # once compiled


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_parts_of_a_budget_make_up_the_whole(reference, names, name):
    table = budget(reference, name)
    assert table["source"].tolist()[:2] == ["geometry", "weights"]
    rounded_twice = [block for block in names for _ in range(1 if block == "atomic_energies_fn" else 2)]
    assert table["block"].tolist()[2:-4] == rounded_twice
    assert {"scale_shift", "atomic_energies_fn"} <= set(rounded_twice)
    assert table["source"].iloc[-4] == "sums"
    parts, rows = table.iloc[:-3], table.set_index("source")
    numbers = rows.columns.drop("block")
    expected = np.sqrt((parts[numbers] ** 2).sum()).astype(float)
    np.testing.assert_allclose(rows.loc[PARTS_TOGETHER, numbers].astype(float), expected, rtol=1e-12)
    real = reference.errors(Variant(reference.model, PRECISIONS[name], reference.device).predict)
    assert rows.loc[TOTAL, "forces"] == real["forces"]
    total, together, rest = (rows.loc[key, "forces_rel_l2"] for key in (TOTAL, PARTS_TOGETHER, UNEXPLAINED))
    assert np.sign(rest) * rest**2 == pytest.approx(total**2 - together**2)
    assert 1 / 4 < total / together < 4  # the parts are what it is made of
    assert rows.loc["geometry", "forces"] == of_rounded_geometry(reference, getattr(torch, name))
    assert rows.loc["weights", "forces"] == of_rounded_weights(reference, getattr(torch, name))


def energies_of_atoms(model):
    """Of one molecule, (n_atoms,) eV: of isolated atoms, and what is added to them, with mace-torch alone."""
    data = mace_by_hand.graph(molecule(), model)
    isolated = data["node_attrs"].numpy() @ model.atomic_energies_fn.atomic_energies.numpy().ravel()
    return isolated, model(data)["node_energy"].detach().numpy() - isolated


def test_sums_are_of_what_the_precision_holds(model, reference):
    """Added up in float16 by mace-torch's own sum over atoms, and beside that by NumPy in float64."""
    table = budget(reference, "float16").set_index("source")
    isolated, rest = (torch.as_tensor(x).half() for x in energies_of_atoms(model))
    sums = [scatter_sum(x, torch.zeros(3, dtype=torch.int64), dim=0, dim_size=1) for x in (isolated, rest)]
    exactly = [float(x.numpy().astype(np.float64).sum()) for x in (isolated, rest)]
    error = abs(float(sums[0] + sums[1]) - sum(exactly)) / 3
    assert table.loc["sums", "energy"] == pytest.approx(error, rel=1e-9)
    assert error > 0.05  # the spacing of float16 is 2 eV there
    interaction = abs(float(sums[1]) - exactly[1]) / 3
    assert table.loc["sums", "interaction_energy"] == pytest.approx(interaction, rel=1e-9, abs=1e-12)
    assert table.loc["sums", "forces"] < 1e-12


def test_sums_in_an_emulated_format_are_rounded_once(model, reference):
    """To six stored bits, by NumPy: seven bits of significand."""

    def rounded(x):
        fraction, exponent = np.frexp(x)
        return np.ldexp(np.rint(fraction * 2**7), exponent - 7)

    table = budget(reference, "m6").set_index("source")
    total = sum(rounded(x).sum() for x in energies_of_atoms(model))
    error = abs(rounded(total) - total) / 3
    assert table.loc["sums", "energy"] == pytest.approx(error, rel=1e-9)
    assert error > 0.5


def test_models_that_do_not_scale_add_up_their_readouts(config):
    reference = Reference(build(config | {"model": "MACE"}, seed=3), molecule(), device="cpu")
    table = budget(reference, "float16").set_index("source")
    assert "scale_shift" not in set(table["block"])
    assert 0.05 < table.loc["sums", "energy"] < 2
    assert 0 < table.loc["sums", "interaction_energy"] < 0.05


def test_emulations():
    assert [emulation_of(PRECISIONS[n]).name for n in ("float32", "bfloat16", "float16")] == ["e8m23", "e8m7", "e5m10"]
    assert emulation_of(parse_precision("m9")).name == "m9"
    for name in ("float64", "tf32"):
        with pytest.raises(InputError, match=name):
            emulation_of(PRECISIONS[name])


@pytest.mark.parametrize(("emulated", "real"), [("e8m7", "bfloat16"), ("e5m10", "float16")])
def test_emulated_formats_are_as_far_off_as_the_real_ones(reference, emulated, real):
    errors = [
        reference.errors(Variant(reference.model, parse_precision(name), reference.device).predict)["forces_rel_l2"]
        for name in (emulated, real)
    ]
    assert 1 / 1.5 < errors[0] / errors[1] < 1.5


def test_a_stochastic_budget_repeats_itself_and_leaves_the_random_state_alone(reference):
    before = torch.get_rng_state()
    first, second = (budget(reference, "m7sr") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.equals(second)
    assert (first.set_index("source").loc[["geometry", "weights"], "forces"] > 0).all()
