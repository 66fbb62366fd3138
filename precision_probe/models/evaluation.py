"""How a model is run: what it predicts, and which numbers the gradients of its blocks are of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import torch

from precision_probe.models.graphs import Graph
from precision_probe.models.inputs import Inputs, named_tensors

__all__ = [
    "AnyModule",
    "Evaluation",
    "EvaluationOf",
    "MaceData",
    "MaceDielectric",
    "MaceEnergy",
    "MaceEvaluation",
    "Prediction",
    "Quantity",
    "Sample",
    "interaction_energy",
    "mace_evaluation",
]


@dataclass(frozen=True)
class Quantity:
    """One thing that a model predicts.

    Attributes:
        name: Its name in the trace.
        dims: Names of the tensor's dimensions.
        unit: Its unit.
        long_name: What it is.
    """

    name: str
    dims: tuple[str, ...]
    unit: str
    long_name: str


@dataclass(frozen=True)
class Prediction:
    """What a model says of one input; not differentiable.

    Attributes:
        values: For each quantity its tensor, in the variant's dtype except stress, which is float64.
        seconds: Wall-clock time of the call, the device synchronised before and after.
    """

    values: dict[Quantity, torch.Tensor]
    seconds: float

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor of the quantity with this name, such as ``"forces"``."""
        return next(tensor for quantity, tensor in self.values.items() if quantity.name == name)

    @property
    def changing_energy(self) -> torch.Tensor:
        """The energy less what never changes, the isolated atoms', where the model says what they are."""
        names = [quantity.name for quantity in self.values]
        return self["interaction_energy" if "interaction_energy" in names else "energy"]


Sample: TypeAlias = Graph | Inputs  # one input, in the precision in which it was given, float64 for a graph
MaceData: TypeAlias = dict[str, torch.Tensor]  # what MACE is called with
MaceOutput: TypeAlias = Mapping[str, torch.Tensor | None]  # what it returns; what it was not asked for is None
Values: TypeAlias = dict[Quantity, torch.Tensor]
Cotangents: TypeAlias = Mapping[str, torch.Tensor]  # by the names that the model gives its outputs
Differentiable: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]  # outputs, each with its cotangent
Options: TypeAlias = Mapping[str, object]  # keyword arguments of a model's forward

SampleT = TypeVar("SampleT", contravariant=True)
DataT = TypeVar("DataT", contravariant=True)

ENERGY = Quantity("energy", ("structure",), "eV", "total energy")
INTERACTION = Quantity(
    "interaction_energy", ("structure",), "eV", "total energy less the energies of the isolated atoms"
)
FORCES = Quantity("forces", ("atom", "xyz"), "eV/Å", "forces")
STRESS = Quantity("stress", ("structure", "xyz", "xyz_2"), "eV/Å³", "stress; NaN for structures that are not periodic")
CHARGES = Quantity("charges", ("atom",), "e", "atomic charges")
_TRAINED = "unit of the training data"


class EvaluationOf(Protocol[DataT, SampleT]):
    """One way to run a model on one input: a sample, and its data cast to the precision of the variant.

    Attributes:
        differentiates: Whether the model itself differentiates, as it predicts, what blocks are given the gradients of.
    """

    differentiates: bool

    def predict(self, model: torch.nn.Module, data: DataT, sample: SampleT) -> Values:
        """What the bare model gives, without a hook on any block; not differentiable."""

    def differentiable(self, model: torch.nn.Module, data: DataT, sample: SampleT) -> Differentiable:
        """The outputs whose gradients blocks are given, on their autograd graph, each with its cotangent."""

    def with_cotangents(
        self, model: torch.nn.Module, data: DataT, sample: SampleT, cotangents: Cotangents, options: Options
    ) -> Differentiable:
        """The outputs of a call with these options that a training loss gave cotangents, each with its own."""


MaceEvaluation: TypeAlias = EvaluationOf[MaceData, Graph]
Evaluation: TypeAlias = MaceEvaluation | EvaluationOf[Inputs, Inputs]


class MaceEnergy:
    """A MACE that predicts energies; block gradients are of the summed energy.

    Args:
        model: Which quantities it predicts beside energy, forces and stress depends on its class.
    """

    differentiates = True  # forces are gradients of the summed energy

    def __init__(self, model: torch.nn.Module) -> None:
        self._dipole = _dipole(model)

    def predict(self, model: torch.nn.Module, data: MaceData, sample: Graph) -> Values:
        """Energy, forces, stress and, from models that have one, the dipole.

        In half precision mace-torch cannot compute stress (no ``lu``), so it is made from the virials and the float64
        volume, in every precision alike.
        """
        out = model(data, compute_virials=bool(sample.periodic.any()))
        tensors = {
            ENERGY: out["energy"],
            INTERACTION: interaction_energy(out),
            FORCES: out["forces"],
            STRESS: _stress(out, sample),
            self._dipole: out.get("dipole"),
        }
        return {quantity: tensor.detach() for quantity, tensor in tensors.items() if tensor is not None}

    def differentiable(self, model: torch.nn.Module, data: MaceData, sample: Graph) -> Differentiable:
        """The energies, (n_structures,) eV, without the isolated atoms' where the model says what they are.

        Each is given a cotangent of one, so that no sum can overflow. Where :meth:`predict` asks for virials, the model
        makes its displacements here too: by these it computes shifts across cells otherwise than it was given them.
        """
        out = model(data, compute_force=False, compute_displacement=bool(sample.periodic.any()))
        interaction = interaction_energy(out)
        energy = out["energy"] if interaction is None else interaction
        return [(energy, torch.ones_like(energy))]

    def with_cotangents(
        self,
        model: torch.nn.Module,
        data: MaceData,
        sample: Graph,
        cotangents: Cotangents,
        options: Options,
    ) -> Differentiable:
        """Those of energy, forces, …; stress is made from the virials and the float64 volume."""
        wanted = dict(cotangents)
        if "stress" in wanted:
            options = {**options, "compute_stress": False, "compute_virials": True}
            of_virials = -wanted.pop("stress") / torch.linalg.det(sample.cells).abs().view(-1, 1, 1)
            wanted["virials"] = wanted.get("virials", 0) + of_virials
        out = model(data, **options)
        return [(out[name], cotangent) for name, cotangent in wanted.items()]


