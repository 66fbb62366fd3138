"""Rounding in chosen blocks, sweeps over bits, and error budgets."""

import io

import ase
import ase.io
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from precision_probe.analysis.errors import bits_needed
from precision_probe.cli.main import app
from precision_probe.diagnostics.bit_sweep import WHOLE, sweep
from precision_probe.diagnostics.error_budget import PARTS_TOGETHER, TOTAL, UNEXPLAINED, budget, emulation_of
from precision_probe.diagnostics.reference import Reference
from precision_probe.exceptions import InputError
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.blocks import default_blocks
from precision_probe.precisions import PRECISIONS, parse_precision
from precision_probe.variants.rounded_blocks import rounded_blocks, rounded_weights
from precision_probe.variants.rounding import round_to
from precision_probe.variants.variant import Variant


@pytest.fixture(scope="module")
def trials(model):
    water = ase.Atoms("OHH", [(0.02, 0.0, 0.11), (0.0, 0.78, -0.48), (0.05, -0.75, -0.45)])
    return Reference(model, water, device="cpu")


@pytest.fixture(scope="module")
def names(trials):
    return [block.name for block in default_blocks(trials.model)]


def forces(trials):
    return trials.variant.predict(trials.graphs[0])["forces"]


def test_blocks_in_all_of_float64s_bits_change_nothing_but_rounding(trials, names):
    exact = forces(trials)
    with rounded_blocks(trials.variant.model, dict.fromkeys(names, parse_precision("m52"))):
        found = forces(trials)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-14 * float(exact.abs().max()))


def test_a_rounded_block_does_what_a_rounded_model_does_to_it(trials):
    """The readout alone: its output is that of a copy whose weights, inputs and operations are rounded by hand."""
    precision = parse_precision("e8m7")
    readout = trials.variant.model.readouts[0]
    x = torch.randn(5, readout.linear.irreps_in.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = round_to(readout.linear.weight.detach(), precision)
    mul = readout.linear.irreps_in[0].mul
    scalars = round_to(x, precision)[:, :mul]
    expected = round_to(round_to(scalars @ weight[:mul].view(mul, 1), precision) / np.sqrt(mul), precision)
    with rounded_blocks(trials.variant.model, {"readouts.0": precision}):
        found = readout(x)
    np.testing.assert_allclose(found.detach(), expected, rtol=2 * precision.unit_roundoff)
    assert torch.equal(round_to(found.detach(), precision), found.detach())


def test_everything_is_as_it_was_afterwards(trials, names):
    model = trials.variant.model
    before, exact = weights_sha256(model), forces(trials)
    with rounded_blocks(model, dict.fromkeys(names, parse_precision("m4"))):
        assert weights_sha256(model) != before
    with pytest.raises(RuntimeError, match="stop"), rounded_blocks(model, {names[0]: parse_precision("m4")}):
        raise RuntimeError("stop")
    with rounded_weights(model, parse_precision("m4")):
        pass
    assert weights_sha256(model) == before
    assert torch.equal(forces(trials), exact)
    assert not any("forward" in vars(model.get_submodule(name)) for name in names)


def test_errors_grow_with_each_bit_less_and_no_block_is_worse_than_all(model, water):
    table = sweep(model, water, bits=(8, 12, 16, 20), device="cpu", progress=False)
    wide = table.pivot_table(index="block", columns="bits", values="forces_rel_l2", sort=False)
    assert wide.index[0] == WHOLE
    assert len(wide) == 1 + 9
    whole = wide.loc[WHOLE]
    assert 2**9 < whole[8] / whole[20] < 2**15  # twelve bits, within what one small molecule scatters
    assert whole.sort_index().is_monotonic_decreasing
    assert (wide[8].drop(WHOLE) < 4 * whole[8]).all()


def test_bits_needed_are_the_fewest_within_the_tolerance_and_above():
    rows = [("a", 4, 0.5), ("a", 8, 0.01), ("a", 12, 0.2), ("a", 16, 0.001), ("b", 4, 1.0), ("b", 16, 0.9)]
    table = pd.DataFrame(rows, columns=["block", "bits", "forces"])
    found = bits_needed(table, 0.05)
    assert found["a"] == 16  # 8 was luck: 12 is not enough
    assert pd.isna(found["b"])


def test_a_sweep_without_bits_or_of_a_model_without_forces_is_refused(model, water):
    with pytest.raises(InputError, match="No number of bits"):
        sweep(model, water, bits=(), progress=False)
    with pytest.raises(InputError, match="cannot be emulated"):
        sweep(model, water, bits=(60,), progress=False)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_parts_of_a_budget_make_up_the_whole(trials, names, name):
    table = budget(trials, name)
    assert table["source"].tolist()[:2] == ["geometry", "weights"]
    assert table["block"].tolist()[2:-3] == [block for block in names for _ in range(2)]
    parts, rows = table.iloc[:-3], table.set_index("source")
    numbers = rows.columns.drop("block")
    expected = np.sqrt((parts[numbers] ** 2).sum()).astype(float)
    np.testing.assert_allclose(rows.loc[PARTS_TOGETHER, numbers].astype(float), expected, rtol=1e-12)
    real = trials.errors(Variant(trials.model, PRECISIONS[name], trials.device).predict)
    assert rows.loc[TOTAL, "forces"] == real["forces"]
    total, together, rest = (rows.loc[key, "forces_rel_l2"] for key in (TOTAL, PARTS_TOGETHER, UNEXPLAINED))
    assert np.sign(rest) * rest**2 == pytest.approx(total**2 - together**2)
    assert 1 / 4 < total / together < 4  # the parts are what it is made of


def test_emulations():
    assert [emulation_of(PRECISIONS[n]).name for n in ("float32", "bfloat16", "float16")] == ["e8m23", "e8m7", "e5m10"]
    assert emulation_of(parse_precision("m9")).name == "m9"
    for name in ("float64", "tf32"):
        with pytest.raises(InputError, match=name):
            emulation_of(PRECISIONS[name])


@pytest.mark.parametrize(("emulated", "real"), [("e8m7", "bfloat16"), ("e5m10", "float16")])
def test_emulated_formats_are_as_far_off_as_the_real_ones(trials, emulated, real):
    found = [
        trials.errors(Variant(trials.model, parse_precision(name), trials.device).predict)["forces_rel_l2"]
        for name in (emulated, real)
    ]
    assert 1 / 1.5 < found[0] / found[1] < 1.5


@pytest.fixture
def file(water, tmp_path):
    ase.io.write(tmp_path / "water.xyz", water)
    return str(tmp_path / "water.xyz")


def test_the_command_prints_errors_and_bits_needed(file):
    command = ["sweep", "demo", file, "--bits", "8,23", "--blocks", "readouts.*", "-q", "--device", "cpu"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    rows = {line.split()[0]: line.split() for line in done.output.splitlines() if line.strip()}
    assert rows["readouts.1"][1] in ("8", "23")
    assert len(rows["readouts.0"]) == 4
    found = CliRunner().invoke(app, [*command, "--format", "csv"])
    assert pd.read_csv(io.StringIO(found.stdout))["bits"].tolist() == [23, 8] * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bits", "seven"], "whole numbers"),
        (["--bits", "99"], "cannot be emulated"),
        (["--tolerance", "forces=1e-3,energy=1e-3"], "one tolerance"),
        (["--tolerance", "stress=1e-3"], "one tolerance"),
    ],
)
def test_options_that_cannot_be_used_are_refused(file, options, words):
    done = CliRunner().invoke(app, ["sweep", "demo", file, *options])
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())
