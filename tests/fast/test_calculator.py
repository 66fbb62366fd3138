"""calculator.py: what ASE's drivers get is what mace-torch's calculator gives them."""

import ase.build
import numpy as np
import pytest
from ase import units
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from mace.calculators import MACECalculator

from precision_probe import Policy
from precision_probe.exceptions import InputError
from precision_probe.fast.calculator import GraphCalculator
from precision_probe.fast.launcher import Launcher
from precision_probe.models.building import build


@pytest.fixture
def calculator(in_float64):
    return GraphCalculator(Launcher(in_float64))


def test_all_properties(calculator, demo, diamond):
    mine, theirs = diamond.copy(), diamond.copy()
    mine.calc, theirs.calc = calculator, MACECalculator(models=[demo], device="cpu", default_dtype="float64")
    assert mine.get_potential_energy() == pytest.approx(theirs.get_potential_energy(), rel=1e-14)
    assert mine.get_potential_energy(force_consistent=True) == mine.get_potential_energy()
    np.testing.assert_allclose(mine.get_forces(), theirs.get_forces(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(mine.get_stress(), theirs.get_stress(), rtol=0, atol=1e-14)
    np.testing.assert_allclose(mine.get_potential_energies(), theirs.calc.results["energies"], rtol=0, atol=1e-10)


def test_the_interaction_energy_is_without_the_isolated_atoms(in_float64, demo, diamond, by_mace):
    diamond.calc = GraphCalculator(Launcher(in_float64), interaction=True)
    energy, forces, _ = by_mace(diamond)
    (column,) = np.flatnonzero(demo.atomic_numbers.numpy() == 6)
    alone = float(demo.atomic_energies_fn.atomic_energies.flatten()[column])
    assert diamond.get_potential_energy() == pytest.approx(energy - len(diamond) * alone, abs=1e-11)
    np.testing.assert_allclose(diamond.get_forces(), forces, rtol=0, atol=1e-12)


def test_stress_is_computed_once_it_was_asked_for(calculator, diamond):
    diamond.calc = calculator
    diamond.get_forces()
    assert "stress" not in calculator.results
    diamond.get_stress()
    diamond.rattle(0.01)
    diamond.get_forces()
    assert "stress" in calculator.results


def test_a_molecule_has_no_stress(calculator, water):
    water.calc = calculator
    with pytest.raises(PropertyNotImplementedError, match="periodic in all directions"):
        water.get_stress()


def trajectory(atoms, calculator, n_steps):
    atoms = atoms.copy()
    atoms.calc = calculator
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
    dynamics, visited = VelocityVerlet(atoms, 0.5 * units.fs), []
    dynamics.attach(lambda: visited.append(atoms.positions.copy()))
    dynamics.run(n_steps)
    return np.array(visited)


def test_dynamics_are_mace_torchs(calculator, demo, diamond):
    expected = trajectory(diamond, MACECalculator(models=[demo], device="cpu", default_dtype="float64"), 20)
    np.testing.assert_allclose(trajectory(diamond, calculator, 20), expected, rtol=0, atol=1e-11)


def test_an_atom_is_added_and_another_element_comes(calculator, by_mace):
    atoms = ase.build.molecule("CH3OH")
    atoms.calc = calculator
    for change in (
        lambda: None,
        lambda: atoms.append(ase.Atom("H", (0, 0, 2.5))),
        lambda: atoms.numbers.__setitem__(0, 8),
    ):
        change()
        energy, forces, _ = by_mace(atoms)
        assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-14)
        np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0, atol=1e-11)


def test_an_element_that_the_model_does_not_know(calculator):
    atoms = ase.build.molecule("SiH4")
    atoms.calc = calculator
    with pytest.raises(InputError, match="has Si, which the model does not know"):
        atoms.get_potential_energy()


def test_nothing_that_is_not_finite_is_handed_on(demo, water):
    water.calc = Policy.uniform("float16").calculator(demo, run="graph")
    water.get_forces()
    water.positions[1] = water.positions[2]
    with pytest.raises(CalculationFailed, match="NaN or infinity"):
        water.get_forces()


def test_an_empty_and_a_lone_neighbourhood(calculator, by_mace):
    for atoms in (ase.Atoms("O"), ase.Atoms("OH", [(0, 0, 0), (0, 0, 9.0)])):
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(by_mace(atoms)[0], rel=1e-14)
        assert not atoms.get_forces().any()


def test_momenta_are_no_other_structure_where_charges_are_read(config, water):
    spec = {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 4}
    model = build(config | {"num_interactions": 1, "embedding_specs": {"total_charge": spec}})
    water.calc = GraphCalculator(Launcher(model))
    neutral = water.get_potential_energy()
    water.set_momenta(np.ones((3, 3)))
    assert water.get_potential_energy() == neutral
    water.positions += 0.01
    water.get_potential_energy()
    assert len(water.calc._known) == 1
    water.info["charge"] = 1
    assert water.get_potential_energy() != neutral
    assert len(water.calc._known) == 2
