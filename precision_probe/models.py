"""A MACE model from wherever the user has it: a file, a calculator, a module in memory or the bundled demo.

Nothing here changes the model it is given, and nothing leaves torch's global default dtype or random state changed.
"""

import contextlib
import hashlib
import io
import json
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from precision_probe import foundations
from precision_probe._mace import extensions, modules, o3
from precision_probe.exceptions import InputError

__all__ = [
    "build",
    "check_module",
    "cutoff",
    "default_config",
    "default_dtype",
    "elements",
    "heads",
    "load_model",
    "save_model",
    "weights_sha256",
]

DEMO = "demo"

_MODEL_CLASSES = (
    "MACE",
    "ScaleShiftMACE",
    "AtomicDipolesMACE",
    "AtomicDielectricMACE",
    "EnergyDipolesMACE",
    "MACELES",
    "PolarMACE",
)
_GATES = {"silu": torch.nn.functional.silu, "tanh": torch.tanh, "abs": torch.abs}


def default_config() -> dict[str, Any]:
    """Return the architecture of a minimal H/C/O MACE, the one of the bundled demo.

    Every value is plain JSON. ``atomic_energies`` (eV, one per element), ``atomic_inter_scale`` and
    ``atomic_inter_shift`` (eV) and ``avg_num_neighbors`` are neutral here and come from data in a trained model.

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


def build(config: Mapping[str, Any], seed: int = 0) -> torch.nn.Module:
    """Build a float64 MACE with random weights from its architecture.

    Args:
        config: As :func:`default_config` returns it, changed at will. A float64 CPU module comes back.
        seed: Seed of the random weights; the caller's random state is left as it was.

    Raises:
        InputError: If the architecture names a class or value that mace-torch does not know.

    Example:
        >>> model = build(default_config())
        >>> sum(p.numel() for p in model.parameters()) > 10_000
        True
    """
    options = dict(config)
    model_class = _class_named(options.pop("model", "ScaleShiftMACE"))
    try:
        for key in ("interaction_cls_first", "interaction_cls"):
            options[key] = modules.interaction_classes[options[key]]
        for key in ("hidden_irreps", "MLP_irreps", *(["edge_irreps"] if options.get("edge_irreps") else [])):
            options[key] = o3.Irreps(options[key])
        if options["atomic_energies"] is not None:  # dipole models have none
            options["atomic_energies"] = np.asarray(options["atomic_energies"], dtype=float)
        if "readout_cls" in options:
            options["readout_cls"] = modules.readout_classes[options["readout_cls"]]
        options["gate"] = None if options["gate"] is None else _GATES[options["gate"]]
    except KeyError as missing:
        raise InputError(
            f"The architecture has no usable value for {missing}. Start from default_config() and change what differs; "
            f"interaction classes: {', '.join(modules.interaction_classes)}."
        ) from missing
    options.setdefault("num_elements", len(options["atomic_numbers"]))
    if not issubclass(model_class, modules.ScaleShiftMACE):
        for key in ("atomic_inter_scale", "atomic_inter_shift"):
            options.pop(key, None)
    with default_dtype(torch.float64), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript's notices about e3nn's own code
        torch.manual_seed(seed)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # some classes say what they are
                model: torch.nn.Module = model_class(**options)
        except ImportError as missing:
            raise InputError(f"{model_class.__name__} needs a package that is not installed ({missing}).") from missing
    return model.eval()


def save_model(model: torch.nn.Module, config: Mapping[str, Any], path: str | Path) -> None:
    """Write a model as ``path.json`` (architecture) and ``path.safetensors`` (its whole float64 state), no pickle."""
    path = Path(path)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items() if tensor.numel()}
    safetensors.torch.save_file(state, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")


def load_model(source: Any) -> tuple[torch.nn.Module, str]:
    """Return a MACE module and a name for it.

    Args:
        source: ``"demo"``; a foundation model by name, such as ``"mace-mp:small"`` or ``"mace-off:medium"``, which
            mace-torch downloads unless it is in its cache; the path of a MACE checkpoint (``.model``), or of the
            ``.json`` that :func:`save_model` wrote; a ``MACECalculator``, of whose committee the first member is
            taken; or a MACE module, which is returned as it is.

    Returns:
        The module (from a file: on the CPU, in evaluation mode) and a short name.

    Raises:
        InputError: If there is no such file, it cannot be read, or what it holds is not a MACE model.

    Warning:
        A ``.model`` file is a pickle: loading it runs code from the file. Load only files whose source you trust.
    """
    if isinstance(source, str) and source == DEMO:
        with resources.as_file(resources.files("precision_probe") / "demo") as folder:
            return _load_json(folder / "model.json"), DEMO
    if isinstance(source, str) and source.partition(":")[0] in foundations.FAMILIES and ":" in source:
        return _check_is_mace(foundations.load_foundation(source), source), source.replace(":", "-")
    if isinstance(source, str | Path):
        path = Path(source)
        return _check_is_mace(_load_file(path), str(path)), path.stem
    if hasattr(source, "models") and hasattr(source, "z_table"):  # mace.calculators.MACECalculator
        members, source = source.models, source.models[0]
        name = type(source).__name__ + (f"-member-0-of-{len(members)}" if len(members) > 1 else "")
        return _check_is_mace(source, "the calculator's model"), name
    return _check_is_mace(source, "the object given"), type(source).__name__


def cutoff(model: torch.nn.Module) -> float:
    """The distance within which atoms are neighbours, Å."""
    return float(_attribute(model, "r_max"))


def elements(model: torch.nn.Module) -> list[int]:
    """The atomic numbers that the model knows, in the order of its one-hot columns."""
    return [int(z) for z in _attribute(model, "atomic_numbers")]


def heads(model: torch.nn.Module) -> list[str]:
    """The names of the model's heads."""
    return list(_attribute(model, "heads") or ["Default"])


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 of the model's parameters and buffers: their names, dtypes, shapes and bytes, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default dtype, and set it back whatever happens."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _attribute(model: torch.nn.Module, name: str) -> Any:
    """An attribute that torch's own types say nothing of."""
    return getattr(model, name, None)


