"""A MACE model from wherever the user has it: a file, a calculator, a module in memory or the bundled demo.

Nothing here changes the model it is given, and nothing leaves torch's global default dtype or random state changed.
"""

import contextlib
import importlib
import io
import logging
import pickle
import zipfile
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias, cast

import torch

from precision_probe.exceptions import InputError, first_line
from precision_probe.models import foundations
from precision_probe.models.attributes import not_finite
from precision_probe.models.building import load_saved
from precision_probe.models.cuequivariance.contractions import shared_contractions
from precision_probe.pickles import check_pickle
from precision_probe.spelling import check_model_file, is_foundation
from precision_probe.structures import DEMO

__all__ = ["Calculator", "ModelSource", "check_module", "load_model"]

_LOG = logging.getLogger(__name__)

_SHOWN = 3  # tensors in a message


class Calculator(Protocol):
    """An ASE calculator that holds MACE models, as mace-torch's ``MACECalculator`` does."""

    models: list[torch.nn.Module]
    z_table: object


ModelSource: TypeAlias = torch.nn.Module | Calculator | str | Path


def load_model(source: ModelSource) -> tuple[torch.nn.Module, str]:
    """Return a MACE module and a name for it.

    Args:
        source: ``"demo"``; a foundation model by name, such as ``"mace-mp:small"`` or ``"mace-off:medium"``, which
            mace-torch downloads unless it is in its cache; the path of a MACE checkpoint (``.model``), of the
            ``.safetensors`` that :func:`precision_probe.convert` wrote, or of the ``.json`` that :func:`save_model`
            wrote; a ``MACECalculator``, of whose committee the first member is taken; or a MACE module, which is
            returned as it is.

    Returns:
        The module (from a file: on the CPU, in evaluation mode) and a short name.

    Raises:
        InputError: If there is no such file, it cannot be read, what it holds is not a MACE model, a weight of it is
            NaN or infinite, or, where picklescan is installed, its pickle imports what is known to be dangerous.

    Warning:
        A ``.model`` file is a pickle: loading it runs code from the file. Load only files whose source you trust. A
        path that ends in ``.safetensors`` or ``.json`` is never taken for a pickle, and runs none.
    """
    module, name = _loaded(source)
    n_parameters = sum(each.numel() for each in module.parameters())
    dtype = next((str(each.dtype).removeprefix("torch.") for each in module.parameters()), "no dtype")
    origin = source if isinstance(source, str | Path) else "memory"
    _LOG.info("%s, a %s of %d parameters in %s, from %s", name, type(module).__name__, n_parameters, dtype, origin)
    return module, name


def _loaded(source: ModelSource) -> tuple[torch.nn.Module, str]:
    """The module, and its name."""
    # names before paths: a file that is called as a model is here can still be given as ./demo or ./mace-mp:small
    if isinstance(source, str) and source == DEMO:
        with resources.as_file(resources.files("precision_probe") / "demo") as folder:
            return load_saved(folder / "model.json"), DEMO
    if isinstance(source, str) and is_foundation(source):
        return _check_is_mace(foundations.load_foundation(source), source), source.replace(":", "-")
    if isinstance(source, str | Path):
        path = Path(source)
        return _check_is_mace(_load_file(path), str(path)), path.stem
    # known by what it has, so that ASE's calculators need not be imported; a module may have such attributes of its own
    if not isinstance(source, torch.nn.Module) and hasattr(source, "models") and hasattr(source, "z_table"):
        members, source = source.models, source.models[0]
        name = type(source).__name__ + (f"-member-0-of-{len(members)}" if len(members) > 1 else "")
        return _check_is_mace(source, "the calculator's model"), name
    return _check_is_mace(source, "the object given"), type(source).__name__


def _load_file(path: Path) -> object:
    """Whatever a file holds: nothing is known of it but that it could be read."""
    check_model_file(path)
    if path.suffix == ".json":
        return load_saved(path)
    if path.suffix == ".safetensors":
        return _safe_files().load(path)
    # before torch.load, which would load it as a program; constants.pkl is what it tells TorchScript by, too. A file
    # that is no archive may be a checkpoint in torch's older format.
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise InputError(
                f"{path} is a TorchScript file. Compiled models refuse hooks and cannot be probed; "
                "give the eager checkpoint (.model) that it was compiled from."
            )
    pickle_module = _GuardedPickle if check_pickle(path, {_GETATTR}) else _PickleOnCpu
    try:
        with shared_contractions():  # which a converted model is compiled of as it is loaded, and its variants again
            return torch.load(path, weights_only=False, map_location="cpu", pickle_module=pickle_module)
    except _GuardedError as error:
        raise InputError(f"{path} was not loaded: {error}. Do not use it; get the model from its makers.") from error
    except Exception as error:  # a pickle can raise anything at all
        raise InputError(
            f"{path} cannot be read as a torch checkpoint ({type(error).__name__}: {first_line(error)}). "
            "It may be truncated, of another kind, or made with another version of mace-torch; expected is a MACE "
            "model saved whole with torch.save."
        ) from error


