"""
Your model
==========

A probe attaches to whatever holds the model: a MACE in memory, a ``MACECalculator``, a checkpoint, or any module.
"""

import tempfile
from pathlib import Path

import ase.build
import ase.io
import matplotlib.pyplot as plt
import torch
from mace.calculators import MACECalculator

import precision_probe as pp
from precision_probe.models.loading import load_model

# %%
# Say your model is in a checkpoint, and your structures in a file that ASE reads. Here the demo's stand in for both.
folder = Path(tempfile.mkdtemp())
checkpoint, structures = folder / "my.model", folder / "my.xyz"
torch.save(load_model("demo")[0], checkpoint)
ase.io.write(structures, [ase.build.molecule(name) for name in ("H2O", "CH3OH", "CH3CH2OH", "C6H6")])

# %%
# A checkpoint is a pickle, and loading it runs code from it. Convert one that you trust once: what comes out runs none,
# and holds the same numbers bit for bit, which is checked before the file is written.
converted = pp.convert(checkpoint, folder / "my.safetensors")

# %%
# Blocks are named by globs over PyTorch's own names. Slices of a file are written as in ASE.
with pp.attach(converted.path, precisions="float32,float16", blocks="interactions.*", device="cpu") as probe:
    probe.run(f"{structures}@:3", progress=False)
trace = probe.trace()
pp.per_block(trace)

# %%
# The calculator of a running project serves as well. Its model is copied, and gives bit for bit what it gave before.
calculator = MACECalculator(models=load_model("demo")[0], device="cpu", default_dtype="float64")
atoms = ase.build.molecule("CH3CH2OH", calculator=calculator)
before = atoms.get_forces()
with pp.attach(calculator, precisions="bfloat16") as probe:
    probe.run(atoms, progress=False)
calculator.reset()
assert (atoms.get_forces() == before).all()
pp.summary(probe.trace()).T

# %%
# Where the errors of one tensor lie: by order and parity, or by element.
messages = pp.errors(trace, by="irrep").query("tensor == 'message' and precision == 'float16'")
messages = messages.query("mode == 'propagated' and direction == 'forward'")
by_irrep = messages.pivot_table(index="irrep", columns="block", values="rel_l2")
_, ax = plt.subplots(layout="constrained")
by_irrep.plot(ax=ax, style="o", logy=True, ylabel="rel_l2 of the message in float16")
plt.show()

# %%
# Modules that are no MACE need to be told how they are called, and which of their blocks to look at.
network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1))
with pp.attach(network, call=lambda module, x: module(x), blocks="*", precisions="bfloat16") as probe:
    probe.run([torch.randn(16, 3), torch.randn(4, 3)], progress=False)
pp.errors(probe.trace()).query("mode == 'propagated'")[["block", "tensor", "direction", "rel_l2"]]
