"""Which library is to compute a model that is launched as a graph: the one that takes less time on a structure."""

from dataclasses import dataclass

import torch

from precision_probe.exceptions import InputError, first_line
from precision_probe.models.backends import backend, clone, has_cuequivariance_kernels, to_cuequivariance
from precision_probe.models.graphs import Graph
from precision_probe.search.paired_times import ratio_of
from precision_probe.search.running.calling import Launches
from precision_probe.search.timing import side_by_side

__all__ = ["BACKENDS", "Chosen", "chosen"]

BACKENDS = ("auto", "e3nn", "cuEquivariance")
_ROUNDS = 11  # whose median ratio has an interval of 98.8 % between the second and the tenth


@dataclass(frozen=True)
class Chosen:
    """A model by the library that was chosen.

    Attributes:
        model: The same as it was given, or converted.
        why: In a sentence; empty where there was no choice.
    """

    model: torch.nn.Module
    why: str = ""


def chosen(model: torch.nn.Module, graph: Graph, wanted: str) -> Chosen:
    """Convert a model to cuEquivariance where that is asked for, or faster.

    Args:
        model: The model, not changed; what is converted already stays as it is.
        graph: What it is timed on, by the model cast to float32, each as one CUDA graph.
        wanted: One of :data:`BACKENDS`; ``auto`` leaves e3nn where cuEquivariance's kernels are not installed, or are
            not known to be faster.

    Raises:
        InputError: If there is no such library, or cuEquivariance is wanted and cannot compute this model here.
    """
    if wanted not in BACKENDS:
        raise InputError(f"The backend is one of {', '.join(BACKENDS)}; got {wanted!r}.")
    used, device = backend(model), graph.data["positions"].device
    if used != "e3nn":
        if wanted not in ("auto", used):
            raise InputError(f"The model is converted to {used} already, and cannot be run by {wanted}.")
        return Chosen(model)
    if wanted == "cuEquivariance":
        return Chosen(to_cuequivariance(model, device))
    if wanted == "e3nn" or not has_cuequivariance_kernels(device):
        return Chosen(model)
    try:
        return _faster(model, to_cuequivariance(model, device), graph, device)
    except Exception as error:  # of mace-torch and cuEquivariance: then there is e3nn
        return Chosen(model, f"e3nn computes it, as cuEquivariance does not: {first_line(error)}")


def _faster(model: torch.nn.Module, converted: torch.nn.Module, graph: Graph, device: torch.device) -> Chosen:
    """The faster one; e3nn's, if that is not resolved."""
    launches = Launches(graph, stress=False, device=device)
    calls = {
        name: launches.launched(clone(each, torch.float32, device))
        for name, each in (("e3nn", model), ("cuEquivariance", converted))
    }
    timed = side_by_side(calls, device, rounds=_ROUNDS)
    by_e3nn, by_cueq = timed["e3nn"].seconds, timed["cuEquivariance"].seconds
    if by_cueq and not by_e3nn:
        return Chosen(
            converted, "cuEquivariance computes it: by e3nn the largest structure does not fit in the memory."
        )
    ratio = ratio_of(by_cueq, by_e3nn)
    is_faster = ratio.high < 1
    name = "cuEquivariance" if is_faster else "e3nn"
    return Chosen(
        converted if is_faster else model,
        f"{name} computes it: cast to float32 and launched as a graph the model takes "
        f"{1e3 * timed['e3nn'].median:.3g} ms by e3nn, and by cuEquivariance {ratio.median:.3g} times that "
        f"({ratio.low:.3g} to {ratio.high:.3g}, {ratio.level:.1%} confidence).",
    )
