"""bench_liquid.py: boxes of water at constant energy, each on its own though they run at once."""

import json

import ase.units
import bench_liquid
import numpy as np
import pytest
from ase.md.verlet import VelocityVerlet
from liquid import water
from liquid_run import _velocities, constant_energy

from precision_probe.fast.calculator import GraphCalculator
from precision_probe.fast.launcher import Launcher


def test_water_is_water():
    box = water(192)
    assert box.get_chemical_formula() == "H128O64"
    grams = box.get_masses().sum() / ase.units.mol
    assert grams / (box.get_volume() * 1e-24) == pytest.approx(1.0, rel=2e-3)
    lengths = [box.get_distance(3 * n, 3 * n + arm) for n in range(64) for arm in (1, 2)]
    np.testing.assert_allclose(lengths, 0.97)
    np.testing.assert_allclose([box.get_angle(3 * n + 1, 3 * n, 3 * n + 2) for n in range(64)], 104.5)


def test_each_box_moves_as_it_does_alone(in_float64):
    start = water(3)
    energies, temperatures = constant_energy(Launcher(in_float64), start, 2, 20, 0.5, lambda _: None)
    for number, velocities in enumerate(_velocities(start, 2).reshape(2, 3, 3)):
        atoms = start.copy()
        atoms.calc = GraphCalculator(Launcher(in_float64))
        atoms.set_velocities(velocities)
        dynamics = VelocityVerlet(atoms, 0.5 * ase.units.fs)
        dynamics.run(1)
        assert energies[number, 0] == pytest.approx(1e3 * atoms.get_total_energy() / 3, abs=1e-6)
        dynamics.run(20)
        assert energies[number, 1] == pytest.approx(1e3 * atoms.get_total_energy() / 3, abs=1e-6)
        assert temperatures[number, 1] == pytest.approx(atoms.get_temperature(), rel=1e-9)


def test_smoke(tmp_path):
    assert bench_liquid.main(["demo", "--smoke", "--quiet", "-o", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "bench_liquid-cpu-smoke.json").read_text())
    assert [row["precision"].split()[0] for row in record["drift"]] == ["float64", "float32", "float16"]
    assert all(np.isfinite(row["drift"]) for row in record["drift"])
    assert str(tmp_path) not in record["command"]


def test_one_run_is_refused(capsys):
    assert bench_liquid.main(["demo", "--runs", "1"]) == 2
    assert "--runs must be 2 or more" in capsys.readouterr().err
