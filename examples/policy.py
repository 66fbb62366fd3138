"""
Choose and run a policy
=======================

A search finds the fastest assignment of precisions to blocks within a tolerance. What it finds is a short list of
rules, which makes a calculator for ASE.
"""

import tempfile
from pathlib import Path

import ase.units
import matplotlib.pyplot as plt
import numpy as np
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet

import precision_probe as pp
from precision_probe.structures import read_structures

# %%
# The tolerance is of the total energy (eV/atom) and of any component of any force (eV/Å). Some of the structures are
# searched on, others held out. Times are of the largest, so it should be of the size that you will run; on a GPU give
# ``device="cuda"``, and leave ``allow`` to its default.
*molecules, ice = read_structures("demo")
tolerance = {"forces": 1e-4, "energy": 1e-5}
found = pp.recommend(
    "demo", [*molecules, ice.repeat((2, 1, 1))], tolerance, allow=["float32"], device="cpu", progress=False
)
found.policy

# %%
# All that was measured as a whole, the fastest first. ``share`` is the largest error in tolerances. What people do
# today, to cast the model as a whole, is among them.
found.candidates[["forces", "energy", "share", "vs_float64", "held_out"]]

# %%
# Time and error of those that are worth a look, which are kept in the policy's file.
_, ax = plt.subplots(figsize=(8, 4), layout="constrained")
pp.plot_policy(found.policy, ax=ax)
plt.show()

# %%
# What the numbers rest on, and what they do not say.
print(*found.notes, sep="\n\n")

# %%
# A policy is a small file with its evidence; ``precision-probe apply`` takes it, too.
path = found.policy.save(Path(tempfile.mkdtemp()) / "policy.json")
policy = pp.Policy.load(path)
assert policy == found.policy

# %%
# Its calculator runs in ASE like any other. With ``device="cuda"`` it launches the model as one CUDA graph.
atoms = next(atoms for atoms in read_structures("demo") if atoms.info["name"] == "benzene")
start = atoms.copy()
atoms.calc = policy.calculator("demo", device="cpu")
MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
dynamics = VelocityVerlet(atoms, 0.5 * ase.units.fs)
before = atoms.get_total_energy()
dynamics.run(50)
print(
    f"After {dynamics.get_time() / ase.units.fs:.0f} fs the total energy is {before:.6f} eV + "
    f"{1e3 * (atoms.get_total_energy() - before):.3f} meV."
)

# %%
# Does the energy drift? The same dynamics in float64, in float32 as a whole and under the policy, from the same
# velocities, meV/atom/ps with 95 % confidence intervals. These runs are short: ``detectable`` says what they can show.
pp.energy_drift("demo", start, "float32", policies={"policy": policy}, steps=100, n_runs=2).round(3)
