"""A MACE from wherever it is, what it is made of, and what it is run on.

Here belongs what is true of a model in any precision: loading and building it, its blocks, its backend, its graphs, and
what it predicts. Imports the package's own modules (``exceptions``, ``precisions``, …) and nothing of what records or
analyses.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
