"""
Figures
=======

Every figure that a trace can be drawn as, for a paper or a talk. All are called alike: a trace, which precisions, which
blocks, and axes of matplotlib to draw on; without these they make a figure of their own.
"""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

import precision_probe as pp
from precision_probe.structures import read_structures

# sphinx_gallery_thumbnail_number = 9


def axes(height: float = 4.0) -> Axes:
    """Of a figure that is as wide as this page."""
    return plt.subplots(figsize=(8, height), layout="constrained")[1]


# %%
# A small audit. Some figures are of tables that say why, which are made on demand: ``precision-probe audit --explain``
# makes all of them.
structures = read_structures("demo")[1:3]
with pp.attach("demo", precisions=["float32", "float16"], device="cpu", modes="propagated", time=True) as probe:
    probe.run(structures, progress=False)
    probe.explain(structures, only=["contributions", "budget"], progress=False)
trace = probe.trace()
trace

# %%
# Where it grows
# --------------
#
# The largest relative error of each block's outputs. Dashed is the floor, float64's own result stored in the precision;
# dotted √n·u, what n roundings at random would make.
pp.plot_growth(trace, ax=axes())
plt.show()

# %%
# Gradients, from the last block to the first.
pp.plot_growth(trace, direction="backward", ax=axes())
plt.show()

# %%
# Both, of all blocks and precisions.
pp.plot_blocks(trace, ax=axes())
plt.show()

# %%
# Each order l and parity of the outputs of some blocks.
pp.plot_irreps(trace, blocks=["spherical_harmonics", "interactions.*", "products.*", "readouts.*"], ax=axes())
plt.show()

# %%
# Each chemical element, an edge being of that at which it ends.
pp.plot_elements(trace, precisions="float16", ax=axes())
plt.show()

# %%
# How errors are distributed
# --------------------------
#
# The part of the atoms whose force is off by more than so much.
pp.plot_forces(trace, ax=axes())
plt.show()

# %%
# The numbers of which forces consist, and those that two blocks return.
pp.plot_distribution(trace, ax=axes())
pp.plot_distribution(trace, blocks="interactions.*", ax=axes())
plt.show()

# %%
# What explains them
# ------------------
#
# What part of the model makes how much of the squared error. Most of that of energies is made where energies of atoms
# are added up, most of that of forces in the geometry: edge vectors of rounded positions.
pp.plot_contributions(trace, ax=axes())
plt.show()

# %%
# The force error that each source of rounding makes alone.
pp.plot_budget(trace, ax=axes(6.5))
plt.show()

# %%
# How large the error is with fewer and fewer bits in one block at a time. A trace may keep that table, too; here it is
# made of few numbers of bits.
sweep = pp.sweep("demo", structures[:1], bits=[18, 14, 10, 7], device="cpu", progress=False)
pp.plot_sweep(sweep, ax=axes())
plt.show()

# %%
# How many bits are enough for a tolerance, a tenth and a hundredth of it.
pp.plot_bits(sweep, ax=axes())
plt.show()

# %%
# Beside these there are ``plot_displacement``, energies along a line, of which rounding makes stairs;
# ``plot_equivariance``, by how much symmetries are broken; and ``plot_digits``, on how many digits runs agree.

# %%
# What digits cost
# ----------------
#
# Errors against time. On a CPU float16 is slow: there are no instructions for it. What a search for a policy measured
# is drawn by ``plot_policy``, as in :doc:`policy`.
pp.plot_times(trace, ax=axes())
plt.show()

# %%
# For files there is ``precision-probe plot demo.h5 contributions -o contributions.pdf``, or
# :func:`precision_probe.report.figures.files.save_figure`.
