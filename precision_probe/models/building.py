"""A MACE from its architecture, and kept without pickle: JSON for the architecture, safetensors for the weights."""

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from precision_probe.exceptions import InputError, first_line
from precision_probe.models._mace import extensions, modules, o3
from precision_probe.models.cuequivariance.making import making

__all__ = ["build", "default_config", "load_saved", "save_model"]

_MODEL_CLASSES = (
    "MACE",
    "ScaleShiftMACE",
    "AtomicDipolesMACE",
    "AtomicDielectricMACE",
    "EnergyDipolesMACE",
    "MACELES",
    "PolarMACE",
)
# by the names that mace_run_train's --gate takes
GATES = {"silu": torch.nn.functional.silu, "tanh": torch.tanh, "abs": torch.abs}


def default_config() -> dict[str, Any]:
    """Return the architecture of a minimal H/C/O MACE, the one of the bundled demo.

    Cutoff, spherical harmonics, features and radial MLP are smaller than ``mace_run_train`` makes them by default,
    so that it is quick; the rest is as there. Every value is plain JSON. ``atomic_energies`` (eV, one per element),
    ``atomic_inter_scale`` and ``atomic_inter_shift`` (eV) and ``avg_num_neighbors`` are neutral here and come from data
    in a trained model.

    Example:
        >>> config = default_config()
        >>> config["atomic_numbers"], config["r_max"]
        ([1, 6, 8], 3.0)
    """
    return {
        "model": "ScaleShiftMACE",
        "atomic_numbers": [1, 6, 8],
        "r_max": 3.0,  # Å
        "num_bessel": 8,
        "num_polynomial_cutoff": 5,
        "max_ell": 2,
        "interaction_cls_first": "RealAgnosticResidualInteractionBlock",
        "interaction_cls": "RealAgnosticResidualInteractionBlock",
        "num_interactions": 2,
        "hidden_irreps": "32x0e + 32x1o",
        "MLP_irreps": "16x0e",
        "gate": "silu",
        "correlation": 3,
        "use_reduced_cg": False,  # else the shapes of weights depend on whether cuEquivariance is installed
        "radial_MLP": [32, 32, 32],
        "avg_num_neighbors": 5.0,
        "atomic_energies": [0.0, 0.0, 0.0],
        "atomic_inter_scale": 1.0,
        "atomic_inter_shift": 0.0,
    }


def build(config: Mapping[str, object], seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """Build a MACE with random weights from its architecture.

    Args:
        config: As :func:`default_config` returns it, changed at will. ``cueq_layout``, ``mul_ir`` or ``ir_mul``, has
            cuEquivariance compute it, without kernels for one GPU.
        seed: Seed of the random weights; the caller's random state is left as it was.
        dtype: Of the model and, where cuEquivariance computes it, of the arithmetic, which is fixed here.

    Returns:
        The model, on the CPU and in evaluation mode.

    Raises:
        InputError: If the architecture names a class or value that mace-torch does not know.

    Example:
        >>> model = build(default_config())
        >>> sum(p.numel() for p in model.parameters()) > 10_000
        True
    """
    model_class, options = _arguments(config)
    with making(dtype):
        torch.manual_seed(seed)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # some classes say what they are
                model = model_class(**options)
        except ImportError as missing:  # of what only some classes need: les, graph_longrange
            raise InputError(f"{model_class.__name__} needs a package that is not installed ({missing}).") from missing
    return model.eval()


def _arguments(config: Mapping[str, object]) -> tuple[type[torch.nn.Module], dict[str, Any]]:
    """The class that an architecture names, and what it is called with: JSON's names and lists made into objects."""
    options: dict[str, Any] = dict(config)
    model_class = _class_named(options.pop("model", "ScaleShiftMACE"))
    if (layout := options.pop("cueq_layout", None)) is not None:
        options["cueq_config"] = _converted_to(layout)
    try:
        for key in ("interaction_cls_first", "interaction_cls"):
            options[key] = modules.interaction_classes[options[key]]
        for key in ("hidden_irreps", "MLP_irreps", *(["edge_irreps"] if options.get("edge_irreps") else [])):
            options[key] = o3.Irreps(options[key])
        if options["atomic_energies"] is not None:  # dipole models have none
            options["atomic_energies"] = np.asarray(options["atomic_energies"], dtype=float)
        if "readout_cls" in options:
            options["readout_cls"] = modules.readout_classes[options["readout_cls"]]
        options["gate"] = None if options["gate"] is None else GATES[options["gate"]]
    except KeyError as missing:
        raise InputError(
            f"The architecture has no usable value for {missing}. Start from default_config() and change what differs; "
            f"interaction classes: {', '.join(modules.interaction_classes)}."
        ) from missing
    options.setdefault("num_elements", len(options["atomic_numbers"]))
    if not issubclass(model_class, modules.ScaleShiftMACE):  # the others do not take these, which default_config has
        for key in ("atomic_inter_scale", "atomic_inter_shift"):
            options.pop(key, None)
    return model_class, options


def _converted_to(layout: object) -> Any:
    """The configuration that mace-torch's conversion makes on a CPU."""
    from mace.modules.wrapper_ops import CuEquivarianceConfig

    config = CuEquivarianceConfig(
        enabled=True, layout=str(layout), group="O3_e3nn", optimize_all=True, conv_fusion=False
    )
    if not config.enabled:
        raise InputError("The model is computed by cuEquivariance. Install it: pip install cuequivariance-torch")
    return config


def save_model(model: torch.nn.Module, config: Mapping[str, object], path: str | Path) -> None:
    """Write a model as ``path.json`` (architecture) and ``path.safetensors`` (its whole float64 state), no pickle."""
    path = Path(path)
    # tensors without elements hold nothing, and building makes them again
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items() if tensor.numel()}
    safetensors.torch.save_file(state, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")


def load_saved(path: Path) -> torch.nn.Module:
    """Read what :func:`save_model` wrote.

    Args:
        path: Of the ``.json``; the ``.safetensors`` lies beside it.

    Raises:
        InputError: If the pair cannot be read, or the weights do not fit the architecture.
    """
    try:
        model = build(json.loads(path.read_text(encoding="utf-8")))
        state = safetensors.torch.load_file(path.with_suffix(".safetensors"))
        missing, unexpected = model.load_state_dict(state, strict=False)  # strict would miss the empty tensors
    except InputError:  # says already what is wrong with the architecture
        raise
    except Exception as error:  # of JSON, safetensors, mace-torch or torch, as what they read is damaged
        raise InputError(
            f"{path} and {path.with_suffix('.safetensors').name} beside it cannot be read as a model "
            f"({type(error).__name__}: {first_line(error)}). Expected is the pair that save_model wrote."
        ) from error
    empty = {name for name, tensor in model.state_dict().items() if not tensor.numel()}
    if unexpected or set(missing) - empty:
        raise InputError(
            f"{path} and its weights do not fit: missing {sorted(set(missing) - empty)}, extra {unexpected}."
        )
    return model


def _class_named(name: str) -> type[torch.nn.Module]:
    """A model class of mace-torch, which keeps those with long-range energies apart from the others."""
    # the modules hold classes of other things, too, and not every version of mace-torch has every class
    classes = {each: getattr(modules, each, getattr(extensions, each, None)) for each in _MODEL_CLASSES}
    known = {each: model_class for each, model_class in classes.items() if model_class is not None}
    if name not in known:
        raise InputError(f"mace-torch has no model class {name!r}. Known: {', '.join(known)}.")
    model_class: type[torch.nn.Module] = known[name]
    return model_class
