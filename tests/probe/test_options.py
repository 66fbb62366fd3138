"""options.py: gradients, modes and the device that attach() is given, and what is made of them."""

from pathlib import Path

import pytest
import torch

from precision_probe.exceptions import InputError
from precision_probe.probe.options import (
    batch_edges_on,
    default_device,
    parse_batch_edges,
    parse_gradients,
    parse_keep,
    parse_modes,
)


@pytest.mark.parametrize(
    ("given", "parsed"), [("per_block", "per_block"), ("shared", "shared"), (True, "per_block"), (False, "none")]
)
def test_gradients(given, parsed):
    assert parse_gradients(given) == parsed


@pytest.mark.parametrize("keep", ["tensors", "errors", "none", None])
def test_what_is_kept(keep):
    assert parse_keep(keep) == keep


@pytest.mark.parametrize("unknown", ["", "all", "tensor", "Errors"])
def test_what_else_could_be_kept_is_refused(unknown):
    with pytest.raises(InputError, match="Choose one of tensors, errors, none, or leave it out"):
        parse_keep(unknown)


@pytest.mark.parametrize("unknown", ["both", "", "none", None, 2])
def test_unknown_gradients_are_refused(unknown):
    with pytest.raises(InputError, match="gradients must be 'per_block', 'shared' or False"):
        parse_gradients(unknown)


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ("isolated", ("isolated",)),
        ("isolated,propagated", ("propagated", "isolated")),
        (" propagated , propagated,", ("propagated",)),
        (["isolated", " propagated"], ("propagated", "isolated")),
        (iter(["isolated"]), ("isolated",)),
    ],
)
def test_modes_come_once_and_in_the_order_of_a_trace(given, parsed):
    assert parse_modes(given) == parsed


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("emulated", "Unknown mode emulated"),
        (["isolated", "a", "b"], "Unknown mode a, b"),
        ([], "empty"),
        (" ,", "empty"),
    ],
)
def test_unknown_modes_and_none_are_refused(given, match):
    with pytest.raises(InputError, match=rf"{match}.*Known: propagated, isolated"):
        parse_modes(given)


def test_a_model_in_memory_is_run_where_it_is():
    here, elsewhere = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1, device="meta")
    assert default_device(here, here) == torch.device("cpu")
    assert default_device(elsewhere, elsewhere) == torch.device("meta")
    assert default_device(object(), elsewhere) == torch.device("meta")  # a calculator that holds it
    assert default_device(torch.nn.Tanh(), torch.nn.Tanh()) == torch.device("cpu")  # nothing of it is anywhere


@pytest.mark.parametrize("given", ["demo", "small.model", Path("small.model")])
def test_a_model_from_a_file_may_go_anywhere(given):
    assert default_device(given, torch.nn.Linear(1, 1)) is None


@pytest.mark.parametrize(("text", "edges"), [(None, None), ("auto", "auto"), ("64", 64)])
def test_edges_of_a_batch_are_read(text, edges):
    assert parse_batch_edges(text) == edges


@pytest.mark.parametrize("wrong", ["", "0", "-1", "2.5", "most", "²"])
def test_what_is_no_number_of_edges_is_refused(wrong):
    with pytest.raises(InputError, match=r"batch_edges \(--batch-edges\) must be"):
        parse_batch_edges(wrong)


def test_edges_of_a_batch_by_device():
    cpu, cuda = torch.device("cpu"), torch.device("cuda:1")
    assert [batch_edges_on(given, cpu) for given in (None, 5, "auto")] == [None, 5, None]
    assert [batch_edges_on(given, cuda) for given in (None, 5, "auto")] == [None, 5, 60_000]
