"""The rows of the model support matrix: which models it has, how each is made, and what is expected of each.

All have random weights, and all but the foundation architectures are small. ``model_matrix.py`` says what is checked.
"""

import contextlib
import copy
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import ase
import ase.build
import numpy as np
import torch
from foundation_architectures import FOUNDATIONS

from precision_probe.models._mace import modules
from precision_probe.models.backends import has_cuequivariance_kernels
from precision_probe.models.building import build, default_config
from precision_probe.models.dtypes import default_dtype
from precision_probe.models.loading import Calculator, ModelSource

__all__ = ["ALL", "CLASSES", "DIPOLE", "ENERGY", "ROWS", "Row", "latin_square"]

ENERGY = ("energy", "interaction_energy", "forces", "stress")
DIPOLE = ("dipole",)
DIELECTRIC = ("dipole", "charges", "polarizability")
ALL = ("float32", "tf32", "bfloat16", "float16")
Given = Callable[[torch.nn.Module, Path, str], ModelSource]


def structures() -> list[ase.Atoms]:
    """A bent, uneven water molecule, and a strained cell of C and O, whose stress is not isotropic nor its dipole 0."""
    water = ase.Atoms("OHH", [(0.02, 0.0, 0.11), (0.0, 0.78, -0.48), (0.05, -0.75, -0.45)])
    crystal = ase.build.bulk("CO", "zincblende", a=3.57)
    crystal.rattle(0.05, seed=1)
    crystal.set_cell(crystal.cell.array @ np.array([[1.02, 0.01, 0], [0, 0.99, 0.02], [0, 0, 1]]), scale_atoms=True)
    return [water, crystal]


def charged() -> list[ase.Atoms]:
    """The same, and once more the molecule with another charge, and with another spin."""
    water, crystal = structures()
    cation, triplet = water.copy(), water.copy()
    cation.info["charge"], triplet.info["spin"] = 1, 3
    return [water, cation, triplet, crystal]


@dataclass(frozen=True)
class Row:
    """One model, and what is expected of it.

    Attributes:
        name: What the table calls it.
        build: Makes the model, in float64 on the CPU.
        given: What is made of the model and given to ``attach``, in a folder for files, on a device; by default the
            model itself.
        head: Which head it is attached with.
        structures: Makes the structures that it is run on.
        quantities: What it should predict.
        precisions: Those that it can be run in.
        packages: Without one of these it is not run, and building it should say so.
        conflict: Given the device, says why the packages that are there cannot be used, if so; else nothing.
        needs_cuda: Whether it is run on CUDA only.
        is_conversion: Whether what is given should compute what the model computes.
        tells_charge_and_spin: Whether its structures are :func:`charged`, and their energies should differ.
        refusal: Regular expression of the message that ``attach`` should refuse it with, if it should.
        wrong_on_cuda: Whether mace-torch's conversion is known to be wrong on CUDA, which the comparison should find.
        full_width: Whether it is as large as a published model: for the script, not for a test.
        note: For the table.
    """

    name: str
    build: Callable[[], torch.nn.Module]
    given: Given | None = None
    head: str | None = None
    structures: Callable[[], list[ase.Atoms]] = structures
    quantities: tuple[str, ...] = ENERGY
    precisions: tuple[str, ...] = ALL
    packages: tuple[str, ...] = ()
    conflict: Callable[[str], str] = lambda _: ""
    needs_cuda: bool = False
    is_conversion: bool = False
    tells_charge_and_spin: bool = False
    refusal: str = ""
    wrong_on_cuda: bool = False
    full_width: bool = False
    note: str = ""

    def missing(self, device: str) -> str:
        """Why it cannot be run here, on a device; nothing if it can."""
        absent = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if self.needs_cuda and device != "cuda":
            return "needs CUDA"
        return f"{', '.join(absent)} not installed" if absent else self.conflict(device)


