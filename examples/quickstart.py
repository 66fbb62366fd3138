"""
Quickstart
==========

May the bundled model run in float32, and what would half precisions do to it? This audits it, in half a minute.
"""

import matplotlib.pyplot as plt

import precision_probe as pp

# %%
# A probe clones the model into each precision. It runs structures through all of them, and records what every block
# computes and the gradients that it receives. ``"demo"`` stands for the bundled model, and for its structures: small
# molecules and ice.
with pp.attach("demo", precisions=["float32", "bfloat16", "float16"], device="cpu") as probe:
    probe.run("demo", progress=False)
trace = probe.trace()
trace

# %%
# The model as a whole: the largest errors against float64, over all structures, in eV/atom, eV/Å and eV/Å³.
summary = pp.summary(trace)
summary.T

# %%
# float32 is four orders of magnitude below what the model itself is off by (45 meV/Å on average); the largest error of
# float16 is above that, and bfloat16's ten times as large.
assert summary["forces"]["float32"] < 1e-4 < 45e-3 < summary["forces"]["float16"] < summary["forces"]["bfloat16"]

# %%
# Which block loses the digits? *Isolated* is each block alone, on float64's own inputs rounded: what it does itself,
# without what it inherits. ``amplification`` counts unit roundoffs, and is much the same in every precision.
errors = pp.errors(trace)
own = errors.query("precision == 'float16' and mode == 'isolated' and direction == 'forward'")
own.sort_values("rel_l2", ascending=False)[["block", "tensor", "rel_l2", "amplification"]].head()

# %%
# How the error grows on its way through the network, beside √n·u, what n roundings at random would make of it.
_, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
pp.plot_growth(trace, ax=ax)
plt.show()

# %%
# All blocks and precisions, forward and backward.
_, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
pp.plot_blocks(trace, ax=ax)
plt.show()

# %%
# Errors of forces, atom by atom.
_, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
pp.plot_forces(trace, ax=ax)
plt.show()

# %%
# A trace is kept as one HDF5 file, and its page, the verdict and all figures, as one HTML file::
#
#     trace.save("demo.h5")
#     pp.write_report(trace, "demo.html")
#
# On the command line that is ``precision-probe audit demo -o demo.h5`` and ``precision-probe report demo.h5 -o
# demo.html``.
