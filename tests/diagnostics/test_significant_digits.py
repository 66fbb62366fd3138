"""Significant digits: against scatter that is known, and the real error of models."""

import ase
import numpy as np
import pytest
import torch
from runs import molecule

from precision_probe.diagnostics import significant_digits as digits
from precision_probe.diagnostics.reference import Reference
from precision_probe.diagnostics.significant_digits import significant_digits
from precision_probe.exceptions import InputError
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.building import build
from precision_probe.models.evaluation import ENERGY, FORCES, Prediction
from precision_probe.precisions import emulated, parse_precision
from precision_probe.variants.variant import Variant


@pytest.fixture(scope="module")
def reference(config):
    """Of a model with one layer, so that this takes seconds."""
    return Reference(build(config | {"num_interactions": 1}, seed=3), molecule(), device="cpu")


@pytest.fixture(scope="module")
def table(reference):
    return significant_digits(reference, ["float64", "m8", "m18", "e8m10sr"]).set_index(["precision", "quantity"])


@pytest.fixture
def scattered(monkeypatch):
    """Variants whose energies and forces are normally distributed: σ and μ are known."""
    sigma = {3: 0.01, 2: 0.04}  # eV and eV/Å; by number of atoms

    class Scattered:
        def __init__(self, model, precision, device, seed):
            self.rng = np.random.default_rng(seed)

        def predict(self, graph):
            n = graph.n_atoms
            energy = -20.0 + sigma[n] * self.rng.normal(size=1)
            forces = np.arange(3.0 * n).reshape(n, 3) + sigma[n] * self.rng.normal(size=(n, 3))
            return Prediction({ENERGY: torch.as_tensor(energy), FORCES: torch.as_tensor(forces)}, 0.0)

    monkeypatch.setattr(digits, "Variant", Scattered)
    return sigma


@pytest.mark.parametrize(("name", "factor"), [("float16", 1), ("m9sr", 1), ("float64", 16), ("m50", 4)])
def test_scatter_that_is_known(model, scattered, name, factor):
    """Bits that float64 has too few of make the scatter of the samples larger, by two for each."""
    structures = [ase.Atoms("OHH", [(0, 0, 0), (0, 0, 1), (0, 1, 0)]), ase.Atoms("CO", [(0, 0, 0), (0, 0, 1.1)])]
    found = significant_digits(Reference(model, structures, device="cpu"), [name], n_samples=2000)
    assert found["precision"].tolist() == [name] * 2
    found = found.set_index("quantity")
    worst = scattered[2]  # of the two structures, in eV/atom and eV/Å
    assert found.loc["forces", "spread"] == pytest.approx(worst / factor, rel=0.05)
    assert found.loc["energy", "spread"] == pytest.approx(worst / 2 / factor, rel=0.05)
    size = np.sqrt(np.mean(np.arange(6.0) ** 2))
    assert found.loc["forces", "digits"] == pytest.approx(-np.log10(worst / factor / size), abs=0.03)
    assert found.loc["energy", "digits"] == pytest.approx(-np.log10(worst / factor / 20), abs=0.03)


def test_spread_is_of_the_size_of_the_error_against_float64(reference, table):
    precision = parse_precision("e8m10sr")
    errors = [
        reference.errors(Variant(reference.model, precision, reference.device, seed=seed).predict)
        for seed in range(100, 103)
    ]
    forces = np.sqrt(np.mean([error["forces_rms"] ** 2 for error in errors]))
    assert 1 / 5 < table.loc[("e8m10sr", "forces"), "spread"] / forces < 5
    nearest = reference.errors(Variant(reference.model, parse_precision("e8m10"), reference.device).predict)[
        "forces_rms"
    ]
    assert 1 / 5 < table.loc[("e8m10sr", "forces"), "spread"] / (np.sqrt(2) * nearest) < 5


def test_every_bit_is_worth_a_bit(table):
    for quantity in ("interaction_energy", "forces"):
        gained = table.loc[("m18", quantity), "digits"] - table.loc[("m8", quantity), "digits"]
        assert gained == pytest.approx(10 * np.log10(2), abs=0.6)
        assert table.loc[("m8", quantity), "spread"] > 100 * table.loc[("m18", quantity), "spread"]


def test_float64_has_the_digits_of_float64(table):
    assert table.loc[("float64", "forces"), "digits"] == pytest.approx(14, abs=1.5)
    assert table.loc["float64"].index.tolist() == ["energy", "interaction_energy", "forces"]
    more = table.loc[("float64", "forces"), "digits"] - table.loc[("m18", "forces"), "digits"]
    assert more == pytest.approx((52 - 18) * np.log10(2), abs=0.6)


def test_the_seed_decides_and_nothing_else_is_random(reference):
    before = (weights_sha256(reference.model), torch.get_rng_state(), np.random.get_state()[1].copy())  # noqa: NPY002
    first, again, other = (significant_digits(reference, ["m10"], n_samples=2, seed=seed) for seed in (1, 1, 7))
    assert first.equals(again)
    spreads = [table.set_index("quantity").loc["forces", "spread"] for table in (first, other)]
    assert spreads[0] != spreads[1]
    assert weights_sha256(reference.model) == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    np.testing.assert_array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


def test_the_format_that_is_sampled():
    """Its own bits and range, as long as float64 has four bits more; of what has more, those that leave four."""
    sampled = [digits._stochastic(parse_precision(name)) for name in ("float16", "m48", "m50", "float64", "e8m7sr")]
    assert sampled == [
        (emulated(11, 5, stochastic=True), 0),
        (emulated(49, stochastic=True), 0),
        (emulated(49, stochastic=True), 2),
        (emulated(49, 11, stochastic=True), 4),
        (emulated(8, 8, stochastic=True), 0),
    ]


@pytest.mark.parametrize(
    ("precisions", "n_samples", "words"),
    [(["m10"], 1, "two samples or more; got 1"), (["m10", "tf32"], 6, "tf32 rounds the inputs"), (["m99"], 6, "m99")],
)
def test_what_cannot_be_sampled_is_refused_at_once(reference, monkeypatch, precisions, n_samples, words):
    monkeypatch.setattr(digits, "Variant", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises(InputError, match=words):
        significant_digits(reference, precisions, n_samples=n_samples)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_as_on_a_cpu(reference):
    found = significant_digits(Reference(reference.model, molecule(), device="cuda"), ["e8m10sr"])
    expected = significant_digits(reference, ["e8m10sr"])
    np.testing.assert_allclose(found["digits"], expected["digits"], atol=0.7)  # other random numbers