SMALL: Mapping[str, Any] = default_config() | {
    "max_ell": 1,
    "correlation": 2,
    "hidden_irreps": "4x0e + 4x1o",
    "MLP_irreps": "4x0e",
    "radial_MLP": [8],
    "num_bessel": 4,
    "atomic_energies": [-13.6, -1029.5, -2042.0],
    "atomic_inter_scale": 0.8,
    "atomic_inter_shift": 0.1,
}
SEED = 3
CLASSES = tuple(modules.interaction_classes)


def small(**changes: object) -> Callable[[], torch.nn.Module]:
    """Builds a small model with some of its architecture changed; one with nothing changed is a copy, made sooner."""
    return partial(build, {**SMALL, **changes}, seed=SEED) if changes else lambda: copy.deepcopy(_small())


@cache
def _small() -> torch.nn.Module:
    return build(SMALL, seed=SEED)


def of_class(name: str) -> dict[str, str]:
    """The interaction class of every layer."""
    return {"interaction_cls_first": name, "interaction_cls": name}


def latin_square() -> list[tuple[str, int, int, int]]:
    """18 of the 162 combinations of interaction class, layers, max_ell and correlation, the last three from 1 to 3.

    Every class meets every number of layers, every max_ell and every correlation, and of those three any two meet in
    every combination.
    """
    return [
        (name, layers + 1, (layers + index) % 3 + 1, (layers + 2 * index + index // 3) % 3 + 1)
        for index, name in enumerate(CLASSES)
        for layers in range(3)
    ]


def interactions() -> list[Row]:
    """Each interaction class with 1, 2 and 3 layers."""
    return [
        Row(
            f"{name}, {layers} {'layer' if layers == 1 else 'layers'}, max_ell {max_ell}, correlation {correlation}",
            small(**of_class(name), num_interactions=layers, max_ell=max_ell, correlation=correlation),
        )
        for name, layers, max_ell, correlation in latin_square()
    ] + [Row("hidden features up to 2e", small(hidden_irreps="4x0e + 4x1o + 4x2e", max_ell=2))]


def _long_range_conflict(_: str) -> str:
    """Why graph_longrange cannot be used: mace-torch calls it with an argument that later versions lack."""
    features = importlib.import_module("graph_longrange.features").GTOElectrostaticFeatures
    if "force_pbc_evaluator" in inspect.signature(features.precompute_geometry).parameters:
        return ""
    return "this graph_longrange is newer than mace-torch 0.3.16 can call (0.4.0 is the last)"


def model_classes() -> list[Row]:
    """Each class of model."""
    without_energy = {"atomic_energies": None}
    undefined = "float16: the spherical harmonics of k = 0 are 0/0, since e3nn's ε of 1e-12 rounds to 0"
    polar = partial(
        Row,
        packages=("graph_longrange",),
        conflict=_long_range_conflict,
        quantities=("energy", "forces", "stress", "dipole"),
    )
    return [
        Row("MACE", small(model="MACE")),
        Row("ScaleShiftMACE", small()),
        Row(
            "AtomicDipolesMACE",
            small(model="AtomicDipolesMACE", MLP_irreps="4x1o", **without_energy),
            quantities=DIPOLE,
        ),
        Row(
            "AtomicDielectricMACE",
            small(
                model="AtomicDielectricMACE",
                hidden_irreps="8x0e + 8x1o + 8x2e",
                MLP_irreps="4x0e + 4x1o + 4x2e",
                max_ell=2,
                **without_energy,
            ),
            quantities=DIELECTRIC,
        ),
        Row(
            "EnergyDipolesMACE",
            small(model="EnergyDipolesMACE", MLP_irreps="4x0e + 4x1o"),
            quantities=(*ENERGY, "dipole"),
        ),
        polar("PolarMACE, charges", small(model="PolarMACE")),
        polar(
            "PolarMACE, charges and dipoles",
            small(model="PolarMACE", atomic_multipoles_max_l=1, field_feature_max_l=1, num_recursion_steps=2),
            note=undefined,
        ),
        Row(
            "MACELES",
            small(model="MACELES"),
            packages=("les",),
            quantities=("energy", "forces", "stress"),
            note="les is not on PyPI",
        ),
    ]


def embedding_specs(kind: str) -> dict[str, dict[str, Any]]:
    """Of the total charge and spin, as categories or as numbers."""
    if kind == "continuous":
        spec = {"type": kind, "per": "graph", "in_dim": 1, "emb_dim": 4}
        return {"total_charge": spec, "total_spin": spec}
    spec = {"type": kind, "per": "graph", "num_classes": 6, "emb_dim": 4}
    return {"total_charge": spec | {"offset": 2}, "total_spin": spec}


def with_adapters() -> torch.nn.Module:
    """A small model with LoRA layers whose weights matter."""
    from mace.modules.lora import inject_LoRAs

    with default_dtype(torch.float64), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model: torch.nn.Module = inject_LoRAs(small()())
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return model


def prepared() -> torch.nn.Module:
    """A small model as mace-torch prepares it for ``torch.compile``, with the global settings put back."""
    from e3nn import get_optimization_defaults, set_optimization_defaults
    from mace.tools.compile import prepare

    settings, defaults = torch._dynamo.config, dict(get_optimization_defaults())
    traces = getattr(settings, "trace_autograd_ops", None)
    try:
        model: torch.nn.Module = prepare(partial(build, SMALL, seed=SEED))()  # not a copy: it is built otherwise
    finally:
        set_optimization_defaults(**defaults)
        if traces is not None:
            settings.trace_autograd_ops = traces
    return model


def features() -> list[Row]:
    """What a model can have beside its class, and the forms in which it can be given."""
    heads: dict[str, Any] = {
        "heads": ["pbe", "r2scan"],
        "atomic_energies": [[-13.6, -1029.5, -2042.0], [-13.5, -1028.0, -2040.0]],
        "atomic_inter_scale": [0.8, 1.1],
        "atomic_inter_shift": [0.1, 0.0],
    }
    agnesi, soft, zbl = {"distance_transform": "Agnesi"}, {"distance_transform": "Soft"}, {"pair_repulsion": True}
    chebyshev = "torch has no Chebyshev polynomials in half precision and no gradients of them: the forces lack these"
    tells = partial(Row, structures=charged, tells_charge_and_spin=True)
    return [
        *(Row(f"two heads, {head}", small(**heads), head=head) for head in heads["heads"]),
        Row("ZBL pair repulsion", small(**zbl)),
        Row("Agnesi distance transform", small(**agnesi)),
        Row("Agnesi distance transform and ZBL", small(**agnesi, **zbl)),
        Row("Soft distance transform", small(**soft)),
        Row("Soft distance transform and ZBL", small(**soft, **zbl)),
        Row("Gaussian radial basis", small(radial_type="gaussian")),
        Row("Chebyshev radial basis", small(radial_type="chebyshev"), precisions=("float32", "tf32"), note=chebyshev),
        *(
            tells(f"charge and spin embedded, {kind}", small(embedding_specs=embedding_specs(kind)))
            for kind in ("categorical", "continuous")
        ),
        Row("LoRA", with_adapters),
        Row("prepared for torch.compile", prepared),
        Row("float32 checkpoint", small(), given=checkpoint),
        Row("MACECalculator", small(), given=partial(calculator, seeds=(SEED,)), is_conversion=True),
        Row(
            "MACECalculator, committee of 3", small(), given=partial(calculator, seeds=(SEED, 4, 5)), is_conversion=True
        ),
        Row("TorchScript", small(), given=scripted, refusal="TorchScript module, which refuses hooks"),
        Row("torch.compile", small(), given=compiled, refusal=r"compiled by torch\.compile, which refuses hooks"),
    ]


def checkpoint(model: torch.nn.Module, folder: Path, _: str) -> Path:
    """A float32 copy of the model in a file."""
    torch.save(copy.deepcopy(model).float(), folder / "float32.model")
    return folder / "float32.model"


def calculator(model: torch.nn.Module, _: Path, device: str, *, seeds: tuple[int, ...]) -> Calculator:
    """A calculator of the model, and of others like it."""
    from mace.calculators import MACECalculator

    with contextlib.redirect_stdout(None):
        members = [model, *(build(SMALL, seed=seed).to(device) for seed in seeds[1:])]
        made: Calculator = MACECalculator(models=members, device=device, default_dtype="float64")
    return made


def scripted(model: torch.nn.Module, _: Path, __: str) -> torch.nn.Module:
    """The model in TorchScript, as ``mace_create_lammps_model`` makes it."""
    from e3nn.util import jit

    module: torch.nn.Module = jit.compile(model)
    return module


def compiled(model: torch.nn.Module, _: Path, __: str) -> torch.nn.Module:
    """The model wrapped by ``torch.compile``."""
    wrapped: object = torch.compile(model)
    assert isinstance(wrapped, torch.nn.Module)
    return wrapped


def to_cuequivariance(
    model: torch.nn.Module, _: Path, device: str, *, layout: str = "ir_mul", fused: bool = True
) -> torch.nn.Module:
    """The model converted by mace-torch; on CUDA with fused convolutions."""
    from mace.cli.convert_e3nn_cueq import run

    with _converting():
        converted: torch.nn.Module = run(model, device=device if fused else "cpu", layout=layout).to(device)
    return converted


def to_openequivariance(model: torch.nn.Module, _: Path, device: str) -> torch.nn.Module:
    """The model converted by mace-torch."""
    from mace.cli.convert_e3nn_oeq import run

    with _converting():
        converted: torch.nn.Module = run(model, device=device)
    return converted


@contextlib.contextmanager
def _converting() -> Iterator[None]:
    """Put back the default dtype, which the converters set, and the random state."""
    with default_dtype(torch.float64), torch.random.fork_rng(devices=[]):
        yield


def _no_kernels(device: str) -> str:
    """Why cuEquivariance cannot be used on CUDA: its kernels are a package of their own."""
    absent = device == "cuda" and not has_cuequivariance_kernels(torch.device(device))
    return "cuequivariance_ops_torch not installed" if absent else ""


def backends() -> list[Row]:
    """Models converted to other libraries, compared with the e3nn models that they came from."""
    cueq = partial(
        Row,
        given=to_cuequivariance,
        is_conversion=True,
        packages=("cuequivariance", "cuequivariance_torch"),
        conflict=_no_kernels,
    )
    others = CLASSES[1:]
    oeq = partial(
        Row,
        given=to_openequivariance,
        is_conversion=True,
        packages=("openequivariance",),
        needs_cuda=True,
        precisions=("float32", "tf32"),
        note="its kernels are float64 and float32",
    )
    unfused = partial(to_cuequivariance, fused=False)
    return [
        *(cueq(f"cuEquivariance, correlation {n}", small(correlation=n)) for n in (2, 3)),
        cueq(
            "cuEquivariance, layout mul_ir",
            small(),
            given=partial(to_cuequivariance, layout="mul_ir"),
            wrong_on_cuda=True,
            note="on CUDA mace-torch fuses convolutions for this layout too, and converts them wrongly",
        ),
        cueq("cuEquivariance, not fused", small(), given=unfused, needs_cuda=True),
        *(cueq(f"cuEquivariance, {name}", small(**of_class(name))) for name in others),
        *(oeq(f"OpenEquivariance, correlation {n}", small(correlation=n)) for n in (2, 3)),
        *(oeq(f"OpenEquivariance, {name}", small(**of_class(name))) for name in others),
    ]


def foundations() -> list[Row]:
    """The architectures of the published foundation models, at full width."""
    return [
        Row(f"{name}, architecture", partial(build, config), full_width=True) for name, config in FOUNDATIONS.items()
    ]


ROWS: list[Row] = [*interactions(), *model_classes(), *features(), *backends(), *foundations()]
