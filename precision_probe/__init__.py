"""Which precision a MACE interatomic potential can be trusted in, and where the digits go.

    import precision_probe as pp

    with pp.attach(model, precisions=["float32", "bfloat16"]) as probe:
        probe.run(atoms)
    pp.errors(probe.trace())

Importing the package loads nothing heavy; each name is loaded when it is first used, and those that read traces
(``open_trace``, ``errors``, ``summary``, ``compare_traces``, …) never load torch or mace. Which module each name comes
from stands in ``__init__.pyi``.

What lies in the package itself needs nothing of the rest and neither torch nor mace: what a precision and a policy are,
structures as people have them, files written whole or not at all. The packages, each of which says what belongs in it:
``trace``, ``analysis`` and ``report`` read what a run recorded; ``models``, ``variants``, ``safe_models``,
``diagnostics``, ``probe`` and ``search`` load and run a model; ``cli`` is the command line.
"""

import logging

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

logging.getLogger(__name__).addHandler(logging.NullHandler())  # who wants to see what is logged, says where
