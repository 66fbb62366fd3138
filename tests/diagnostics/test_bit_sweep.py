"""Sweeps over bits: how errors grow, and that each is the error of rounding by hand."""

import numpy as np
import pytest
import torch
from runs import molecule

from precision_probe.diagnostics.bit_sweep import SWEEP_TITLE, WHOLE, sweep, sweep_of
from precision_probe.diagnostics.reference import ERROR_UNITS, Reference
from precision_probe.exceptions import InputError
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.graphs import build_graph
from precision_probe.precisions import parse_precision
from precision_probe.variants.variant import Variant


def test_errors_grow_with_each_bit_less_and_no_block_is_worse_than_all(model, water):
    table = sweep(model, water, bits=(8, 12, 16, 20), device="cpu", progress=False)
    wide = table.pivot_table(index="block", columns="bits", values="forces_rel_l2", sort=False)
    assert wide.index[0] == WHOLE
    assert len(wide) == 1 + 11
    assert set(table["n_searched"]) == {1}
    assert set(table["n_held_out"]) == {0}
    whole = wide.loc[WHOLE]
    assert 2**9 < whole[8] / whole[20] < 2**15  # twelve bits, within what one small molecule scatters
    assert whole.sort_index().is_monotonic_decreasing
    assert (wide[8].drop(WHOLE) < 4 * whole[8]).all()


def test_each_row_is_the_error_of_a_model_that_computes_so(model):
    """A block's row with every bit that float64 has is next to no error; the whole model's is a variant's, by NumPy."""
    reference = Reference(model, molecule(), device="cpu")
    before = weights_sha256(model), weights_sha256(reference.variant.model)
    table = sweep_of(reference, (10, 52), "readouts.*").set_index(["block", "bits"])
    assert table.index.tolist() == [(name, bits) for name in (WHOLE, "readouts.0", "readouts.1") for bits in (52, 10)]
    variant = Variant(model, parse_precision("m10"), torch.device("cpu"))
    delta = (variant.predict(reference.graphs[0])["forces"] - reference.exact[0]["forces"]).numpy()
    assert table.loc[(WHOLE, 10), "forces"] == np.abs(delta).max()
    assert table.loc[(WHOLE, 10), "forces_mae"] == np.abs(delta).mean()
    assert (table.xs(52, level="bits")["forces_rel_l2"] < 1e-13).all()
    assert (table.xs(10, level="bits")["forces_rel_l2"] > 1e-6).all()
    assert (weights_sha256(model), weights_sha256(reference.variant.model)) == before
    assert table.attrs == {"title": SWEEP_TITLE, "units": ERROR_UNITS}  # nothing is held out
    assert set(table.attrs["units"]) <= set(table.columns)


def forces_of(model, precision, seeds):
    """Errors of forces over some molecules, (n_atoms, 3) each, one after the other."""
    variants = [Variant(model, parse_precision(name), torch.device("cpu")) for name in ("float64", precision)]
    graphs = [build_graph(molecule(seed), model) for seed in seeds]
    exact, rounded = (
        np.concatenate([variant.predict(graph)["forces"].numpy() for graph in graphs]) for variant in variants
    )
    return np.abs(rounded - exact)


def test_every_second_structure_is_held_out(model):
    molecules = [molecule(seed) for seed in range(5)]
    options = {"bits": (10,), "blocks": "readouts.0", "device": "cpu", "progress": False}
    whole = sweep(model, molecules, **options).set_index("block").loc[WHOLE]
    assert (whole["n_searched"], whole["n_held_out"]) == (3, 2)
    assert whole["forces"] == forces_of(model, "m10", (0, 2, 4)).max()
    assert whole["held_out_forces"] == forces_of(model, "m10", (1, 3)).max()
    assert whole["held_out_forces_mae"] == pytest.approx(forces_of(model, "m10", (1, 3)).mean(), rel=1e-12)


def test_structures_to_hold_out_may_be_given(model):
    options = {"bits": (10,), "blocks": "readouts.0", "device": "cpu", "progress": False}
    table = sweep(model, [molecule(0), molecule(1)], held_out=molecule(2), **options)
    whole = table.set_index("block").loc[WHOLE]
    assert (whole["n_searched"], whole["n_held_out"]) == (2, 1)
    assert whole["forces"] == forces_of(model, "m10", (0, 1)).max()
    assert whole["held_out_forces"] == forces_of(model, "m10", (2,)).max()
    assert set(table.attrs["units"]) <= set(table.columns)
    assert table.attrs["units"]["held_out_forces"] == "eV/Å"


def test_a_sweep_without_bits_or_of_a_model_without_forces_is_refused(model, water):
    with pytest.raises(InputError, match="No number of bits"):
        sweep(model, water, bits=(), progress=False)
    with pytest.raises(InputError, match="cannot be emulated"):
        sweep(model, water, bits=(60,), progress=False)
