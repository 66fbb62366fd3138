"""Steps along a line: against stairs and noise of known size."""

import numpy as np
import pandas as pd
import pytest

from precision_probe.analysis.energy_steps import step_sizes


def table_of(position, **energies):
    parts = [
        pd.DataFrame({"precision": name, "position": position, "energy": energy, "force": -energy})
        for name, energy in energies.items()
    ]
    return pd.concat(parts, ignore_index=True)


def test_stairs_and_noise_are_measured_and_smooth_errors_are_not():
    x = np.linspace(0, 0.01, 1001)
    exact = 100 * np.sin(30 * x) + 5 * np.exp(100 * x)
    noise = np.random.default_rng(0).normal(scale=1e-3, size=len(x))
    bent = exact + 0.3 + 20 * x - 7e3 * x**2 + 1e5 * x**3
    sizes = step_sizes(table_of(x, float64=exact, stairs=np.round(bent, 1), noisy=bent + noise, bent=bent))
    assert sizes.index.tolist() == ["float64", "stairs", "noisy", "bent"]
    assert sizes.loc["stairs", "energy_step"] == pytest.approx(0.1 / np.sqrt(12), rel=0.05)
    assert sizes.loc["stairs", "n_distinct"] == len(set(np.round(bent, 1)))
    assert sizes.loc["noisy", ["energy_step", "force_step"]].tolist() == pytest.approx([1e-3, 1e-3], rel=0.05)
    assert sizes.loc["bent", ["energy_step", "force_step"]].max() < 1e-9
    assert sizes.loc["float64", ["energy_step", "force_step"]].eq(0).all()


def test_what_overflows_has_no_steps():
    x = np.linspace(0, 0.01, 50)
    sizes = step_sizes(table_of(x, float64=x, float16=np.full(50, np.nan)))
    assert sizes.loc["float16", ["energy_step", "force_step"]].isna().all()
    assert sizes.loc["float16", "n_distinct"] == 0
