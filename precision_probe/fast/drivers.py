"""Policy and model → what a simulation drives: an ASE calculator, or a model of torch-sim."""

from typing import TYPE_CHECKING

from precision_probe.exceptions import InputError
from precision_probe.fast.launcher import Launcher
from precision_probe.models.backends import backend, has_cuequivariance_kernels, to_cuequivariance
from precision_probe.models.graphs import choose_head
from precision_probe.models.loading import Calculator, ModelSource, load_model
from precision_probe.variants import mixed
from precision_probe.variants.assembly import RunnablePolicy
from precision_probe.variants.devices import check_device

if TYPE_CHECKING:
    from precision_probe.fast.torch_sim import GraphModel

__all__ = ["RUNS", "calculator", "launcher", "torch_sim_model"]

RUNS = ("graph", "eager")


def launcher(
    policy: RunnablePolicy,
    model: ModelSource,
    device: str | None = None,
    *,
    head: str | None = None,
    enable_cueq: bool | None = None,
    run: str = "graph",
) -> Launcher:
    """What launches a model under a policy.

    Args:
        policy: The policy.
        model: A MACE, or whatever :func:`precision_probe.models.loading.load_model` takes; it is not changed.
        device: Where to compute; by default a GPU if there is one.
        head: Of a model with several.
        enable_cueq: Whether to convert the model to cuEquivariance before; by default if the policy was found for that,
            where its kernels are installed.
        run: ``graph``, or ``eager`` for the same without a graph.

    Raises:
        InputError: As :func:`precision_probe.variants.mixed.apply`; or if there is no such way to run, no such head, or
            the model cannot be converted.
    """
    if run not in RUNS:
        raise InputError(
            f"A model under a policy is run as one of {', '.join(RUNS)}; got {run!r}. torch.compile cannot take one in "
            "mixed precision."
        )
    place = check_device(device)
    module, _ = load_model(model)
    choose_head(module, head)
    if enable_cueq is None:
        enable_cueq = policy.evidence.get("backend") == "cuEquivariance" and has_cuequivariance_kernels(place)
    if enable_cueq and backend(module) == "e3nn":
        module = to_cuequivariance(module, place)
    made = mixed.apply(policy, module, str(place))
    return Launcher(made, head, captures=None if run == "graph" else False)


def calculator(
    policy: RunnablePolicy,
    model: ModelSource,
    device: str | None = None,
    *,
    run: str | None = None,
    interface: str = "float64",
    **options: object,
) -> Calculator:
    """An ASE calculator of a model under a policy.

    Args:
        policy: The policy.
        model: As :func:`launcher` takes it.
        device: As :func:`launcher` takes it.
        run: ``graph``: launched as one CUDA graph, by
            :class:`precision_probe.fast.calculator.GraphCalculator`; ``eager``: called by mace-torch's
            ``MACECalculator``. By default a graph where there is a GPU and the model predicts energies and takes
            float64.
        interface: ``float64``, or, of what is called eagerly, ``float32``.
        options: ``head`` and ``enable_cueq``; others are those of ``MACECalculator``, and need ``eager``.

    Raises:
        InputError: As :func:`launcher`; or if an option is not one of a graph.
    """
    place = check_device(device)
    module, _ = load_model(model)
    others = sorted(options.keys() - {"head", "enable_cueq"})
    can_launch = interface == "float64" and not others and hasattr(module, "atomic_energies_fn")
    if run is None:
        run = "graph" if place.type == "cuda" and can_launch else "eager"
    if run == "eager":
        if options.pop("enable_cueq", False) and backend(module) == "e3nn":
            module = to_cuequivariance(module, place)
        return mixed.calculator(policy, module, str(place), interface=interface, **options)
    if others or interface != "float64":
        wrong = ", ".join(others) or f"the interface {interface}"
        raise InputError(f"A graph is launched with head and enable_cueq, in float64; got {wrong}. Take run='eager'.")
    from precision_probe.fast.calculator import GraphCalculator  # it needs what few other users of a launcher do

    return GraphCalculator(launcher(policy, module, str(place), run=run, **options))  # type: ignore[arg-type]


def torch_sim_model(
    policy: RunnablePolicy,
    model: ModelSource,
    device: str | None = None,
    *,
    head: str | None = None,
    enable_cueq: bool | None = None,
    run: str = "graph",
    compute_stress: bool = False,
) -> "GraphModel":
    """A model for torch-sim, which moves many structures at once and leaves them on the device.

    Args:
        policy: The policy.
        model: As :func:`launcher` takes it.
        device: As :func:`launcher` takes it.
        head: As :func:`launcher` takes it.
        enable_cueq: As :func:`launcher` takes it.
        run: As :func:`launcher` takes it.
        compute_stress: Whether integrators need it.

    Raises:
        InputError: As :func:`launcher`; or if torch-sim is not installed.
    """
    try:
        from precision_probe.fast.torch_sim import GraphModel
    except ImportError as missing:
        raise InputError(
            f"torch-sim is needed for this, and cannot be imported ({missing}). Install it with: "
            "pip install torch-sim-atomistic"
        ) from missing
    made = launcher(policy, model, device, head=head, enable_cueq=enable_cueq, run=run)
    return GraphModel(made, compute_stress=compute_stress)
