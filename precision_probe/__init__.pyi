from .analysis.comparison import compare_traces
from .analysis.errors import bits_needed, errors, summary
from .analysis.frames import per_atom, per_block, to_dataset
from .analysis.metrics import compare
from .analysis.physical_errors import by_element, by_structure
from .diagnostics.bit_sweep import sweep
from .diagnostics.dynamics import energy_drift
from .diagnostics.suite import explain
from .diagnostics.vibrations import vibrations
from .exceptions import InputError, ProbeError
from .policy import Policy, Rule
from .precisions import PRECISIONS, Precision
from .probe.probe import Probe, attach
from .report.figures.bits import plot_bits, plot_sweep
from .report.figures.causes import plot_budget, plot_contributions
from .report.figures.cost import plot_policy, plot_times
from .report.figures.distributions import plot_distribution, plot_forces
from .report.figures.growth import plot_blocks, plot_growth
from .report.figures.parts import plot_elements, plot_irreps
from .report.figures.symptoms import plot_digits, plot_displacement, plot_equivariance
from .report.page import write_report
from .safe_models.conversion import convert
from .search.recommendation import recommend
from .trace.reading import open_trace
from .trace.trace import Trace
from .version import __version__

__all__ = [
    "PRECISIONS",
    "InputError",
    "Policy",
    "Precision",
    "Probe",
    "ProbeError",
    "Rule",
    "Trace",
    "__version__",
    "attach",
    "bits_needed",
    "by_element",
    "by_structure",
    "compare",
    "compare_traces",
    "convert",
    "energy_drift",
    "errors",
    "explain",
    "open_trace",
    "per_atom",
    "per_block",
    "plot_bits",
    "plot_blocks",
    "plot_budget",
    "plot_contributions",
    "plot_digits",
    "plot_displacement",
    "plot_distribution",
    "plot_elements",
    "plot_equivariance",
    "plot_forces",
    "plot_growth",
    "plot_irreps",
    "plot_policy",
    "plot_sweep",
    "plot_times",
    "recommend",
    "summary",
    "sweep",
    "to_dataset",
    "vibrations",
    "write_report",
]
