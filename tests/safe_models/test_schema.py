"""schema.py: which values a description can have."""

import pytest

from precision_probe.safe_models import schema
from precision_probe.safe_models.schema import UnfitError, check


@pytest.fixture
def content(config):
    known = {name: value for name, value in config.items() if name in schema._ARCHITECTURE}
    empty = {"attributes": {}, "absent": [], "frozen": [], "adapters": None, "policy": None, "interface": None}
    return empty | {"schema_version": 1, "architecture": known, "sha256": "0" * 64}


def test_a_model_that_is_built_can_be_described(content, config):
    check(content)
    assert content["architecture"] == config


@pytest.mark.parametrize("irreps", ["128x0e+128x1o", "4x0e + 4x1o", "0e", "16x11o"])
def test_irreps(content, irreps):
    content["architecture"]["hidden_irreps"] = irreps
    check(content)


@pytest.mark.parametrize(
    "irreps", ["", "x", "4x", "4x0", "4x0a", "-4x0e", "4x0e+", "4x12e", "²x0e", "4x²e", "1" * 99, 4]
)
def test_no_irreps(content, irreps):
    content["architecture"]["hidden_irreps"] = irreps
    with pytest.raises(UnfitError, match="hidden_irreps"):
        check(content)


@pytest.mark.parametrize("value", [True, "1", None, -(10**400), 1e999, [1], {}])
def test_no_number(content, value):
    content["architecture"]["avg_num_neighbors"] = value
    with pytest.raises(UnfitError, match="avg_num_neighbors"):
        check(content)
