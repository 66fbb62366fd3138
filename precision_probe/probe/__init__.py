"""``attach()`` and the ``Probe``: a model's calls and structures run through every variant, and recorded.

Here belongs what ties a run together. Imports ``diagnostics``, ``variants``, ``models``, ``trace`` and ``analysis``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