class _SafeFiles(Protocol):
    """What of :mod:`precision_probe.safe_models.files` is used here."""

    def load(self, path: Path) -> torch.nn.Module:
        """The model that a file holds."""


def _safe_files() -> _SafeFiles:
    """What reads the safe format, found by name: it makes models in mixed precision too, which are loaded from here."""
    return cast("_SafeFiles", importlib.import_module("precision_probe.safe_models.files"))


_load_build: Callable[..., None] = pickle._Unpickler.dispatch[pickle.BUILD[0]]


class _UnpicklerOnCpu(pickle._Unpickler):
    """Puts the parts of e3nn's modules that are TorchScript on the CPU.

    They are files within the file, which ``map_location`` does not reach: e3nn loads each onto the device that it was
    saved on. ``load_build`` is where an object is given its state.
    """

    stack: list[Any]  # as the module pickle has it
    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)

    def load_build(self) -> None:
        state = self.stack[-1]
        compiled = state.get("__codegen__") if isinstance(state, dict) else None
        if isinstance(compiled, dict):
            state["__codegen__"] = {name: _on_cpu(file) for name, file in compiled.items()}
        super().load_build()  # type: ignore[misc]  # not in the types of the module pickle

    dispatch[pickle.BUILD[0]] = load_build


def _on_cpu(file: bytes) -> bytes:
    """A TorchScript file whose tensors lie on the CPU."""
    if b"cuda" not in file:  # the archive is not compressed
        return file
    moved = io.BytesIO()
    load: Any = torch.jit.load  # which has no types
    torch.jit.save(load(io.BytesIO(file), map_location="cpu"), moved)
    return moved.getvalue()


class _PickleOnCpu:
    """What torch.load uses of the module pickle."""

    Unpickler = _UnpicklerOnCpu
    load = staticmethod(pickle.load)


_GETATTR = "builtins.getattr"  # by which torch pickles its own functions, such as torch.tanh
_ACTIVATIONS = ("abs", "sigmoid", "tanh")


class _GuardedError(Exception):
    """What a pickle does that no checkpoint of a MACE does, as the second half of a sentence."""


class _GuardedUnpickler(_UnpicklerOnCpu):
    """Gives pickles a ``getattr`` that knows the functions of torch and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return _function_of_torch if found is getattr else found


def _function_of_torch(owner: object, name: str) -> object:
    if owner is not getattr(torch._C, "_VariableFunctionsClass") or name not in _ACTIVATIONS:  # noqa: B009  no type has it
        raise _GuardedError(f"its pickle calls getattr({owner!r:.60}, {name!r:.60}), which no MACE needs")
    return getattr(owner, name)


class _GuardedPickle(_PickleOnCpu):
    """What torch.load uses of the module pickle where pickles are scanned."""

    Unpickler = _GuardedUnpickler


def check_module(module: object, what: str = "the object given") -> torch.nn.Module:
    """Return a module, once it is known that hooks can be put on it.

    Raises:
        InputError: If it is not a module, or a compiled one.
    """
    if isinstance(module, torch.jit.ScriptModule):  # this and the next are modules too, so they are told apart first
        raise InputError(f"{what} is a TorchScript module, which refuses hooks. Give the eager model it came from.")
    if hasattr(module, "_orig_mod"):  # where torch.compile keeps the module; it would answer for its attributes
        raise InputError(f"{what} is compiled by torch.compile, which refuses hooks. Give the eager model it is of.")
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"{what} is a {type(module).__name__}, not a MACE model (a torch.nn.Module).")
    return module


def _check_is_mace(model: object, what: str) -> torch.nn.Module:
    """Return a MACE model, known by the attributes that its parts are read from, whatever its class."""
    if isinstance(model, Mapping):  # the likeliest mistake, of which the first few keys show which it is
        raise InputError(
            f"{what} holds a dictionary with the keys {', '.join(map(repr, list(model)[:4]))}, …, which looks like a "
            "state dict or a training checkpoint. Expected is a whole MACE model, as mace_run_train writes to *.model."
        )
    module = check_module(model, what)
    if not all(hasattr(module, name) for name in ("r_max", "atomic_numbers", "interactions", "products", "readouts")):
        raise InputError(
            f"{what} is a {type(module).__name__}, not a MACE model: it lacks the interactions, products and readouts "
            "that MACE models have. To probe another module, say how it is run: attach(module, call=…, blocks=…)."
        )
    broken = not_finite(module)
    if broken:
        more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise InputError(
            f"{what} holds NaN or infinity in {', '.join(broken[:_SHOWN])}{more}: whatever it computes is NaN. Take a "
            "checkpoint from before its training diverged."
        )
    return module
