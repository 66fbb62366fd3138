"""How each tool captures what the modules of a model compute in one evaluation, as its documentation says to use it.

Each function here prepares a tool for a model and a graph, and returns what is timed, and what counts afterwards what
that kept.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch.utils._pytree import tree_leaves

from precision_probe.models.blocks import select_blocks
from precision_probe.models.graphs import Graph
from precision_probe.precisions import PRECISIONS
from precision_probe.probe.observing.keeping import Captured, Groups, KeptErrors, KeptTensors
from precision_probe.probe.observing.to_numpy import captured_tensors
from precision_probe.variants.captured_run import predicting_run
from precision_probe.variants.variant import Variant

__all__ = ["CPU", "PACKAGES", "TOOLS", "Counts", "bare"]

CPU = torch.device("cpu")
FLOAT32, FLOAT64 = PRECISIONS["float32"], PRECISIONS["float64"]


@dataclass(frozen=True)
class Counts:
    """What one evaluation left: of how many modules, how many tensors, and how many bytes of them where."""

    modules: int
    outputs: int
    gradients: int
    memory: int = 0
    disk: int = 0


Prepared: TypeAlias = tuple[Callable[[], Any], Callable[[Any], Counts]]


def bare(model: torch.nn.Module, graph: Graph) -> Callable[[], object]:
    """One evaluation of energy and forces."""
    variant = Variant(model, FLOAT32, CPU)
    return lambda: _evaluated(variant, graph, variant.model)


def _evaluated(variant: Variant, graph: Graph, model: Callable[..., Any]) -> Any:
    with variant.arithmetic():
        return model(graph.cast(variant.dtype), compute_virials=False)


def _own(model: torch.nn.Module, graph: Graph) -> tuple[Callable[[], Captured], Captured]:
    """One evaluation with the blocks' tensors captured, and those of the float64 reference."""
    variants = [Variant(model, precision, CPU) for precision in (FLOAT32, FLOAT64)]
    blocks = select_blocks(model, None)

    def captured(variant: Variant) -> Captured:
        run = predicting_run(variant, graph, blocks, with_gradients=True)
        calls = zip(run.calls, run.grads, strict=True)
        return [tensor for call, grads in calls for tensor in captured_tensors(call, grads, unit="eV")]

    return lambda: captured(variants[0]), captured(variants[1])


def _of_groups(groups: Groups) -> Counts:
    arrays = next(iter(groups.values()))
    n_gradients = sum(each.gradient for each in arrays)
    n_bytes = sum(each.values.nbytes for each in arrays)
    return Counts(len({each.block for each in arrays}), len(arrays) - n_gradients, n_gradients, memory=n_bytes)


def own_tensors(model: torch.nn.Module, graph: Graph, folder: Path) -> Prepared:  # noqa: ARG001
    """This package: tensors as arrays."""
    captured, _ = _own(model, graph)

    def call() -> Groups:
        kept = KeptTensors()
        kept.add("propagated", FLOAT32, captured())
        return kept.groups()

    return call, _of_groups


def own_errors(model: torch.nn.Module, graph: Graph, folder: Path) -> Prepared:  # noqa: ARG001
    """This package: statistics of the errors beside a float64 run, which was made before."""
    captured, reference = _own(model, graph)

    def call() -> Groups:
        kept = KeptErrors(graph)
        kept.add("propagated", FLOAT64, reference)
        kept.add("propagated", FLOAT32, captured())
        return kept.groups()

    return call, _of_groups


def _hooks(model: torch.nn.Module, graph: Graph, *, with_gradients: bool) -> Prepared:
    variant = Variant(model, FLOAT32, CPU)
    kept: list[torch.Tensor] = []
    gradients: list[torch.Tensor] = []

    def keep_gradient(gradient: torch.Tensor) -> None:
        gradients.append(gradient.clone())

    def keep(_: torch.nn.Module, __: object, returned: object) -> None:
        for tensor in tree_leaves(returned):
            if torch.is_tensor(tensor):
                kept.append(tensor.detach().clone())
                if with_gradients and tensor.requires_grad:
                    tensor.register_hook(keep_gradient)  # type: ignore[no-untyped-call]

    blocks = select_blocks(model, None)
    for block in blocks:
        variant.model.get_submodule(block.name).register_forward_hook(keep)

    def call() -> None:
        kept.clear()
        gradients.clear()
        _evaluated(variant, graph, variant.model)

    def count(_: object) -> Counts:
        return Counts(len(blocks), len(kept), len(gradients), sum(each.nbytes for each in (*kept, *gradients)))

    return call, count