class MaceDielectric:
    """A MACE of dipoles or polarizabilities alone; block gradients are of the sum of their squares."""

    differentiates = False

    def __init__(self, model: torch.nn.Module) -> None:
        polarizability = Quantity("polarizability", ("structure", "xyz", "xyz_2"), _TRAINED, "polarizability")
        self._quantities = {"dipole": _dipole(model), "charges": CHARGES, "polarizability": polarizability}

    def predict(self, model: torch.nn.Module, data: MaceData, sample: Graph) -> Values:
        """Dipole, and where the model gives them charges and polarizability."""
        out = model(data)
        tensors = {quantity: out.get(name) for name, quantity in self._quantities.items()}
        return {quantity: tensor.detach() for quantity, tensor in tensors.items() if tensor is not None}

    def differentiable(self, model: torch.nn.Module, data: MaceData, sample: Graph) -> Differentiable:
        """Dipole and polarizability y with the cotangent 2·y: the sum itself would overflow in float16."""
        out = model(data)
        outputs = [out[name] for name in ("dipole", "polarizability") if out.get(name) is not None]
        return [(y, 2 * y.detach()) for y in outputs]

    def with_cotangents(
        self,
        model: torch.nn.Module,
        data: MaceData,
        sample: Graph,
        cotangents: Cotangents,
        options: Options,
    ) -> Differentiable:
        """Those of dipole, polarizability, …."""
        out = model(data, **options)
        return [(out[name], cotangent) for name, cotangent in cotangents.items()]


class AnyModule:
    """A module that is not a MACE, run by a callable; block gradients are of the sum of its squared outputs.

    Args:
        call: Called with a module and one input, each in the precision of the variant; returns a tensor, or a tuple or
            dictionary of them.
    """

    differentiates = False

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def predict(self, model: torch.nn.Module, data: Inputs, sample: Inputs) -> Values:
        """Every floating-point tensor that the call returned."""
        outputs = named_tensors(self._run(model, data))
        return {_quantity(name, tensor): tensor.detach() for name, tensor in outputs.items()}

    def differentiable(self, model: torch.nn.Module, data: Inputs, sample: Inputs) -> Differentiable:
        """Every output y with the cotangent 2·y."""
        return [(y, 2 * y.detach()) for y in named_tensors(self._run(model, data)).values()]

    def with_cotangents(
        self,
        model: torch.nn.Module,
        data: Inputs,
        sample: Inputs,
        cotangents: Cotangents,
        options: Options,
    ) -> Differentiable:
        """Those of every output."""
        out = named_tensors(self._run(model, data))
        return [(out[name], cotangent) for name, cotangent in cotangents.items()]

    def _run(self, model: torch.nn.Module, data: Inputs) -> object:
        return model(*data.args, **data.kwargs) if data.is_call else self._call(model, *data.args)


def mace_evaluation(model: torch.nn.Module) -> MaceEvaluation:
    """How a MACE model is run, by what it predicts: those of dipoles alone have no energies of isolated atoms."""
    return MaceEnergy(model) if hasattr(model, "atomic_energies_fn") else MaceDielectric(model)


def interaction_energy(out: MaceOutput) -> torch.Tensor | None:
    """The energy without the isolated atoms', (n_structures,) eV, where what a model returned has it as such.

    MACELES and PolarMACE add long-range energies to the total and name their parts differently.
    """
    if "les_energy" in out or "electrostatic_energy" in out:
        return None
    if (energy := out.get("interaction_energy")) is not None:
        return energy
    contributions = out.get("contributions")  # (n_structures, 1 + n_layers); the first is the isolated atoms'
    return None if contributions is None else contributions[:, 1:].sum(dim=-1)


def _dipole(model: torch.nn.Module) -> Quantity:
    """mace-torch's baseline of fixed charges is in Debye for two classes, in e·Å for the others."""
    in_debye = type(model).__name__ in ("AtomicDipolesMACE", "EnergyDipolesMACE")
    return Quantity("dipole", ("structure", "xyz"), "D" if in_debye else "e·Å", "dipole moment")


def _quantity(name: str, tensor: torch.Tensor) -> Quantity:
    """An output of a module of which nothing is known: its own name for each dimension, and no unit."""
    axes = ("feature",) if tensor.ndim == 2 else tuple(f"axis{index}" for index in range(1, tensor.ndim))
    return Quantity(name, tuple(f"{name}.{axis}" for axis in ("row", *axes)), "1", f"{name} of the module")


def _stress(out: Mapping[str, torch.Tensor], graph: Graph) -> torch.Tensor:
    """−virials / volume, as mace-torch defines it, with the volume in float64; NaN where not periodic."""
    stress = graph.cells.new_full((graph.n_structures, 3, 3), torch.nan)
    periodic = torch.as_tensor(graph.periodic, device=stress.device)
    if graph.periodic.any():  # else the model was not asked for virials
        volume = torch.linalg.det(graph.cells[periodic]).abs().view(-1, 1, 1)
        stress[periodic] = -out["virials"].detach()[periodic].to(stress.dtype) / volume
    return stress
