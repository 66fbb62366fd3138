"""Tables of two traces side by side, against numbers that no run made."""

import io
import math

import pandas as pd
import pytest
from rich.console import Console

from precision_probe.cli.tables.comparison import comparison_table, listed_by_reason, provenance_table
from precision_probe.cli.tables.style import WIDTH

nan = math.nan


def lines(renderable, width=WIDTH):
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(renderable)
    return console.export_text().splitlines()


def row(block, tensor, direction, difference, allowed, *, precision="float16", mode="propagated"):
    """A's error is half of what is allowed, and B's a fourth."""
    key = {"precision": precision, "mode": mode, "block": block, "tensor": tensor, "direction": direction}
    errors = {"difference": difference, "allowed": allowed, "error_a": allowed / 2, "error_b": allowed / 4}
    return key | errors | {"equivalent": not difference > allowed}


@pytest.fixture
def comparison():
    rows = [
        row("readouts.0", "output", "forward", 1e-12, 1e-10, precision="float64"),
        row("products.0", "output", "forward", 2e-3, 4e-3),
        row("products.0", "node_feats", "backward", 6e-3, 8e-3),
        row("products.0", "skip", "backward", 5e-3, 4e-3),  # smaller, but further from what is allowed
        row("products.0", "output", "forward", 0.25, 0.5, mode="isolated"),
        row("readouts.0", "output", "forward", 9.0, nan),  # the exact value is zero
    ]
    table = pd.DataFrame(rows)
    table.attrs["allowance"] = "so much"
    return table


def test_each_block_shows_the_tensor_that_is_furthest_from_what_is_allowed(comparison):
    found = [line.split() for line in lines(comparison_table(comparison))]
    (forward,) = [words for words in found if words[:2] == ["products.0", "fwd"]]
    assert forward == ["products.0", "fwd", "2.0e-03", "2.0e-03", "1.0e-03", "2.5e-01", "2.5e-01", "1.2e-01", "same"]
    (backward,) = [words for words in found if words[:2] == ["products.0", "bwd"]]
    assert backward == ["products.0", "bwd", "5.0e-03", "2.0e-03", "1.0e-03", "DIFFERENT"]


def test_a_difference_that_is_nan_is_the_furthest(comparison):
    comparison.loc[2, "difference"] = nan
    (backward,) = [line.split() for line in lines(comparison_table(comparison)) if "bwd" in line]
    assert backward[2:5] == ["nan", "4.0e-03", "2.0e-03"]


def test_float64_has_no_error_of_its_own_and_what_is_zero_is_not_judged(comparison):
    found = [line.split() for line in lines(comparison_table(comparison))]
    exact, zero = [words for words in found if words[:1] == ["readouts.0"]]
    assert exact == ["readouts.0", "fwd", "1.0e-12", "same"]
    assert zero == ["readouts.0", "fwd", "~0", "same"]
    text = " ".join(" ".join(words) for words in found)
    assert "same: so much." in text
    assert text.index("float64 ") < text.index("float16 ")


def test_what_two_traces_say_differently_is_shown_whole():
    differences = pd.DataFrame(
        {"a": ["2.9", "x" * 150], "b": ["2.10", ""]}, index=pd.Index(["versions.torch", "settings"], name="attribute")
    )
    found = lines(provenance_table(differences))
    assert [line.split() for line in found if "torch" in line] == [["versions.torch", "2.9", "2.10"]]
    assert "".join(found).count("x") == 150


def test_what_is_left_out_is_listed_by_reason():
    assert listed_by_reason({"a": "shapes differ"}) == "a (shapes differ)"
    reasons = {"a": "shapes differ", "b": "layouts do", "c": "shapes differ"}
    assert listed_by_reason(reasons) == "a, c (shapes differ); b (layouts do)"