def forward_hooks(model: torch.nn.Module, graph: Graph, folder: Path) -> Prepared:  # noqa: ARG001
    """Forward hooks by hand on the same blocks, which clone outputs."""
    return _hooks(model, graph, with_gradients=False)


def gradient_hooks(model: torch.nn.Module, graph: Graph, folder: Path) -> Prepared:  # noqa: ARG001
    """The same, with a hook on each output, which clones its gradient."""
    return _hooks(model, graph, with_gradients=True)


def msprobe(model: torch.nn.Module, graph: Graph, folder: Path) -> Prepared:
    """The statistics of every module (level L0), in files."""
    variant = Variant(model, FLOAT32, CPU)
    debugger = import_module("msprobe.pytorch").PrecisionDebugger(task="statistics", level="L0", dump_path=str(folder))

    def call() -> None:
        debugger.start(model=variant.model)
        _evaluated(variant, graph, variant.model)
        debugger.stop()
        debugger.step()

    def count(_: object) -> Counts:
        last = max(folder.rglob("dump.json"), key=lambda path: path.stat().st_mtime)
        found = json.loads(last.read_text(encoding="utf-8"))["data"]  # Module.NAME.CLASS.DIRECTION.CALL, and others
        forward = [name for name in found if ".forward." in name]
        outputs, gradients = (
            sum(bool(each) for name, entry in found.items() if f".{way}." in name for each in entry.get(side) or ())
            for way, side in (("forward", "output"), ("backward", "output"))
        )
        n_bytes = sum(path.stat().st_size for path in last.parent.rglob("*") if path.is_file())
        return Counts(len({name.rpartition(".forward.")[0] for name in forward}), outputs, gradients, disk=n_bytes)

    return call, count


def torchlens(model: torch.nn.Module, graph: Graph, folder: Path) -> Prepared:  # noqa: ARG001
    """The result of every operation, in memory."""
    trace = import_module("torchlens").trace
    variant = Variant(model, FLOAT32, CPU)

    def call() -> Any:
        return _evaluated(variant, graph, lambda data, **options: trace(variant.model, [data], options))

    def count(log: Any) -> Counts:
        return Counts(len(log.modules), len(log.layer_list), 0)

    return call, count


def nnsight(model: torch.nn.Module, graph: Graph, folder: Path) -> Prepared:  # noqa: ARG001
    """The output of every module, in memory."""
    variant = Variant(model, FLOAT32, CPU)
    wrapped = import_module("nnsight").NNsight(variant.model)

    def traced(data: Any, **options: Any) -> Any:
        with wrapped.trace(data, **options) as tracer:
            return tracer.cache().save()

    def count(cache: Any) -> Counts:
        tensors = [leaf for name in cache for leaf in tree_leaves(cache[name].output) if torch.is_tensor(leaf)]
        return Counts(len(cache), len(tensors), 0, sum(each.nbytes for each in tensors))

    return lambda: _evaluated(variant, graph, traced), count


TOOLS: dict[str, Callable[[torch.nn.Module, Graph, Path], Prepared]] = {
    "precision-probe, tensors": own_tensors,
    "precision-probe, errors": own_errors,
    "forward hooks": forward_hooks,
    "forward hooks and gradients": gradient_hooks,
    "msprobe": msprobe,
    "torchlens": torchlens,
    "nnsight": nnsight,
}
# The modules that tools are imported from, and what they are called where they are installed from.
PACKAGES = {"msprobe": "mindstudio-probe", "torchlens": "torchlens", "nnsight": "nnsight"}
