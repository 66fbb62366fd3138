"""Which precision a MACE interatomic potential can be trusted in, and where the digits go.

    import precision_probe as pp

    with pp.attach(model, precisions=["float32", "bfloat16"]) as probe:
        probe.run(atoms)
    pp.errors(probe.trace())

Importing the package loads nothing heavy; each name is loaded when it is first used, and those that read traces
(``open_trace``, ``errors``, ``summary``, ``compare_traces``, …) never load torch or mace.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precision_probe.analysis import bits_needed, errors, summary
    from precision_probe.bit_sweep import sweep
    from precision_probe.causes import explain
    from precision_probe.comparison import compare_traces
    from precision_probe.dynamics import energy_drift
    from precision_probe.exceptions import InputError, ProbeError
    from precision_probe.hessian import vibrations
    from precision_probe.metrics import compare
    from precision_probe.physics import by_structure
    from precision_probe.policy import Policy, Rule
    from precision_probe.precisions import PRECISIONS, Precision
    from precision_probe.probe import Probe, attach
    from precision_probe.recommendation import recommend
    from precision_probe.trace import Trace, open_trace

__version__ = "0.1.0"

__all__ = [
    "PRECISIONS",
    "InputError",
    "Policy",
    "Precision",
    "Probe",
    "ProbeError",
    "Rule",
    "Trace",
    "attach",
    "bits_needed",
    "by_structure",
    "compare",
    "compare_traces",
    "energy_drift",
    "errors",
    "explain",
    "open_trace",
    "recommend",
    "summary",
    "sweep",
    "vibrations",
]

_HOMES = {
    "analysis": ("bits_needed", "errors", "summary"),
    "bit_sweep": ("sweep",),
    "causes": ("explain",),
    "comparison": ("compare_traces",),
    "dynamics": ("energy_drift",),
    "exceptions": ("InputError", "ProbeError"),
    "hessian": ("vibrations",),
    "metrics": ("compare",),
    "physics": ("by_structure",),
    "policy": ("Policy", "Rule"),
    "precisions": ("PRECISIONS", "Precision"),
    "probe": ("Probe", "attach"),
    "recommendation": ("recommend",),
    "trace": ("Trace", "open_trace"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
