"""All figures of a trace, by what the command line calls them."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from precision_probe.report.figures.bits import plot_bits, plot_sweep
from precision_probe.report.figures.causes import plot_budget, plot_contributions
from precision_probe.report.figures.cost import plot_times
from precision_probe.report.figures.distributions import plot_distribution, plot_forces
from precision_probe.report.figures.growth import plot_blocks, plot_growth
from precision_probe.report.figures.parts import plot_elements, plot_irreps
from precision_probe.report.figures.symptoms import plot_digits, plot_displacement, plot_equivariance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FIGURES"]

FIGURES: dict[str, Callable[..., "Axes"]] = {
    "growth": plot_growth,
    "gradients": partial(plot_growth, direction="backward"),
    "blocks": plot_blocks,
    "irreps": plot_irreps,
    "elements": plot_elements,
    "forces": plot_forces,
    "distribution": plot_distribution,
    "contributions": plot_contributions,
    "budget": plot_budget,
    "bits": plot_bits,
    "sweep": plot_sweep,
    "displacement": plot_displacement,
    "equivariance": plot_equivariance,
    "digits": plot_digits,
    "times": plot_times,
}
