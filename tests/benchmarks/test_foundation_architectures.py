"""The probe on models with the architectures of the published foundation models, at full width, with random weights."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from foundation_architectures import FOUNDATIONS
from runs import molecule, rel_l2

import precision_probe as pp
from precision_probe.models._mace import o3
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.building import build

WATER = molecule()

PUBLISHED_PARAMETERS = {
    # notes of https://github.com/ACEsuit/mace-foundations/releases/tag/mace_mp_0, as a third party quotes them, which
    # counted the same in the released files; also arXiv:2512.03750, Table 1
    "mace-mp-0-small": 3_847_696,
    # https://github.com/janosh/matbench-discovery/blob/main/models/mace/mace-mp-0.yml
    "mace-mp-0-medium": 4_688_656,
    # as the small one, but not in that table: its 15,847,440 for "large" are those of MACE_MPtrj_2022.9.model
    "mace-mp-0-large": 5_725_072,
    # https://github.com/janosh/matbench-discovery/blob/main/models/mace/mace-mpa-0.yml
    "mace-mpa-0-medium": 9_063_204,
    # arXiv:2512.03750, Table 1
    "mace-off23-small": 694_320,
    "mace-off23-medium": 1_428_368,
    "mace-off23-large": 4_707_312,
}


@dataclass
class Probed:
    """A foundation model's architecture, and what the probe recorded of and left behind in a model that has it."""

    name: str
    config: dict[str, Any]
    n_parameters: int
    trace: pp.Trace
    before: tuple[str, dict[str, int]]
    during: tuple[str, dict[str, int]]
    after: tuple[str, dict[str, int]]


WIDE = (
    "mace-mp-0-large",
    "mace-off23-medium",
    "mace-off23-large",
    "mace-omat-0-medium",
    "mace-mpa-0-medium",
)  # more of the same


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name in WIDE else ()) for name in FOUNDATIONS]
)
def probed(request):
    config = FOUNDATIONS[request.param]
    model = build(config, seed=0)
    before = state(model)
    probe = pp.attach(model, precisions="float32", device="cpu", modes="propagated")
    during = state(model)
    probe.run(WATER, progress=False)
    trace = probe.trace()
    probe.detach()
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    return Probed(request.param, config, n_parameters, trace, before, during, state(model))


def state(model):
    """The weights, and how many hooks each module has."""
    eager = {name: m for name, m in model.named_modules() if not isinstance(m, torch.jit.ScriptModule)}
    hooks = {
        name: len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) + len(m._backward_pre_hooks)
        for name, m in eager.items()
    }
    return weights_sha256(model), hooks


def test_sizes_are_the_published_ones(probed):
    if probed.name not in PUBLISHED_PARAMETERS:
        pytest.skip("no parameter count is published")
    assert probed.n_parameters == PUBLISHED_PARAMETERS[probed.name]


def test_every_block_is_recorded_in_the_order_of_the_model(probed):
    layers = range(probed.config["num_interactions"])
    assert list(probed.trace.blocks) == [
        "node_embedding",
        "radial_embedding",
        "spherical_harmonics",
        *(["pair_repulsion_fn"] if probed.config.get("pair_repulsion") else []),
        *(f"{block}.{layer}" for layer in layers for block in ("interactions", "products")),
        *(f"readouts.{layer}" for layer in layers),
        "scale_shift",
        "atomic_energies_fn",
    ]
    for precision in ("float64", "float32"):
        recorded = {array.attrs.get("block") for array in probed.trace.group("propagated", precision).values()}
        assert set(probed.trace.blocks) <= recorded


def test_recorded_shapes_and_irreps_are_those_of_the_architecture(probed):
    hidden = o3.Irreps(probed.config["hidden_irreps"])
    n_channels = hidden.count("0e")
    recorded = probed.trace.group("propagated", "float64")
    message = recorded["interactions.0.message"]
    assert message.shape == (len(WATER), n_channels, (probed.config["max_ell"] + 1) ** 2)
    assert recorded["products.0.output"].shape == (len(WATER), hidden.dim)
    assert o3.Irreps(recorded["products.0.output"].attrs["irreps"]) == hidden
    assert o3.Irreps(recorded["products.1.output"].attrs["irreps"]) == o3.Irreps(f"{n_channels}x0e")
    assert recorded["radial_embedding.edge_feats"].shape[-1] == probed.config["num_bessel"]
    assert recorded["readouts.1.output"].shape == (len(WATER), len(probed.config.get("heads", ["Default"])))


def test_what_the_trace_says_of_the_model_is_its_architecture(probed):
    attributes = probed.trace.attributes
    assert attributes["cutoff"] == probed.config["r_max"]
    assert attributes["atomic_numbers"] == probed.config["atomic_numbers"]
    assert attributes["interactions"] == [probed.config["interaction_cls_first"], probed.config["interaction_cls"]]
    assert attributes["heads"] == probed.config.get("heads", ["Default"])
    assert attributes["n_parameters"] == probed.n_parameters
    assert attributes["complete"]


def test_float32_forces_differ_from_float64_as_float32_does(probed):
    forces = [probed.trace.group("propagated", precision)["forces"].values for precision in ("float64", "float32")]
    assert 1e-9 < rel_l2(*forces) < 1e-3


def test_the_model_is_left_as_it_was(probed):
    assert probed.during != probed.before  # else the hooks are not where this looks
    assert probed.after == probed.before
