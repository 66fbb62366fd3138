"""What a MACE was built from, read off its parts: the arguments of its class as JSON, whatever version wrote it.

mace-torch reads the arguments of some classes itself (``extract_config_mace_model``), but of energies only and not of
all of their options. What is read here wrongly, or cannot be read, is found when the model that it builds is compared.
"""

from collections.abc import Mapping
from typing import Any

import torch

from precision_probe.exceptions import first_line
from precision_probe.models._mace import modules, o3
from precision_probe.models.attributes import cutoff, elements, heads
from precision_probe.models.backends import backend, has_fused_convolutions, irreps_layout
from precision_probe.models.building import GATES
from precision_probe.safe_models.schema import UnfitError

__all__ = ["architecture"]

_OPTIONS = {  # of every class that predicts energies, by the attribute of the same name, with what stands for none
    "apply_cutoff": True,
    "use_reduced_cg": False,
    "use_so3": False,
    "use_agnostic_product": False,
    "use_last_readout_only": False,
    "use_edge_irreps_first": False,
    "lammps_mliap": False,
}
_POLAR = (
    "kspace_cutoff_factor",
    "atomic_multipoles_max_l",
    "atomic_multipoles_smearing_width",
    "field_feature_max_l",
    "field_feature_widths",
    "num_recursion_steps",
    "field_si",
    "include_electrostatic_self_interaction",
    "add_local_electron_energy",
    "quadrupole_feature_corrections",
    "return_electrostatic_potentials",
    "field_norm_factor",
)
_RADIAL = {"BesselBasis": "bessel", "GaussianBasis": "gaussian", "ChebychevBasis": "chebyshev"}
_TRANSFORMS = {"AgnesiTransform": "Agnesi", "SoftTransform": "Soft"}


def architecture(model: torch.nn.Module) -> dict[str, Any]:
    """What :func:`precision_probe.models.building.build` makes a model of the same class and sizes from.

    Args:
        model: A MACE that e3nn computes, or cuEquivariance without fused convolutions.

    Raises:
        UnfitError: If it is converted to what runs on a GPU alone, or no class or part of it is one of mace-torch's.
    """
    library = backend(model)
    if library not in ("e3nn", "cuEquivariance") or has_fused_convolutions(model):
        raise UnfitError(
            f"it computes with {library} and kernels for a GPU, while a file is for any device. "
            "Convert the e3nn model that it came from"
        )
    if isinstance(model.get_submodule("products.0.symmetric_contractions"), torch.fx.GraphModule):
        raise UnfitError("it is prepared for torch.compile. Convert the model that it was prepared from")
    mace: Any = model  # of whose attributes torch's types know nothing
    name = type(mace).__name__
    try:
        read = _common(mace)
        if library == "cuEquivariance":
            read["cueq_layout"] = irreps_layout(model)
        if name in ("MACE", "ScaleShiftMACE", "MACELES", "PolarMACE"):
            read |= _of_energies(mace)
        if name == "EnergyDipolesMACE":
            read["atomic_energies"] = _numbers(mace.atomic_energies_fn.atomic_energies)
        if name == "AtomicDielectricMACE":
            read["use_polarizability"] = bool(mace.use_polarizability)
        if name == "PolarMACE":
            read |= _of_charges(mace)
        if name == "MACELES":
            read["les_arguments"] = _of_les(mace)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise UnfitError(
            f"the architecture of this {name} cannot be read ({type(error).__name__}: {first_line(error)}). Its class "
            "or one of its parts is not mace-torch's own, or was changed after it was built"
        ) from error
    return read


def _common(mace: Any) -> dict[str, Any]:
    """What every class takes."""
    radial, first, last = mace.radial_embedding, mace.interactions[0], mace.interactions[-1]
    correlations = [_correlation(product) for product in mace.products]
    hidden = getattr(mace.readouts[-1], "hidden_irreps", o3.Irreps("16x0e"))  # without one nothing is made of it
    described = {
        "model": type(mace).__name__,
        "atomic_numbers": elements(mace),
        "r_max": cutoff(mace),
        "num_bessel": int(radial.out_dim),
        "num_polynomial_cutoff": int(radial.cutoff_fn.p),
        "max_ell": int(mace.spherical_harmonics._lmax),
        "interaction_cls_first": _name_in(modules.interaction_classes, first),
        "interaction_cls": _name_in(modules.interaction_classes, last),
        "num_interactions": len(mace.interactions),
        "hidden_irreps": str(mace.products[0].linear.irreps_out),
        "MLP_irreps": str(hidden),
        "gate": _gate(mace.readouts[-1]),
        "correlation": correlations[0] if len(set(correlations)) == 1 else correlations,
        "radial_MLP": _radial_mlp(first),
        "avg_num_neighbors": float(first.avg_num_neighbors),
        "atomic_energies": None,
    }
    if type(mace).__name__ != "EnergyDipolesMACE":  # which takes no other
        described["radial_type"] = _RADIAL[type(radial.bessel_fn).__name__]
    return described


