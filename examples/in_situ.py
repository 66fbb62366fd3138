"""
In situ
=======

What would lower precision have made of the forces along a trajectory? While a probe is attached, calls of the model are
observed: of molecular dynamics, a relaxation, a training loop. The run itself is bit for bit what it is without.
"""

import tempfile
from pathlib import Path

import ase.units
import matplotlib.pyplot as plt
import numpy as np
from ase.md.langevin import Langevin
from mace.calculators import MACECalculator

import precision_probe as pp
from precision_probe.models.loading import load_model
from precision_probe.structures import read_structures

TIMESTEP = 0.5  # fs


def dynamics_of_ethanol() -> Langevin:
    """Ethanol at 300 K, with the demo model in float64."""
    atoms = next(atoms for atoms in read_structures("demo") if atoms.info["name"] == "ethanol")
    atoms.calc = MACECalculator(models=load_model("demo")[0], device="cpu", default_dtype="float64")
    noise = np.random.default_rng(0)
    return Langevin(atoms, TIMESTEP * ase.units.fs, temperature_K=300, friction=0.02, rng=noise, fixcm=False)


# %%
# Each tenth call is run again in two precisions. What is observed goes to the file as it comes, so that a run which is
# killed keeps what it had.
output = Path(tempfile.mkdtemp()) / "md.h5"
observed = dynamics_of_ethanol()
with pp.attach(observed.atoms.calc, precisions="float32,float16", every=10, keep="none", output=output):
    observed.run(100)

# %%
# Without a probe, the same atoms are in the same places.
alone = dynamics_of_ethanol()
alone.run(100)
assert (observed.atoms.positions == alone.atoms.positions).all()

# %%
# Observed calls are the trace's structures: their errors are a table like any other.
with pp.open_trace(output) as trace:
    atoms = pp.per_atom(trace).reset_index()
call = atoms["name"].str.removeprefix("call ").astype(int)
atoms["fs"] = (call - 1) * TIMESTEP  # the first call comes before the first step
largest = atoms.pivot_table(index="fs", columns="precision", values="error", aggfunc="max", sort=False)
largest

# %%
# The largest force error at each observed time.
figure, ax = plt.subplots(layout="constrained")
for precision, marker in zip(largest, "os", strict=True):
    ax.semilogy(largest.index, 1e3 * largest[precision], marker=marker, label=precision)
ax.set(xlabel="time / fs", ylabel="largest force error / meV/Å")
ax.legend(frameon=False)
plt.show()
