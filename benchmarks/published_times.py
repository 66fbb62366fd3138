"""What bench_published.py times: linear layers in half precision, cuEquivariance beside e3nn, and conv_tp alone."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial

import torch
from measure import call_block, interleave, reference_calls, summary
from records import Record
from systems import supercells
from torch.profiler import ProfilerActivity, profile

from precision_probe.exceptions import first_line
from precision_probe.models.backends import has_cuequivariance_kernels, to_cuequivariance
from precision_probe.models.blocks import default_blocks, select_blocks
from precision_probe.models.graphs import Graph, build_graph
from precision_probe.policy import SUMMED, Policy, Rule
from precision_probe.precisions import PRECISIONS
from precision_probe.search.running.calling import Launches, called
from precision_probe.search.timing import Timed, side_by_side
from precision_probe.variants.hooks import Call, input_gradients, replay
from precision_probe.variants.mixed import apply
from precision_probe.variants.variant import Variant

__all__ = [
    *("BACKENDS_COLUMNS", "CONV_COLUMNS", "LINEARS_COLUMNS"),
    *("backend_rows", "conv_rows", "device_seconds", "linear_rows", "linears", "models_of"),
]

N_WARM_UP = 3  # calls, in which TorchScript compiles
CONV_TP = "interactions.1.conv_tp"

BACKENDS_COLUMNS = {
    "n_atoms": "atoms",
    "run": "run",
    "e3nn": "e3nn / ms",
    "cuequivariance": "cuEquivariance / ms",
    "ratio": "e3nn ÷ cuEquivariance",
    "failed": "fails",
}
LINEARS_COLUMNS = {
    "n_atoms": "atoms",
    "backend": "backend",
    "half": "linear layers in",
    "cast": "cast to float32 / ms",
    "float32": "all blocks float32 / ms",
    "mixed": "linear layers in half / ms",
    "ratio": "float32 ÷ half",
    "share": "linear layers' part of the device's time",
    "bound": "÷ if they took none",
    "alone": "linear layers alone, float32 ÷ half",
    "failed": "fails",
}
CONV_COLUMNS = {
    "n_atoms": "atoms",
    "backend": "backend",
    "precision": "precision",
    "forward": "forward / ms",
    "backward": "backward / ms",
    "forward_ratio": "forward, float32 ÷",
    "backward_ratio": "backward, float32 ÷",
    "failed": "fails",
}


def models_of(model: torch.nn.Module, device: torch.device) -> dict[str, torch.nn.Module]:
    """A model by backend: as it is, and converted to cuEquivariance where there are its kernels."""
    found = {"e3nn": model}
    if has_cuequivariance_kernels(device):
        found["cuequivariance"] = to_cuequivariance(model, device)
    return found


def backend_rows(
    models: Mapping[str, torch.nn.Module], device: torch.device, sizes: Sequence[int], rounds: int
) -> Iterator[Record]:
    """Energy and forces in float32 by each backend, called as they are and launched as graphs."""
    casts = {name: Variant(model, PRECISIONS["float32"], device) for name, model in models.items()}
    for graph in _graphs(models["e3nn"], sizes, device):
        launches = Launches(graph, stress=False, device=device)
        ways: dict[str, dict[str, Callable[[], object]]] = {
            "eager": {name: called(each.call, graph, torch.float32, {}) for name, each in casts.items()},
            "graph": {name: launches.launched(each.model, each.call) for name, each in casts.items()},
        }
        for run, calls in ways.items():
            timed, failed = _timed(calls, device, rounds)
            row: Record = dict.fromkeys(BACKENDS_COLUMNS)
            row |= {"n_atoms": graph.n_atoms, "run": run, "failed": failed}
            row |= {name: _milliseconds(each) for name, each in timed.items()}
            if len(timed) > 1:
                row["ratio"] = _ratio(timed["e3nn"], timed["cuequivariance"])
            yield row


def linears(model: torch.nn.Module) -> list[str]:
    """Names of the linear layers of a model; the classes of e3nn and of cuEquivariance are both called so."""
    return [name for name, module in model.named_modules() if type(module).__name__ == "Linear"]


def linear_rows(
    models: Mapping[str, torch.nn.Module], device: torch.device, sizes: Sequence[int], rounds: int, half: str
) -> Iterator[Record]:
    """A model in float32 beside the same with its linear layers in half precision, called as they are.

    Both are put together in the same way, of blocks that are cast where they need it; the model that is cast as a whole
    is timed beside them.
    """
    for backend, model in models.items():
        ways = cache(partial(_Ways, model, device, half))
        for graph in _graphs(models["e3nn"], sizes, device):
            row: Record = dict.fromkeys(LINEARS_COLUMNS) | {"n_atoms": graph.n_atoms, "backend": backend, "half": half}
            for measured in (partial(_linear_times, rounds=rounds), _linear_share):
                try:
                    row |= measured(ways(), graph)
                except Exception as error:  # of any library: that it cannot be run is a result
                    row["failed"] = f"{type(error).__name__}: {first_line(error)}"
            yield row


class _Ways:
    """A model cast to float32, the same put together of blocks, and with its linear layers in half precision."""

    def __init__(self, model: torch.nn.Module, device: torch.device, half: str) -> None:
        self.device, self.names = device, linears(model)
        whole = [Rule(block.name, "float32") for block in default_blocks(model) if block.name not in SUMMED]
        rules = {"float32": whole, "mixed": [*(Rule(name, half) for name in self.names), *whole]}
        self.mixed = {
            name: apply(Policy(tuple(each)), model, str(device), interface="float32") for name, each in rules.items()
        }
        self.cast, self.reduced = (Variant(model, PRECISIONS[name], device) for name in ("float32", half))


def _linear_times(ways: _Ways, graph: Graph, rounds: int) -> Record:
    """Times of the whole model."""
    models: dict[str, Callable[..., object]] = {"cast": ways.cast.call, **ways.mixed}
    calls = {name: called(each, graph, torch.float32, {}) for name, each in models.items()}
    timed, failed = _timed(calls, ways.device, rounds)
    row: Record = {name: _milliseconds(each) for name, each in timed.items()} | {"failed": failed}
    return row | ({} if failed else {"ratio": _ratio(timed["float32"], timed["mixed"])})


def _linear_share(ways: _Ways, graph: Graph) -> Record:
    """The part of the device's time that linear layers take, what that bounds, and what half precision makes of it."""
    parts = _calls(ways.cast, graph, ways.names)
    alone, alone_in_half = (
        sum(device_seconds(partial(_forward_and_backward, part, each), ways.device) for part in parts)
        for each in (ways.cast, ways.reduced)
    )
    whole = called(ways.cast.call, graph, torch.float32, {})
    share = alone / device_seconds(whole, ways.device)
    return {"share": share, "bound": 1 / (1 - share), "alone": alone / alone_in_half}


