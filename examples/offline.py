"""
Offline
=======

A trace made on a GPU node is read on a laptop, where there is neither torch nor mace: as pandas tables, as one xarray
data set, or lazily with dask where it is larger than the memory.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import precision_probe as pp

# %%
# An audit elsewhere, here done at once: ``precision-probe audit demo -p float32,float16 -o trace.h5``
path = Path(tempfile.mkdtemp()) / "trace.h5"
with pp.attach("demo", precisions="float32,float16", modes="propagated", device="cpu", output=path) as probe:
    probe.run("demo", progress=False)

# %%
# Tables: what each atom's force is wrong by, and the largest error of each block.
trace = pp.open_trace(path)
atoms = pp.per_atom(trace)
atoms.groupby(["precision", "element"])["error"].describe()[["count", "mean", "max"]]

# %%
pp.per_block(trace)

# %%
# Arrays: every precision side by side, with elements and structures as coordinates, so that nothing is joined by hand.
data = pp.to_dataset(trace)
data["forces"].coords

# %%
# What of the first message's error is in its scalars, and what in its vectors?
message = data["interactions.0.message"]
delta = message - message.sel(precision="float64")
squares = (delta**2).sum(["atom", "interactions.0.channel"]).groupby("interactions.0.component").sum()
share = squares / squares.sum("interactions.0.component")
share.sel(precision=["float32", "float16"]).to_pandas()

# %%
# Errors of forces by hand; they are those of the table.
error = ((data["forces"] - data["forces"].sel(precision="float64")) ** 2).sum("xyz") ** 0.5
np.testing.assert_allclose(error.sel(precision="float16").values, atoms.loc["float16"]["error"].to_numpy())
_, ax = plt.subplots(layout="constrained")
for name in ("float32", "float16"):
    ax.hist(atoms.loc[name]["error"], bins=np.geomspace(1e-7, 1, 36).tolist(), label=name)
ax.set(xscale="log", xlabel="error of the force on an atom / eV/Å", ylabel="atoms")
ax.legend(frameon=False)
plt.show()

# %%
# The file is HDF5 with netCDF-4's conventions: h5py, ncdump, xarray and others open it. With dask, arrays are read when
# something is computed of them, piece by piece.
with xr.open_datatree(path, engine="h5netcdf", chunks={}) as tree:
    forces = tree["propagated/float16/forces"]
    print(forces.chunks, f"largest force {float(abs(forces).max()):.3f} eV/Å")
trace.close()