def _class_named(name: str) -> Any:
    model_class = getattr(modules, name, getattr(extensions, name, None)) if name in _MODEL_CLASSES else None
    if model_class is None:
        raise InputError(f"mace-torch has no model class {name!r}. Known: {', '.join(_MODEL_CLASSES)}.")
    return model_class


def _load_file(path: Path) -> Any:
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise InputError(f"The model file {path} {what}. Give a MACE checkpoint (.model) or {DEMO!r}.")
    if path.suffix == ".json":
        return _load_json(path)
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise InputError(
                f"{path} is a TorchScript file. Compiled models refuse hooks and cannot be probed; "
                "give the eager checkpoint (.model) that it was compiled from."
            )
    try:
        return torch.load(path, weights_only=False, map_location="cpu")
    except Exception as error:  # a pickle can raise anything at all
        raise InputError(
            f"{path} cannot be read as a torch checkpoint ({type(error).__name__}: {_first_line(error)}). "
            "It may be truncated, of another kind, or made with another version of mace-torch; expected is a MACE "
            "model saved whole with torch.save."
        ) from error


def _load_json(path: Path) -> torch.nn.Module:
    try:
        model = build(json.loads(path.read_text(encoding="utf-8")))
        state = safetensors.torch.load_file(path.with_suffix(".safetensors"))
        missing, unexpected = model.load_state_dict(state, strict=False)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path} and {path.with_suffix('.safetensors').name} beside it cannot be read as a model "
            f"({type(error).__name__}: {_first_line(error)}). Expected is the pair that save_model wrote."
        ) from error
    empty = {name for name, tensor in model.state_dict().items() if not tensor.numel()}
    if unexpected or set(missing) - empty:
        raise InputError(
            f"{path} and its weights do not fit: missing {sorted(set(missing) - empty)}, extra {unexpected}."
        )
    return model


def check_module(module: Any, what: str = "the object given") -> torch.nn.Module:
    """Return a module, once it is known that hooks can be put on it.

    Raises:
        InputError: If it is not a module, or a compiled one.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(f"{what} is a TorchScript module, which refuses hooks. Give the eager model it came from.")
    if hasattr(module, "_orig_mod"):
        raise InputError(f"{what} is compiled by torch.compile, which refuses hooks. Give the eager model it is of.")
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"{what} is a {type(module).__name__}, not a MACE model (a torch.nn.Module).")
    return module


def _check_is_mace(model: Any, what: str) -> torch.nn.Module:
    if isinstance(model, Mapping):
        raise InputError(
            f"{what} holds a dictionary with the keys {', '.join(map(repr, list(model)[:4]))}, …, which looks like a "
            "state dict or a training checkpoint. Expected is a whole MACE model, as mace_run_train writes to *.model."
        )
    if any(
        not hasattr(check_module(model, what), name)
        for name in ("r_max", "atomic_numbers", "interactions", "products", "readouts")
    ):
        raise InputError(
            f"{what} is a {type(model).__name__}, not a MACE model: it lacks the interactions, products and readouts "
            "that MACE models have. To probe another module, say how it is run: attach(module, call=…, blocks=…)."
        )
    checked: torch.nn.Module = model
    return checked


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:120]