def conv_rows(
    models: Mapping[str, torch.nn.Module], device: torch.device, sizes: Sequence[int], rounds: int
) -> Iterator[Record]:
    """The tensor product of the second interaction alone, on what float32 gives it."""
    precisions = ("float32", "bfloat16", "float16")
    for graph in _graphs(models["e3nn"], sizes, device):
        for backend, model in models.items():
            row: Record = dict.fromkeys(CONV_COLUMNS) | {"n_atoms": graph.n_atoms, "backend": backend}
            try:
                variants = [Variant(model, PRECISIONS[name], device) for name in precisions]
                (call,) = _calls(variants[0], graph, [CONV_TP])
                measured = interleave(variants, partial(call_block, call), rounds)
            except Exception as error:  # of any library: that it cannot be run is a result
                yield row | {"failed": f"{type(error).__name__}: {first_line(error)}"}
                continue
            for name, own in measured.items():
                times = {phase: own.phase(index) for index, phase in enumerate(("forward", "backward"))}
                exact = {phase: measured["float32"].phase(index) for index, phase in enumerate(times)}
                ratios = {
                    f"{phase}_ratio": summary([y / x for x, y in zip(times[phase], exact[phase], strict=True)])
                    for phase in times
                }
                yield row | {"precision": name, **{phase: summary(each) for phase, each in times.items()}, **ratios}


def device_seconds(call: Callable[[], object], device: torch.device) -> float:
    """The time of all kernels that one call runs, s; on a CPU that of all operations."""
    for _ in range(N_WARM_UP):
        call()
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as found:
        call()
        if is_cuda:
            torch.cuda.synchronize(device)
    events = [event for event in found.events() or () if not event.is_user_annotation]
    if is_cuda:
        return float(sum(each.self_device_time_total for each in events if each.device_type.name == "CUDA")) / 1e6
    return float(sum(each.self_cpu_time_total for each in events)) / 1e6


def _graphs(model: torch.nn.Module, sizes: Sequence[int], device: torch.device) -> Iterator[Graph]:
    for atoms in supercells(sizes, seed=0):
        yield build_graph(atoms, model).to(device)


def _calls(variant: Variant, graph: Graph, names: Sequence[str]) -> list[Call]:
    """What each of these modules is called with within a run."""
    return reference_calls(variant, graph, select_blocks(variant.model, names))


def _forward_and_backward(call: Call, variant: Variant) -> None:
    """A module alone, forward and backward."""
    with variant.arithmetic():
        input_gradients(replay(variant.model.get_submodule(call.block.name), call, variant.dtype))


def _timed(
    calls: Mapping[str, Callable[[], object]], device: torch.device, rounds: int
) -> tuple[dict[str, Timed], str | None]:
    """Times of those calls that can be made, side by side; and why others cannot."""
    possible, failed = {}, []
    for name, call in calls.items():
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "No CUDA graph is used")
                for _ in range(N_WARM_UP):
                    call()
            possible[name] = call
        except Exception as error:  # of any library: that it cannot be run is a result
            failed.append(f"{name}: {type(error).__name__}: {first_line(error)}")
    return side_by_side(possible, device, rounds=rounds), "; ".join(failed) or None


def _milliseconds(timed: Timed) -> Record | None:
    return summary([1e3 * each for each in timed.seconds]) if timed.seconds else None


def _ratio(slow: Timed, fast: Timed) -> Record | None:
    """Of times within the same round; nothing where the memory did not suffice for one."""
    if not (slow.seconds and fast.seconds):
        return None
    return summary([one / other for one, other in zip(slow.seconds, fast.seconds, strict=True)])
