"""memory.py: what a structure needs, against what was measured, and what is said of it."""

import math
import subprocess
import sys
import textwrap
import weakref

import pytest
import torch
from runs import convert

from precision_probe.exceptions import InputError
from precision_probe.models import memory
from precision_probe.models.graphs import build_graph, joined
from precision_probe.models.inputs import Inputs
from precision_probe.models.memory import (
    attempt,
    available_bytes,
    check_memory,
    described,
    estimated_bytes,
    fitting_edges,
)

CPU = torch.device("cpu")


def test_the_estimate_by_hand(model, crystal):
    """4x0e + 4x1o and l ≤ 2; the paths of each tensor product counted by hand."""
    graph = build_graph(crystal, model)
    # 0e → 0e 1o 2e; then 0e → 3 paths, and 1o × 0e 1o 2e → 1o, 0e 2e, 1o, of those that the next layer takes
    weights = 4 * 3 + 4 * (3 + 4)
    messages = 4 * (1 + 3 + 5) + 4 * ((1 + 3 + 5) + (3 + 1 + 5 + 3))
    features = 4 * 1 + 4 * (1 + 3)
    assert estimated_bytes(model, graph) == 16 * graph.n_edges * (weights + messages + features)


def test_the_estimate_is_near_what_a_process_takes():
    """The most that a process held while it ran one structure, above what it held before."""
    code = """
        import ase.build
        import torch
        from precision_probe.models.graphs import build_graph
        from precision_probe.models.loading import load_model
        from precision_probe.models.memory import estimated_bytes
        from precision_probe.precisions import PRECISIONS
        from precision_probe.structures import read_structures
        from precision_probe.variants.variant import Variant

        def kilobytes(name):
            (line,) = (line for line in open("/proc/self/status") if line.startswith(name))
            return int(line.split()[1])

        torch.set_num_threads(1)
        model, _ = load_model("demo")
        variant = Variant(model, PRECISIONS["float64"], torch.device("cpu"))
        cell = ase.build.bulk("C", "sc", a=1.2)
        for size in (2, 2, 2, 7):  # the first calls compile
            graph = build_graph(read_structures(cell * (size, size, size))[0], model)
            before = kilobytes("VmRSS")
            variant.predict(graph)
        print(1024 * (kilobytes("VmHWM") - before), estimated_bytes(model, graph))
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("the kernel counts elsewhere")
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    taken, estimated = map(int, done.stdout.split())
    assert 0.5 < estimated / taken < 2


def test_converted_models_are_not_known(model, crystal):
    assert estimated_bytes(convert(model), build_graph(crystal, model)) == 0


def test_the_memory_of_this_machine():
    assert 2**20 < available_bytes(CPU) < 2**50


def test_what_fits_is_not_mentioned(model, crystal):
    assert check_memory([build_graph(crystal, model), Inputs("input 0", (1.0,))], model, CPU) == []


def test_what_does_not_fit_is_noted_and_what_clearly_does_not_is_refused(model, crystal, water, monkeypatch):
    crystal.info["name"], water.info["name"] = "the large one", "the small one"
    large, small = build_graph(crystal, model), build_graph(water, model)
    needed = estimated_bytes(model, large)
    monkeypatch.setattr(memory, "available_bytes", lambda device: int(needed / 1.9))
    (note,) = check_memory([small, large], model, CPU)
    assert note.startswith(f"the large one: 8 atoms with {large.n_edges} edges take about {needed / 1e9:.3g} GB")
    monkeypatch.setattr(memory, "available_bytes", lambda device: int(needed / 2.1))
    with pytest.raises(InputError, match=r"Structure the large one: .* GB in float64, and cpu has .* GB free"):
        check_memory([small, large], model, CPU)


def test_the_edges_that_fill_the_memory(model, crystal, monkeypatch):
    graph = build_graph(crystal, model)
    needed = estimated_bytes(model, graph)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 3 * needed)
    assert fitting_edges(model, CPU) == 3 * graph.n_edges
    assert fitting_edges(convert(model), CPU) == math.inf  # what it takes is not known


def test_samples_are_described(model, water):
    water.info["name"] = "water"
    graph = build_graph(water, model)
    assert described(graph) == "water: 3 atoms with 6 edges"
    assert described(joined([graph, graph])) == "water and 1 more: 6 atoms with 12 edges"
    assert described(Inputs("input 2", (1.0,))) == "input 2"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("The following operation failed in the TorchScript interpreter: CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_an_attempt_gives_the_result_or_none_without_memory(error):
    assert attempt(divmod, 7, 3) == (2, 1)

    def fail():
        raise error

    assert attempt(fail) is None


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), KeyboardInterrupt()])
def test_an_attempt_raises_other_errors(error):
    def fail():
        raise error

    with pytest.raises(type(error)):
        attempt(fail)


def test_an_attempt_keeps_nothing_of_what_failed_alive():
    class Large:
        pass

    def work(size):
        large = Large()
        kept.append(weakref.ref(large))
        raise torch.OutOfMemoryError(f"out of memory: {size}")

    kept = []
    assert attempt(work, 3) is None
    assert kept[0]() is None
