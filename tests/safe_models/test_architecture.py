"""architecture.py: what a model was built from, read off its parts."""

import pytest

from precision_probe.models.building import build
from precision_probe.safe_models.architecture import architecture


@pytest.mark.parametrize(
    "changes",
    [
        {"num_interactions": 1, "model": "MACE", "hidden_irreps": "4x0e"},
        {"correlation": [1, 2], "gate": "abs", "distance_transform": "Soft", "MLP_irreps": "6x0e", "heads": ["a", "b"]},
    ],
)
def test_what_a_model_was_built_from_is_read(config, changes):
    asked = config | changes
    if "heads" in changes:
        asked |= {"atomic_energies": [asked["atomic_energies"]] * 2}
        asked |= {"atomic_inter_scale": [1.0, 2.0], "atomic_inter_shift": [0.0, 0.5]}
    read = architecture(build(asked))
    irreps = {"hidden_irreps", "MLP_irreps"}
    without = irreps | ({"atomic_inter_scale", "atomic_inter_shift"} if "model" in changes else set())
    assert {name: read[name] for name in asked.keys() - without} == {
        name: value for name, value in asked.items() if name not in without
    }
    for name in irreps - ({"MLP_irreps"} if "model" in changes else set()):
        assert read[name].replace(" ", "") == asked[name].replace(" ", "")
