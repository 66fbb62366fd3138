"""mace-torch and e3nn, imported in the order that works and without the notices they print.

mace must come first: e3nn 0.4.4 cannot load its own constants on torch ≥ 2.6 without it.
"""

import contextlib
import importlib.metadata
import io
import warnings

_NEEDED = "0.3.14"

with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mace import data, modules, tools  # isort: skip
    from e3nn import o3
    from mace.tools import scripts_utils, torch_geometric

    try:
        from mace.modules import extensions
    except ImportError as missing:
        raise ImportError(
            f"mace-torch {importlib.metadata.version('mace-torch')} is too old: it lacks mace.modules.extensions. At "
            f"least {_NEEDED} is needed: pip install 'mace-torch>={_NEEDED}'."
        ) from missing

__all__ = ["data", "extensions", "modules", "o3", "scripts_utils", "tools", "torch_geometric"]
