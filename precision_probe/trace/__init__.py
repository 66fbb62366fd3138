"""The trace: what one run recorded, in memory (xarray) and on disk (HDF5), while it grows and when it is complete.

Here belongs how arrays are laid out, written and read; what they mean does not. Imports the package's own modules
(``precisions``, ``files``, …) only, and neither torch nor mace: a trace made on a GPU node is read on a laptop.
"""