def _of_energies(mace: Any) -> dict[str, Any]:
    """What the classes take beside that which sum energies of heads."""
    last = mace.readouts[-1]
    n_heads = len(heads(mace))
    irreps = o3.Irreps(getattr(last, "hidden_irreps", f"{16 * n_heads}x0e"))
    edge_irreps = getattr(mace, "edge_irreps", None)
    n_layers = len(mace.interactions)
    first_hidden, last_hidden = (o3.Irreps(str(mace.products[at].linear.irreps_out)) for at in (0, -1))
    described = {
        **{name: bool(getattr(mace, name, default)) for name, default in _OPTIONS.items()},
        "MLP_irreps": str(o3.Irreps([(mul // n_heads, ir) for mul, ir in irreps])),
        "atomic_energies": _numbers(mace.atomic_energies_fn.atomic_energies),
        "pair_repulsion": hasattr(mace, "pair_repulsion_fn"),
        "distance_transform": _transform(mace.radial_embedding),
        "edge_irreps": None if edge_irreps is None else str(edge_irreps),
        "heads": heads(mace),
        "embedding_specs": getattr(mace, "embedding_specs", None),
        "use_embedding_readout": hasattr(mace, "embedding_readout"),
        "keep_last_layer_irreps": n_layers > 1 and len(first_hidden) > 1 and first_hidden == last_hidden,
    }
    if n_layers > 1:  # of one layer the readout is linear whatever is said here
        described["readout_cls"] = _name_in(modules.readout_classes, last)
    if hasattr(mace, "scale_shift"):
        described["atomic_inter_scale"] = _numbers(mace.scale_shift.scale)
        described["atomic_inter_shift"] = _numbers(mace.scale_shift.shift)
    return described


def _of_charges(mace: Any) -> dict[str, Any]:
    """What PolarMACE takes beside."""
    return {
        **{name: getattr(mace, name) for name in _POLAR},
        "MLP_irreps": str(mace.fukui_source_map.hidden_irreps),
        "gate": _gate(mace.fukui_source_map),
        "field_feature_norms": mace._field_feature_norms,
        "fixedpoint_update_config": dict(mace._fixedpoint_update_config),
        "field_readout_config": dict(mace._field_readout_config),
    }


def _of_les(mace: Any) -> dict[str, Any]:
    """What MACELES hands on to the library les, which keeps it under the same names."""
    options = {name: value for name, value in vars(mace.les).items() if not name.startswith("_") and name != "training"}
    return options | {"compute_bec": mace.compute_bec, "bec_output_index": mace.bec_output_index}


def _correlation(product: Any) -> int:
    """The body order of a product, one less."""
    contraction = product.symmetric_contractions
    is_converted = hasattr(contraction, "contraction_degree")
    return int(contraction.contraction_degree if is_converted else contraction.contractions[0].correlation)


def _radial_mlp(interaction: Any) -> list[int]:
    """The hidden sizes of the MLP of distances, which both of mace-torch's kinds of it keep."""
    return [int(size) for size in interaction.conv_tp_weights.hs[1:-1]]


def _transform(radial: Any) -> str:
    transform = getattr(radial, "distance_transform", None)
    return "None" if transform is None else _TRANSFORMS[type(transform).__name__]


def _gate(readout: torch.nn.Module) -> str | None:
    """The activation of a readout, by the name that mace_run_train has for it; of a linear one any would do."""
    held = [getattr(part, "f", None) for part in readout.modules()]
    functions: list[Any] = [each for each in held if callable(each) and not isinstance(each, torch.nn.Module)]
    if not functions:
        return "silu"
    names = {function: name for name, function in GATES.items()}
    return names[functions[0]]


def _name_in(classes: Mapping[str, type], part: object) -> str:
    """The name by which mace-torch knows the class of a part."""
    name = type(part).__name__
    if classes[name] is not type(part):
        raise TypeError(f"{name} is not mace-torch's own")
    return name


def _numbers(tensor: torch.Tensor) -> Any:
    """A tensor's numbers, in lists as it has dimensions: exact, as JSON writes float64."""
    return tensor.detach().double().cpu().tolist()
