"""description.py: what a file says of its model, as JSON and back."""

import json
import math

import pytest

from precision_probe.policy import Policy, Rule
from precision_probe.safe_models.description import Adapters, Description
from precision_probe.safe_models.schema import UnfitError


def test_json_and_back(config):
    whole = Description(
        config,
        {"interactions.0.avg_num_neighbors": 0.1 + 0.2},
        ("products.0.flag",),
        ("node_embedding.linear.weight",),
        Adapters(4, 1.5),
        Policy((Rule("interactions.*", "float32"),), {"forces": 1e-3}),
        "float32",
        "a" * 64,
    )
    assert Description.from_json(whole.to_json()) == whole


@pytest.mark.parametrize("value", [math.nan, math.inf, object()])
def test_what_is_no_json_is_refused(config, value):
    with pytest.raises(UnfitError, match="cannot be described"):
        Description(config, {"x": value}).to_json()


def test_another_version_is_named(config):
    text = json.dumps(json.loads(Description(config, sha256="a" * 64).to_json()) | {"schema_version": 7})
    with pytest.raises(UnfitError, match="schema version 7"):
        Description.from_json(text)
