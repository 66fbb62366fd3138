"""Models launched without overhead: one CUDA graph for each size, neighbour lists with a skin, drivers that use them.

May import what loads, mixes and runs a model; of the package dynamics (in ``diagnostics``), what searches policies and
the command line use it.
"""
